// The same page as a widget (anywidget): the kernel sends models, weights and scenes, and computes only what the
// engine does not know.
import { Explorer } from "./explorer.js";
import { kernelHost, workerHost } from "./hosts.js";

export function widget(workerText) {
  return { render({ model, el }) {
    const kernel = kernelHost(model), ended = [kernel];
    const open = async (name) => {
      const { wasm, weights, scenes } = await kernel.ask({ do: "load", model: name });
      if (!weights) return { host: kernel, scenes };
      const host = workerHost(workerText);
      ended.push(host);
      await host.ask({ do: "load", wasm, weights });
      return { host, scenes };
    };
    const root = document.createElement("div");
    root.id = `explorer-${Math.random().toString(36).slice(2)}`;
    el.append(root);
    const explorer = new Explorer(root, { models: model.get("models"), open, widget: true, state: model.get("state") });
    return () => { ended.forEach((host) => host.end()); explorer.turn = {}; };
  } };
}
