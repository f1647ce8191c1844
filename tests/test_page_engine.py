"""The page's engine in a real browser against PyTorch; skipped where there is no Debian `chromium`."""
import base64, copy, dataclasses, importlib.util, json, re, shutil, subprocess, sys
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from iodine_nb.cli import main
from iodine_nb.core import Config, Noise, seeded
from iodine_nb.experiments.experiment import card_of, kinds, load_model
from iodine_nb.experiments.presets import preset
from iodine_nb.models.attention_start import AttentionStartIODINE
from iodine_nb.models.by_hand import KNOWN
from iodine_nb.models.iodine import IODINE
from iodine_nb.models.slot_attention import SlotAttention, SlotAttentionConfig
from iodine_nb.models.slot_frame import SlotFrameConfig, SlotFrameIODINE
from iodine_nb.scenes.format import Batch
from iodine_nb.tools.explorer import PageNoise
from iodine_nb.tools.page import PAGE_KINDS, check_page, page_bytes, page_file

CHROMIUM, WEB = shutil.which("chromium"), Path(__file__).parent.parent / "iodine_nb/web"
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the page's engine is not tested")
SHIPPED = sorted(p.stem for p in (WEB.parent.parent / "data/weights").glob("*.json")
                 if json.loads(p.read_text())["preset"].get("kind") in PAGE_KINDS)
ORIGIN = "http://page.test/"
KINDS = {"": "text/html", "js": "text/javascript", "wasm": "application/wasm"}

START = """async () => {
  window.engine = await import("./engine.js");
  window.blocks = await import("./blocks.js");
  window.bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  window.floats = (text) => new Float32Array(bytes(text).buffer);
  window.text = (v) => { let s = ""; new Uint8Array(v.buffer, v.byteOffset, v.byteLength)
    .forEach((b) => { s += String.fromCharCode(b); }); return btoa(s); };
  window.wasm = new Uint8Array(await (await fetch("kernel.wasm")).arrayBuffer()); }"""


class Page:
    "A page that has the engine and nothing else: what else it asks for is refused and noted."
    def __init__(self, page):
        self.page, self.weights, self.refused, self.errors = page, {}, [], []
        page.route("**/*", self.serve)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.goto(ORIGIN)
        page.evaluate(START)

    def serve(self, route):
        name = route.request.url.removeprefix(ORIGIN)
        if name in self.weights: body = self.weights[name]
        elif name == "": body = b"<!doctype html><link rel=icon href='data:,'><title>engine</title>"
        elif name in ("engine.js", "blocks.js", "attention.js", "worker.js", "kernel.wasm"):
            body = page_file(name)
        else:
            self.refused.append(route.request.url)
            return route.abort()
        route.fulfill(body=body, content_type=KINDS.get(name.rsplit(".", 1)[-1], "application/octet-stream"))

    def run(self, script: str, **values):
        "The result of an async function's body in the page, where `values` are known by their names."
        names = ", ".join(values)
        return self.page.evaluate(f"async ({{ {names} }}) => {{ {script} }}", values)


@pytest.fixture(scope="module")
def page():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield (there := Page(browser.new_page()))
        browser.close()
    assert not there.refused, f"the page asked for {there.refused}"
    assert not there.errors, there.errors


def text(v) -> str:
    "Numbers for the page."
    v = v.detach().numpy() if isinstance(v, torch.Tensor) else v
    return base64.b64encode(np.ascontiguousarray(v, "<f4").tobytes()).decode()


def numbers(v: str, *shape: int) -> torch.Tensor:
    "Numbers from the page."
    return torch.from_numpy(np.frombuffer(base64.b64decode(v), "<f4").copy()).view(*shape)


INFER = """
  const response = await fetch(name);
  const model = await engine.load(wasm, new Uint8Array(await response.arrayBuffer()));
  let draw = 0;
  const found = [];
  let again;
  for (const e of model.infer(floats(image), { slots, iterations, noise: () => floats(noises[draw++]) })) {
    found.push(e);
    again = model.decode(e.z);  // in between, as a page does that draws
  }
  const last = found.at(-1);
  return { draws: draw, losses: found.map((e) => e.loss), masks: text(last.masks), means: text(last.means),
           posterior: last.posterior && text(last.posterior),
           attention: last.attention && text(last.attention), again: text(again.means) };"""


class Recorded(Noise):
    "Noise that keeps what it has drawn."
    drawn = property(lambda self: self.__dict__.setdefault("_drawn", []))
    def draw(self, *shape, **how):
        self.drawn.append(super().draw(*shape, **how))
        return self.drawn[-1]


class Replayed(Noise):
    "The same noise once more, in another precision."
    def __init__(self, drawn): self.left = list(drawn)
    def draw(self, *shape, dtype=torch.float32): return self.left.pop(0).to(dtype)


def rounding(model, image, noise, ours):
    "How far the library's own masks are from those of float64: no page can be asked for more."
    exact = copy.deepcopy(model).double().infer(image.double(), generator=Replayed(noise.drawn))
    return (exact[-1].masks - ours[-1].masks).abs().max().item()


def compare(page, name, model, image, slots=None, iterations=None, precision="float32"):
    "The library's last evaluation, and the page's: with the same noise."
    noise = Recorded((0,), torch.tensor([0]), 1)
    ours = model.infer(image, slots, iterations, generator=noise)
    page.weights[name] = page_bytes(model, precision)
    slots, (_, h, w) = slots or model.config.slots, model.config.image
    theirs = page.run(INFER, name=name, image=text(image[0].movedim(0, -1)), slots=slots,
                      noises=[text(v) for v in noise.drawn],
                      iterations=len(ours) - (not isinstance(model, SlotAttention)))
    assert theirs["draws"] == len(noise.drawn) and len(theirs["losses"]) == len(ours)
    assert theirs["again"] == theirs["means"]  # decode(z) gives what was inferred
    theirs["noise"] = noise
    return ours, theirs, numbers(theirs["masks"], slots, h, w)


@in_browser
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_infer_the_same(page, name):
    torch.set_num_threads(1)
    model, _ = load_model(name)
    image = Batch.of(card_of(name)[0].generated().make(1, np.random.default_rng(3))).image
    ours, theirs, masks = compare(page, name, model, image)
    c, h, w = model.config.image
    own = rounding(model, image, theirs["noise"], ours)
    assert own < (1e-2 if name == "attention_clevr" else 5e-4)  # its refinements enlarge rounding
    assert (masks - ours[-1].masks[0, :, 0]).abs().max() < max(1e-3, own)
    means = numbers(theirs["means"], model.config.slots, h, w, c).movedim(-1, 1)
    visible = masks[:, None] > .01
    assert ((means - ours[-1].means[0]).abs() * visible).max() < 5e-3
    small = .05 if ours[-1].loss > 1 else 1e-7  # nats, or a squared error
    for a, b in zip(theirs["losses"], ours): assert abs(a - b.loss.item()) < 1e-4 * abs(b.loss.item()) + small


@in_browser
def test_half_precision_keeps_the_pixels_with_their_slots(page):
    model, _ = load_model("framed_sprites")
    image = Batch.of(card_of("framed_sprites")[0].generated().make(1, np.random.default_rng(3))).image
    ours, _, masks = compare(page, "half", model, image, precision="float16")
    assert (masks.argmax(0) == ours[-1].segmentation[0]).float().mean() > .98


SMALL = dict(image=[1, 9, 12], slots=3, latent=5, sigma=.4, means="sigmoid", variance="softplus",
             start="per_slot", prior_variance=.7, kl_weight=.5, iterations=3,
             decoder=dict(channels=[6, 5], kernel=3, upsampling=1),
             refinement=dict(channels=[6, 7], kernel=5, pooling="average", mlp=[9, 5], lstm=6))


@in_browser
@pytest.mark.parametrize("change, slots", [
    ({}, 2),  # one channel, widths that are no multiple of four, a size that is no multiple of the grid's
    (dict(image=[3, 8, 7], means="unbounded", start="shared", variance="exp"), 5),
    (dict(image=[3, 11, 8], start="drawn", decoder=dict(channels=[4], kernel=1, upsampling=0)), 1)])
@pytest.mark.parametrize("framed", [False, True])
def test_made_up_models_infer_the_same(page, framed, change, slots):
    config = (SlotFrameConfig if framed else type(preset("desk").model)).from_dict(SMALL | change)
    torch.manual_seed(1)
    model = (SlotFrameIODINE if framed else IODINE)(config)
    with torch.no_grad():
        for p in model.parameters(): p.add_(.1 * torch.randn_like(p))
    image = torch.rand(1, *config.image, generator=seeded(2))
    ours, theirs, masks = compare(page, "made", model, image, slots=slots)
    assert (masks - ours[-1].masks[0, :, 0]).abs().max() < 1e-4
    posterior = numbers(theirs["posterior"], slots, -1)
    assert (posterior - ours[-1].posterior[0]).abs().max() < 1e-3


CELL = """
  const memory = await blocks.Memory.create(wasm);
  const tensor = ([data, shape]) => ({ data: floats(data), shape });
  const cell = new blocks[kind](memory, ...weights.map(tensor));
  if (kind === "GRU") return [text(cell.forward(floats(x), floats(h)))];
  const next = cell.forward(floats(x), { hidden: floats(h), cell: floats(c) });
  return [text(next.hidden), text(next.cell)];"""


@in_browser
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_cells(page, kind):
    torch.manual_seed(0)
    cell, x, h, c = getattr(nn, f"{kind}Cell")(5, 7), torch.randn(3, 5), torch.randn(3, 7), torch.randn(3, 7)
    weights = [(text(v), list(v.shape)) for v in
               (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)]
    theirs = page.run(CELL, kind=kind, weights=weights, x=text(x), h=text(h), c=text(c))
    ours = cell(x, (h, c)) if kind == "LSTM" else (cell(x, h),)
    for a, b in zip(theirs, ours): assert (numbers(a, 3, 7) - b).abs().max() < 1e-6


@in_browser
def test_normalisation_and_attention(page):
    torch.manual_seed(0)
    v, scale, shift = torch.randn(20, 6), torch.randn(6), torch.randn(6)  # 20 places, 6 channels
    theirs = page.run("""const a = [floats(v), 6, floats(scale), floats(shift)];
      return [blocks.groupNorm(...a, 1), blocks.groupNorm(...a, 3), blocks.layerNorm(...a)].map(text);""",
                      v=text(v), scale=text(scale), shift=text(shift))
    group = lambda n: nn.functional.group_norm(v.T[None], n, scale, shift)[0].T
    for a, b in zip(theirs, (group(1), group(3), nn.functional.layer_norm(v, (6,), scale, shift))):
        assert (numbers(a, 20, 6) - b).abs().max() < 1e-5
    q, k, u = torch.randn(4, 6), torch.randn(9, 6), torch.randn(9, 3)
    theirs = page.run("return text(blocks.attention(floats(q), floats(k), floats(u), 6));",
                      q=text(q), k=text(k), u=text(u))
    ours = nn.functional.scaled_dot_product_attention(q, k, u)
    assert (numbers(theirs, 4, 3) - ours).abs().max() < 1e-6


def header(**changes):
    config = preset("desk").change(**changes).model
    return dict(kind="iodine", model=json.loads(json.dumps(config.to_dict())))


def slot_attention_header(**changes):
    config = preset("slots_tetrominoes").change(**{f"model__{k}": v for k, v in changes.items()}).model
    return dict(kind="slot_attention", model=json.loads(json.dumps(config.to_dict())))


UNKNOWN = [("model.likelihood", dict(model__likelihood="logistic")),
           ("model.mixture", dict(model__mixture="per_channel")),
           ("model.flat_inputs", dict(model__flat_inputs="broadcast")),
           ("model.coordinates", dict(model__coordinates="cosine")),
           ("model.normalisation", dict(model__normalisation="plain")),
           ("model.mask_gradient", dict(model__mask_gradient="masks")),
           ("model.decoder.activation", dict(model__decoder__activation="relu")),
           ("model.refinement.activation", dict(model__refinement__activation="relu")),
           ("model.refinement.update", dict(model__refinement__update="gated")),
           ("model.refinement.update_from", dict(model__refinement__update_from="cell")),
           ("model.refinement.lstm", dict(model__refinement__lstm=0)),
           ("model.inputs", dict(model__inputs=("image", "posterior_gradient")))]


def test_every_known_field_has_a_refusal():
    assert {f"model.{name}" for name in KNOWN} <= {name for name, _ in UNKNOWN}


@pytest.mark.parametrize("name, change", UNKNOWN)
def test_what_is_unknown_is_refused_before_a_page_is_made(name, change):
    model = IODINE(preset("desk").change(**change).model)
    with pytest.raises(ValueError, match=f"^{name}: "): page_bytes(model)


@in_browser
def test_frames_of_iodines_start_have_their_gradient(page):
    "Of places and scales too, which the refinement network sees; a scale at its limit has none."
    torch.manual_seed(0)
    x = preset("attention_clevr").model.change(image=(3, 16, 16), slots=3, iterations=2, latent=7,
                                               attention__channels=(8, 8), attention__strides=(1, 2))
    model = AttentionStartIODINE(x.change(decoder__channels=(8, 8), decoder__upsampling=1))
    with torch.no_grad():
        for name, v in model.named_parameters():
            if "encoder" not in name and "attention" not in name: v += .1 * torch.randn(v.shape)
    image = torch.rand(1, 3, 16, 16)
    ours, theirs, masks = compare(page, "frames", model, image)
    assert (masks - ours[-1].masks[0, :, 0]).abs().max() < 1e-4
    apart = (numbers(theirs["posterior"], 3, 14) - ours[-1].posterior[0]).abs()
    assert apart.max() < 1e-3 and (ours[-1].posterior - ours[0].posterior)[..., :4].abs().max() > .01


@pytest.mark.parametrize("name, change", [("place", dict(place="added")),
                                          ("decoder.activation", dict(decoder__activation="relu"))])
def test_unknown_slot_attention_is_refused(name, change):
    model = SlotAttention(preset("slots_tetrominoes").model.change(**change))
    with pytest.raises(ValueError, match=f"^model.{name}: "): page_bytes(model)


def test_weights_that_the_page_cannot_run_are_refused_at_the_door(tmp_path, capsys):
    assert main(["explore", "iterative_desk", "--out", str(tmp_path / "page.html"), "--no-browser"]) == 2
    assert "kind: the page's engine knows iodine, slot_frame, " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_of_somebody_s_own_model_the_refusal_says_what_can_show_it():
    "The book's own kinds have no need of that."
    mine = type("BlobSlots", (torch.nn.Module,), {})()
    with pytest.raises(ValueError, match=r"'BlobSlots'; in a notebook Explorer\(PATH\) shows a model of"):
        check_page(mine)
    with pytest.raises(ValueError, match="is 'iterative'$"): check_page(load_model("iterative_desk")[0])


def test_the_command_says_what_it_does(tmp_path, capsys):
    "While scenes are taken apart, not only when the page is there."
    torch.set_num_threads(1)
    file, page = tmp_path / "few.h5", tmp_path / "page.html"
    card_of("desk")[0].generated().write(file, 2)
    assert main(["explore", "desk", str(file), "--out", str(page), "--no-browser"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"desk \(1 of 1\): scenes, each taken apart from two starts … 2 in \d+ s", first)
    assert last.startswith(f"{page}: ") and page.exists()


def choices(config: type[Config], above: str = ""):
    "Every field of a configuration that is one of some words, by its dotted name, with each of its words."
    for name, kind in get_type_hints(config).items():
        if dataclasses.is_dataclass(kind): yield from choices(kind, f"{above}{name}.")
        elif get_origin(kind) is Literal: yield from ((above + name, word) for word in get_args(kind))


def with_field(fields: dict, name: str, value) -> dict:
    "Nested fields with another value at a dotted name."
    first, _, rest = name.partition(".")
    return fields | {first: with_field(fields[first], rest, value) if rest else value}


def said_in_python(kind: str, fields: dict) -> str:
    "What check_page says of a model of this kind with these fields, which need not be one that can be made."
    model = object.__new__(kinds()[kind].model)
    nn.Module.__init__(model)
    model.config = type("Fields", (), {"to_dict": lambda self: fields})()
    try: return "" if check_page(model) == kind else "another kind"
    except ValueError as error: return str(error)


@in_browser
@pytest.mark.parametrize("kind", PAGE_KINDS)
def test_both_refuse_the_same_in_the_same_words(page, kind):
    config = kinds()[kind].config
    plain = json.loads(json.dumps(config().to_dict()))
    if "place" in plain: plain["place"] = "appended"
    cases = [with_field(plain, *c) for c in choices(config)] + [plain]
    if "refinement" in plain:
        cases += [with_field(plain, "refinement.lstm", 0), plain | {"inputs": ["image"]}]
    theirs = page.run("""return headers.map((header) => {
      try { engine.checkKnown(header); return ""; } catch (error) { return error.message; } });""",
                      headers=[dict(kind=kind, model=fields) for fields in cases])
    ours = [said_in_python(kind, fields) for fields in cases]
    assert ours == theirs and "" in ours and any(ours)


@in_browser
def test_the_page_draws_the_same_noise(page):
    theirs = page.run("const noise = engine.normal(5); return [noise(30), noise(7)].map(text);")
    ours = PageNoise(5)
    for v, n in zip(theirs, (30, 7)): assert (numbers(v, n) - ours.draw(n)[0]).abs().max() < 1e-5


LEARNED = dict(image=[3, 9, 12], slots=3, place="appended",
               decoder=dict(channels=[6, 5], kernel=3, upsampling=1, activation="elu"),
               attention=dict(channels=[6, 5], kernel=3, strides=[1, 2], features=7, slot=6, mlp=9,
                              iterations=2))


@in_browser
@pytest.mark.parametrize("start, noise", [("learned", .3), ("learned", 0.), ("shared", 0.)])
@pytest.mark.parametrize("frame", ["picture", "slot"])
def test_made_up_slot_attention_infers_the_same(page, start, noise, frame):
    config = SlotAttentionConfig.from_dict(LEARNED)
    config = config.change(attention__start=start, attention__query_noise=noise, attention__frame=frame)
    torch.manual_seed(1)
    model = SlotAttention(config)
    with torch.no_grad():
        for p in model.parameters(): p.add_(.1 * torch.randn_like(p))
    image = torch.rand(1, *config.image, generator=seeded(2))
    ours, theirs, masks = compare(page, "made", model, image)
    assert (masks - ours[-1].masks[0, :, 0]).abs().max() < 1e-4
    attention = ours[-1].attention[0]
    assert (numbers(theirs["attention"], *attention.shape) - attention).abs().max() < 1e-4


@in_browser
def test_what_is_unknown_is_refused_by_the_page(page):
    cases = [(name, header(**change)) for name, change in UNKNOWN]
    cases += [("kind", header() | {"kind": "iterative"}),
              ("model.place", slot_attention_header(place="added")),
              ("model.decoder.activation", slot_attention_header(decoder__activation="relu")),
              ("model.spin", {"kind": "iodine", "model": header()["model"] | {"spin": 1}})]
    said = page.run("""return headers.map((header) => {
      try { engine.checkKnown(header); return ""; } catch (error) { return error.message; } });""",
                    headers=[h for _, h in cases] + [header(), slot_attention_header()])
    assert said[-2:] == ["", ""]
    for (name, _), sentence in zip(cases, said): assert sentence.startswith(f"{name}: "), (name, sentence)


@in_browser
def test_a_picture_of_another_size_is_refused(page):
    model, _ = load_model("desk")
    page.weights["desk"] = page_bytes(model)
    said = page.run("""const response = await fetch("desk");
      const model = await engine.load(wasm, new Uint8Array(await response.arrayBuffer()));
      try { [...model.infer(new Float32Array(5))]; } catch (error) { return error.message; }""")
    assert said == "image: must have 35 × 35 × 3 numbers, has 5"


WORKER = """
  const worker = new Worker("./worker.js", { type: "module" }), said = [];
  const weights = new Uint8Array(await (await fetch("desk")).arrayBuffer());
  const model = await engine.load(wasm, weights), image = new Float32Array(3 * 35 * 35).fill(.5);
  const ends = (id) => new Promise((go) => worker.addEventListener("message", ({ data }) => {
    if (data.id === id && (data.done || data.error)) go(data); }));
  worker.addEventListener("message", ({ data }) => said.push(data));
  const ask = (message) => { const end = ends(message.id); worker.postMessage(message); return end; };
  const early = await ask({ id: 0, do: "decode", z: new Float32Array(32) });
  const loaded = await ask({ id: 1, do: "load", wasm, weights });
  const first = ask({ id: 2, do: "infer", image, seed: 5 });
  await ask({ id: 3, do: "infer", image, seed: 6 });
  const here = [...model.infer(image, { noise: engine.normal(6) })].map((e) => e.loss);
  const there = said.filter((m) => m.id === 3 && m.evaluation).map((m) => m.evaluation.loss);
  const decoded = await ask({ id: 4, do: "decode", z: new Float32Array(32) });
  const wrong = await ask({ id: 5, do: "dance" });
  worker.terminate();
  return { early: early.error, kind: loaded.header.kind, stopped: (await first).stopped, here, there,
           means: decoded.means.length, wrong: wrong.error };"""


@in_browser
def test_the_worker_answers(page):
    "Also while it is busy: a second inference ends the first, and is not disturbed by it."
    page.weights["desk"] = page_bytes(load_model("desk")[0])
    said = page.run(WORKER)
    assert said["early"] == "load: no model has been loaded yet" and said["kind"] == "iodine"
    assert said["stopped"] is True and said["there"] == said["here"] and len(said["here"]) == 6
    assert said["means"] == 3 * 35 * 35
    assert said["wrong"] == "do: must be load, infer or decode, is 'dance'"


@in_browser
def test_gradients_of_an_earlier_evaluation_are_refused(page):
    page.weights["desk"] = page_bytes(load_model("desk")[0])
    said = page.run("""
      const model = await engine.load(wasm, new Uint8Array(await (await fetch("desk")).arrayBuffer()));
      const image = new Float32Array(3 * 35 * 35), noise = engine.normal(1), start = model.start(4, noise);
      const first = model.evaluate(image, start, noise(128));
      model.evaluate(image, start, noise(128));
      try { model.refine(image, first); } catch (error) { return error.message; }""")
    assert said == "evaluation: another one was made after it; evaluate it again"


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None,
                    reason="no ziglang here: that kernel.wasm is what kernel.c compiles to is not tested")
def test_the_kernel_is_what_its_source_says(tmp_path):
    "As `make wasm` compiles it."
    recipe = (WEB.parent.parent / "Makefile").read_text().partition("-m ziglang ")[2].splitlines()[0]
    made = tmp_path / "kernel.wasm"
    command = recipe.replace("$(WEB)/kernel.wasm", str(made)).replace("$(WEB)", str(WEB)).split()
    subprocess.run([sys.executable, "-m", "ziglang", *command], check=True, capture_output=True)
    assert made.read_bytes() == (WEB / "kernel.wasm").read_bytes(), "run make wasm, and commit it"
