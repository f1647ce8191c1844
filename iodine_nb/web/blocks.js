// The building blocks of our models, in plain JavaScript around one kernel in WebAssembly (kernel.c).
//
// Pictures and vectors are Float32Arrays with channels last: a picture [height, width, channels], and K of them
// [K, height, width, channels]. Weights come in PyTorch's order and are put into the kernel's order once.
// Nothing here knows of IODINE; that is in engine.js.

// ---- memory -----------------------------------------------------------------------------------------------

const roundUp = (n) => 4 * Math.ceil(n / 4);  // the kernel computes four output channels at a time

// The kernel's memory, and what lies in it. Addresses are in bytes; nothing is ever given back.
export class Memory {
  static async create(wasm) {  // the bytes of kernel.wasm
    const { instance } = await WebAssembly.instantiate(wasm, {});
    return new Memory(instance.exports);
  }
  constructor(kernel) { this.kernel = kernel; }

  // All of the memory as numbers; made anew when it has grown, as the old view is empty then.
  get floats() {
    const { buffer } = this.kernel.memory;
    if (this.view?.buffer !== buffer) this.view = new Float32Array(buffer);
    return this.view;
  }
  allocate(count) { return this.kernel.alloc(4 * count); }
  read(address, count) { return this.floats.slice(address >> 2, (address >> 2) + count); }
  write(address, values) { this.floats.set(values, address >> 2); }
  put(values) {  // a copy of a Float32Array or Int32Array
    const address = this.allocate(values.length);
    new values.constructor(this.kernel.memory.buffer).set(values, address >> 2);
    return address;
  }
}

// A picture in the kernel's memory, with a border of zeros.
export class Picture {
  constructor(memory, height, width, channels, border) {
    Object.assign(this, { memory, height, width, channels, border, row: width + 2 * border });
    this.address = memory.allocate((height + 2 * border) * this.row * channels);
  }
  at(y, x) { return this.address + 4 * ((y + this.border) * this.row + x + this.border) * this.channels; }

  // f(where the pixel's first channel lies in memory.floats, the pixel's number), for every pixel, or for those
  // of the upper left corner.
  forEach(f, height = this.height, width = this.width) {
    for (let y = 0, pixel = 0; y < height; y++)
      for (let x = 0, at = this.at(y, 0) >> 2; x < width; x++, at += this.channels) f(at, pixel++);
  }
  elu() {
    this.memory.kernel.elu(this.at(0, 0), this.row * this.channels, this.height, this.width * this.channels);
  }
  // This picture as the gradient of ELU's output becomes the gradient of its input.
  eluBackward(output) {
    this.memory.kernel.elu_backward(this.at(0, 0), output.at(0, 0), this.row * this.channels,
                                    this.height, this.width * this.channels);
  }
}

// ---- weights in the kernel's order ------------------------------------------------------------------------

// Weights in the order [block of eight outputs][tap][input][output in the block]; get(output, input, tap) gives
// one. Where the kernel has more inputs or outputs than the layer (they are rounded up to four), weights are zero.
function packed(layer, get) {
  const { outputs, inputs, taps, realOutputs = outputs, realInputs = inputs } = layer;
  const order = new Float32Array(outputs * inputs * taps);
  let n = 0;
  for (let block = 0; block < outputs; block += 8)
    for (let tap = 0; tap < taps; tap++)
      for (let i = 0; i < inputs; i++)
        for (let o = block; o < Math.min(block + 8, outputs); o++, n++)
          if (o < realOutputs && i < realInputs) order[n] = get(o, i, tap);
  return order;
}

const padded = (bias, length) => { const b = new Float32Array(length); b.set(bias); return b; };

// One call of the kernel: from pixels (y · fromStep, x · fromStep) to (y · toStep + toY, x · toStep + toX).
function convolve(from, to, plan, height, width) {
  const { fromStep = 1, toStep = 1, toY = 0, toX = 0, taps, tap, weight, bias = 0 } = plan;
  from.memory.kernel.convolve(from.at(0, 0), from.row, fromStep, from.channels,
                              to.at(toY, toX), to.row, toStep, to.channels, height, width,
                              taps, tap, weight, bias);
}

// Row and column of each of a kernel's taps, counted from its upper left corner.
const tapsOf = (kernel) => Array.from({ length: kernel ** 2 }, (_, t) => [Math.floor(t / kernel), t % kernel]);

// ---- convolutions -----------------------------------------------------------------------------------------

// A convolution with an odd kernel, padded by half of it, of stride 1 or 2: PyTorch's weight [O, I, k, k].
export class Convolution {
  constructor(memory, from, to, { data, shape: [O, I, k] }, bias, stride = 1) {
    const row = (picture) => memory.put(new Int32Array(tapsOf(k).map(
      ([a, b]) => (a - (k >> 1)) * picture.row + b - (k >> 1))));
    const taps = k * k, at = (o, i, t) => data[(o * I + i) * taps + t];
    const there = { outputs: to.channels, inputs: from.channels, realOutputs: O, realInputs: I, taps };
    const back = { outputs: from.channels, inputs: to.channels, realOutputs: I, realInputs: O, taps };
    this.plan = { fromStep: stride, taps, tap: row(from), weight: memory.put(packed(there, at)),
                  bias: memory.put(padded(bias.data, to.channels)) };
    // The way back is a convolution again: inputs and outputs change places, and the kernel is turned around.
    const turned = (i, o, t) => at(o, i, taps - 1 - t);
    if (stride === 1) this.backPlan = { taps, tap: row(to), weight: memory.put(packed(back, turned)) };
  }
  forward(from, to) { convolve(from, to, this.plan, to.height, to.width); }
  backward(gradient, to) { convolve(gradient, to, this.backPlan, to.height, to.width); }
}

// A transposed convolution that doubles the size (stride 2, padding k / 2, output padding 1), of PyTorch's weight
// [I, O, k, k].
export class Doubling {
  constructor(memory, from, to, { data, shape: [I, O, k] }, bias) {
    const half = k >> 1, at = (o, i, t) => data[(i * O + o) * k * k + t];
    const biasAt = memory.put(padded(bias.data, to.channels));
    // Pixel (2y + p, 2x + q) of the output sees only those taps (a, b) for which p + half - a and q + half - b
    // are even. So each of the four kinds of pixels (p, q) is a small convolution of its own.
    this.plans = [[0, 0], [0, 1], [1, 0], [1, 1]].map(([p, q]) => {
      const even = (n) => n % 2 === 0;
      const seen = [...tapsOf(k).entries()].filter(([, [a, b]]) => even(p + half - a) && even(q + half - b));
      const moves = seen.map(([, [a, b]]) => (p + half - a) / 2 * from.row + (q + half - b) / 2);
      const shape = { outputs: to.channels, inputs: from.channels, realOutputs: O, realInputs: I,
                      taps: seen.length };
      const weight = packed(shape, (o, i, t) => at(o, i, seen[t][0]));
      return { toStep: 2, toY: p, toX: q, taps: seen.length, tap: memory.put(new Int32Array(moves)),
               weight: memory.put(weight), bias: biasAt };
    });
    // The way back is an ordinary convolution of stride 2 with the same kernel.
    const back = { outputs: from.channels, inputs: to.channels, realOutputs: I, realInputs: O, taps: k * k };
    const moves = tapsOf(k).map(([a, b]) => (a - half) * to.row + b - half);
    this.backPlan = { fromStep: 2, taps: k * k, tap: memory.put(new Int32Array(moves)),
                      weight: memory.put(packed(back, (i, o, t) => at(o, i, t))) };
  }
  forward(from, to) { for (const plan of this.plans) convolve(from, to, plan, from.height, from.width); }
  backward(gradient, to) { convolve(gradient, to, this.backPlan, to.height, to.width); }
}

// ---- layers of vectors ------------------------------------------------------------------------------------

// y = W x + b for several vectors at once: weight [O, I]. To the kernel it is a convolution with one tap.
export class Linear {
  constructor(memory, { data, shape: [O, I] }, bias) {
    Object.assign(this, { memory, inputs: I, outputs: O, room: 0 });
    const shape = { outputs: roundUp(O), inputs: I, realOutputs: O, taps: 1 };
    this.plan = { taps: 1, tap: memory.put(new Int32Array(1)),
                  weight: memory.put(packed(shape, (o, i) => data[o * I + i])),
                  bias: bias ? memory.put(padded(bias.data, roundUp(O))) : 0 };
  }
  forward(x) {  // [N, I] -> [N, O]
    const n = x.length / this.inputs, y = new Float32Array(n * this.outputs);
    if (n > this.room) {
      this.from = new Picture(this.memory, 1, n, this.inputs, 0);
      this.to = new Picture(this.memory, 1, n, roundUp(this.outputs), 0);
      this.room = n;
    }
    this.memory.write(this.from.address, x);
    convolve(this.from, this.to, this.plan, 1, n);
    for (let row = 0; row < n; row++)
      y.set(this.memory.read(this.to.at(0, row), this.outputs), row * this.outputs);
    return y;
  }
}

export const sigmoid = (x) => 1 / (1 + Math.exp(-x));
export const elu = (x) => x.map((v) => (v < 0 ? Math.expm1(v) : v));

// Rows of several tables [N, …] side by side.
export function beside(n, ...tables) {
  const widths = tables.map((t) => t.length / n), width = widths.reduce((a, b) => a + b, 0);
  const out = new Float32Array(n * width);
  for (let row = 0; row < n; row++) {
    let at = row * width;
    tables.forEach((table, i) => {
      out.set(table.subarray(row * widths[i], (row + 1) * widths[i]), at);
      at += widths[i];
    });
  }
  return out;
}

// PyTorch's LSTMCell: gates in the order in, forget, cell, out.
export class LSTM {
  constructor(memory, weightIn, weightHidden, biasIn, biasHidden) {
    this.units = weightHidden.shape[1];
    this.input = new Linear(memory, weightIn, biasIn);
    this.hidden = new Linear(memory, weightHidden, biasHidden);
  }
  start(n) { return { hidden: new Float32Array(n * this.units), cell: new Float32Array(n * this.units) }; }
  forward(x, memory) {  // x [N, I] -> the next memory, { hidden [N, U], cell [N, U] }
    const a = this.input.forward(x), b = this.hidden.forward(memory.hidden), U = this.units;
    const next = this.start(memory.cell.length / U);
    for (let n = 0; n < next.cell.length; n++) {
      const unit = n % U, first = 4 * (n - unit) + unit, gate = (g) => a[first + g * U] + b[first + g * U];
      next.cell[n] = sigmoid(gate(1)) * memory.cell[n] + sigmoid(gate(0)) * Math.tanh(gate(2));
      next.hidden[n] = sigmoid(gate(3)) * Math.tanh(next.cell[n]);
    }
    return next;
  }
}

// PyTorch's GRUCell: gates in the order reset, update, new.
export class GRU {
  constructor(memory, weightIn, weightHidden, biasIn, biasHidden) {
    this.units = weightHidden.shape[1];
    this.input = new Linear(memory, weightIn, biasIn);
    this.hidden = new Linear(memory, weightHidden, biasHidden);
  }
  forward(x, hidden) {  // [N, I] and [N, U] -> [N, U]
    const a = this.input.forward(x), b = this.hidden.forward(hidden), U = this.units;
    return hidden.map((h, n) => {
      const unit = n % U, first = 3 * (n - unit) + unit;
      const reset = sigmoid(a[first] + b[first]), update = sigmoid(a[first + U] + b[first + U]);
      const fresh = Math.tanh(a[first + 2 * U] + reset * b[first + 2 * U]);
      return (1 - update) * fresh + update * h;
    });
  }
}

// ---- normalisation and attention --------------------------------------------------------------------------

// PyTorch's GroupNorm of one picture [places, channels]: mean and variance over each group of channels, then a
// scale and a shift for every channel. One group is what IODINE calls layer normalisation.
export function groupNorm(v, channels, scale, shift, groups = 1, small = 1e-5) {
  const out = new Float32Array(v.length), size = channels / groups, count = v.length / groups;
  for (let first = 0; first < channels; first += size) {
    let mean = 0, variance = 0;
    for (let at = first; at < v.length; at += channels)
      for (let c = 0; c < size; c++) mean += v[at + c];
    mean /= count;
    for (let at = first; at < v.length; at += channels)
      for (let c = 0; c < size; c++) variance += (v[at + c] - mean) ** 2;
    const by = 1 / Math.sqrt(variance / count + small);
    for (let at = 0; at < v.length; at += channels)
      for (let c = first; c < first + size; c++) out[at + c] = (v[at + c] - mean) * by * scale[c] + shift[c];
  }
  return out;
}

// PyTorch's LayerNorm over the last axis: every row [channels] of a table by itself.
export function layerNorm(v, channels, scale, shift, small = 1e-5) {
  const out = new Float32Array(v.length);
  for (let at = 0; at < v.length; at += channels)
    out.set(groupNorm(v.subarray(at, at + channels), channels, scale, shift, 1, small), at);
  return out;
}

// In place, the softmax of each row [length] of a table.
export function softmax(v, length) {
  for (let at = 0; at < v.length; at += length) {
    const row = v.subarray(at, at + length), top = Math.max(...row);
    let sum = 0;
    for (let i = 0; i < length; i++) sum += row[i] = Math.exp(row[i] - top);
    for (let i = 0; i < length; i++) row[i] /= sum;
  }
  return v;
}

// Softmax attention: queries [N, D], keys [M, D], values [M, E] -> [N, E]; scores are divided by √D.
export function attention(queries, keys, values, D) {
  const N = queries.length / D, M = keys.length / D, E = values.length / M;
  const scores = new Float32Array(N * M), out = new Float32Array(N * E);
  for (let n = 0; n < N; n++) for (let m = 0; m < M; m++) {
    let dot = 0;
    for (let d = 0; d < D; d++) dot += queries[n * D + d] * keys[m * D + d];
    scores[n * M + m] = dot / Math.sqrt(D);
  }
  softmax(scores, M);
  for (let n = 0; n < N; n++) for (let m = 0; m < M; m++)
    for (let e = 0; e < E; e++) out[n * E + e] += scores[n * M + m] * values[m * E + e];
  return out;
}

export { roundUp, packed };
