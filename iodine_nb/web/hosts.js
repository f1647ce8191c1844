// Who computes for the page: the engine in a worker, or the kernel of a notebook. Both answer the same messages,
// which worker.js lists.

// Numbers messages, and hands each answer to whoever asked.
class Asker {
  constructor(post) { Object.assign(this, { post, waiting: new Map(), count: 0 }); }
  ask(message, onStep) {  // onStep(evaluation, t): what an inference says in between
    const id = ++this.count;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, onStep });
      this.post({ id, ...message });
    });
  }
  hear(answer) {
    const asked = this.waiting.get(answer.id);
    if (!asked) return;
    if (answer.evaluation) { asked.onStep?.(answer.evaluation, answer.t); return; }
    this.waiting.delete(answer.id);
    if (answer.error) asked.reject(new Error(answer.error)); else asked.resolve(answer);
  }
}

// The engine in a worker, which is made of its own text, as a page from a file may not fetch another file.
export function workerHost(text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" })), worker = new Worker(url);
  const asker = new Asker((message) => worker.postMessage(message));
  worker.onmessage = ({ data }) => asker.hear(data);
  asker.end = () => { worker.terminate(); URL.revokeObjectURL(url); };
  return asker;
}

// The kernel behind a widget (anywidget's `model`): arrays travel as buffers, in the order of their names.
export function kernelHost(widget) {
  const asker = new Asker((message) => {
    const arrays = Object.entries(message).filter(([, v]) => ArrayBuffer.isView(v));
    const rest = Object.fromEntries(Object.entries(message).filter(([, v]) => !ArrayBuffer.isView(v)));
    widget.send({ ...rest, arrays: arrays.map(([name]) => name) }, undefined, arrays.map(([, v]) => v.buffer));
  });
  const hear = (content, buffers) => {
    const arrays = Object.fromEntries((content.arrays ?? []).map(([name, type], i) => {
      const { buffer, byteOffset, byteLength } = buffers[i];
      const bytes = buffer.slice(byteOffset, byteOffset + byteLength);
      return [name, type === "float32" ? new Float32Array(bytes) : new Uint8Array(bytes)];
    }));
    asker.hear(content.t === undefined ? { ...content, ...arrays }
      : { ...content, evaluation: { ...content.evaluation, ...arrays } });
  };
  widget.on("msg:custom", hear);
  asker.end = () => widget.off("msg:custom", hear);
  return asker;
}

// ---- what a page holds ------------------------------------------------------------------------------------

const fromBase64 = (text) => (Uint8Array.fromBase64 ? Uint8Array.fromBase64(text)
  : Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));

async function unzipped(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Bytes that stand in the page, in the element of this name: gzip in base64.
export const heldBy = (document, name) =>
  unzipped(fromBase64(document.getElementById(name).textContent.trim()));
