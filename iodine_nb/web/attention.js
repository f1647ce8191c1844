// Slot Attention in a page (70_slot_attention): from a picture to slots, which divide its places among themselves.
// 71_attention_start begins IODINE from them; engine.js has both models. Slots may have frames: then the first four
// numbers of a slot are its place (row, column) and the logarithms of its scales, and it looks from there.
import { Convolution, GRU, layerNorm, Linear, Picture, roundUp, softmax } from "./blocks.js";

const relu = (x) => x.map((v) => Math.max(0, v));
const SMALL = 1e-3;  // what this model's layer normalisations add to the variance, as Keras does

// torch.linspace(-1, 1, n)[i]
export const coordinate = (i, n) => (n === 1 ? -1 : -1 + (2 * i) / (n - 1));

// ---- frames -----------------------------------------------------------------------------------------------

export const FRAME = 4;  // numbers of a frame
export const SCALES = [Math.log(0.05), Math.log(2)];  // smallest and largest
const within = (v, low, high) => Math.min(high, Math.max(low, v));

// What coordinates from a slot's place are multiplied with, in both directions: 1/(5 · scale).
export const stretch = (frame) => [2, 3].map((i) => Math.exp(-within(frame[i], ...SCALES)) / 5);

// The part of a normal distribution below x, by its series (Marsaglia 2004).
function below(x) {
  let sum = x, term = x;
  for (let n = 3; Math.abs(term) > 1e-12 && n < 300; n += 2) sum += term *= (x * x) / n;
  return within(0.5 + (sum * Math.exp(-0.5 * x * x)) / Math.sqrt(2 * Math.PI), 0, 1);
}

// A random frame from four normal numbers: anywhere in the picture, scales near .1.
const anywhere = (noise) => [2 * below(noise[0]) - 1, 2 * below(noise[1]) - 1,
  ...[noise[2], noise[3]].map((v) => Math.log(Math.max(0.05, 0.1 + 0.1 * v)))];

// The frame that weights over places, which sum to one, stand for: their centre, and how far they spread.
function measured(weights, places) {
  const centre = [0, 0], spread = [0, 0];
  weights.forEach((w, p) => { for (const i of [0, 1]) centre[i] += w * places[p][i]; });
  weights.forEach((w, p) => { for (const i of [0, 1]) spread[i] += w * (places[p][i] - centre[i]) ** 2; });
  return [...centre, ...spread.map((v) => 0.5 * Math.log(within(v, ...SCALES.map((s) => Math.exp(2 * s)))))];
}

// ---- the encoder ------------------------------------------------------------------------------------------

// Convolutions with ReLU, the place added to each place's features, and a small network for each place.
class Encoder {
  constructor(memory, [C, H, W], { channels, kernel, strides }, of) {
    this.pictures = [new Picture(memory, H, W, roundUp(C), kernel >> 1)];
    this.layers = channels.map((c, i) => {
      const from = this.pictures[i], [h, w] = [from.height, from.width].map((s) => Math.floor((s - 1) / strides[i]) + 1);
      const to = new Picture(memory, h, w, roundUp(c), kernel >> 1), layer = `convolutions.${2 * i}`;
      this.pictures.push(to);
      return new Convolution(memory, from, to, of(`${layer}.weight`), of(`${layer}.bias`), strides[i]);
    });
    const { height, width } = this.pictures.at(-1), linear = (name) => of(`convolutions.${2 * channels.length}.linear.${name}`);
    Object.assign(this, { C, channels: channels.at(-1), grid: [height, width], memory });
    this.place = new Float32Array(height * width * this.channels);  // of slots with frames nothing is added here
    if (linear("weight")) this.addPlace(linear("weight").data, linear("bias").data);
    this.norm = (v) => layerNorm(v, this.channels, of("each.0.weight").data, of("each.0.bias").data, SMALL);
    this.each = [1, 3].map((i) => new Linear(memory, of(`each.${i}.weight`), of(`each.${i}.bias`)));
  }
  addPlace(weight, bias) {  // a linear map of (y, x, 1 - y, 1 - x)
    const [height, width] = this.grid, unit = (i, n) => (n > 1 ? i / (n - 1) : 0);
    for (let p = 0; p < height * width; p++) {
      const y = unit(Math.floor(p / width), height), x = unit(p % width, width), edges = [y, x, 1 - y, 1 - x];
      for (let c = 0; c < this.channels; c++)
        this.place[p * this.channels + c] = bias[c] + edges.reduce((sum, e, i) => sum + e * weight[4 * c + i], 0);
    }
  }
  forward(image) {  // [H, W, C] -> [places, features]
    const { floats } = this.memory, { C, channels } = this;
    this.pictures[0].forEach((at, pixel) => {
      for (let c = 0; c < C; c++) floats[at + c] = 2 * image[pixel * C + c] - 1;
    });
    this.layers.forEach((layer, i) => {
      const to = this.pictures[i + 1];
      layer.forward(this.pictures[i], to);
      to.forEach((at) => { for (let c = at; c < at + to.channels; c++) if (floats[c] < 0) floats[c] = 0; });
    });
    const seen = this.place.slice();
    this.pictures.at(-1).forEach((at, p) => { for (let c = 0; c < channels; c++) seen[p * channels + c] += floats[at + c]; });
    return this.each[1].forward(relu(this.each[0].forward(this.norm(seen))));
  }
}

// ---- the rounds -------------------------------------------------------------------------------------------

export class SlotRounds {
  constructor(memory, { image, attention }, tensors) {
    const own = (name) => tensors[`attention.${name}`], D = attention.slot;
    this.encoder = new Encoder(memory, image, attention, (name) => tensors[`encoder.${name}`]);
    Object.assign(this, { config: attention, D, grid: this.encoder.grid, mean: own("mean"), deviation: own("log_deviation") });
    const norm = (name) => (v) => layerNorm(v, own(`${name}.bias`).data.length, own(`${name}.weight`).data,
                                            own(`${name}.bias`).data, SMALL);
    this.normalise = { inputs: norm("normalise_inputs"), slots: norm("normalise_slots"), mlp: norm("normalise_mlp") };
    const linear = (name) => new Linear(memory, own(`${name}.weight`), own(`${name}.bias`));
    [this.query, this.key, this.value] = ["query", "key", "value"].map(linear);
    this.mlp = [linear("mlp.0"), linear("mlp.2")];
    this.gru = new GRU(memory, own("gru.weight_ih"), own("gru.weight_hh"), own("gru.bias_ih"), own("gru.bias_hh"));
  }
  // Slots that have seen nothing [K, D]: drawn from one Gaussian, or one learned query for each.
  begin(slots, noise) {
    const { D, mean: { data, shape: [learned] }, deviation, config } = this;
    if (!deviation && slots > learned)
      throw new Error(`slots: this model has learned ${learned} queries, cannot run with ${slots}`);
    if (!deviation && !config.query_noise) return data.slice(0, slots * D);
    return noise(slots * D).map((v, i) => (deviation ? data[i % D] + Math.exp(deviation.data[i % D]) * v
      : data[i] * (1 + config.query_noise * v)));
  }
  // After each update: the slots [K, D], and what each looked at [K, places], which sums to one over slots.
  *run(image, slots, updates, noise) {
    const inputs = this.normalise.inputs(this.encoder.forward(image));
    const keys = this.key.forward(inputs), values = this.value.forward(inputs);
    for (let t = 0, now = this.begin(slots, noise); t < updates; t++) {
      const found = this.update(now, keys, values);
      now = found.slots;
      yield found;
    }
  }
  // One round: slots compete for the places, each takes the mean of what it has won.
  update(slots, keys, values) {
    const all = (v) => new Array(slots.length / this.D).fill(v), queries = this.query.forward(this.normalise.slots(slots));
    const { attention, weights } = this.divide(queries, all(keys));
    return { slots: this.renewed(slots, this.won(weights, all(values))), attention };
  }
  // From queries [K, D] and each slot's keys [P, D]: attention [K, P], and each slot's weights in its mean.
  divide(queries, keys) {
    const { D } = this, K = keys.length, P = keys[0].length / D, shared = new Float32Array(P * K);
    for (let p = 0; p < P; p++) for (let k = 0; k < K; k++) {  // for every place, its slots beside each other
      let dot = 0;
      for (let d = 0; d < D; d++) dot += queries[k * D + d] * keys[k][p * D + d];
      shared[p * K + k] = dot / Math.sqrt(D);
    }
    softmax(shared, K);
    const attention = Float32Array.from({ length: K * P }, (_, i) => shared[(i % P) * K + Math.floor(i / P)]);
    const weights = keys.map((_, k) => {
      const own = attention.slice(k * P, (k + 1) * P).map((v) => v + 1e-8), sum = own.reduce((a, b) => a + b, 0);
      return own.map((v) => v / sum);
    });
    return { attention, weights };
  }
  won(weights, values) {  // the mean of each slot's values [P, D]
    const { D } = this, means = new Float32Array(weights.length * D);
    weights.forEach((own, k) => own.forEach((weight, p) => {
      for (let d = 0; d < D; d++) means[k * D + d] += weight * values[k][p * D + d];
    }));
    return means;
  }
  renewed(slots, means) {
    const next = this.gru.forward(means, slots);
    const more = this.mlp[1].forward(relu(this.mlp[0].forward(this.normalise.mlp(next))));
    return next.map((v, i) => v + more[i]);
  }
}

// Slots with frames (Invariant Slot Attention): [K, FRAME + D]. What a slot sees of a place depends on where that
// place lies in its frame, and after each round its frame is measured anew, from where it looked.
export class FramedRounds extends SlotRounds {
  constructor(memory, config, tensors) {
    super(memory, config, tensors);
    const own = (name) => tensors[`attention.${name}`], [h, w] = this.grid;
    const linear = (name) => new Linear(memory, own(`${name}.weight`), own(`${name}.bias`));
    this.place = linear("place");
    this.each = [linear("each.1"), linear("each.3")];
    this.normalise.each = (v) => layerNorm(v, this.D, own("each.0.weight").data, own("each.0.bias").data, SMALL);
    this.places = Array.from({ length: h * w }, (_, p) => [coordinate(Math.floor(p / w), h), coordinate(p % w, w)]);
  }
  begin(slots, noise) {
    const first = this.rows(super.begin(slots, noise), this.D), drawn = this.rows(noise(slots * FRAME), FRAME);
    return this.joined(drawn.map(anywhere), first);
  }
  *run(image, slots, updates, noise) {  // a last look renews the frames only
    let t = 0;
    for (const found of super.run(image, slots, updates, noise)) {
      if (++t < updates) { yield found; continue; }
      const { slots: looked, attention } = this.update(found.slots, found.keys, found.values);
      const [frames, rest] = [this.split(looked)[0], this.split(found.slots)[1]];
      yield { slots: this.joined(frames, rest), attention };
    }
  }
  update(slots, keys, values) {
    const [frames, rest] = this.split(slots), before = Float32Array.from(rest.flatMap((v) => [...v]));
    const seen = frames.map((frame) => {
      const factor = stretch(frame);
      return this.place.forward(Float32Array.from(this.places.flatMap((at) => at.map((v, i) => (v - frame[i]) * factor[i]))));
    });
    const inFrames = (v) => seen.map((place) => this.each[1].forward(relu(this.each[0].forward(
      this.normalise.each(v.map((a, i) => a + place[i]))))));
    const { attention, weights } = this.divide(this.query.forward(this.normalise.slots(before)), inFrames(keys));
    const next = this.renewed(before, this.won(weights, inFrames(values)));
    const frame = (own) => measured(own, this.places);
    return { slots: this.joined(weights.map(frame), this.rows(next, this.D)), attention, keys, values };
  }
  rows(v, length) { return Array.from({ length: v.length / length }, (_, k) => v.subarray(k * length, (k + 1) * length)); }
  split(slots) {
    const all = this.rows(slots, FRAME + this.D);
    return [all.map((v) => v.subarray(0, FRAME)), all.map((v) => v.subarray(FRAME))];
  }
  joined(frames, rest) { return Float32Array.from(frames.flatMap((frame, k) => [...frame, ...rest[k]])); }
}

// The rounds that a configuration asks for.
export const roundsOf = (memory, config, tensors) =>
  new (config.attention.frame === "slot" ? FramedRounds : SlotRounds)(memory, config, tensors);
