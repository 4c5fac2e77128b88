"use strict";
// The script of playground.html: its controls change `state`, the worker draws it, the address keeps it. A state is
//   { latent, class: -1 (AD) to 1 (NC), values: [] (null: unknown), psi, noise: 0 fixed, -1 none, 1, 2, ... others,
//     named: [], principal: [] (in standard deviations of w), mixed: a latent, layers: [] (1: its styles), w: null }
// where w, if it is not null, is the style vector of an own slice, or one that came with the address, in place of a latent's.

const element = (id) => document.getElementById(id);
const data = JSON.parse(element("data").textContent);
const SIDE = data.network.resolution, MIN_SIDE = 16, MAX_SIDE = 4096, MAX_BYTES = 2 ** 26; // of files
const COLOURFUL = 12; // mean difference of the channels, in levels: JPEGs of grey slices may be stored as colours
const STRIP = 7, STRIP_SIDE = Math.min(SIDE, 128); // slices from A to B, and their pixels
const { values: told, ranges } = data.network;

const within = (number, low, high) => Math.min(high, Math.max(low, number || 0));
const zeros = (count) => new Array(count).fill(0);
const fresh = () => ({
  latent: 0, class: -1, values: told.map((one) => one.start), psi: 1, noise: 0,
  named: zeros(data.named.length), principal: zeros(data.principal), mixed: 1, layers: zeros(ranges.length), w: null,
});
let state = fresh(), pinned = null; // pinned: { state } or, of an own slice, { name }
const shown = {}; // slot, "now" or "pinned" -> { side, levels, last, ws, measured, milliseconds }

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
  if (answer.column !== undefined && answer.last) paintGrey(element("strip"), answer, answer.column, STRIP);
  if (answer.slot && !answer.last) return;
  waiting.get(answer.id)?.(answer);
  waiting.delete(answer.id);
};

const draw = (slot, what) => ask({ slot, state: what });

function drawStrip() {
  for (let column = 0; pinned?.state && column < STRIP; column++) {
    worker.postMessage({ slot: `strip ${column}`, column, state, from: pinned.state, share: column / (STRIP - 1), side: STRIP_SIDE });
  }
}

// ----------------------------------------------------------------------------------------------------------------------
// Pictures

/** Fill a square canvas, or one of several squares beside each other. */
function paint(canvas, side, colour, column = 0, columns = 1) {
  if (canvas.width !== side * columns) [canvas.width, canvas.height] = [side * columns, side];
  const context = canvas.getContext("2d"), image = context.createImageData(side, side);
  for (let k = 0; k < side * side; k++) image.data.set([...colour(k), 255], 4 * k);
  context.putImageData(image, column * side, 0);
}

function paintGrey(canvas, { side, levels }, ...where) {
  paint(canvas, side, (k) => [levels[k], levels[k], levels[k]], ...where);
}

function show(answer) {
  shown[answer.slot] = answer;
  paintGrey(element(answer.slot), answer);
  if (answer.slot === "now" && answer.last) {
    element("caption").textContent = `${pinned ? "B: " : ""}${describe(state)}; drawn in ${Math.round(answer.milliseconds)} ms`;
  }
  compare();
}

const valueText = (k, value) => (value === null ? "unknown" : told[k].name === "sex" ? "FM"[value] : String(value));

function describe({ latent, class: of, values, psi, noise, named, principal, mixed, layers, w }) {
  const between = w || Math.abs(of) < 1 ? `class ${of.toFixed(2)}` : of < 0 ? "AD" : "NC";
  return [
    w ? "given style vector" : `latent ${latent}`,
    data.network.num_classes && (of || !w) && between,
    ...(w ? [] : values.map((value, k) => `${told[k].name} ${valueText(k, value)}`)),
    psi !== 1 && `psi ${psi.toFixed(2)}`,
    [...named, ...principal].some(Boolean) && "moved",
    layers.some(Boolean) && `${ranges.filter((_, k) => layers[k]).map((range) => range.name).join(" and ")} styles of latent ${mixed}`,
    noise < 0 ? "no noise" : noise > 0 && `noise ${noise}`,
  ].filter(Boolean).join(", ");
}

/** The difference of the two slices: red where that of now is brighter, blue where it is darker. */
function compare() {
  const { now, pinned: other } = shown, canvas = element("difference");
  for (const id of ["pinned", "difference"]) element(id).parentElement.hidden = !pinned;
  element("pictures").classList.toggle("compared", Boolean(pinned));
  element("unpin").hidden = element("measured").hidden = !pinned;
  element("strip").parentElement.hidden = !pinned?.state;
  if (!pinned || !now || !other || now.side !== other.side) return;
  element("pinned-caption").textContent = `A: ${pinned.name ?? describe(pinned.state)}`;
  let largest = 1;
  for (let k = 0; k < now.levels.length; k++) largest = Math.max(largest, Math.abs(now.levels[k] - other.levels[k]));
  paint(canvas, now.side, (k) => {
    const difference = now.levels[k] - other.levels[k], pale = 255 * (1 - Math.abs(difference) / largest);
    return difference > 0 ? [255, pale, pale] : [pale, pale, 255];
  });
  element("darkest").textContent = `\u2212${largest}`;
  element("brightest").textContent = `+${largest}`;
  if (now.measured && other.measured) showMeasured(other.measured, now.measured);
}

function showMeasured(before, after) {
  const rows = Object.entries(after).map(([name, value]) => {
    const unit = data.units[name] ?? "mm²", places = unit === "mm²" ? 0 : 1, row = document.createElement("tr");
    const [a, b, change] = [before[name], value, value - before[name]].map((x) => x.toFixed(places).replace(/^-(?=0\.?0*$)/, ""));
    row.append(Object.assign(document.createElement("th"), { scope: "row", textContent: `${name}, ${unit}` }));
    for (const text of [a, b, Number(change) > 0 ? `+${change}` : change]) row.insertCell().textContent = text.replace("-", "\u2212");
    return row;
  });
  element("measured").querySelector("tbody").replaceChildren(...rows);
}

// ----------------------------------------------------------------------------------------------------------------------
// Controls

const sliders = [...document.querySelectorAll("input[type=range]")], boxes = [...document.querySelectorAll("input[type=checkbox]")];

function showControls() {
  for (const input of sliders) {
    const { key, index } = input.dataset, value = Array.isArray(state[key]) ? state[key][index] : state[key];
    if (value !== null) input.value = value;
    const text = key === "values" ? valueText(index, value) : value.toFixed(key === "psi" || key === "class" ? 2 : 1);
    input.ariaValueText = text;
    input.nextElementSibling.textContent = value === null ? "\u2013" : text.replace("-", "\u2212");
  }
  for (const box of boxes) {
    const { key, index } = box.dataset;
    box.checked = key === "values" ? state.values[index] === null : Boolean(state.layers[index]);
  }
  element("latent").value = state.latent;
  element("mixed").value = state.mixed;
  for (const part of document.querySelectorAll(".of-latent")) part.disabled = Boolean(state.w);
  element("own").hidden = !state.w;
  element("csv").disabled = state.layers.some(Boolean); // a table holds one style vector
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
  drawStrip();
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
for (const box of boxes) {
  box.addEventListener("change", () => {
    const { key, index } = box.dataset, value = key === "layers" ? Number(box.checked) : box.checked ? null : told[index].start;
    change({ [key]: state[key].with(index, value) });
  });
}
for (const key of ["latent", "mixed"]) {
  element(key).addEventListener("change", (event) => {
    change({ [key]: within(Math.floor(event.target.value), 0, data.network.latents - 1) });
  });
}
element("next").addEventListener("click", () => change({ latent: (state.latent + 1) % data.network.latents }));
element("noise").addEventListener("change", (event) => change({ noise: Number(event.target.value) }));
element("another").addEventListener("click", () => change({ noise: Math.max(0, state.noise) + 1 }));
element("reset").addEventListener("click", () => {
  change({ ...fresh(), latent: state.latent, w: state.w, class: state.w ? 0 : -1 });
});
element("pin").addEventListener("click", () => { setPinned({ state }); change({}); });
element("unpin").addEventListener("click", () => { setPinned(null); change({}); });
element("leave").addEventListener("click", () => {
  if (!pinned?.state) setPinned(null);
  tell("");
  change({ w: null, class: -1 });
});

// ----------------------------------------------------------------------------------------------------------------------
// The address

function write(what, pin) {
  const fields = new URLSearchParams(), standard = fresh();
  for (const [key, value] of Object.entries(what)) {
    if (value === null || String(value) === String(standard[key])) continue;
    fields.set(key, key === "w" ? toText(value) : String(value));
  }
  if (pin) fields.set("pin", write(pin));
  return fields.toString();
}

/** The state in a text of write(); whatever it lacks or holds wrongly is as in a fresh one. */
function read(text) {
  const fields = new URLSearchParams(text), found = fresh(), number = (key) => Number(fields.get(key));
  const latents = [0, data.network.latents - 1];
  const limits = { latent: latents, mixed: latents, class: [-1, 1], psi: [0, 1.5], noise: [-1, 2 ** 16] };
  for (const [key, [low, high]] of Object.entries(limits)) if (fields.has(key)) found[key] = within(number(key), low, high);
  for (const key of ["latent", "mixed", "noise"]) found[key] = Math.floor(found[key]);
  const list = (key, convert) => { if (fields.has(key)) found[key] = found[key].map((_, k) => convert(fields.get(key).split(",")[k], k)); };
  for (const key of ["named", "principal"]) list(key, (value) => within(Number(value), -3, 3));
  list("layers", (value) => Number(value === "1"));
  list("values", (value, k) => (value ? Math.round(within(Number(value), told[k].low, told[k].high)) : null));
  if (fields.has("w")) found.w = fromText(fields.get("w"));
  return found;
}

/** Numbers as float16, two bytes each, in base64 as addresses may hold it. */
function toText(numbers) {
  const halves = numbers.map((value) => {
    const size = Math.min(65504, Math.abs(value)), exponent = Math.max(-14, Math.floor(Math.log2(size)));
    return (value < 0 ? 0x8000 : 0) + ((exponent + 14) << 10) + Math.round(size / 2 ** (exponent - 10));
  });
  const bytes = new Uint8Array(Uint16Array.from(halves).buffer);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function fromText(text) {
  try {
    const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
    const numbers = Array.from(new Uint16Array(bytes.buffer), (half) => {
      const exponent = (half >> 10) & 31, fraction = half & 1023;
      return (half >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
    });
    return numbers.length === data.network.w_dim ? numbers : null;
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

const baseName = () => `${data.name}_${state.w ? "given" : state.latent}`;

element("png").addEventListener("click", async () => {
  await draw("now", state);
  element("now").toBlob((blob) => download(`${baseName()}.png`, blob), "image/png");
});
element("csv").addEventListener("click", async () => {
  const { ws: [w] } = await draw("now", state), quoted = `"${data.run.replaceAll('"', '""')}"`;
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
    const levels = await readSlice(file), { w, outside, rms, measured } = await ask({ encode: levels });
    const judged = `outside: ${outside.toFixed(2)}; 99% of the model's own slices are below 1`;
    const verdict = outside > 1
      ? `refused, as unlike anything that this model draws (${judged}): what the sliders show of it means little.`
      : `like slices that this model draws (${judged}).`;
    tell(`${file.name}: ${verdict} Reconstructed with an error of ${rms.toFixed(1)} grey levels (RMS).`, outside > 1);
    setPinned({ name: file.name });
    show({ slot: "pinned", side: SIDE, levels, measured });
    await change({ ...fresh(), latent: state.latent, w, class: 0 });
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
