
// ----------------------------------------------------------------------------------------------------------------------
// What analysis/named_directions.py and analysis/areas.py measure, in the worker of playground.html, after playground_worker.js

const MEASURED_SIDE = 64, WHITE = 190, BRIGHTNESS = 155, FOREGROUND = 0.2; // pixels, levels, of a slice's brightest pixel
const clip = (x, low, high) => Math.min(high, Math.max(low, x));

/** {quantity: number} of levels [R, R]; areas, in mm², only where the view is known in which they can be measured. */
function measure(levels) {
  const n = Math.min(MEASURED_SIDE, network.resolution), v = Float64Array.from(reduce(levels, n)), limit = FOREGROUND * Math.max(...v);
  const foreground = v.filter((x) => x > limit), mean = (x) => x.reduce((sum, value) => sum + value, 0) / Math.max(1, x.length);
  const found = { brightness: mean(foreground), "brain size": 100 * filled(v.map((x) => Number(x > limit)), n) / n ** 2 };
  return network.areas ? { ...found, ...measureAreas(v, foreground) } : found;
}

/** Number of pixels of a mask [n, n] and of its holes: all but what is reached from the border. */
function filled(mask, n) {
  const reached = new Uint8Array(n * n), open = [];
  const visit = (y, x) => {
    if (y < 0 || x < 0 || y >= n || x >= n || mask[y * n + x] || reached[y * n + x]) return;
    reached[y * n + x] = 1;
    open.push([y, x]);
  };
  for (let k = 0; k < n; k++) for (const [y, x] of [[0, k], [n - 1, k], [k, 0], [k, n - 1]]) visit(y, x);
  while (open.length) {
    const [y, x] = open.pop();
    for (const [dy, dx] of [[0, 1], [1, 0], [0, -1], [-1, 0]]) visit(y + dy, x + dx);
  }
  return reached.length - reached.reduce((a, b) => a + b);
}

/** {tissue: mm²} of levels [64, 64], as areas.measure_areas; `foreground`: the levels of its bright pixels. */
function measureAreas(v, foreground) {
  const { view, levels, regions, amounts, pixel } = network.areas, flat = view === "axial" ? removeShading(v, foreground) : equalise(v, foreground);
  const shares = flat.map((x) => clip(x, 0, levels.at(-1))), masks = { slice: () => true };
  for (const [name, shape] of Object.entries(regions)) masks[name] = ellipse(flat, ...shape);
  const amountOf = (x, amount) => { // between two levels in proportion; a black pixel holds none
    const k = Math.max(1, levels.findIndex((level) => level >= x)), share = (x - levels[k - 1]) / (levels[k] - levels[k - 1]);
    return (1 - share) * (k > 1 ? amount[k - 2] : 0) + share * amount[k - 1];
  };
  const found = {};
  for (const [tissue, ofRegions] of Object.entries(amounts)) {
    found[tissue] = 0;
    for (const [region, amount] of Object.entries(ofRegions)) {
      shares.forEach((x, p) => { if (masks[region](p)) found[tissue] += pixel * amountOf(x, amount); });
    }
  }
  return found;
}

function equalise(v, foreground) {
  const mean = foreground.reduce((sum, x) => sum + x ** 8, 0) / Math.max(1, foreground.length);
  return v.map((x) => x * BRIGHTNESS / Math.max(mean, 1) ** (1 / 8));
}

function quantile(values, share) {
  const sorted = values.toSorted(), at = share * (sorted.length - 1), k = Math.floor(at);
  return sorted[k] + (at - k) * (sorted[Math.ceil(at)] - sorted[k]);
}

function removeShading(v, foreground) {
  const terms = Array.from(v, (_, p) => {
    const x = 2 * (p % MEASURED_SIDE) / (MEASURED_SIDE - 1) - 1, y = 2 * Math.floor(p / MEASURED_SIDE) / (MEASURED_SIDE - 1) - 1;
    return [1, x, y, x * y, x * x, y * y];
  });
  let shading = v.map(() => (foreground.length ? quantile(foreground, 0.85) : 1));
  for (let time = 0; time < 3; time++) {
    const rows = Array.from({ length: 6 }, (_, i) => Array.from({ length: 7 }, (_, j) => (i === j ? 1e-6 : 0)));
    v.forEach((x, p) => {
      if (Math.abs(x / shading[p] - 1) >= 0.125) return; // not white matter
      for (let i = 0; i < 6; i++) [...terms[p], x].forEach((term, j) => { rows[i][j] += terms[p][i] * term; });
    });
    const factors = solve(rows), median = quantile(shading, 0.5);
    shading = shading.map((_, p) => clip(terms[p].reduce((sum, term, i) => sum + term * factors[i], 0), 0.7 * median, 1.4 * median));
  }
  return v.map((x, p) => x * WHITE / shading[p]);
}

/** The solution of linear equations, rows of coefficients and right side, of a positive definite matrix. */
function solve(rows) {
  rows.forEach((pivot, i) => rows.forEach((row, k) => {
    const factor = row[i] / pivot[i];
    if (k !== i) pivot.forEach((value, j) => { row[j] -= factor * value; });
  }));
  return rows.map((row, i) => row.at(-1) / row[i]);
}

/** Whether a pixel lies in an ellipse that the bounding box of the brain places, as areas.ellipse. */
function ellipse(flat, across, along, halfAcross, halfAlong, degrees) {
  const n = MEASURED_SIDE, brain = Array.from(flat, (x, p) => p).filter((p) => flat[p] > 0.15 * WHITE);
  const cos = Math.cos(degrees * Math.PI / 180), sin = Math.sin(degrees * Math.PI / 180);
  const position = (of) => {
    const places = brain.map(of), first = places.length ? Math.min(...places) : 0, last = places.length ? Math.max(...places) : n - 1;
    return (p) => (2 * of(p) - first - last) / (last - first + 1);
  };
  const column = position((p) => p % n), row = position((p) => Math.floor(p / n));
  return (p) => {
    const x = column(p) - across, y = row(p) - along;
    return ((cos * x + sin * y) / halfAcross) ** 2 + ((cos * y - sin * x) / halfAlong) ** 2 < 1;
  };
}
