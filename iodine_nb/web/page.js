// The self-contained page: everything stands in it, and nothing is fetched.
import { Explorer } from "./explorer.js";
import { heldBy, workerHost } from "./hosts.js";

export function openPage(workerText) {
  // Who embeds the page may say how it is shaded: #theme=dark or light.
  const theme = new URLSearchParams(location.hash.slice(1)).get("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  const { models } = JSON.parse(document.getElementById("models").textContent);
  const wasm = heldBy(document, "kernel"), hosts = {};
  // One worker a model: it keeps what it has loaded, so coming back costs nothing.
  const open = async (name) => {
    const scenes = heldBy(document, `scenes-${name}`), weights = heldBy(document, `weights-${name}`);
    const host = hosts[name] = workerHost(workerText);
    await host.ask({ do: "load", wasm: await wasm, weights: await weights });
    return { host, scenes: await scenes };
  };
  const explorer = new Explorer(document.getElementById("page"), { models, open, state: location.hash.slice(1) });
  addEventListener("hashchange", () => explorer.openState(location.hash.slice(1)));
  return explorer;
}
