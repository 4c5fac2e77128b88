"use strict";
// The worker of playground.html: modules.py and analysis/encoder.py in JavaScript, for one slice at a time.
// Features are planes with a border of zeros, [channels][(n + 2) x (n + 2)], in double precision: V8 would convert single precision
// at every step. Nearly all the time goes into convolve() and convolveUp(); in the first, four kernels share what is read.

const SLOPE = 0.2, RELU_GAIN = Math.sqrt(2 / (1 + SLOPE ** 2)), LR_MULTIPLIER = 0.01, NOISE_LR = 0.1;
const COARSE = 8, NONE = -1; // pixels, as encoder.py; "no noise" in a state
const OTHER_NOISE = 4096; // distance of the seeds of other noises; that of fixed noise is 2 r + up
const FIRST_SHOWN = 64; // pixels
let network, tensors;

// ----------------------------------------------------------------------------------------------------------------------
// Random numbers: those of torch.randn on a CPU, for counts that 16 divides

/** N(0, 1), Float64Array [count]: Mersenne Twister (Matsumoto and Nishimura 1998), then Box-Muller in groups of 16. */
function randn(seed, count) {
  const state = new Uint32Array(624), uniform = new Float64Array(count);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  for (let k = 0, at = 624; k < count; k++) {
    if (at === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let y = state[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    uniform[k] = ((y ^ (y >>> 18)) & 0xffffff) / 2 ** 24;
  }
  for (let k = 0; k < count; k += k % 8 === 7 ? 9 : 1) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform[k])), angle = 2 * Math.PI * uniform[k + 8];
    uniform[k] = radius * Math.cos(angle);
    uniform[k + 8] = radius * Math.sin(angle);
  }
  return uniform;
}

function cached(make) {
  const kept = new Map();
  return (...key) => {
    if (!kept.has(String(key))) {
      if (kept.size > 40) kept.clear();
      kept.set(String(key), make(...key));
    }
    return kept.get(String(key));
  };
}

const noiseMap = cached((n, up, noise) => randn(2 * n + up + OTHER_NOISE * noise, n * n));
const allLatents = cached(() => randn(network.latent_seed, network.latents * network.z_dim));
const latent = (i) => allLatents().subarray(i * network.z_dim, (i + 1) * network.z_dim);

// ----------------------------------------------------------------------------------------------------------------------
// Weights and linear layers

/** {name: {shape, values}} of float16 numbers, whose low bytes come first, then their high bytes; deflated, in base64. */
async function unpack({ index, base64 }) {
  const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer()), count = bytes.length / 2;
  const found = {};
  let start = 0;
  for (const [name, shape] of index) {
    const values = new Float64Array(shape.reduce((a, b) => a * b, 1));
    for (let k = 0; k < values.length; k++, start++) {
      const half = bytes[start] + 256 * bytes[start + count], exponent = (half >> 10) & 31, fraction = half & 1023;
      values[k] = (half >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
    }
    found[name] = { shape, values };
  }
  return found;
}

const values = (name) => tensors[name].values;
const silu = (x) => x / (1 + Math.exp(-x));
const leakyRelu = (x) => (x < 0 ? SLOPE * x : x);

/** gain (W x / sqrt(in) + b), as modules.Linear; without equalised: W x + b, as torch's. */
function linear(name, x, gain = 1, equalised = true) {
  const { shape: [outs, ins], values: weight } = tensors[`${name}.weight`], bias = values(`${name}.bias`);
  const scale = equalised ? gain / Math.sqrt(ins) : 1, y = new Float64Array(outs);
  for (let o = 0; o < outs; o++) {
    let sum = 0;
    for (let i = 0; i < ins; i++) sum += weight[o * ins + i] * x[i];
    y[o] = sum * scale + bias[o] * gain;
  }
  return y;
}

function unitMeanSquare(x) {
  const scale = 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + 1e-8);
  return x.map((value) => value * scale);
}

/** Class and values, null where unknown, -> [z_dim], as modules.LabelEmbedding. */
function embed(label, told) {
  const ofClass = values("mapping.embedding.weight").subarray(label * network.z_dim, (label + 1) * network.z_dim);
  if (!network.values.length) return ofClass;
  const standardised = told.map((value, k) => (value === null ? 0 : (value - network.values[k].mean) / network.values[k].std));
  const hidden = linear("mapping.embedding.hidden", [...standardised, ...told.map((value) => Number(value !== null))], RELU_GAIN);
  return linear("mapping.embedding.output", hidden.map(leakyRelu)).map((value, i) => value + ofClass[i]);
}

/** z -> w, as modules.MappingNetwork. */
function mapLatent(z, label, told) {
  let x = unitMeanSquare(z);
  if (network.num_classes) x = Float64Array.from([...x, ...unitMeanSquare(embed(label, told))]);
  for (let i = 0; tensors[`mapping.layers.${i}.weight`]; i++) {
    x = linear(`mapping.layers.${i}`, x, RELU_GAIN * LR_MULTIPLIER).map(leakyRelu);
  }
  return x;
}

// ----------------------------------------------------------------------------------------------------------------------
// Convolutions

/** Kernels [cout rounded up to 4, cin, 9] for a style vector: Karras et al. 2020, eq. 1 and 3, times RELU_GAIN. */
function modulate(name, w) {
  const style = linear(`${name}.affine`, w), { shape: [cout, cin], values: weight } = tensors[`${name}.weight`];
  const kernels = new Float64Array(4 * Math.ceil(cout / 4) * cin * 9), unit = 1 / (cin * 9);
  for (let o = 0, k = 0; o < cout; o++) {
    let norm = 1e-8;
    for (let i = 0; i < cin; i++) for (let t = 0; t < 9; t++, k++) {
      kernels[k] = weight[k] * style[i];
      norm += kernels[k] ** 2 * unit;
    }
    const scale = RELU_GAIN * Math.sqrt(unit / norm);
    for (let j = k - 9 * cin; j < k; j++) kernels[j] *= scale;
  }
  return { kernels, cin, cout };
}

const planes = (channels, n) => new Float64Array(4 * Math.ceil(channels / 4) * (n + 2) ** 2);

/** 3x3 convolution of planes n x n. */
function convolve(x, n, { kernels: k, cin, cout }) {
  const p = n + 2, plane = p * p, out = planes(cout, n), next = 9 * cin;
  for (let o = 0; o < cout; o += 4) for (let i = 0; i < cin; i++) {
    const a = (o * cin + i) * 9, b = a + next, c = b + next, d = c + next;
    const a0 = k[a], a1 = k[a + 1], a2 = k[a + 2], a3 = k[a + 3], a4 = k[a + 4],
      a5 = k[a + 5], a6 = k[a + 6], a7 = k[a + 7], a8 = k[a + 8];
    const b0 = k[b], b1 = k[b + 1], b2 = k[b + 2], b3 = k[b + 3], b4 = k[b + 4],
      b5 = k[b + 5], b6 = k[b + 6], b7 = k[b + 7], b8 = k[b + 8];
    const c0 = k[c], c1 = k[c + 1], c2 = k[c + 2], c3 = k[c + 3], c4 = k[c + 4],
      c5 = k[c + 5], c6 = k[c + 6], c7 = k[c + 7], c8 = k[c + 8];
    const d0 = k[d], d1 = k[d + 1], d2 = k[d + 2], d3 = k[d + 3], d4 = k[d + 4],
      d5 = k[d + 5], d6 = k[d + 6], d7 = k[d + 7], d8 = k[d + 8];
    for (let y = 0; y < n; y++) {
      const q = i * plane + y * p, r = q + p, s = r + p;
      const t = o * plane + (y + 1) * p + 1, u = t + plane, v = u + plane, z = v + plane;
      let x0 = x[q], x1 = x[q + 1], x3 = x[r], x4 = x[r + 1], x6 = x[s], x7 = x[s + 1];
      for (let j = 0; j < n; j++) {
        const x2 = x[q + j + 2], x5 = x[r + j + 2], x8 = x[s + j + 2];
        out[t + j] += x0 * a0 + x1 * a1 + x2 * a2 + x3 * a3 + x4 * a4 + x5 * a5 + x6 * a6 + x7 * a7 + x8 * a8;
        out[u + j] += x0 * b0 + x1 * b1 + x2 * b2 + x3 * b3 + x4 * b4 + x5 * b5 + x6 * b6 + x7 * b7 + x8 * b8;
        out[v + j] += x0 * c0 + x1 * c1 + x2 * c2 + x3 * c3 + x4 * c4 + x5 * c5 + x6 * c6 + x7 * c7 + x8 * c8;
        out[z + j] += x0 * d0 + x1 * d1 + x2 * d2 + x3 * d3 + x4 * d4 + x5 * d5 + x6 * d6 + x7 * d7 + x8 * d8;
        x0 = x1; x1 = x2; x3 = x4; x4 = x5; x6 = x7; x7 = x8;
      }
    }
  }
  return out;
}

/** Zero insertion, 3x3 convolution and filter of planes n x n -> planes 2n x 2n, as modules.ModulatedConv2d with `up`. */
function convolveUp(x, n, { kernels: k, cin, cout }) {
  const p = n + 2, plane = p * p, wide = 2 * n + 3, m = 2 * n, out = planes(cout, m), rows = new Float64Array(wide * m);
  for (let o = 0; o < cout; o++) {
    const inserted = new Float64Array(wide * wide); // of (2n + 1) x (2n + 1) values, with a border
    for (let i = 0; i < cin; i++) {
      const a = (o * cin + i) * 9;
      const a0 = k[a], a1 = k[a + 1], a2 = k[a + 2], a3 = k[a + 3], a4 = k[a + 4],
        a5 = k[a + 5], a6 = k[a + 6], a7 = k[a + 7], a8 = k[a + 8];
      for (let y = 0; y <= n; y++) {
        const q = i * plane + y * p, r = q + p, even = (2 * y + 1) * wide + 1, odd = even + wide;
        let x0 = x[q], x3 = x[r];
        for (let j = 0; j <= n; j++) {
          const x1 = x[q + j + 1], x4 = x[r + j + 1];
          inserted[even + 2 * j] += x4 * a0 + x3 * a2 + x1 * a6 + x0 * a8;
          inserted[even + 2 * j + 1] += x4 * a1 + x1 * a7;
          inserted[odd + 2 * j] += x4 * a3 + x3 * a5;
          inserted[odd + 2 * j + 1] += x4 * a4;
          x0 = x1; x3 = x4;
        }
      }
    }
    for (let y = 0; y < wide; y++) for (let j = 0; j < m; j++) {
      const t = y * wide + j;
      rows[y * m + j] = (inserted[t] + inserted[t + 3]) / 4 + (inserted[t + 1] + inserted[t + 2]) * 0.75;
    }
    for (let y = 0; y < m; y++) for (let j = 0; j < m; j++) {
      const t = y * m + j;
      out[(o * (m + 2) + y + 1) * (m + 2) + j + 1] = (rows[t] + rows[t + 3 * m]) / 4 + (rows[t + m] + rows[t + 2 * m]) * 0.75;
    }
  }
  return out;
}

/** Noise, bias and leaky ReLU of planes n x n, in place. */
function finish(x, n, name, up, noise) {
  const strength = values(`${name}.noise_strength`), bias = values(`${name}.bias`), p = n + 2;
  const map = noise === NONE ? new Float64Array(n * n) : noiseMap(n, up, noise);
  for (let c = 0; c < bias.length; c++) for (let y = 0; y < n; y++) {
    const t = c * p * p + (y + 1) * p + 1, s = NOISE_LR * strength[c];
    for (let j = 0; j < n; j++) {
      const value = x[t + j] + s * map[y * n + j] + bias[c];
      x[t + j] = value < 0 ? SLOPE * value : value;
    }
  }
  return x;
}

/** ops.upsample of an image n x n, without a border. */
function upsample(image, n) {
  const at = (y, x) => (y < 0 || x < 0 || y >= n || x >= n ? 0 : image[y * n + x]), out = new Float64Array(4 * n * n);
  for (let y = 0; y < 2 * n; y++) for (let x = 0; x < 2 * n; x++) {
    const v = y >> 1, u = x >> 1, dv = y & 1 ? 1 : -1, du = x & 1 ? 1 : -1;
    out[y * 2 * n + x] = (9 * at(v, u) + 3 * (at(v + dv, u) + at(v, u + du)) + at(v + dv, u + du)) / 16;
  }
  return out;
}

// ----------------------------------------------------------------------------------------------------------------------
// Generator

/** Yield [resolution, image] per block, as modules.Generator; the image has the biases of the later blocks, too.
 *  ws: a style vector for each of network.ranges, the layers of which begin at their `layer`. */
function* generate(ws, noise) {
  let n = 4, image = null, layer = 0;
  const styleOf = (number) => ws[network.ranges.findLastIndex((range) => range.layer <= number)];
  const count = Math.log2(network.resolution) - 1, constant = values("generator.constant"), channels = constant.length / 16;
  let x = planes(channels, 4);
  for (let k = 0; k < constant.length; k++) x[(k >> 4) * 36 + ((k >> 2) % 4 + 1) * 6 + (k % 4) + 1] = constant[k];
  for (let block = 0; block < count; block++) {
    const name = `generator.blocks.${block}`, styles = block ? [1, 0] : [0];
    for (const [k, up] of styles.entries()) {
      const kernels = modulate(`${name}.styles.${k}.conv`, styleOf(layer++));
      x = up ? convolveUp(x, n, kernels) : convolve(x, n, kernels);
      if (up) image = upsample(image, n);
      n *= 1 + up;
      finish(x, n, `${name}.styles.${k}`, up, noise);
    }
    image = toImage(x, n, `${name}.to_image`, styleOf(layer), image, values(`${name}.image_bias`)[0]);
    let later = 0;
    for (let k = block + 1; k < count; k++) later += values(`generator.blocks.${k}.image_bias`)[0];
    yield [n, image.map((value) => value + later)];
  }
}

function toImage(x, n, name, w, before, bias) {
  const style = linear(`${name}.affine`, w), weight = values(`${name}.weight`), p = n + 2;
  const image = before ? before.map((value) => value + bias) : new Float64Array(n * n).fill(bias);
  for (let c = 0; c < style.length; c++) {
    const kernel = style[c] * weight[c] / Math.sqrt(style.length);
    for (let y = 0; y < n; y++) for (let j = 0; j < n; j++) image[y * n + j] += kernel * x[(c * p + y + 1) * p + j + 1];
  }
  return image;
}

const toLevels = (image) => Uint8ClampedArray.from(image, (value) => (value + 1) * 127.5); // which rounds

function drawWhole(w) {
  let last;
  for (const [, image] of generate(network.ranges.map(() => w), 0)) last = image;
  return toLevels(last);
}

// ----------------------------------------------------------------------------------------------------------------------
// Encoder

/** Levels [R, R] -> levels [side, side], means of squares. */
function reduce(levels, side) {
  const from = network.resolution, step = from / side, out = new Float64Array(side * side);
  for (let y = 0; y < from; y++) for (let x = 0; x < from; x++) {
    out[Math.floor(y / step) * side + Math.floor(x / step)] += levels[y * from + x] / step ** 2;
  }
  return Uint8ClampedArray.from(out);
}

/** Reduced levels -> points [K], as analysis/encoder.py. */
function encode(reduced) {
  let x = Float64Array.from(reduced, (level) => level / 127.5 - 1), n = network.side;
  for (const layer of [0, 2, 4, 6]) {
    x = strided(x, n, `encoder.network.${layer}`).map(silu);
    n /= 2;
  }
  const found = linear("encoder.network.11", linear("encoder.network.9", x, 1, false).map(silu), 1, false);
  return found.subarray(0, found.length / 2); // the other half are variances
}

/** Convolution with stride 2 of [cin][n x n], without borders. */
function strided(x, n, name) {
  const { shape: [cout, cin, size], values: weight } = tensors[`${name}.weight`], bias = values(`${name}.bias`);
  const m = n / 2, out = new Float64Array(cout * m * m), half = size >> 1;
  for (let o = 0; o < cout; o++) for (let v = 0; v < m; v++) for (let u = 0; u < m; u++) {
    let sum = bias[o];
    for (let i = 0; i < cin; i++) for (let a = 0; a < size; a++) {
      const y = 2 * v + a - half;
      if (y < 0 || y >= n) continue;
      for (let b = 0; b < size; b++) {
        const t = 2 * u + b - half;
        if (t >= 0 && t < n) sum += x[(i * n + y) * n + t] * weight[((o * cin + i) * size + a) * size + b];
      }
    }
    out[(o * m + v) * m + u] = sum;
  }
  return out;
}

/** Squared Mahalanobis distance, as encoder.Normal. */
function distance(name, x) {
  const centre = values(`encoder.${name}.centre`), whitening = values(`encoder.${name}.whitening`), size = centre.length;
  let sum = 0;
  for (let o = 0; o < size; o++) {
    let y = 0;
    for (let i = 0; i < size; i++) y += whitening[o * size + i] * (x[i] - centre[i]);
    sum += y * y;
  }
  return sum / size;
}

/** Logarithm of the mean square of what a mean over 3x3 pixels takes away, of levels. */
function fineDetail(levels, n) {
  let sum = 0;
  for (let y = 0; y < n; y++) for (let x = 0; x < n; x++) {
    let mean = 0, count = 0;
    for (let v = Math.max(0, y - 1); v <= Math.min(n - 1, y + 1); v++) {
      for (let u = Math.max(0, x - 1); u <= Math.min(n - 1, x + 1); u++, count++) mean += levels[v * n + u];
    }
    sum += ((levels[y * n + x] - mean / count) / 127.5) ** 2;
  }
  return Math.log(sum / (n * n) + 1e-5);
}

/** How far a slice, reduced levels with these points, lies outside what the model draws: above 1, it is refused. */
function outside(reduced, points, drawn) {
  const again = encode(drawn), n = network.side, step = n / COARSE, coarse = new Float64Array(COARSE ** 2);
  for (let y = 0; y < n; y++) for (let x = 0; x < n; x++) {
    coarse[Math.floor(y / step) * COARSE + Math.floor(x / step)] += (drawn[y * n + x] - reduced[y * n + x]) / 127.5 / step ** 2;
  }
  const logs = [distance("disagreement", again.map((value, k) => value - points[k])), distance("residual", coarse)];
  const numbers = [...logs.map((value) => Math.log(Math.max(value, 1e-6))), fineDetail(drawn, n) - fineDetail(reduced, n)];
  return distance("both", numbers) / values("encoder.limit")[0];
}

function place(levels) {
  const reduced = reduce(levels, network.side), points = encode(reduced);
  const w = add(values("encoder.mean"), points, "encoder.basis"), drawn = drawWhole(w);
  const rms = Math.sqrt(drawn.reduce((sum, level, k) => sum + (level - levels[k]) ** 2, 0) / levels.length);
  return { w: Array.from(w), outside: outside(reduced, points, reduce(drawn, network.side)), rms, measured: measure(levels) };
}

// ----------------------------------------------------------------------------------------------------------------------
// What the page asks for

/** w plus multiples of the rows of a tensor [K, w_dim]. */
function add(w, multiples, name) {
  const sum = Float64Array.from(w), rows = values(name);
  multiples.forEach((multiple, k) => { for (let i = 0; i < sum.length; i++) sum[i] += multiple * rows[k * sum.length + i]; });
  return sum;
}

const mix = (a, b, share) => a.map((value, i) => value + share * (b[i] - value));

/** The style vector of a state, see playground.js; class runs from -1, AD, to 1, NC. */
function styleVector(state) {
  const mean = (label) => values("mapping.w_mean").subarray(label * network.w_dim, (label + 1) * network.w_dim);
  const of = (label) => mapLatent(latent(state.latent), label, state.values);
  let w = state.w ? Float64Array.from(state.w) : of(0), centre = mean(0);
  if (network.num_classes) {
    const share = (state.class + 1) / 2;
    w = state.w ? add(w, [state.class], "class_difference") : mix(w, of(1), share);
    centre = mix(centre, mean(1), share);
  }
  w = mix(centre, w, state.psi);
  return add(add(w, state.named, "named"), state.principal, "principal");
}

/** A style vector for each of network.ranges. */
function styleVectors(state) {
  const w = styleVector(state), other = state.layers.some(Boolean) && styleVector({ ...state, latent: state.mixed, w: null });
  return state.layers.map((isMixed) => (isMixed ? other : w));
}

const wanted = new Map(); // slot -> the last request that is not done
const channel = new MessageChannel();
let awake = null;
channel.port1.onmessage = () => awake();
const letMessagesIn = () => new Promise((resolve) => { awake = resolve; channel.port2.postMessage(0); });

/** Draw a request from coarse to fine, until it is done or a newer one of its slot, or one of the slot "now", has come.
 *  With a state `from` it is the slice at a share of the way from there; with `side` it is not drawn finer than that. */
async function draw(request) {
  const { slot, id, from, share, side: finest = network.resolution } = request;
  let ws = styleVectors(request.state);
  if (from) ws = styleVectors(from).map((w, k) => mix(w, ws[k], share));
  let milliseconds = 0, begun = performance.now();
  for (const [side, image] of generate(ws, request.state.noise)) {
    milliseconds += performance.now() - begun;
    const last = side === finest, levels = (side >= FIRST_SHOWN || last) && toLevels(image);
    if (levels) {
      const whole = last && side === network.resolution ? { ws, measured: measure(levels) } : {};
      postMessage({ slot, id, column: request.column, side, levels, milliseconds, last, ...whole });
      await letMessagesIn();
      if (wanted.get(slot) !== request || (!last && slot !== "now" && wanted.has("now"))) return;
      if (last) break;
    }
    begun = performance.now();
  }
  wanted.delete(slot);
}

async function drawAll() {
  while (wanted.size) await draw(wanted.get("now") ?? wanted.values().next().value);
}

let ready, drawing = null;
onmessage = async ({ data: message }) => {
  if (message.network) {
    network = message.network;
    ready = unpack(message.weights).then((found) => { tensors = found; });
    ready.catch((error) => setTimeout(() => { throw error; })); // so that the page hears of it
    return;
  }
  await ready;
  if (message.encode) return postMessage({ id: message.id, ...place(message.encode) });
  wanted.set(message.slot, message);
  drawing ??= drawAll().finally(() => { drawing = null; });
};
