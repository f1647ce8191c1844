// IODINE in a page: a scene is taken apart, and slots are decoded, without a server.
//
//   const model = await load(wasm, weights);            // the bytes of kernel.wasm, and what page_bytes wrote
//   for (const seen of model.infer(image)) draw(seen);  // image [H, W, C] from 0 to 1; once an iteration
//   const { means, maskLogits } = model.decode(z);      // latents [K, D]
//
// It computes what `IODINE.infer` of the library computes, with the gradients written by hand: the chapter
// 18_gradient_by_hand derives each of them, and the comments here say only which one it is. Channels are last
// everywhere: λ [K, 2D], means [K, H, W, C], masks [K, H, W].
import { beside, Convolution, Doubling, elu, groupNorm, Linear, LSTM, Memory, packed, Picture, roundUp,
         sigmoid, softmax } from "./blocks.js";
import { coordinate, FRAME, roundsOf, SCALES, stretch } from "./attention.js";

// ---- weights and configurations ---------------------------------------------------------------------------

// The fields of a configuration for which this engine knows these values only; null: any.
export const KNOWN = {
  image: null, slots: null, latent: null, likelihood: ["gaussian"], mixture: ["joint"], sigma: null,
  means: ["unbounded", "sigmoid"], prior_variance: null, kl_weight: null,
  "decoder.channels": null, "decoder.kernel": null, "decoder.upsampling": null, "decoder.activation": ["elu"],
  iterations: null, variance: ["softplus", "exp"], start: ["shared", "per_slot", "drawn"], start_variance: null,
  weights: null, gradients: null, inputs: ["image", "means", "masks", "mask_logits", "mask_posterior",
    "means_gradient", "mask_gradient", "pixel_likelihood", "leave_one_out", "coordinates", "posterior",
    "posterior_gradient"],
  flat_inputs: ["joined"], coordinates: ["linear"], normalisation: ["affine"], mask_gradient: ["logits"],
  "refinement.channels": null, "refinement.kernel": null, "refinement.pooling": ["average", "flatten"],
  "refinement.mlp": null, "refinement.lstm": null, "refinement.activation": ["elu"],
  "refinement.update": ["additive"], "refinement.update_from": ["hidden"],
};
const LOOKING = { "attention.channels": null, "attention.kernel": null, "attention.strides": null,
  "attention.features": null, "attention.slot": null, "attention.mlp": null, "attention.iterations": null,
  "attention.gradient": null, "attention.start": ["shared", "learned"], "attention.query_noise": null,
  "attention.frame": ["picture", "slot"] };
const DECODER = Object.fromEntries(Object.entries(KNOWN).filter(([name]) => name.startsWith("decoder.")));
export const KINDS = {
  iodine: KNOWN, slot_frame: KNOWN, attention_start: { ...KNOWN, ...LOOKING },
  slot_attention: { image: null, slots: null, ...LOOKING, ...DECODER, place: ["appended"], losses: null },
};

// Fields of fields by dotted names: { decoder: { kernel: 5 } } becomes { "decoder.kernel": 5 }.
function flat(fields, above = "") {
  return Object.assign({}, ...Object.entries(fields).map(([name, value]) =>
    value && typeof value === "object" && !Array.isArray(value) ? flat(value, `${above}${name}.`)
      : { [above + name]: value }));
}

// An error that names the first field that this engine does not know.
export function checkKnown({ kind, model }) {
  const refuse = (sentence) => { throw new Error(sentence); };
  const fields = KINDS[kind];
  if (!fields) refuse(`kind: the page's engine knows ${Object.keys(KINDS).join(", ")}, is '${kind}'`);
  for (const [name, value] of Object.entries(flat(model))) {
    if (!(name in fields)) refuse(`model.${name}: the page's engine does not know this field`);
    const known = fields[name];
    if (name === "inputs") {
      if (String(value) !== String(known)) refuse("model.inputs: the page's engine needs all rows of the table");
    } else if (known && !known.includes(value))
      refuse(`model.${name}: the page's engine knows ${known.join(" and ")}, is '${value}'`);
  }
  if (model.refinement?.lstm === 0) refuse("model.refinement.lstm: the page's engine needs at least 1 unit, is 0");
}

// A half-precision number from its sixteen bits: sign, five bits of exponent, ten of fraction.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// There are only 65,536 of them, so each is computed once.
function fromHalf(bits) {
  const table = new Float32Array(65536), out = new Float32Array(bits.length);
  for (let i = 0; i < table.length; i++) table[i] = half(i);
  for (let i = 0; i < bits.length; i++) out[i] = table[bits[i]];
  return out;
}

// What `iodine_nb.tools.page.page_bytes` wrote: the header's length, the header in JSON, and all numbers.
export function readWeights(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  if (header.format !== 1) throw new Error(`format: this engine reads 1, is ${header.format}`);
  const body = bytes.slice(4 + length).buffer;
  const numbers = header.precision === "float32" ? new Float32Array(body) : fromHalf(new Uint16Array(body));
  const tensors = Object.fromEntries(Object.entries(header.tensors).map(([name, { shape, start }]) =>
    [name, { shape, data: numbers.subarray(start, start + shape.reduce((a, b) => a * b, 1)) }]));
  return { header, tensors };
}

export async function load(wasm, weights) {
  const { header, tensors } = readWeights(weights);
  checkKnown(header);
  const Model = { attention_start: AttentionStart, slot_attention: SlotAttention }[header.kind] ?? Iodine;
  return new Model(await Memory.create(wasm), header, tensors);
}

// ---- the decoder ------------------------------------------------------------------------------------------

const PLACE = 0.5;  // of 47_slot_frame: a place of 1 is so much of half a picture

// What the first layer is told of a slot: its numbers, and where its coordinates count from and how they stretch.
const plain = (z) => ({ input: z });
const placed = (z) => ({ input: Float32Array.of(...z.subarray(2), -PLACE * z[0], -PLACE * z[1]) });
const inFrame = (z) => {  // 70_slot_attention, 71_attention_start
  const factor = stretch(z);
  return { input: Float32Array.of(...z.subarray(FRAME), -factor[0] * z[0], -factor[1] * z[1]), factor };
};

// The decoder's first layer in closed form: the latent is the same at every place, so each tap of the kernel has
// one small product with it, which counts wherever the tap is inside of the picture (11_decoder).
class BroadcastConvolution {
  constructor(memory, to, weight, bias, told) {
    const [O, I, k] = weight.shape, P = to.height * to.width, taps = k * k, framed = told !== plain;
    // Of a slot with a frame, the last two inputs are the coordinates and, with other signs, the slot's place.
    Object.assign(this, { memory, to, O, I, taps, told, framed, weight: weight.data, latents: framed ? I : I - 2 });
    this.place = new Float32Array(P * to.channels);  // what bias and coordinates give, whatever the latent
    this.axes = [0, 1].map(() => new Float32Array(P * to.channels));  // each coordinate's part of it
    const inside = new Float32Array(P * taps), turned = new Float32Array(taps * P);
    for (let pixel = 0; pixel < P; pixel++) {
      const y = Math.floor(pixel / to.width), x = pixel % to.width;
      for (let o = 0; o < O; o++) this.place[pixel * to.channels + o] = bias.data[o];
      for (let t = 0; t < taps; t++) {
        const row = y + Math.floor(t / k) - (k >> 1), column = x + (t % k) - (k >> 1);
        if (row < 0 || column < 0 || row >= to.height || column >= to.width) continue;
        inside[pixel * taps + t] = turned[t * P + pixel] = 1;
        const at = [coordinate(row, to.height), coordinate(column, to.width)];
        for (let o = 0; o < O; o++) for (const i of [0, 1])
          this.axes[i][pixel * to.channels + o] += this.at(o, I - 2 + i, t) * at[i];
      }
    }
    for (const axis of this.axes) this.place = this.place.map((v, i) => v + axis[i]);
    // Both directions are products of matrices, [P, taps] × [taps, O] and [taps, P] × [P, O]; to the kernel a
    // convolution with one tap, whose weights are what changes.
    const one = memory.put(new Int32Array(1));
    this.inside = new Picture(memory, 1, P, taps, 0); memory.write(this.inside.address, inside);
    this.turned = new Picture(memory, 1, taps, P, 0); memory.write(this.turned.address, turned);
    this.sums = new Picture(memory, 1, P, to.channels, 0);
    this.ofTaps = new Picture(memory, 1, taps, to.channels, 0);
    this.plan = { taps: 1, tap: one, weight: memory.allocate(taps * to.channels) };
    this.backPlan = { taps: 1, tap: one, weight: memory.allocate(P * to.channels) };
  }
  at(o, i, t) { return this.weight[(o * this.I + i) * this.taps + t]; }

  product(from, to, plan) {
    this.memory.kernel.convolve(from.address, from.width, 1, from.channels,
                                to.address, to.width, 1, to.channels, 1, to.width, 1, plan.tap, plan.weight, 0);
  }
  forward(z, to) {  // and what `backward` must know of z
    const { input, factor } = this.told(z), D = input.length;
    const tapWeight = (o, t) => {
      let sum = 0;
      for (let d = 0; d < D; d++) sum += input[d] * this.at(o, d, t);
      return sum;
    };
    const shape = { outputs: to.channels, inputs: this.taps, taps: 1, realOutputs: this.O };
    this.memory.write(this.plan.weight, packed(shape, tapWeight));
    this.product(this.inside, this.sums, this.plan);
    const { floats } = this.memory, sums = this.sums.address >> 2, [rows, columns] = this.axes;
    const place = factor ? this.place.map((v, i) => v + (factor[0] - 1) * rows[i] + (factor[1] - 1) * columns[i]) : this.place;
    to.forEach((at, pixel) => {
      const first = pixel * to.channels;
      for (let o = 0; o < to.channels; o++) floats[at + o] = floats[sums + first + o] + place[first + o];
    });
  }
  backward(gradient, z) {  // -> ∂L/∂z [D]
    const { channels, width, height } = gradient, order = new Float32Array(width * height * channels);
    const { floats } = this.memory, P = width * height;
    gradient.forEach((at, pixel) => {
      for (let o = 0; o < channels; o++) {
        const block = o & ~7, size = Math.min(8, channels - block);
        order[block * P + pixel * size + (o - block)] = floats[at + o];
      }
    });
    this.memory.write(this.backPlan.weight, order);
    this.product(this.turned, this.ofTaps, this.backPlan);
    const g = this.memory.read(this.ofTaps.address, this.taps * channels), gz = new Float32Array(this.latents);
    for (let d = 0; d < gz.length; d++)
      for (let o = 0; o < this.O; o++)
        for (let t = 0; t < this.taps; t++) gz[d] += g[t * channels + o] * this.at(o, d, t);
    if (!this.framed) return gz;
    const D = gz.length, others = gz.subarray(0, D - 2), ofPlace = gz.subarray(D - 2);
    if (this.told === placed) return Float32Array.of(...ofPlace.map((v) => -PLACE * v), ...others);
    // Coordinates are factor · (at - place): the place counts as an input does, the factor in every pixel.
    const ofFactor = ofPlace.map((v, i) => -v * z[i]), { factor } = this.told(z);
    gradient.forEach((at, pixel) => {
      for (let o = 0; o < this.O; o++) for (const i of [0, 1])
        ofFactor[i] += floats[at + o] * this.axes[i][pixel * channels + o];
    });
    const inside = (i) => z[2 + i] >= SCALES[0] && z[2 + i] <= SCALES[1];
    return Float32Array.of(...ofPlace.map((v, i) => -factor[i] * v),
                           ...ofFactor.map((v, i) => (inside(i) ? -factor[i] * v : 0)), ...others);
  }
}

// One slot's latent to its picture, and back. Every slot keeps its pictures: the way back needs ELU's outputs.
class Decoder {
  constructor(memory, { image: [C, H, W], decoder }, tensors, told) {
    const { channels, kernel, upsampling } = decoder, widths = [...channels, C + 1].map(roundUp);
    const doublings = (layer) => Math.max(0, layer - (channels.length - upsampling));
    const grid = [H, W].map((s) => Math.ceil(s / 2 ** upsampling));
    this.newPictures = () => widths.map((c, layer) =>
      new Picture(memory, ...grid.map((s) => s * 2 ** doublings(layer)), c, kernel >> 1));
    this.gradients = this.newPictures();
    this.pictures = {};
    const of = (layer, name) => tensors[`decoder.layers.${2 * layer}.${name}`];
    const [g] = this.gradients;
    this.first = new BroadcastConvolution(memory, g, of(0, "conv.weight"), of(0, "conv.bias"), told);
    this.layers = channels.map((_, i) => {
      const Layer = doublings(i + 1) > doublings(i) ? Doubling : Convolution;
      const [from, to] = [this.gradients[i], this.gradients[i + 1]];  // any pictures of these sizes
      return new Layer(memory, from, to, of(i + 1, "weight"), of(i + 1, "bias"));
    });
  }
  forward(z, slot) {  // -> the picture of means and mask logits; not yet cropped
    const pictures = (this.pictures[slot] ??= this.newPictures());
    pictures.latent = z;
    this.first.forward(z, pictures[0]);
    this.layers.forEach((layer, i) => { pictures[i].elu(); layer.forward(pictures[i], pictures[i + 1]); });
    return pictures.at(-1);
  }
  // ∂L/∂z of what was decoded last for this slot; the caller has written the gradient of the picture of means and
  // mask logits into `gradients.at(-1)`.
  backward(slot) {
    for (let i = this.layers.length - 1; i >= 0; i--) {
      this.layers[i].backward(this.gradients[i + 1], this.gradients[i]);
      this.gradients[i].eluBackward(this.pictures[slot][i]);
    }
    return this.first.backward(this.gradients[0], this.pictures[slot].latent);
  }
}

// ---- the mixture of the slots -----------------------------------------------------------------------------

// log Σ exp over all slots but one. `v` has a value for each slot, `e` exp(v - v[top]), `sum` the sum of e.
function logSumOfOthers(v, e, top, sum, slot) {
  if (slot !== top) return v[top] + Math.log(Math.max(sum - e[slot], 1));  // the largest is among the others
  let second = -Infinity, rest = 0;
  v.forEach((value, i) => { if (i !== top) second = Math.max(second, value); });
  if (second === -Infinity) return -Number.MAX_VALUE / 2;  // there is no other
  v.forEach((value, i) => { if (i !== top) rest += Math.exp(value - second); });
  return second + Math.log(rest);
}

// exp(v - largest), their sum and place, and log Σ exp(v).
function exponentials(v, e) {
  let top = 0, sum = 0;
  for (let i = 1; i < v.length; i++) if (v[i] > v[top]) top = i;
  for (let i = 0; i < v.length; i++) sum += e[i] = Math.exp(v[i] - v[top]);
  return { top, sum, log: v[top] + Math.log(sum) };
}

// Equation (1) in every pixel, and the gradients of L with respect to means and mask logits.
function spatialMixture(image, means, maskLogits, slots, channels, sigma) {
  const N = maskLogits.length / slots, many = () => new Float32Array(slots * N);
  const out = { masks: many(), responsibilities: many(), maskPosterior: many(), leaveOneOut: many(),
                maskGradient: many(), meansGradient: new Float32Array(slots * N * channels),
                logLikelihood: new Float32Array(N) };
  const row = () => new Float64Array(slots);
  const mask = row(), joint = row(), own = row(), eMask = row(), eJoint = row(), eOwn = row();
  const constant = channels * (Math.log(sigma) + 0.5 * Math.log(2 * Math.PI));
  for (let p = 0; p < N; p++) {
    for (let s = 0; s < slots; s++) {
      let error = 0;
      for (let c = 0, q = s * N + p; c < channels; c++)
        error += (image[p * channels + c] - means[q * channels + c]) ** 2;
      own[s] = -0.5 * error / sigma ** 2 - constant;       // log p(x | μ_s)
      mask[s] = maskLogits[s * N + p];
    }
    const m = exponentials(mask, eMask);
    for (let s = 0; s < slots; s++) { mask[s] -= m.log; joint[s] = mask[s] + own[s]; }
    const j = exponentials(joint, eJoint), o = exponentials(own, eOwn);
    out.logLikelihood[p] = j.log;
    for (let s = 0, q = p; s < slots; s++, q += N) {
      const responsibility = eJoint[s] / j.sum;
      out.masks[q] = eMask[s] / m.sum;
      out.responsibilities[q] = responsibility;
      out.maskPosterior[q] = eOwn[s] / o.sum;
      out.leaveOneOut[q] = j.log - (logSumOfOthers(joint, eJoint, j.top, j.sum, s)
                                    - logSumOfOthers(mask, eMask, m.top, m.sum, s));
      out.maskGradient[q] = out.masks[q] - responsibility;
      for (let c = 0, i = q * channels; c < channels; c++, i++)
        out.meansGradient[i] = -responsibility * (image[p * channels + c] - means[i]) / sigma ** 2;
    }
  }
  return out;
}

// ---- the refinement network -------------------------------------------------------------------------------

// Convolutions of stride 2 with ELU, and their last picture as a vector.
class Looking {
  constructor(memory, { channels, kernel, pooling }, inputs, height, width, of) {
    this.pooling = pooling;
    this.pictures = [new Picture(memory, height, width, inputs, kernel >> 1)];
    this.layers = channels.map((c, i) => {
      const from = this.pictures[i], [h, w] = [from.height, from.width].map((size) => (size + 1) >> 1);
      const to = new Picture(memory, h, w, roundUp(c), kernel >> 1);
      this.pictures.push(to);
      return new Convolution(memory, from, to, of(2 * i, "weight"), of(2 * i, "bias"), 2);
    });
    this.channels = channels.at(-1);
    this.memory = memory;
  }
  forward(write) {  // `write(floats, at, pixel)` puts the pixel's inputs to memory.floats[at…]
    const { floats } = this.memory;
    this.pictures[0].forEach((at, pixel) => write(floats, at, pixel));
    this.layers.forEach((layer, i) => {
      layer.forward(this.pictures[i], this.pictures[i + 1]);
      this.pictures[i + 1].elu();
    });
    const last = this.pictures.at(-1), size = last.height * last.width, average = this.pooling === "average";
    const out = new Float32Array(this.channels * (average ? 1 : size));
    last.forEach((at, pixel) => {
      for (let c = 0; c < this.channels; c++)
        if (average) out[c] += floats[at + c] / size;
        else out[c * size + pixel] = floats[at + c];  // in PyTorch's order, channel by channel
    });
    return out;
  }
}

// Half to the even number, as torch.round does.
function round(v) {
  const down = Math.floor(v), rest = v - down;
  return rest < 0.5 ? down : rest > 0.5 ? down + 1 : down + (down & 1);
}

// Where the pixels are that a slot is responsible for (whereabouts of 47_slot_frame): their centre, the corner of
// the window around it, and the five numbers that the network is told.
function whereabouts(responsibility, H, W, oldPlace) {
  const mean = responsibility.reduce((a, b) => a + b, 0) / responsibility.length;
  let mass = 0, row = 0, column = 0;
  responsibility.forEach((r, pixel) => {
    const weight = Math.max(0, r - mean) ** 2;
    mass += weight;
    row += weight * coordinate(Math.floor(pixel / W), H);
    column += weight * coordinate(pixel % W, W);
  });
  mass = Math.max(mass, 1e-6);
  const place = [row / mass, column / mass], size = [H, W];
  const at = place.map((v, i) => ((v + 1) / 2) * (size[i] - 1)), middle = size.map((s) => ((s >> 1) - 1) / 2);
  const corner = at.map((v, i) => round(v - middle[i]));
  const moved = place.map((v, i) => v - PLACE * oldPlace[i]);
  const inWindow = at.map((v, i) => ((v - corner[i] - middle[i]) / (size[i] - 1)) * (size[i] / 2));
  return { place, corner, measured: [...moved, 4 * Math.sqrt(mass / (H * W)), ...inWindow] };
}

// f_φ: from what one slot sees to its next λ.
class Refinement {
  constructor(memory, config, tensors, framed) {
    const { image: [C, H, W], refinement } = config;
    Object.assign(this, { H, W, framed, inputs: 3 * C + 8 });
    const of = (part) => (layer, name) => tensors[`refinement.${part}.${layer}.${name}`];
    const looking = (part, h, w) => new Looking(memory, refinement, this.inputs, h, w, of(part));
    this.whole = framed ? looking("convolutions", H >> 1, W >> 1) : looking("convolutions", H, W);
    if (framed) this.window = looking("window", H >> 1, W >> 1);
    const mlp = of("mlp");
    this.mlp = refinement.mlp.map((_, i) => new Linear(memory, mlp(2 * i, "weight"), mlp(2 * i, "bias")));
    const lstm = (name) => tensors[`refinement.lstm.${name}`];
    this.lstm = new LSTM(memory, lstm("weight_ih"), lstm("weight_hh"), lstm("bias_ih"), lstm("bias_hh"));
    this.head = new Linear(memory, tensors["refinement.head.weight"], tensors["refinement.head.bias"]);
  }
  // `seen` [H, W, I]: all features of the convolutions; `corner` only for a slot with a frame.
  look(seen, corner) {
    const { inputs: I, W, H } = this;
    const copy = (floats, at, from) => floats.set(seen.subarray(from, from + I), at);
    if (!this.framed) return this.whole.forward((floats, at, pixel) => copy(floats, at, pixel * I));
    const half = W >> 1, split = (pixel) => [Math.floor(pixel / half), pixel % half];
    const whole = this.whole.forward((floats, at, pixel) => {       // each pixel the mean of four
      const [y, x] = split(pixel), from = (2 * y * W + 2 * x) * I;
      for (let i = from; i < from + I; i++)
        floats[at + i - from] = (seen[i] + seen[i + I] + seen[i + W * I] + seen[i + W * I + I]) / 4;
    });
    const near = this.window.forward((floats, at, pixel) => {       // the window; zero outside of the picture
      const [y, x] = split(pixel), row = corner[0] + y, column = corner[1] + x;
      if (row < 0 || column < 0 || row >= H || column >= W) floats.fill(0, at, at + I);
      else copy(floats, at, (row * W + column) * I);
    });
    return beside(1, whole, near);
  }
  update(features, numbers, posterior, memory) {  // of all slots: tables [K, …]
    const slots = memory.hidden.length / this.lstm.units;
    for (const layer of this.mlp) features = elu(layer.forward(features));
    memory = this.lstm.forward(beside(slots, features, numbers), memory);
    const change = this.head.forward(memory.hidden);
    return { posterior: posterior.map((v, i) => v + change[i]), memory };
  }
}

// ---- the model --------------------------------------------------------------------------------------------

// Standard normal numbers from a seed (mulberry32, and Box and Muller): noise(n) gives the next n.
export function normal(seed = 0) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const one = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return (n) => Float32Array.from({ length: n }, one);
}

// What all models have: a decoder.
class Painter {
  constructor(memory, config, tensors, told = plain) {
    Object.assign(this, { config, framed: told === placed });
    [this.C, this.H, this.W] = config.image;
    this.N = this.H * this.W;
    this.decoder = new Decoder(memory, config, tensors, told);
  }
  check(image) {
    if (image.length !== this.N * this.C)
      throw new Error(`image: must have ${this.H} × ${this.W} × ${this.C} numbers, has ${image.length}`);
  }
  // Means and mask logits of latents [K, D]. `keep` is for `evaluate`, whose slots keep what the way back needs.
  decode(z, keep = false) {
    const { latent: D, means: kind } = this.config, { C, W, H, N } = this, K = z.length / D;
    const means = new Float32Array(K * N * C), maskLogits = new Float32Array(K * N);
    const mean = kind === "sigmoid" ? sigmoid : (v) => v;
    for (let s = 0; s < K; s++) {
      const out = this.decoder.forward(z.subarray(s * D, (s + 1) * D), keep ? s : "spare");
      const { floats } = out.memory;
      out.forEach((at, pixel) => {
        const q = s * N + pixel;
        for (let c = 0; c < C; c++) means[q * C + c] = mean(floats[at + c]);
        maskLogits[q] = floats[at + C];
      }, H, W);
    }
    return { means, maskLogits };
  }
}

export class Iodine extends Painter {
  constructor(memory, header, tensors) {
    const c = header.model;
    const told = header.kind === "slot_frame" ? placed : c.attention?.frame === "slot" ? inFrame : plain;
    super(memory, c, tensors, told);
    this.unsampled = told === placed ? 2 : told === inFrame ? FRAME : 0;  // the first numbers: no noise and no KL
    this.refinement = new Refinement(memory, c, tensors, this.framed);
    this.first = tensors.initial_posterior;
    this.norm = (name, v, channels) => groupNorm(v, channels, tensors[`inputs.norm.${name}.weight`].data,
                                                 tensors[`inputs.norm.${name}.bias`].data);
  }

  // λ_0 [K, 2D]; `noise` is asked only if the model's starts are drawn.
  start(slots, noise) {
    const { latent: D, start } = this.config, { data, shape: [learned] } = this.first;
    if (start === "per_slot" && slots > learned)
      throw new Error(`slots: this model has learned a start for each of ${learned}, cannot run with ${slots}`);
    const length = slots * 2 * D;
    const λ = Float32Array.from({ length }, (_, i) => data[start === "per_slot" ? i : i % (2 * D)]);
    if (start === "drawn") noise(slots * D).forEach((v, i) => { λ[2 * i - (i % D)] += v; });
    return λ;
  }

  // λ_0 for this picture: `start`, which has not seen it.
  firstGuess(image, slots, noise) { return this.start(slots, noise); }

  // The variance that the second half of λ stands for, and its slope.
  variance(raw) {
    return this.config.variance === "exp" ? Math.exp(Math.min(20, Math.max(-20, raw)))
      : Math.max(raw, 0) + Math.log1p(Math.exp(-Math.abs(raw))) + 1e-8;
  }
  slope(raw, variance) {
    return this.config.variance === "exp" ? (Math.abs(raw) <= 20 ? variance : 0) : sigmoid(raw);
  }

  // Sample z from λ, decode it, and compare with the image [H, W, C].
  evaluate(image, posterior, noise) {
    const { latent: D, sigma, prior_variance: prior, kl_weight } = this.config, K = posterior.length / (2 * D);
    const z = new Float32Array(K * D), latents = new Float32Array(K * D), kl = new Float32Array(K);
    for (let s = 0; s < K; s++) for (let d = 0; d < D; d++) {
      const mean = posterior[s * 2 * D + d], variance = this.variance(posterior[s * 2 * D + D + d]);
      const measured = d < this.unsampled;
      latents[s * D + d] = mean;
      z[s * D + d] = measured ? mean : mean + Math.sqrt(variance) * noise[s * D + d];
      if (!measured) kl[s] += 0.5 * ((variance + mean ** 2) / prior - 1 - Math.log(variance / prior));
    }
    const decoded = this.decode(z, true);
    const seen = spatialMixture(image, decoded.means, decoded.maskLogits, K, this.C, sigma);
    const loss = kl_weight * kl.reduce((a, b) => a + b, 0) - seen.logLikelihood.reduce((a, b) => a + b, 0);
    return (this.newest = { posterior, latents, z, noise, kl, loss, slots: K, ...decoded, ...seen });
  }

  // ∂L/∂λ of one slot of the evaluation that was made last, as the way back needs what the decoder has kept of it.
  // (To go back from an earlier one, evaluate it again: it holds its posterior and its noise.)
  posteriorGradient(e, slot) {
    if (e !== this.newest) throw new Error("evaluation: another one was made after it; evaluate it again");
    const { latent: D, prior_variance: prior, kl_weight } = this.config, { C, H, W, N } = this;
    const g = this.decoder.gradients.at(-1), { floats } = g.memory, sigmoidal = this.config.means === "sigmoid";
    g.forEach((at, pixel) => {  // what is cropped keeps its zeros
      const q = slot * N + pixel;
      for (let c = 0, i = q * C; c < C; c++, i++)
        floats[at + c] = e.meansGradient[i] * (sigmoidal ? e.means[i] * (1 - e.means[i]) : 1);
      floats[at + C] = e.maskGradient[q];
    }, H, W);
    const gz = this.decoder.backward(slot), gradient = new Float32Array(2 * D);
    for (let d = 0; d < D; d++) {
      gradient[d] = gz[d];
      if (d < this.unsampled) continue;
      const raw = e.posterior[slot * 2 * D + D + d], variance = this.variance(raw);
      gradient[d] += kl_weight * e.posterior[slot * 2 * D + d] / prior;
      const ofVariance = gz[d] * e.noise[slot * D + d] / (2 * Math.sqrt(variance))
                       + kl_weight * 0.5 * (1 / prior - 1 / variance);
      gradient[D + d] = ofVariance * this.slope(raw, variance);
    }
    return gradient;
  }

  // What the refinement network sees of a slot (12_inputs), pixel by pixel: [H, W, 3C + 8].
  seen(image, e, slot, pixelLikelihood) {
    const { C, H, W, N } = this, I = 3 * C + 8, out = new Float32Array(N * I);
    const one = (v, channels = 1) => v.subarray(slot * N * channels, (slot + 1) * N * channels);
    const means = one(e.means, C), meansGradient = this.norm("means_gradient", one(e.meansGradient, C), C);
    const columns = [one(e.masks), one(e.maskLogits), one(e.maskPosterior)];
    const later = [this.norm("mask_gradient", one(e.maskGradient), 1), pixelLikelihood,
                   this.norm("leave_one_out", one(e.leaveOneOut), 1)];
    for (let p = 0, at = 0; p < N; p++) {
      for (let c = 0; c < C; c++) out[at++] = image[p * C + c];
      for (let c = 0; c < C; c++) out[at++] = means[p * C + c];
      for (const v of columns) out[at++] = v[p];
      for (let c = 0; c < C; c++) out[at++] = meansGradient[p * C + c];
      for (const v of later) out[at++] = v[p];
      out[at++] = coordinate(Math.floor(p / W), H);
      out[at++] = coordinate(p % W, W);
    }
    return out;
  }

  // Equation (3): the next λ, and what the LSTM remembers.
  refine(image, e, memory) {
    const { latent: D } = this.config, { H, W, N } = this, posterior = e.posterior.slice();
    const features = [], numbers = [], pixelLikelihood = this.norm("pixel_likelihood", e.logLikelihood, 1);
    for (let s = 0; s < e.slots; s++) {
      const λ = e.posterior.subarray(s * 2 * D, (s + 1) * 2 * D), gradient = this.posteriorGradient(e, s);
      numbers.push(λ, this.norm("posterior_gradient", gradient, 2 * D));
      let corner;
      if (this.framed) {
        const found = whereabouts(e.responsibilities.subarray(s * N, (s + 1) * N), H, W, λ);
        posterior.set(found.place.map((v) => v / PLACE), s * 2 * D);  // to which the network adds its correction
        numbers.push(Float32Array.from(found.measured));
        corner = found.corner;
      }
      features.push(this.refinement.look(this.seen(image, e, s, pixelLikelihood), corner));
    }
    const memoryNow = memory ?? this.refinement.lstm.start(e.slots);
    return this.refinement.update(beside(1, ...features), beside(1, ...numbers), posterior, memoryNow);
  }

  // The evaluations at t = 0 … iterations, each as soon as it is known. `noise(n)` gives n standard normal numbers;
  // it is asked in the order in which the library draws them. Slots and iterations are the model's own if not said.
  *infer(image, { slots = this.config.slots, iterations = this.config.iterations, noise = normal() } = {}) {
    this.check(image);
    let posterior = this.firstGuess(image, slots, noise), memory;
    for (let t = 0; t <= iterations; t++) {
      const e = this.evaluate(image, posterior, noise(slots * this.config.latent));
      yield t ? e : Object.assign(e, this.looked);
      if (t < iterations) ({ posterior, memory } = this.refine(image, e, memory));
    }
  }
}

// IODINE that looks before it guesses (71_attention_start): λ_0 is the learned start plus a linear map of each slot
// that attention has found.
class AttentionStart extends Iodine {
  constructor(memory, header, tensors) {
    super(memory, header, tensors);
    this.rounds = roundsOf(memory, header.model, tensors);
    this.head = new Linear(memory, tensors["head.weight"]);
  }
  firstGuess(image, slots, noise) {
    const { slots: found, attention } = [...this.rounds.run(image, slots, this.config.attention.iterations, noise)].at(-1);
    this.looked = { attention, grid: this.rounds.grid };  // for who wants to see it
    const { latent: D, attention: { slot } } = this.config, own = found.length / slots, start = this.start(slots, noise);
    const rows = Array.from({ length: slots }, (_, k) => found.subarray(k * own, (k + 1) * own));
    const moved = this.head.forward(Float32Array.from(rows.flatMap((v) => [...v.subarray(own - slot)])));
    return start.map((v, i) => (i % (2 * D) < this.unsampled ? rows[Math.floor(i / (2 * D))][i % (2 * D)] : v + moved[i]));
  }
}

// Slot Attention as a model of its own (70_slot_attention), with this book's decoder.
class SlotAttention extends Painter {
  constructor(memory, header, tensors) {
    const { slot, frame } = header.model.attention, framed = frame === "slot", latent = slot + (framed ? FRAME : 0);
    super(memory, { ...header.model, latent, means: "unbounded" }, tensors, framed ? inFrame : plain);
    this.rounds = roundsOf(memory, header.model, tensors);
  }
  // What is known after each update.
  *infer(image, { slots = this.config.slots, iterations = this.config.attention.iterations, noise = normal() } = {}) {
    this.check(image);
    const { N, C, rounds: { grid } } = this;
    for (const { slots: latents, attention } of this.rounds.run(image, slots, iterations, noise)) {
      const { means, maskLogits } = this.decode(latents), masks = new Float32Array(slots * N), shares = new Float32Array(slots);
      let error = 0;
      for (let p = 0; p < N; p++) {
        for (let k = 0; k < slots; k++) shares[k] = maskLogits[k * N + p];
        softmax(shares, slots);
        for (let k = 0; k < slots; k++) masks[k * N + p] = shares[k];
        for (let c = 0; c < C; c++) {
          let composed = 0;
          for (let k = 0; k < slots; k++) composed += shares[k] * means[(k * N + p) * C + c];
          error += (composed - image[p * C + c]) ** 2;
        }
      }
      yield { latents, z: latents, slots, means, maskLogits, masks, attention, grid, loss: error / (N * C) };
    }
  }
}
