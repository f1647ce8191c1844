// The engine in a worker, so that the page stays responsive while it computes.
//
// The page sends { id, do: "load", wasm, weights }, { id, do: "infer", image, slots?, iterations?, seed? } or
// { id, do: "decode", z }, and gets messages with the same id:
//   load    one { id, done: true, header }
//   infer   one { id, t, evaluation } after each refinement, then { id, done: true }
//   decode  one { id, done: true, means, maskLogits }
//   any     { id, error } with a sentence, if it is refused
// A new inference ends the one before it, which answers { id, done: true, stopped: true }.
import { load, normal, readWeights } from "./engine.js";

let model, newest;

// Lets messages in that have arrived meanwhile, so that a new inference can end this one.
const breath = () => new Promise((go) => { setTimeout(go, 0); });

const jobs = {
  async load({ wasm, weights }) {
    model = await load(wasm, weights);
    const { kind, model: config } = readWeights(weights).header;
    return { header: { kind, model: config } };
  },
  async infer({ id, image, slots, iterations, seed = 0 }) {
    newest = id;
    let t = 0;
    for (const evaluation of model.infer(image, { slots, iterations, noise: normal(seed) })) {
      self.postMessage({ id, t: t++, evaluation });
      await breath();
      if (newest !== id) return { stopped: true };
    }
    return {};
  },
  async decode({ z }) { return model.decode(z); },
};

self.onmessage = async ({ data }) => {
  const { id } = data;
  try {
    if (!(data.do in jobs)) throw new Error(`do: must be load, infer or decode, is '${data.do}'`);
    if (!model && data.do !== "load") throw new Error("load: no model has been loaded yet");
    self.postMessage({ id, done: true, ...(await jobs[data.do](data)) });
  } catch (error) { self.postMessage({ id, error: error.message }); }
};
