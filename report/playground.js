"use strict";
// The script of playground.html: its controls change `state`, the worker draws it, the address keeps it. A state is
//   { latent, class: -1 (AD) to 1 (NC), psi, noise: 0 fixed, -1 none, 1, 2, ... others, named: [], principal: [], points: null }
// with directions in standard deviations of w, and points, if they are not null, of an encoded slice in place of a latent.

const element = (id) => document.getElementById(id);
const data = JSON.parse(element("data").textContent);
const SIDE = data.network.resolution, MIN_SIDE = 16, MAX_SIDE = 4096, MAX_BYTES = 2 ** 26; // of files
const COLOURFUL = 12; // mean difference of the channels, in levels: JPEGs of grey slices may be stored as colours
const STEPS = 1024; // of an encoded point, per standard deviation, in the address

const within = (number, low, high) => Math.min(high, Math.max(low, number || 0));
const zeros = (count) => new Array(count).fill(0);
const fresh = () => ({
  latent: 0, class: -1, psi: 1, noise: 0, named: zeros(data.named.length), principal: zeros(data.principal), points: null,
});
let state = fresh(), pinned = null; // pinned: { state } or, of an own slice, { name }
const shown = {}; // slot, "now" or "pinned" -> { side, levels, last, w, milliseconds }

// ----------------------------------------------------------------------------------------------------------------------
// The worker

const worker = new Worker(URL.createObjectURL(new Blob([element("worker").textContent], { type: "text/javascript" })));
const waiting = new Map();
let requests = 0;
worker.postMessage({ network: data.network, weights: data.weights });
worker.onerror = (event) => tell(`The page does not work in this browser: ${event.message}`);

/** Send a request; the promise is of its answer, the last one if there are several, and is not kept if a newer one overtakes it. */
function ask(request) {
  const id = ++requests;
  worker.postMessage({ ...request, id });
  return new Promise((resolve) => waiting.set(id, resolve));
}

worker.onmessage = ({ data: answer }) => {
  if (answer.slot === "now" || (answer.slot === "pinned" && pinned?.state)) show(answer);
  if (answer.slot && !answer.last) return;
  waiting.get(answer.id)?.(answer);
  waiting.delete(answer.id);
};

const draw = (slot, what) => ask({ slot, state: what });

// ----------------------------------------------------------------------------------------------------------------------
// Pictures

function paint(canvas, side, colour) {
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d"), image = context.createImageData(side, side);
  for (let k = 0; k < side * side; k++) image.data.set([...colour(k), 255], 4 * k);
  context.putImageData(image, 0, 0);
}

function show(answer) {
  shown[answer.slot] = answer;
  paint(element(answer.slot), answer.side, (k) => [answer.levels[k], answer.levels[k], answer.levels[k]]);
  if (answer.slot === "now" && answer.last) {
    element("caption").textContent = `${describe(state)}; drawn in ${Math.round(answer.milliseconds)} ms`;
  }
  compare();
}

function describe({ latent, class: of, psi, noise, named, principal, points }) {
  const between = points || Math.abs(of) < 1 ? `class ${of.toFixed(2)}` : of < 0 ? "AD" : "NC";
  return [
    points ? "encoded slice" : `latent ${latent}`,
    data.network.num_classes && (of || !points) && between,
    psi !== 1 && `psi ${psi.toFixed(2)}`,
    [...named, ...principal].some(Boolean) && "moved",
    noise < 0 ? "no noise" : noise > 0 && `noise ${noise}`,
  ].filter(Boolean).join(", ");
}

/** The difference of the two slices: red where that of now is brighter, blue where it is darker. */
function compare() {
  const { now, pinned: other } = shown, canvas = element("difference");
  for (const id of ["pinned", "difference"]) element(id).parentElement.hidden = !pinned;
  element("pictures").classList.toggle("compared", Boolean(pinned));
  element("unpin").hidden = !pinned;
  if (!pinned || !now || !other || now.side !== other.side) return;
  element("pinned-caption").textContent = pinned.name ?? describe(pinned.state);
  let largest = 1;
  for (let k = 0; k < now.levels.length; k++) largest = Math.max(largest, Math.abs(now.levels[k] - other.levels[k]));
  paint(canvas, now.side, (k) => {
    const difference = now.levels[k] - other.levels[k], pale = 255 * (1 - Math.abs(difference) / largest);
    return difference > 0 ? [255, pale, pale] : [pale, pale, 255];
  });
  element("darkest").textContent = `\u2212${largest}`;
  element("brightest").textContent = `+${largest}`;
}

// ----------------------------------------------------------------------------------------------------------------------
// Controls

const sliders = [...document.querySelectorAll("input[data-key]")];

function showControls() {
  for (const input of sliders) {
    const { key, index } = input.dataset, value = Array.isArray(state[key]) ? state[key][index] : state[key];
    input.value = value;
    input.nextElementSibling.textContent = value.toFixed(key === "psi" || key === "class" ? 2 : 1).replace("-", "\u2212");
  }
  element("latent").value = state.latent;
  element("of-latent").disabled = Boolean(state.points);
  element("own").hidden = !state.points;
  element("noise").querySelector("[data-other]")?.remove();
  if (state.noise > 0) {
    const option = new Option(`number ${state.noise}`, state.noise);
    option.dataset.other = "";
    element("noise").append(option);
  }
  element("noise").value = state.noise;
}

/** Change the state, show it, draw it and, once it is drawn, keep it in the address. */
async function change(changes) {
  state = { ...state, ...changes };
  showControls();
  await draw("now", state);
  history.replaceState(null, "", `#${write(state, pinned?.state)}`);
}

function setPinned(what) {
  pinned = what;
  delete shown.pinned;
  if (what?.state) draw("pinned", what.state);
  compare();
}

for (const input of sliders) {
  input.addEventListener("input", () => {
    const { key, index } = input.dataset, value = Number(input.value);
    change({ [key]: Array.isArray(state[key]) ? state[key].with(index, value) : value });
  });
}
element("latent").addEventListener("change", (event) => {
  change({ latent: within(Math.floor(event.target.value), 0, data.network.latents - 1) });
});
element("next").addEventListener("click", () => change({ latent: (state.latent + 1) % data.network.latents }));
element("noise").addEventListener("change", (event) => change({ noise: Number(event.target.value) }));
element("another").addEventListener("click", () => change({ noise: Math.max(0, state.noise) + 1 }));
element("reset").addEventListener("click", () => {
  change({ ...fresh(), latent: state.latent, points: state.points, class: state.points ? 0 : -1 });
});
element("pin").addEventListener("click", () => { setPinned({ state }); change({}); });
element("unpin").addEventListener("click", () => { setPinned(null); change({}); });
element("leave").addEventListener("click", () => {
  if (!pinned?.state) setPinned(null);
  tell("");
  change({ points: null, class: -1 });
});

// ----------------------------------------------------------------------------------------------------------------------
// The address

function write(what, pin) {
  const fields = new URLSearchParams(), standard = fresh();
  for (const [key, value] of Object.entries(what)) {
    if (value === null || String(value) === String(standard[key])) continue;
    fields.set(key, key === "points" ? toText(value) : String(value));
  }
  if (pin) fields.set("pin", write(pin));
  return fields.toString();
}

/** The state in a text of write(); whatever it lacks or holds wrongly is as in a fresh one. */
function read(text) {
  const fields = new URLSearchParams(text), found = fresh(), number = (key) => Number(fields.get(key));
  const limits = { latent: [0, data.network.latents - 1], class: [-1, 1], psi: [0, 1.5], noise: [-1, 2 ** 16] };
  for (const [key, [low, high]] of Object.entries(limits)) if (fields.has(key)) found[key] = within(number(key), low, high);
  for (const key of ["latent", "noise"]) found[key] = Math.floor(found[key]);
  for (const key of ["named", "principal"]) {
    const values = (fields.get(key) ?? "").split(",");
    found[key] = found[key].map((_, k) => within(Number(values[k]), -3, 3));
  }
  if (fields.has("points")) found.points = fromText(fields.get("points"));
  return found;
}

function toText(points) {
  const bytes = new Uint8Array(Int16Array.from(points, (value) => Math.round(within(value * STEPS, -32767, 32767))).buffer);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function fromText(text) {
  try {
    const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
    const points = Array.from(new Int16Array(bytes.buffer), (value) => value / STEPS);
    return points.length === data.points ? points : null;
  } catch { // not base64, or an odd number of bytes
    return null;
  }
}

function open() {
  const text = location.hash.slice(1), pin = new URLSearchParams(text).get("pin");
  tell("");
  setPinned(pin === null ? null : { state: read(pin) });
  change(read(text));
}

// ----------------------------------------------------------------------------------------------------------------------
// Saving

function download(name, blob) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const baseName = () => `${data.name}_${state.points ? "encoded" : state.latent}`;

element("png").addEventListener("click", async () => {
  await draw("now", state);
  element("now").toBlob((blob) => download(`${baseName()}.png`, blob), "image/png");
});
element("csv").addEventListener("click", async () => {
  const { w } = await draw("now", state), quoted = `"${data.run.replaceAll('"', '""')}"`;
  const text = `run,set,${Array.from(w, (_, k) => `w${k}`)}\n${quoted},"${describe(state)}",${Array.from(w)}\n`;
  download(`${baseName()}.csv`, new Blob([text], { type: "text/csv" }));
});

// ----------------------------------------------------------------------------------------------------------------------
// An own slice

function tell(text, refused = false) {
  element("message").textContent = text;
  element("message").classList.toggle("refused", refused);
}

/** Width and height of a PNG or JPEG by its first bytes, before anything decodes it; throws what is wrong with it. */
function sizeOf(bytes) {
  const view = new DataView(bytes);
  if (bytes.byteLength > 26 && view.getUint32(0) === 0x89504e47) {
    if (view.getUint8(24) > 8) throw new Error("it has 16 bits a pixel; python predict.py --encode reads it");
    return [view.getUint32(16), view.getUint32(20)];
  }
  if (bytes.byteLength < 4 || view.getUint16(0) !== 0xffd8) throw new Error("neither a PNG nor a JPEG");
  for (let k = 2; k + 9 < bytes.byteLength; k += 2 + view.getUint16(k + 2)) {
    const marker = view.getUint16(k);
    const isFrame = marker >= 0xffc0 && marker <= 0xffcf && ![0xffc4, 0xffc8, 0xffcc].includes(marker);
    if (isFrame) return [view.getUint16(k + 7), view.getUint16(k + 5)];
    if (marker < 0xff00) break;
  }
  throw new Error("a damaged JPEG");
}

/** A file as grey levels [SIDE, SIDE], as data/decode.py reads it; throws what is wrong with it. */
async function readSlice(file) {
  if (file.size > MAX_BYTES) throw new Error(`${Math.round(file.size / 2 ** 20)} MiB are too many`);
  const [width, height] = sizeOf(await file.arrayBuffer());
  if (Math.min(width, height) < MIN_SIDE || Math.max(width, height) > MAX_SIDE) {
    throw new Error(`${width} x ${height} pixels; slices of ${MIN_SIDE} to ${MAX_SIDE} are read`);
  }
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => null);
  if (!image) throw new Error("a damaged image");
  const side = Math.max(image.width, image.height);
  const context = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, side, side);
  context.drawImage(image, Math.floor((side - image.width) / 2), Math.floor((side - image.height) / 2));
  const { data: rgba } = context.getImageData(0, 0, side, side), levels = new Uint8ClampedArray(side * side);
  let colourful = 0;
  for (let k = 0; k < levels.length; k++) {
    const [r, g, b] = rgba.subarray(4 * k, 4 * k + 3);
    levels[k] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16; // PIL's luma
    colourful += (Math.max(r, g, b) - Math.min(r, g, b)) / (image.width * image.height);
  }
  if (colourful > COLOURFUL) throw new Error("a colour picture, not a grey slice");
  if (levels.every((level) => level === levels[0])) throw new Error("one grey level only");
  return side === SIDE ? levels : transposed(shrunk(transposed(shrunk(levels, side), side, SIDE), side), SIDE, SIDE);
}

/** Rows of `side` levels -> rows of SIDE, by PIL's antialiasing Lanczos filter. */
function shrunk(levels, side) {
  const step = side / SIDE, stretch = Math.max(1, step), rows = levels.length / side, out = new Uint8ClampedArray(rows * SIDE);
  const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
  for (let j = 0; j < SIDE; j++) {
    const centre = (j + 0.5) * step, first = Math.max(0, Math.floor(centre - 3 * stretch + 0.5));
    const weights = Float64Array.from({ length: Math.min(side, Math.floor(centre + 3 * stretch + 0.5)) - first }, (_, k) => {
      const x = (first + k + 0.5 - centre) / stretch;
      return Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0;
    });
    const total = weights.reduce((a, b) => a + b);
    for (let y = 0; y < rows; y++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * levels[y * side + first + k];
      out[y * SIDE + j] = sum / total;
    }
  }
  return out;
}

function transposed(levels, rows, columns) {
  return levels.map((_, k) => levels[(k % rows) * columns + Math.floor(k / rows)]);
}

async function take(file) {
  tell(`${file.name}: reading`);
  try {
    const levels = await readSlice(file), { points, outside, rms } = await ask({ encode: levels });
    const judged = `outside: ${outside.toFixed(2)}; 99% of the model's own slices are below 1`;
    const verdict = outside > 1
      ? `refused, as unlike anything that this model draws (${judged}): what the sliders show of it means little.`
      : `like slices that this model draws (${judged}).`;
    tell(`${file.name}: ${verdict} Reconstructed with an error of ${rms.toFixed(1)} grey levels (RMS).`, outside > 1);
    setPinned({ name: file.name });
    show({ slot: "pinned", side: SIDE, levels });
    await change({ ...fresh(), latent: state.latent, points, class: 0 });
  } catch (problem) {
    tell(`${file.name}: ${problem.message}.`, true);
  }
}

element("file").addEventListener("change", (event) => event.target.files[0] && take(event.target.files[0]));
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", over);
    if (name === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}

addEventListener("hashchange", open);
open();
window.playground = { ask, draw, data };
