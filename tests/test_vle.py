"""Variable-length embeddings: the loop, its memory, its masks and their losses, and the published sizes."""
import itertools, json, math, shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from iodine_nb.cli import main
from iodine_nb.core import seeded
from iodine_nb.experiments.experiment import build, card_of, load_model, train, weights_path
from iodine_nb.experiments.presets import preset, presets
from iodine_nb.experiments.vle import asked, token_control
from iodine_nb.models.vle import VLE, ConvLSTM, NetworkConfig, VLEConfig, arranged, collapse, mask_loss
from iodine_nb.scenes.format import Batch
from iodine_nb.tools.explorer import answers, page_knows, shown
from iodine_nb.training.metrics import Decomposition, TakesApart

NET = NetworkConfig(3, (1, 2), 1, 2, 0., 1, (3, 4), 1, 5)
CONFIG = VLEConfig((3, 8, 6), 3, NET)
MASKED = CONFIG.change(masks="inherent", memory="encoder", sum="clamped")
SALIENT = MASKED.change(masks="saliency", memory="saliency")
CONFIGS = [CONFIG, MASKED, SALIENT, MASKED.change(sum="plain"), MASKED.change(sum="tanh", memory="latent"),
           MASKED.change(inputs="masked_residual"), MASKED.change(inputs="image_and_mask", rounding=True),
           SALIENT.change(inputs="image_and_mask", memory="encoder", sum="tanh"),
           MASKED.change(applied="weight"), MASKED.change(applied="logit", sum="plain"),
           CONFIG.change(normalise=False),
           CONFIG.change(nested=True, normalise=False), CONFIG.change(kl_weight=.1, memory="latent")]
OURS = [name for name, x in presets().items() if x.kind == "vle"]


def pictures(n=2, seed=0): return torch.rand(n, 3, 8, 6, generator=seeded(seed), dtype=torch.float64)


def model(config=CONFIG, seed=0):
    "In float64, with no bias at zero: nothing may hide."
    torch.manual_seed(seed)
    m = VLE(config).double()
    for p in m.parameters(): nn.init.normal_(p, std=.3)
    return m.eval()


class Same(nn.Module):
    "An encoder that copies what it sees."
    def forward(self, x, state=None, prompt=None): return x, state


class Zero(nn.Module):
    def forward(self, x): return 0 * x[:, :3]


def test_with_an_identity_one_token_is_the_picture():
    m, x = model(), pictures()
    m.encoder, m.decoder = Same(), nn.Identity()
    scenes = m.infer(x, 3)
    assert (scenes[0].reconstruction - x).abs().max() < 1e-12 and scenes[0].loss.max() < 1e-24
    assert all((e.reconstruction - x).abs().max() < 1e-12 for e in scenes)


def test_a_network_that_outputs_zero_paints_the_mean_colour():
    "Three numbers get past the latent; the deviations do nothing, and further tokens neither."
    m, x = model(), pictures()
    m.encoder, m.decoder = Same(), Zero()
    first, second = m.infer(x, 2)
    mean = x.mean((2, 3), keepdim=True)
    assert (first.reconstruction - mean).abs().max() < 1e-12
    assert (first.loss - (x - mean).square().mean((1, 2, 3))).abs().max() < 1e-12
    assert second.added[:, 1].abs().max() < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.sampled_from(CONFIGS), st.integers(1, 3))
def test_n_tokens_and_one_more_share_the_first_n(seed, config, n):
    m, x = model(config, seed), 2 * pictures(seed=seed) - 1
    if config.nested: n = min(n, 2)
    few, more = m.walk(x, n), m.walk(x, n + 1)
    assert len(few) == n and len(more) == n + 1
    for a, b in zip(few, more):
        for name, v in a._asdict().items(): assert torch.equal(v, getattr(b, name)), name


def test_only_the_prompt_changes_the_first_tokens():
    m, x = model(CONFIG.change(prompt=True)), 2 * pictures() - 1
    assert (m.walk(x, 1)[0].latent - m.walk(x, 2)[0].latent).abs().max() > 1e-3
    with pytest.raises(ValueError, match="tokens: the prompt knows at most 3, not 4"): m.walk(x, 4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.sampled_from(CONFIGS))
def test_scenes_are_mixtures_that_sum_to_the_loops_picture(seed, config):
    m, x = model(config, seed), pictures(seed=seed)
    scenes = m.infer(x)
    assert isinstance(m, TakesApart) and len(scenes) == 3 and isinstance(scenes[0], Decomposition)
    left = 2 * x - 1
    for t, (e, token) in enumerate(zip(scenes, m.walk(2 * x - 1, 3))):
        left = left - token.added
        assert (e.reconstruction - (x - left / 2)).abs().max() < 1e-12
        assert (e.masks.sum(1) - 1).abs().max() < 1e-12
        assert ((e.masks * e.means).sum(1) - e.reconstruction).abs().max() < 1e-5
        assert not e.latents[:, t + 1:].any() and e.segmentation.shape == (2, 8, 6)
    assert scenes[-1].latents.shape == (2, 3, config.floats)
    if config.nested:
        with pytest.raises(ValueError, match="decode: a token of a nested latent"):
            m.decode(scenes[-1].latents)
        return
    means, logits = m.decode(scenes[-1].latents)
    assert ((logits.softmax(1) * means).sum(1) - scenes[-1].reconstruction).abs().max() < 1e-5


def test_tokens_switched_off_and_moved():
    "All of them are the loop's picture; without one it is missing, and what is moved keeps its values."
    m, x = model(MASKED), pictures()
    last = m.infer(x)[-1]
    assert torch.equal(arranged(last, [True] * 3), last.reconstruction)
    assert torch.equal(arranged(last, [False] * 3), torch.full_like(x, .5))
    off = arranged(last, [True, False, True])
    assert (off - (last.reconstruction - last.added[:, 1])).abs().max() < 1e-12
    moved = arranged(last, [False, True, False], {1: (2, -1)}) - .5  # two down, one to the left
    assert (moved[:, :, 2:, :-1] - last.added[:, 1, :, :-2, 1:]).abs().max() < 1e-12
    assert not moved[:, :, :2].any() and not moved[:, :, :, -1].any()
    with pytest.raises(ValueError, match="shown: 2 values for 3 tokens"): arranged(last, [True] * 2)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_page_adds_up_tokens(tmp_path, browser):
    "Some of them, switched off and moved, in a browser without a kernel: the same as `arranged`."
    x, rand = pictures(2), lambda *shape: torch.rand(2, 3, *shape, generator=seeded(1), dtype=torch.float64)
    last = model(MASKED).infer(x)[-1]._replace(pictures=rand(3, 8, 6) - .5, strengths=rand(1, 8, 6))
    (path := tmp_path / "tokens.html").write_text(f"<meta charset=utf-8>{token_control(x, last).data}")
    page, complaints = browser.new_page(), []
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelector('[data-said]').textContent")
    def seen(scene, shown, moved=None):
        script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        found = torch.tensor(page.locator("[data-sum]").evaluate(script)).view(8, 6, 4)
        found = found[..., :3].movedim(-1, 0) / 255
        return (found - arranged(last, shown, moved)[scene].clamp(0, 1)).abs().max() < .015
    assert seen(0, [True] * 3)
    page.select_option("select", index=1)
    assert seen(1, [True] * 3)
    page.locator("[data-tiles] button").nth(0).click()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft"): page.locator("[data-sum]").press(key)
    assert seen(1, [True] * 3, {0: (2, -1)}) and not seen(1, [True] * 3)
    page.locator("[data-tiles] input").nth(1).uncheck()
    assert seen(1, [True, False, True], {0: (2, -1)})
    page.locator("input[type=range]").press("ArrowLeft")
    assert seen(1, [True, False, False], {0: (2, -1)})
    page.locator("[data-afresh]").click()
    assert seen(1, [True] * 3) and not complaints


def test_the_explorer_shows_tokens_one_by_one():
    "A kernel computes them; the page's engine does not know the kind."
    seen = shown("vle_mask_small", count=2)
    assert not page_knows(seen.model) and seen.about["slots"] == 6
    image = (seen.images[0] / 255).astype(np.float32).ravel()
    *found, (end, _) = answers(seen, {"do": "infer", "image": image, "seed": 0})
    assert len(found) == 6 and end == {"done": True}
    for t, (_, v) in enumerate(found): assert not v["latents"][t + 1:].any() and v["latents"][t].any()
    (_, drawn), = answers(seen, {"do": "decode", "z": found[-1][1]["latents"].ravel()})
    e = seen.model.infer(torch.tensor(image).view(1, 32, 32, 3).movedim(-1, 1))[-1]
    mixed = (torch.tensor(drawn["maskLogits"]).softmax(0) * torch.tensor(drawn["means"])).sum(0)
    assert (mixed - e.reconstruction[0].movedim(0, -1)).abs().max() < 1e-4


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.sampled_from([c for c in CONFIGS if c.masks != "none"]))
def test_the_sums_of_masks(seed, config):
    m = model(config, seed)
    tokens = m.walk(2 * pictures(seed=seed) - 1, 5)
    masks, totals = (torch.stack([getattr(t, k) for t in tokens]) for k in ("mask", "total"))
    assert masks.min() >= 0 and masks.max() <= 1 and not totals[0].any()
    if config.sum == "clamped": assert masks.sum(0).max() < 1 + 1e-12
    expected = masks[0].tanh() if config.sum == "tanh" else masks[0]
    assert (totals[1] - expected).abs().max() < 1e-12
    if config.sum != "tanh": assert (totals - masks.cumsum(0) + masks).abs().max() < 1e-12
    else: assert totals.max() < 1
    if config.rounding: assert ((masks == 0) | (masks == 1)).all()
    if config.masks == "inherent":
        assert torch.equal(tokens[0].mask, tokens[0].strength) == (config.applied == "mask")
        if config.applied != "mask": assert (tokens[0].strength == 1).all()


def test_rounding_keeps_the_gradient_of_the_sigmoid():
    m = model(MASKED.change(rounding=True, sum="plain"))
    logit = torch.randn(2, 1, 8, 6, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    g, = torch.autograd.grad(m.mask(logit, 0 * logit, 2.).sum(), logit)
    s = (2 * logit).sigmoid()
    assert (g - 2 * s * (1 - s)).abs().max() < 1e-12


def test_the_conv_lstm_is_an_lstm_in_every_pixel():
    "With weights in the middle of its kernels only."
    torch.manual_seed(0)
    ours, cell = ConvLSTM(3, 4).double(), nn.LSTMCell(3, 4).double()
    nn.init.zeros_(ours.gates.weight)
    with torch.no_grad():
        ours.gates.weight[:, :, 1, 1] = torch.cat([cell.weight_ih, cell.weight_hh], 1)
        ours.gates.bias.copy_(cell.bias_ih + cell.bias_hh)
    state, plain = None, None
    for t in range(3):
        x = torch.randn(2, 3, 5, 6, generator=seeded(t), dtype=torch.float64)
        out, state = ours(x, state)
        plain = cell(x.permute(0, 2, 3, 1).reshape(-1, 3), plain)
        for a, b in zip(state, plain):
            assert (a.permute(0, 2, 3, 1).reshape(-1, 4) - b).abs().max() < 1e-12
        assert torch.equal(out, ours.project(state[0]))


def test_a_memory_that_shows_its_output_gate_keeps_its_state():
    "The mistake of the log's program is in what the next layer sees; the state goes on as in an LSTM."
    torch.manual_seed(0)
    ours, gate = ConvLSTM(3, 4).double(), ConvLSTM(3, 4, "gate").double()
    gate.load_state_dict(ours.state_dict())
    state, same = None, None
    for t in range(3):
        x = torch.randn(2, 3, 5, 6, generator=seeded(t), dtype=torch.float64)
        before = state
        (_, state), (shown, same) = ours(x, state), gate(x, same)
        assert all(torch.equal(a, b) for a, b in zip(state, same))
        assert torch.equal(shown, gate.project(gate.update(x, before)[0]))
        assert 0 < gate.update(x, before)[0].min() and state[0].min() < 0


@pytest.mark.parametrize("kind", ["cross_entropy", "sum", "previous", "both"])
def test_minima_of_the_mask_losses_on_a_grid(kind):
    """All pairs of masks of 24 pixels: so many pixels in the first, in the second, and in both.

    A pixel in either or both adds 2 to the areas a and b and the difference d, so a + b + d is at most 2 of
    the picture, and the sum of p exp(-5a), exp(-5b) and k exp(-5d) is least where all three are equal."""
    n, found = 24, {}
    for a, b in itertools.product(range(n + 1), repeat=2):
        for o in range(max(0, a + b - n), min(a, b) + 1):
            one, two = torch.zeros(n), torch.zeros(n)
            one[:a], two[a - o:a - o + b] = 1, 1
            one, two = one.view(1, 1, 1, n), two.view(1, 1, 1, n)
            found[a, b, o] = float(mask_loss(kind, one, 0 * one, 0 * one) + mask_loss(kind, two, one, one))
    a, b, o = min(found, key=found.get)
    if kind == "cross_entropy":
        others = [v for k, v in found.items() if k != (n, 0, 0)]
        assert (a, b, o) == (n, 0, 0) and found[n, 0, 0] < 1e-3 < .1 < min(others)
        return
    p, k = (3, 2) if kind == "both" else (2, 1)
    level = (2 - math.log(p * k) / 5) / 3
    exact = [level + math.log(p) / 5, level, level + math.log(k) / 5]
    assert a + b - o == n and max(abs(x / n - y) for x, y in zip((a, b, a + b - 2 * o), exact)) < 1 / n
    assert found[a, b, o] >= 3 * math.exp(-5 * level) > .99 * found[a, b, o]


@pytest.mark.parametrize("areas, expected", [
    ((1., 0.), dict(iou=0., largest=1., smallest=0.)), ((1., 1.), dict(iou=1., largest=1., smallest=1.)),
    ((.5, .5), dict(iou=1., largest=.5, smallest=.5)), ((.25, .5), dict(iou=.5, largest=.5, smallest=.25))])
def test_collapse(areas, expected):
    "Of two masks that begin in the same corner."
    masks = torch.stack([(torch.arange(8.) < 8 * a).expand(1, 8, 8).float() for a in areas], 1)
    found = collapse(masks)
    assert {k: round(found[k].item(), 4) for k in expected} == expected and found["mask_bits"] < 1e-3


def test_the_published_size_takes_a_step(tmp_path):
    "7.33 million parameters, counted; and the trainer's first step with them, at 64 × 64, on a CLEVR scene."
    x = preset("vle").change(training__steps=1, training__batch_size=1, training__log_every=1)
    assert (x.model, x.training.optimiser, x.training.learning_rate) == (VLEConfig(), "adam", 1e-3)
    assert x.model.image == (3, 64, 64) and x.model.grid == (8, 8) and x.model.floats == 262
    before = build(x, x.training.seed).state_dict()
    assert sum(v.numel() for v in before.values()) == 7_326_503
    record = train(x, tmp_path / "run", progress=False)
    (line,) = record.log()
    assert line["step"] == 1 and math.isfinite(line["loss"]) and not line["skipped"]
    after = load_model(record.path)[0].state_dict()
    moved = {name: (after[name] - v).abs().max().item() for name, v in before.items()}
    assert len(moved) > 100 and 5e-4 < min(moved.values()) and max(moved.values()) < 1.001e-3  # Adam's first


@pytest.mark.parametrize("name", [n for n in OURS if n != "vle"])
def test_every_small_preset_takes_a_step(name):
    m = build(preset(name), 0)
    terms = m.loss(Batch(torch.rand(2, *m.config.image, generator=seeded(0))), seeded(1), tokens_mean=2.)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize("change", [
    dict(inputs="masked_residual"), dict(inputs="image_and_mask"), dict(memory="none"), dict(memory="latent"),
    dict(memory_output="gate"), dict(prompt=True), dict(sum="plain"), dict(sum="tanh"), dict(rounding=True),
    dict(applied="weight"), dict(applied="logit"), dict(sharpness=3.), dict(count="uniform"),
    dict(mask_loss="none"), dict(mask_loss="cross_entropy"),
    dict(mask_loss="previous"), dict(mask_loss="both"), dict(mask_weight=2.), dict(smoothing=1.),
    dict(kl_weight=.1), dict(decorrelation=1.), dict(normalise=False), dict(network__latent=1),
    dict(network__saliency=(2, 3), masks="saliency"), dict(memory="saliency", masks="saliency")], ids=str)
def test_every_field_changes_the_loss(change):
    base = MASKED.change(mask_loss="sum", masks=change.get("masks", "inherent"))
    one, other = (model(c).loss(Batch(pictures()), seeded(3), tokens_mean=2.)["loss"]
                  for c in (base, base.change(**change)))
    assert (one - other).abs() > 1e-9


def test_how_many_tokens_a_step_has():
    m = model(CONFIG.change(tokens=4))
    drawn = lambda mean: [m.requested(seeded(i), mean) for i in range(400)]
    zero = drawn(0.)  # |N(0, 1)|, rounded: 0 in 38%, 1 in 48%, 2 in 12%
    assert all(abs(zero.count(n) / 400 - p) < .08 for n, p in ((1, .383), (2, .484), (3, .121)))
    late = drawn(3.9)  # rounded down to 3, which is the last: half of the draws are beyond it, or round to it
    assert max(late) == 4 and abs(late.count(4) / 400 - .69) < .08
    m.config = m.config.change(count="fixed")
    assert drawn(1.9) == [2] * 400
    m.config = m.config.change(count="uniform")
    assert {n: abs(drawn(0.).count(n) - 100) < 40 for n in range(1, 5)} == dict.fromkeys(range(1, 5), True)


def test_what_cannot_be_is_refused():
    m = model()
    with pytest.raises(ValueError, match="tokens: must be at least 1, is 0"): m.infer(pictures(), 0)
    with pytest.raises(ValueError, match="images: 3×4×6 .* but this model takes 3×8×6"):
        m.infer(pictures()[:, :, :4])
    for change, said in [
        (dict(tokens=0), "model.tokens: must be at least 1, is 0"),
        (dict(image=(3, 9, 8)), "model.image: height and width must be multiples of 2, are 9 and 8"),
        (dict(mask_loss="sum"), "model.mask_loss: is 'sum', but this model has no masks"),
        (dict(rounding=True), "model.rounding: is True, but this model has no masks"),
        (dict(inputs="image_and_mask"), "model.inputs: is 'image_and_mask', but this model has no masks"),
        (dict(memory="saliency"), "model.memory: cannot be in the saliency network"),
        (dict(applied="logit"), "model.applied: must be mask, as model.masks is not inherent, is 'logit'"),
        (dict(nested=True), "model.normalise: must be False if model.nested is true, is True")]:
        with pytest.raises(ValueError, match=said): CONFIG.change(**change)


@pytest.mark.parametrize("name", ["vle_small", "vle_mask_small"])
def test_eval_reprints_the_card(name, tmp_path):
    "Without a file; the card also has the scores of the other training seeds."
    _, card = card_of(name)
    assert weights_path(name).stat().st_size < 6e6 and card["other_training_seeds"].keys() == {"1", "2"}
    assert main(["eval", name, "--seeds", "1", "--out", str(tmp_path / "scores.json")]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    for quantity, values in card["scores"]["best_of_1"].items():
        assert abs(found[quantity][0] - values[0]) < .01, quantity


def test_every_variant_that_the_chapter_asks_about_can_be_trained():
    "Those too that have no record: each is a valid configuration, and no two are the same."
    for name, ask in asked().items():
        found = [ask.experiment(variant, 0).to_dict() for variant in ask.variants]
        assert all(a != b for a, b in itertools.combinations(found, 2)), name
