// The script of atlas.html, after page.js: data from atlas.py, points on one canvas. Positions on the map run from 0 to 1.

const map = document.getElementById("map");
const RADIUS = 3.2, REAL_RADIUS = 4.6, REACH = 24, MARGIN = 18; // CSS pixels: of points, of the pointer, around the map
const EPOCH_SECONDS = 0.7; // of the animation
const RAMP = ["#5b3a8c", "#3b6fa8", "#21918c", "#5ec962", "#e0c520"]; // near viridis, to be seen on light and dark paper
const LABELS = { area: "ventricles, mm²", distance: "distance from mean w", age: "age, years", sex: "sex" };

const state = {
  tab: 0, view: 0, colour: "set", epoch: 0, hidden: new Set(), current: -1, pinned: [], selected: [],
  zoom: 1, left: 0, top: 0, path: null, panning: null, playing: false,
};
let view, points, colours, placed, due = false;

const present = (value) => value !== null && value !== undefined;
const facts = (i) => Object.fromEntries(Object.entries(view.facts).map(([name, values]) => [name, values[i]]));
const setOf = (i) => view.sets[view.set[i]];
const shown = (i) => !state.hidden.has(view.set[i]);
const allShown = () => points.filter(shown);

function number(value, digits = 3) {
  return value.toLocaleString("en", { maximumSignificantDigits: Math.max(digits, Math.ceil(Math.log10(Math.abs(value) + 1))) });
}

// ----------------------------------------------------------------------------------------------------------------------
// Slices

const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
scratch.canvas.width = scratch.canvas.height = data.side;

/** The grey levels of a cell, 0 to 255. */
function pixels(cell) {
  scratch.drawImage(sprite, ...place(cell), data.side, data.side, 0, 0, data.side, data.side);
  const { data: rgba } = scratch.getImageData(0, 0, data.side, data.side);
  return Float64Array.from({ length: data.side ** 2 }, (_, k) => rgba[4 * k]);
}

function meanSlice(rows) {
  const sum = new Float64Array(data.side ** 2);
  for (const i of rows) pixels(view.cell[i]).forEach((value, k) => { sum[k] += value / rows.length; });
  return sum;
}

function showGrey(canvas, grey) {
  paint(canvas, grey, (value) => [value, value, value]);
}

/** A difference of grey levels: red where it is positive, blue where it is negative; returns the level of full colour. */
function showDifference(canvas, difference) {
  const largest = difference.reduce((most, value) => Math.max(most, Math.abs(value)), 1);
  paint(canvas, difference, (value) => {
    const pale = 255 * (1 - Math.abs(value) / largest);
    return value > 0 ? [255, pale, pale] : [pale, pale, 255];
  });
  return largest;
}

function paint(canvas, values, colour) {
  canvas.width = canvas.height = data.side;
  const context = canvas.getContext("2d"), image = context.createImageData(data.side, data.side);
  values.forEach((value, k) => image.data.set([...colour(value), 255], 4 * k));
  context.putImageData(image, 0, 0);
}

function picture(caption, draw) {
  const canvas = make("canvas", [], { className: "slice" });
  const largest = draw(canvas);
  return make("figure", [canvas, make("figcaption", largest ? `${caption}, colours up to ${number(largest)} grey levels` : caption)]);
}

// ----------------------------------------------------------------------------------------------------------------------
// Style vectors: float16, decoded when they are asked for

let halves;

/** The bytes of a style vector. */
function styleBytes(i) {
  halves ??= Uint8Array.from(atob(data.w), (letter) => letter.charCodeAt(0));
  return halves.subarray(2 * view.facts.row[i], 2 * (view.facts.row[i] + setOf(i).w_dim));
}

function styleVector(i) {
  const { buffer, byteOffset } = styleBytes(i), bytes = new DataView(buffer, byteOffset);
  return Array.from({ length: setOf(i).w_dim }, (_, k) => {
    const half = bytes.getUint16(2 * k, true), exponent = (half >> 10) & 31, fraction = half & 1023;
    return (half >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
  });
}

const hasStyle = (i) => present(view.facts.row?.[i]);

/** A link that opens a slice in the playground of its model, if there is one; its address is as playground.js reads it. */
function playgroundLink(i) {
  const page = hasStyle(i) && data.playgrounds[setOf(i).run];
  if (!page) return [];
  const w = btoa(String.fromCharCode(...styleBytes(i))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return [" ", make("a", "in the playground", { href: `${encodeURIComponent(page)}#class=0&w=${w}` })];
}

function styleHeader(rows, first) {
  const length = Math.max(0, ...rows.map((i) => (hasStyle(i) ? setOf(i).w_dim : 0)));
  return [...first, ...Array.from({ length }, (_, k) => `w${k}`)];
}

function downloadSelection() {
  const columns = ["number", "file", "area", "distance", "age", "sex", "missed"].filter((name) => view.facts[name]);
  const rows = state.selected.map((i) => [
    setOf(i).run, setOf(i).name, ...columns.map((name) => view.facts[name][i]), ...(hasStyle(i) ? styleVector(i) : []),
  ]);
  download("selection.csv", styleHeader(state.selected, ["run", "set", ...columns]), rows);
}

function downloadLine() {
  const [a, b] = state.pinned.map(styleVector), run = setOf(state.pinned[0]).run, shares = [0, 1, 2, 3, 4, 5, 6].map((k) => k / 6);
  const rows = shares.map((share) => [run, "from A to B", ...a.map((value, k) => value + share * (b[k] - value))]);
  download("line.csv", styleHeader(state.pinned, ["run", "set"]), rows);
}

// ----------------------------------------------------------------------------------------------------------------------
// Colours

function themeColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function rampColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), k = Math.min(Math.floor(at), RAMP.length - 2);
  const [from, to] = [RAMP[k], RAMP[k + 1]].map((hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16)));
  return `rgb(${from.map((value, c) => Math.round(value + (at - k) * (to[c] - value))).join(" ")})`;
}

/** What points can be coloured by in this view: {key: label}. */
function colourings() {
  const runs = new Set(view.sets.map((of) => of.run)), found = { set: "class" };
  if (runs.size > 1) found.run = "model";
  for (const [name, label] of Object.entries(LABELS)) if (view.facts[name]?.some(present)) found[name] = label;
  return found;
}

/** Colours of the sets by class; sets beyond the first generated one of a class have the colour "other". */
function setColours() {
  const taken = new Set();
  return view.sets.map((of) => {
    const kind = `${of.real} ${of.class}`, first = !taken.has(kind);
    taken.add(kind);
    return themeColour(first && ["AD", "NC"].includes(of.class) ? of.class : "other");
  });
}

/** {of: colour of each point, key: [[label, colour]] of categories, range: [low, high] of numbers}. */
function computeColours() {
  const none = themeColour("none"), values = view.facts[state.colour];
  if (state.colour === "set") {
    const ofSets = setColours();
    return { of: points.map((i) => ofSets[view.set[i]]) };
  }
  if (state.colour === "run" || state.colour === "sex") {
    const labels = points.map((i) => (state.colour === "run" ? setOf(i).run : values[i])), known = [...new Set(labels.filter(present))];
    const key = known.map((label, k) => [label, rampColour(known.length > 1 ? (0.1 + 0.75 * k / (known.length - 1)) : 0.5)]);
    const unknown = labels.filter((label) => !present(label)).length;
    const byLabel = new Map(key);
    return { of: labels.map((label) => byLabel.get(label) ?? none), key: unknown ? [...key, [`unknown (${unknown})`, none]] : key };
  }
  const known = values.filter(present), range = [Math.min(...known), Math.max(...known)], size = range[1] - range[0] || 1;
  const key = known.length < values.length ? [[`unknown (${values.length - known.length})`, none]] : [];
  return { of: values.map((value) => (present(value) ? rampColour((value - range[0]) / size) : none)), range, key };
}

const stamps = new Map();

/** A point of this colour, drawn once: {canvas, side in CSS pixels, rgba, rows and columns that it covers}, outlined if it is real or missed. */
function stamp(colour, real, missed) {
  const ink = themeColour("ink"), key = `${colour} ${real} ${missed} ${devicePixelRatio} ${ink}`;
  if (!stamps.has(key)) {
    const radius = real ? REAL_RADIUS : RADIUS, side = 2 * Math.ceil(radius + 3), canvas = document.createElement("canvas");
    canvas.width = canvas.height = side * devicePixelRatio;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.scale(devicePixelRatio, devicePixelRatio);
    context.arc(side / 2, side / 2, radius, 0, 7);
    context.fillStyle = colour;
    context.globalAlpha = real ? 0.95 : 0.8;
    context.fill();
    if (real || missed) {
      context.globalAlpha = 1;
      context.lineWidth = missed ? 2 : 0.9;
      context.strokeStyle = ink;
      context.stroke();
    }
    const { data: rgba } = context.getImageData(0, 0, canvas.width, canvas.width);
    const covered = Array.from({ length: canvas.width ** 2 }, (_, k) => k).filter((k) => rgba[4 * k + 3]);
    const columns = covered.map((k) => k % canvas.width), rows = covered.map((k) => Math.floor(k / canvas.width));
    stamps.set(key, { canvas, side, columns, rows, rgba: covered.flatMap((k) => [...rgba.slice(4 * k, 4 * k + 4)]) });
  }
  return stamps.get(key);
}

// ----------------------------------------------------------------------------------------------------------------------
// The map

/** Where point i lies on the canvas, in CSS pixels. */
function position(i) {
  placed ??= placePoints();
  return [placed.x[i], placed.y[i]];
}

/** The positions {x, y} of all points; between two epochs in proportion. */
function placePoints() {
  const before = Math.floor(state.epoch), after = Math.min(before + 1, view.x.length - 1), share = state.epoch - before;
  const { clientWidth: width, clientHeight: height } = map;
  const size = Math.min((width - 2 * MARGIN) / extent.width, (height - 2 * MARGIN) / extent.height);
  const axis = (of, shift, margin) =>
    Float64Array.from(of[before], (value, i) => shift + state.zoom * (margin + size * (value + share * (of[after][i] - value))));
  return {
    x: axis(view.x, state.left, (width - size * extent.width) / 2),
    y: axis(view.y, state.top, (height - size * extent.height) / 2),
  };
}

let extent;

function measureExtent() {
  const largest = (rows) => rows.reduce((most, row) => row.reduce((a, b) => Math.max(a, b), most), 0.001);
  extent = { width: largest(view.x), height: largest(view.y) };
}

function redraw() {
  placed = null;
  if (!due) requestAnimationFrame(draw);
  due = true;
}

function draw() {
  due = false;
  const context = map.getContext("2d"), ratio = devicePixelRatio;
  if (map.width !== Math.round(map.clientWidth * ratio) || map.height !== Math.round(map.clientHeight * ratio)) {
    [map.width, map.height] = [Math.round(map.clientWidth * ratio), Math.round(map.clientHeight * ratio)];
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, map.clientWidth, map.clientHeight);
  const chosen = new Set(state.selected);
  if (colours.ratio !== ratio) {
    colours.stamps = points.map((i) => stamp(colours.of[i], setOf(i).real, view.facts.missed?.[i]));
    colours.ratio = ratio;
  }
  paintPoints(context, ratio, chosen);
  context.strokeStyle = context.fillStyle = themeColour("ink");
  const ring = (i, radius) => {
    context.beginPath();
    context.arc(...position(i), radius, 0, 7);
    context.lineWidth = 2;
    context.stroke();
  };
  if (state.current >= 0) ring(state.current, 8);
  context.font = "600 14px system-ui, sans-serif";
  state.pinned.forEach((i, k) => {
    ring(i, 10);
    const [x, y] = position(i);
    context.fillText("AB"[k], x + 12, y - 8);
  });
  if (state.path) {
    context.beginPath();
    state.path.forEach(([x, y]) => context.lineTo(x, y));
    context.setLineDash([4, 3]);
    context.lineWidth = 1.2;
    context.stroke();
    context.setLineDash([]);
  }
}

let buffer;

/** Put the points onto the canvas, blended here: thousands of drawImage take several times as long without a GPU. */
function paintPoints(context, ratio, chosen) {
  const edge = Math.ceil(10 * ratio), width = map.width + 2 * edge, height = map.height + 2 * edge; // wide enough for half a point
  if (buffer?.width !== width || buffer.height !== height) buffer = context.createImageData(width, height);
  const out = buffer.data.fill(0);
  for (const i of points) {
    if (!shown(i)) continue;
    const [x, y] = position(i), { canvas, columns, rows, rgba } = colours.stamps[i], strength = chosen.size && !chosen.has(i) ? 0.2 : 1;
    const left = Math.round(x * ratio - canvas.width / 2) + edge, top = Math.round(y * ratio - canvas.width / 2) + edge;
    if (left < 0 || top < 0 || left + canvas.width > width || top + canvas.width > height) continue;
    for (let k = 0; k < rows.length; k++) {
      const to = 4 * ((top + rows[k]) * width + left + columns[k]), alpha = strength * rgba[4 * k + 3], share = out[to + 3] ? alpha / 255 : 1;
      for (let c = 0; c < 3; c++) out[to + c] += share * (rgba[4 * k + c] - out[to + c]);
      out[to + 3] += alpha * (1 - out[to + 3] / 255);
    }
  }
  context.putImageData(buffer, -edge, -edge);
}

function nearest(x, y) {
  let best = -1, least = REACH ** 2;
  for (const i of points) {
    if (!shown(i)) continue;
    const [px, py] = position(i), distance = (px - x) ** 2 + (py - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

/** The nearest point in a direction, where sideways counts twice; the point itself if there is none. */
function neighbour(i, dx, dy) {
  const [x, y] = position(i);
  let best = i, least = Infinity;
  for (const j of points) {
    const [px, py] = position(j), along = dx * (px - x) + dy * (py - y), aside = Math.abs(dy * (px - x) - dx * (py - y));
    if (j !== i && shown(j) && along > 0.01 && aside <= 2 * along && along + 2 * aside < least) [best, least] = [j, along + 2 * aside];
  }
  return best;
}

function zoomBy(factor, x = map.clientWidth / 2, y = map.clientHeight / 2) {
  const zoom = Math.min(Math.max(state.zoom * factor, 1), 40), change = zoom / state.zoom;
  state.left = x - change * (x - state.left);
  state.top = y - change * (y - state.top);
  if (zoom === 1) state.left = state.top = 0;
  state.zoom = zoom;
  redraw();
}

function inside(path, x, y) {
  let crossings = 0;
  for (let k = 0, last = path.length - 1; k < path.length; last = k++) {
    const [[ax, ay], [bx, by]] = [path[k], path[last]];
    if (ay > y !== by > y && x < ax + (y - ay) / (by - ay) * (bx - ax)) crossings += 1;
  }
  return crossings % 2 === 1;
}

// ----------------------------------------------------------------------------------------------------------------------
// The slice under the pointer

/** [[name, text]] of what is known of a slice. */
function describe(i) {
  const of = setOf(i), known = facts(i), lines = [["set", of.name]];
  if (present(known.drawn)) lines.push(["beside it", "drawn by the model at its style vector"]);
  if (present(known.file)) lines.push(["file", known.file]);
  if (present(known.number)) lines.push(["latent", of.fixed ? `${known.number} of train.py's fixed ones` : `${known.number} of seed ${of.seed}`]);
  if (of.run) lines.push(["model", of.run.split(/[\\/]/).slice(-2).join("/")], ["trained", of.fixed ? `epoch ${of.epoch}` : of.trained]);
  for (const name of ["area", "distance", "age", "sex"]) {
    if (present(known[name])) lines.push([LABELS[name], typeof known[name] === "number" ? number(known[name]) : known[name]]);
  }
  if (known.missed) lines.push(["nearby", of.real ? "no generated slice" : "no real slice"]);
  return lines;
}

function showCurrent(i, speak = false) {
  if (i === state.current) return;
  state.current = i;
  redraw();
  if (i < 0) return;
  showCell(element("slice"), view.cell[i]);
  const drawn = view.facts.drawn?.[i];
  element("drawn").hidden = !present(drawn);
  if (present(drawn)) showCell(element("drawn"), drawn);
  const lines = describe(i);
  element("facts").replaceChildren(...lines.flatMap(([name, text]) => [make("dt", name), make("dd", `${text}`)]));
  if (speak) element("spoken").textContent = lines.map((line) => line.join(" ")).join(", ");
}

function pin(i) {
  if (i < 0) return;
  const at = state.pinned.indexOf(i);
  state.pinned = at >= 0 ? state.pinned.filter((j) => j !== i) : [...state.pinned.slice(-1), i];
  showPinned();
}

function showPinned() {
  const [a, b] = state.pinned, two = present(b), line = element("line"), frame = element("pinned");
  frame.hidden = !present(a);
  line.replaceChildren();
  element("line-text").textContent = "";
  const linked = two && hasStyle(a) && hasStyle(b) && setOf(a).run === setOf(b).run;
  element("line-csv").hidden = !linked;
  redraw();
  if (frame.hidden) return;
  const pictures = state.pinned.map((i, k) => picture(`${"AB"[k]}: ${setOf(i).name}`, (canvas) => showCell(canvas, view.cell[i])));
  state.pinned.forEach((i, k) => pictures[k].lastChild.append(...playgroundLink(i)));
  if (two) {
    const [of, from] = [b, a].map((i) => pixels(view.cell[i]));
    pictures.push(picture("B less A, red where B is brighter", (canvas) => showDifference(canvas, of.map((value, k) => value - from[k]))));
  }
  frame.querySelector(".pictures").replaceChildren(...pictures);
  if (!linked) {
    if (two && hasStyle(a)) element("line-text").textContent = "Two models: there is no line between their style spaces.";
    return;
  }
  const [from, to] = [a, b].map((i) => view.facts.cluster[i]);
  if (from === to) {
    element("line-text").textContent = `Both lie in cluster ${from + 1} of w. Download the line between them to draw it.`;
    return;
  }
  element("line-text").textContent = `On the line in w from the centre of A's cluster, ${from + 1}, to that of B's, ${to + 1}:`;
  const cells = data.lines[setOf(a).run][`${Math.min(from, to)} ${Math.max(from, to)}`];
  for (const cell of from < to ? cells : [...cells].reverse()) {
    const canvas = make("canvas", [], { className: "slice" });
    showCell(canvas, cell);
    line.append(make("figure", canvas));
  }
}

// ----------------------------------------------------------------------------------------------------------------------
// Selection

/** [mean, low, high] of numbers, with the normal approximation's 95% interval. */
function meanInterval(values) {
  const n = values.length, mean = values.reduce((sum, value) => sum + value, 0) / n;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1), half = 1.96 * Math.sqrt(variance / n);
  return n > 1 ? [mean, mean - half, mean + half] : [mean, NaN, NaN];
}

function select(rows) {
  state.selected = rows;
  for (const id of ["csv", "clear", "selected"]) element(id).hidden = !rows.length;
  element("selected-text").textContent = rows.length
    ? `${number(rows.length)} of the ${number(allShown().length)} slices shown.`
    : "Nothing is selected: drag around some points, or take all that the legend shows.";
  redraw();
  if (!rows.length) return;
  const lines = view.sets.map((of, k) => [of.name, rows.filter((i) => view.set[i] === k).length]).filter(([, count]) => count);
  const areas = rows.map((i) => view.facts.area?.[i]).filter(present);
  if (areas.length) {
    const [mean, low, high] = meanInterval(areas).map((value) => Math.round(value).toLocaleString("en"));
    lines.push(["mean ventricle area, mm²", mean]);
    if (areas.length > 1) lines.push(["95% interval, over slices", `${low} to ${high}`]);
  }
  element("counts").replaceChildren(...lines.map(([name, text]) => make("tr", [make("th", name, { scope: "row" }), make("td", `${text}`)])));
  const mean = meanSlice(rows), ofAll = meanSlice(allShown());
  element("selected").querySelector(".pictures").replaceChildren(
    picture("mean of the selection", (canvas) => showGrey(canvas, mean)),
    picture("mean of all shown", (canvas) => showGrey(canvas, ofAll)),
    picture("selection less all, red where it is brighter", (canvas) => showDifference(canvas, mean.map((value, k) => value - ofAll[k]))),
  );
}

// ----------------------------------------------------------------------------------------------------------------------
// Tabs, views, legend, epochs

function openTab(tab) {
  state.tab = tab;
  document.querySelectorAll("[role=tab]").forEach((button, k) => {
    button.setAttribute("aria-selected", k === tab);
    button.tabIndex = k === tab ? 0 : -1;
  });
  element("panel").setAttribute("aria-labelledby", `tab-${tab}`);
  document.querySelectorAll(".claim").forEach((claim, k) => { claim.hidden = k !== tab; });
  openView(0);
}

function openView(k) {
  const views = data.tabs[state.tab].views;
  view = views[k];
  points = view.set.map((_, i) => i);
  Object.assign(state, { view: k, hidden: new Set(), current: -1, pinned: [], zoom: 1, left: 0, top: 0, playing: false, path: null });
  state.epoch = view.x.length - 1;
  measureExtent();
  element("views").replaceChildren(...(views.length > 1 ? views : []).map((of, number) => {
    const button = make("button", of.epochs ? "over the epochs" : "now", { type: "button", onclick: () => openView(number) });
    button.setAttribute("aria-pressed", number === k);
    return button;
  }));
  const choices = colourings();
  if (!choices[state.colour]) state.colour = "set";
  element("colour").replaceChildren(...Object.entries(choices).map(([value, label]) => make("option", label, { value })));
  element("colour").value = state.colour;
  element("note").textContent = view.note;
  element("epochs").hidden = !view.epochs;
  if (view.epochs) element("epoch").max = view.epochs.length - 1;
  recolour();
  showPinned();
  select([]);
  showEpoch();
  showCurrent(0);
}

function recolour() {
  colours = computeColours();
  const ofSets = setColours();
  const entries = view.sets.map((of, k) => {
    const canvas = document.createElement("canvas"), { canvas: image, side } = stamp(state.colour === "set" ? ofSets[k] : themeColour("none"), of.real, false);
    canvas.width = canvas.height = image.width;
    canvas.getContext("2d").drawImage(image, 0, 0, image.width, image.width);
    const count = view.set.filter((set) => set === k).length;
    const button = make("button", [canvas, `${of.name} (${number(count)})`], { type: "button", title: of.run ?? "" });
    button.setAttribute("aria-pressed", !state.hidden.has(k));
    button.onclick = () => {
      if (!state.hidden.delete(k)) state.hidden.add(k);
      recolour();
      select(state.selected.filter(shown));
    };
    return button;
  });
  if (colours.range) {
    const ramp = make("canvas", [], { className: "ramp", width: 100, height: 1 }), context = ramp.getContext("2d");
    for (let k = 0; k < 100; k++) {
      context.fillStyle = rampColour(k / 99);
      context.fillRect(k, 0, 1, 1);
    }
    entries.push(make("span", number(colours.range[0])), ramp, make("span", number(colours.range[1])));
  }
  for (const [label, colour] of colours.key ?? []) {
    const dot = make("span", "\u25cf ");
    dot.style.color = colour;
    entries.push(make("span", [dot, label]));
  }
  element("legend").replaceChildren(...entries);
  redraw();
}

function showEpoch() {
  if (!view.epochs) return;
  const k = Math.round(state.epoch);
  element("epoch").value = state.epoch;
  element("epoch-text").textContent = `${view.epochs[k]}, same-class k-NN fraction ${(100 * view.same_class[k]).toFixed(0)}%`;
  element("play").textContent = state.playing ? "stop" : "play";
  redraw();
}

function play() {
  state.playing = !state.playing;
  const last = view.epochs.length - 1, still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const from = state.epoch < last ? state.epoch : 0, ofView = view;
  let begin;
  const step = (now) => {
    if (!state.playing || view !== ofView) return;
    begin ??= now;
    const at = Math.min(from + (now - begin) / 1000 / EPOCH_SECONDS, last);
    state.epoch = still ? Math.floor(at) : at;
    state.playing = at < last;
    showEpoch();
    if (state.playing) requestAnimationFrame(step);
  };
  if (state.playing) requestAnimationFrame(step);
  showEpoch();
}

// ----------------------------------------------------------------------------------------------------------------------
// Mouse, touch and keys

let lassoByTouch = false;

map.addEventListener("pointerdown", (event) => {
  const at = [event.offsetX, event.offsetY];
  map.setPointerCapture(event.pointerId);
  if (event.shiftKey || (event.pointerType !== "mouse" && !lassoByTouch)) state.panning = at;
  else state.path = [at];
  state.moved = false;
});

map.addEventListener("pointermove", (event) => {
  const at = [event.offsetX, event.offsetY];
  if (state.panning) {
    state.left += at[0] - state.panning[0];
    state.top += at[1] - state.panning[1];
    state.moved ||= Math.hypot(at[0] - state.panning[0], at[1] - state.panning[1]) > 3;
    state.panning = at;
    redraw();
  } else if (state.path) {
    state.path.push(at);
    state.moved ||= Math.hypot(at[0] - state.path[0][0], at[1] - state.path[0][1]) > 5;
    redraw();
  } else {
    const i = nearest(...at);
    if (i >= 0) showCurrent(i);
  }
});

map.addEventListener("pointerup", (event) => {
  const path = state.path, i = nearest(event.offsetX, event.offsetY);
  state.path = state.panning = null;
  if (path && state.moved) select(allShown().filter((k) => inside(path, ...position(k))));
  else if (!state.moved && i >= 0) {
    showCurrent(i);
    pin(i);
  }
  redraw();
});

map.addEventListener("pointercancel", () => {
  state.path = state.panning = null;
  redraw();
});

map.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
}, { passive: false });

map.addEventListener("keydown", (event) => {
  const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (direction) showCurrent(state.current < 0 ? allShown()[0] ?? -1 : neighbour(state.current, ...direction), true);
  else if (event.key === "Enter") pin(state.current);
  else if (event.key === "Escape") {
    state.pinned = [];
    showPinned();
    select([]);
  } else if (event.key === "+") zoomBy(1.5);
  else if (event.key === "-") zoomBy(1 / 1.5);
  else return;
  event.preventDefault();
});

element("tabs").addEventListener("click", (event) => {
  const tabs = [...document.querySelectorAll("[role=tab]")], k = tabs.indexOf(event.target);
  if (k >= 0) openTab(k);
});
element("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  openTab((state.tab + step + data.tabs.length) % data.tabs.length);
  element(`tab-${state.tab}`).focus();
});
element("colour").onchange = (event) => {
  state.colour = event.target.value;
  recolour();
};
element("closer").onclick = () => zoomBy(1.5);
element("wider").onclick = () => zoomBy(1 / 1.5);
element("whole").onclick = () => zoomBy(0);
element("lasso").onclick = (event) => {
  lassoByTouch = !lassoByTouch;
  event.target.setAttribute("aria-pressed", lassoByTouch);
  map.style.touchAction = lassoByTouch ? "none" : "";
};
element("play").onclick = play;
element("epoch").oninput = (event) => {
  state.playing = false;
  state.epoch = Number(event.target.value);
  showEpoch();
};
element("unpin").onclick = () => {
  state.pinned = [];
  showPinned();
};
element("line-csv").onclick = downloadLine;
element("csv").onclick = downloadSelection;
element("clear").onclick = () => select([]);
element("select-all").onclick = () => select(allShown());

sprite.decode().then(() => {
  openTab(0);
  new ResizeObserver(redraw).observe(map);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  window.atlas = { state, position }; // for a look from the console
});
