// Slot Attention in a page (70_slot_attention): from a picture to slots, which divide its places among themselves.
// 71_attention_start begins IODINE from them; engine.js has both models.
import { Convolution, GRU, layerNorm, Linear, Picture, roundUp, softmax } from "./blocks.js";

const relu = (x) => x.map((v) => Math.max(0, v));
const SMALL = 1e-3;  // what this model's layer normalisations add to the variance, as Keras does

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
    const { height, width } = this.pictures.at(-1), place = of(`convolutions.${2 * channels.length}.linear.weight`).data;
    Object.assign(this, { C, channels: channels.at(-1), grid: [height, width], memory });
    const bias = of(`convolutions.${2 * channels.length}.linear.bias`).data, unit = (i, n) => (n > 1 ? i / (n - 1) : 0);
    this.place = new Float32Array(height * width * this.channels);  // a linear map of (y, x, 1 - y, 1 - x)
    for (let p = 0; p < height * width; p++) {
      const y = unit(Math.floor(p / width), height), x = unit(p % width, width), edges = [y, x, 1 - y, 1 - x];
      for (let c = 0; c < this.channels; c++)
        this.place[p * this.channels + c] = bias[c] + edges.reduce((sum, e, i) => sum + e * place[4 * c + i], 0);
    }
    this.norm = (v) => layerNorm(v, this.channels, of("each.0.weight").data, of("each.0.bias").data, SMALL);
    this.each = [1, 3].map((i) => new Linear(memory, of(`each.${i}.weight`), of(`each.${i}.bias`)));
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
  update(slots, keys, values) {
    const { D } = this, K = slots.length / D, P = keys.length / D, queries = this.query.forward(this.normalise.slots(slots));
    const shared = new Float32Array(P * K);  // for every place, its slots beside each other
    for (let p = 0; p < P; p++) for (let k = 0; k < K; k++) {
      let dot = 0;
      for (let d = 0; d < D; d++) dot += queries[k * D + d] * keys[p * D + d];
      shared[p * K + k] = dot / Math.sqrt(D);
    }
    softmax(shared, K);  // slots compete for each place
    const attention = new Float32Array(K * P), means = new Float32Array(K * D);
    for (let k = 0; k < K; k++) {
      let sum = 0;
      for (let p = 0; p < P; p++) sum += (attention[k * P + p] = shared[p * K + k]) + 1e-8;
      for (let p = 0; p < P; p++) {  // a weighted mean over places
        const weight = (attention[k * P + p] + 1e-8) / sum;
        for (let d = 0; d < D; d++) means[k * D + d] += weight * values[p * D + d];
      }
    }
    const next = this.gru.forward(means, slots);
    const more = this.mlp[1].forward(relu(this.mlp[0].forward(this.normalise.mlp(next))));
    return { slots: next.map((v, i) => v + more[i]), attention };
  }
}
