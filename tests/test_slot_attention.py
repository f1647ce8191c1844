"""Slot Attention: what the published model promises, its gradients, and IODINE that starts from it."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from iodine_nb.core import seeded
from iodine_nb.experiments.experiment import build, export_weights, load_model, train as train_experiment
from iodine_nb.experiments.presets import preset, presets
from iodine_nb.models.attention_start import AttentionStartConfig, AttentionStartIODINE
from iodine_nb.models.decoder import DecoderConfig
from iodine_nb.models.iodine import accumulated, loss_weights, unrolled
from iodine_nb.models.refinement import RefinementConfig
from iodine_nb.models.slot_attention import (Attention, AttentionConfig, SlotAttention, SlotAttentionConfig,
                                             composed)
from iodine_nb.scenes.format import Batch

SMALL = AttentionConfig((6, 5), 3, (1, 2), 7, 8, 9, 3)
CONFIG = SlotAttentionConfig((3, 7, 9), 3, SMALL, DecoderConfig((6, 5), 3, 1), "appended")
SEEDS = st.integers(0, 999)
OURS = [name for name, x in presets().items() if x.kind in ("slot_attention", "attention_start")]


def pictures(n=2, seed=0): return torch.rand(n, 3, 7, 9, generator=seeded(seed), dtype=torch.float64)


def model(config=CONFIG, kind=SlotAttention, seed=0):
    "In float64, with no bias at zero: nothing may hide."
    torch.manual_seed(seed)
    m = kind(config).double()
    for p in m.parameters(): nn.init.normal_(p, std=.3)
    return m


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(1, 4), st.sampled_from(["added", "appended"]))
def test_attention_and_masks_sum_to_one_over_slots(seed, slots, updates, place):
    m = model(CONFIG.change(place=place), seed=seed)
    scenes = m.infer(pictures(seed=seed), slots, updates, generator=seeded(seed))
    assert len(scenes) == updates
    for s in scenes:
        assert s.attention.shape == (2, slots, 4, 5) and s.masks.shape == (2, slots, 1, 7, 9)
        assert all((v.sum(1) - 1).abs().max() < 1e-12 for v in (s.attention, s.masks))
        assert s.reconstruction.shape == (2, 3, 7, 9) and s.segmentation.max() < slots


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.permutations(range(4)))
def test_slots_in_another_order_give_the_same_scene_in_that_order(seed, order):
    m, images = model(seed=seed), pictures(seed=seed)
    first = torch.randn(2, 4, 8, generator=seeded(seed), dtype=torch.float64)
    one, other = [], []
    for found, start in ((one, first), (other, first[:, list(order)])):
        m.attention.begin = lambda *_, start=start: start
        found += m.infer(images, 4)
    for a, b in zip(one, other):
        for name in ("latents", "attention", "means", "masks"):
            assert (getattr(a, name)[:, list(order)] - getattr(b, name)).abs().max() < 1e-10, name
        assert (a.reconstruction - b.reconstruction).abs().max() < 1e-10


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_the_update_against_a_statement_of_its_own(seed):
    "Every line from the weights: what is normalised, what the GRU is given, what the MLP is added to."
    a = model(seed=seed).attention
    inputs, slots = (torch.randn(*s, generator=seeded(seed), dtype=torch.float64) for s in ((20, 7), (3, 8)))

    def normalised(x, layer):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + .001).sqrt()
        return x * layer.weight + layer.bias

    x = normalised(inputs, a.normalise_inputs)
    k, v = x @ a.key.weight.T, x @ a.value.weight.T
    q = normalised(slots, a.normalise_slots) @ a.query.weight.T
    e = (k @ q.T / 8**.5).exp()
    attention = e / e.sum(1, keepdim=True)
    weights = (attention + 1e-8) / (attention + 1e-8).sum(0)
    u, g = weights.T @ v, a.gru
    i, h = (u @ g.weight_ih.T + g.bias_ih).chunk(3, 1), (slots @ g.weight_hh.T + g.bias_hh).chunk(3, 1)
    r, z = (i[0] + h[0]).sigmoid(), (i[1] + h[1]).sigmoid()
    new = (1 - z) * (i[2] + r * h[2]).tanh() + z * slots
    first, _, second = a.mlp
    hidden = (normalised(new, a.normalise_mlp) @ first.weight.T + first.bias).relu()
    expected = new + hidden @ second.weight.T + second.bias  # not normalised(new) + …

    found, shown = a.update(slots[None], *a.keys_and_values(inputs[None]))
    assert (found[0] - expected).abs().max() < 1e-12 and (shown[0] - attention.T).abs().max() < 1e-12


def test_the_implicit_gradient_against_the_full_one_at_a_fixed_point():
    """At s = f(s, θ) with J = ∂f/∂s, a loss with gradient v has the gradient vᵀ(I - J)⁻¹ ∂f/∂θ. Through one
    update it is vᵀ ∂f/∂θ, so they differ by at most ‖J‖ / (1 - ‖J‖) · ‖v‖ · ‖∂f/∂θ‖."""
    a, features = model(seed=3).attention, torch.randn(1, 20, 7, generator=seeded(1), dtype=torch.float64)
    start, v = (torch.randn(1, 3, 8, generator=seeded(s), dtype=torch.float64) for s in (2, 3))
    a.begin, wanted = (lambda *_: start), [a.gru.weight_ih, a.query.weight, a.mlp[0].weight, a.value.weight]
    for w in (a.gru.weight_hh, a.mlp[2].weight, a.query.weight): w.data *= .3  # so that updates contract

    def gradient(kind):
        a.config = SMALL.change(gradient=kind)
        slots, _ = a.rounds(features, 3, 200)[-1]
        g = torch.autograd.grad((slots * v).sum(), wanted)
        return slots.detach(), torch.cat([x.flatten() for x in g])

    (point, full), (same, implicit) = gradient("unrolled"), gradient("implicit")
    keys_values = a.keys_and_values(features)
    f = lambda s: a.update(s.view(1, 3, 8), *keys_values)[0].flatten()
    assert torch.equal(point, same) and (f(point) - point.flatten()).abs().max() < 1e-13
    J = torch.autograd.functional.jacobian(f, point.flatten())
    rows = [torch.cat([x.flatten() for x in torch.autograd.grad(out, wanted, retain_graph=True)])
            for out in f(point)]
    of_weights, norm = torch.stack(rows), torch.linalg.matrix_norm(J, 2)
    assert .1 < norm < .95  # neither trivial nor without a bound
    exact = torch.linalg.solve((torch.eye(24).double() - J).T, v.flatten()) @ of_weights
    assert (full - exact).norm() < 1e-9 * exact.norm()
    assert (implicit - v.flatten() @ of_weights).norm() < 1e-12 * implicit.norm()
    bound = norm / (1 - norm) * v.norm() * torch.linalg.matrix_norm(of_weights, 2)
    assert 0 < (implicit - full).norm() <= bound
    assert torch.cosine_similarity(implicit, full, 0) > .9


def test_what_the_start_learns():
    "A Gaussian start nothing from implicit gradients; learned queries as if the last update had begun there."
    features = torch.randn(2, 20, 7, generator=seeded(1), dtype=torch.float64)
    v = torch.randn(2, 3, 8, generator=seeded(2), dtype=torch.float64)
    for start in ("shared", "learned"):
        a = model(CONFIG.change(attention__gradient="implicit", attention__start=start)).attention
        (before, _), (last, _) = a.rounds(features, 3, 3, seeded(0))[-2:]
        got, = torch.autograd.grad((last * v).sum(), a.mean)
        slots = before.detach().requires_grad_()
        through, = torch.autograd.grad((a.update(slots, *a.keys_and_values(features))[0] * v).sum(), slots)
        expected = through.sum(0) if start == "learned" else torch.zeros(1, 8).double()
        assert (got - expected).abs().max() < 1e-12
    with pytest.raises(ValueError, match="slots: this model has learned 3 queries, cannot run with 4"):
        a.rounds(features, 4)
    noisy = Attention(SMALL.change(start="learned", query_noise=.5), 3)
    assert not torch.equal(noisy.begin(2, 3, seeded(0)), noisy.begin(2, 3, seeded(1)))


FRAMED = CONFIG.change(attention__frame="slot")


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(.5, 2), st.floats(-1, 1))
def test_frames_are_invariant(seed, scale, shift):
    "Coordinates of the picture stretched and moved: the slots stay, and their frames go with it."
    a = model(FRAMED, seed=seed).attention
    keys_values = a.keys_and_values(torch.randn(2, 20, 7, generator=seeded(seed), dtype=torch.float64))
    place, size, slots = (torch.randn(2, 3, n, generator=seeded(seed, n), dtype=torch.float64)
                          for n in (2, 2, 8))
    size = -.5 + .2 * size.tanh()  # of these frames, and twice or half that, none is at a limit
    one, looked = a.update(torch.cat([place, size, slots], 2), *keys_values)
    a.places = scale * a.places + shift
    moved = torch.cat([scale * place + shift, size + math.log(scale), slots], 2)
    other, looked_again = a.update(moved, *keys_values)
    assert (looked - looked_again).abs().max() < 1e-10 and (one[..., 4:] - other[..., 4:]).abs().max() < 1e-10
    assert (scale * one[..., :2] + shift - other[..., :2]).abs().max() < 1e-10
    inside = (one[..., 2:4] > math.log(.1)) & (one[..., 2:4] < 0)
    assert (one[..., 2:4] + math.log(scale) - other[..., 2:4])[inside].abs().max(0).values < 1e-10


def test_frames_begin_anywhere_and_are_renewed_at_the_end():
    m, images = model(FRAMED), pictures()
    first = m.attention.begin(500, 3, seeded(0))
    assert first.shape == (500, 3, 12) and first[..., :2].abs().max() < 1
    assert first[..., :2].mean((0, 1)).abs().max() < .05 and abs(first[..., :2].std() - 3**-.5) < .02
    assert first[..., 2:4].min() >= math.log(.05) - 1e-6 and abs(first[..., 2:4].exp().mean() - .12) < .005
    features = m.encoder(images)
    last, looked = m.attention.rounds(features, 3, 2, seeded(0))[-1]
    before, looked_before = Attention.rounds(m.attention, features, 3, 2, seeded(0))[-1]
    assert torch.equal(last[..., 4:], before[..., 4:]) and not torch.allclose(last[..., :4], before[..., :4])
    assert not torch.allclose(looked, looked_before)
    scene = m.infer(images, generator=seeded(0))[-1]
    assert scene.latents.shape == (2, 3, 12) and torch.equal(m.decode(scene.latents)[0], scene.means)


def test_a_slot_is_drawn_where_its_frame_is():
    "Its picture moves with the frame's place, but for the rim, which the padding reaches."
    torch.manual_seed(0)
    m = SlotAttention(FRAMED.change(image=(3, 21, 21), decoder=DecoderConfig((6, 5), 3, 0)))
    z = torch.randn(1, 1, 12, generator=seeded(0))
    z[..., :2] = torch.tensor([-.2, .1])
    moved = z.clone()
    moved[..., :2] += torch.tensor([.3, -.2])  # three rows down, two columns left: a pixel is .1
    (one, _), (other, _) = m.decode(z), m.decode(moved)
    assert (one[..., 3:15, 5:18] - other[..., 6:18, 3:16]).abs().max() < 1e-5
    assert (one - other).abs().max() > 1e-3


def test_losses_on_every_update():
    m, batch = model(CONFIG.change(losses="every")), Batch(pictures())
    terms, scenes = m.loss(batch, seeded(0)), m.infer(batch.image, generator=seeded(0))
    errors = [((composed(s.means, s.mask_logits) - batch.image) ** 2).mean() for s in scenes]
    assert (terms["loss"] - sum(errors) / 3).abs() < 1e-12 and (terms["mse"] - errors[-1]).abs() < 1e-12


def test_the_best_of_several_runs():
    m, g = model(), seeded(0)
    runs = torch.stack([m.infer(pictures(5), generator=g)[-1].loss for _ in range(3)])
    kept = m.infer(pictures(5), restarts=3, generator=seeded(0))
    assert len(kept) == 3 and torch.equal(kept[-1].loss, runs.amin(0))


@pytest.mark.parametrize("name, count", [("slot_attention_tetrominoes", 235_812),
                                         ("slot_attention_sprites", 235_812),
                                         ("slot_attention_clevr6", 890_308)])
def test_published_sizes(name, count):
    "The .24 and .89 million of the published models."
    assert sum(p.numel() for p in build(preset(name)).parameters()) == count


@pytest.mark.parametrize("name", OURS)
def test_every_preset_takes_a_step(name):
    "Two slots and one update; the picture's size is the preset's own."
    few = dict(model__slots=2, model__attention__iterations=1)
    m, before = (build(preset(name).change(**few), seed=0) for _ in range(2))
    optimiser = torch.optim.Adam(m.parameters(), 1e-3)
    image = torch.rand(2, *m.config.image, generator=seeded(0))
    m.loss(Batch(image), generator=seeded(1))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
    optimiser.step()
    moved = [n for n, p in m.named_parameters() if not torch.equal(p, before.get_parameter(n))]
    assert {n.split(".")[0] for n in moved} >= {"encoder", "attention", "decoder"}


@pytest.mark.parametrize("name", ["slots_tetrominoes", "attention_tetrominoes"])
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    tiny = preset(name).change(
        model__image=(3, 14, 14), model__attention__channels=(8,), model__attention__strides=(2,),
        model__decoder__channels=(8,), model__decoder__upsampling=1, training__batch_size=4,
        training__log_every=2, training__checkpoint_every=3, training__precision="float32",
        **({"model__refinement__channels": (8,)} if name == "attention_tetrominoes" else {}))
    for run, steps in (("whole", 6), ("cut", 4), ("cut", 6)):
        train_experiment(tiny.change(training__steps=steps), tmp_path / run, progress=False)
    for run in ("whole", "cut"): export_weights(tmp_path / run, tmp_path / f"{run}.safetensors")
    whole, cut = (load_model(tmp_path / f"{run}.safetensors")[0] for run in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), cut.state_dict().values()))


IODINE_CONFIG = AttentionStartConfig(
    (3, 7, 9), slots=3, latent=4, iterations=2, sigma=.3, variance="exp", weights="port",
    gradients="truncated", decoder=DecoderConfig((6, 5), 3, 1),
    refinement=RefinementConfig((6, 5), 3, mlp=(8,), lstm=7), attention=SMALL.change(gradient="implicit"))


def test_the_engine_reaches_attention():
    "IODINE's accumulated gradients, and those of the plain sum of losses, also behind the first guess."
    m, image = model(IODINE_CONFIG, AttentionStartIODINE), pictures()
    noise = [m.noise(2, 3, seeded(2, t)) for t in range(3)]
    start = lambda: m.first_guess(image, 3, seeded(1))
    _, _, ours = accumulated(m, image, start(), noise, loss_weights(2, "port"))
    plain, _ = unrolled(m, image, start(), noise, loss_weights(2, "port"), cut_decoder=True)
    expected = torch.autograd.grad(plain, list(m.parameters()), allow_unused=True)
    for (name, _), a, b in zip(m.named_parameters(), ours, expected):
        b = torch.zeros_like(a) if b is None else b
        assert (a - b).norm() <= 1e-9 * b.norm() + 1e-14, name  # (what all queries share has none at all)
        if name.startswith(("encoder", "head")): assert a.norm() > 0, name


def test_the_first_guess_looks():
    "At the pictures; and before training its variances are what the configuration says."
    torch.manual_seed(0)
    m, images = AttentionStartIODINE(IODINE_CONFIG), pictures().float()
    λ = m.first_guess(images, 3, seeded(0))
    assert torch.allclose(λ[..., 4:].exp(), torch.tensor(.05)) and not torch.allclose(λ[0], λ[1], atol=1e-2)
    assert torch.equal(m.infer(images, iterations=0, generator=seeded(0))[0].posterior, λ)
    assert len(m.infer(images, 5, 3, restarts=2, generator=seeded(0))) == 4
    with pytest.raises(ValueError, match="start: must be shared"): IODINE_CONFIG.change(start="drawn")


def test_the_first_guess_has_the_frames_of_attention():
    "They are decoded as they are, cost no KL, and refinement may move them."
    with pytest.raises(ValueError, match="latent: must be more than 4"):
        IODINE_CONFIG.change(attention__frame="slot")
    m = model(IODINE_CONFIG.change(latent=7, attention__frame="slot"), AttentionStartIODINE)
    images, noise = pictures(), torch.randn(2, 3, 7, generator=seeded(4), dtype=torch.float64)
    λ = m.first_guess(images, 3, seeded(0))
    found, _ = m.attention.rounds(m.encoder(images), 3, generator=seeded(0))[-1]
    assert torch.equal(λ[..., :4], found[..., :4]) and λ.shape == (2, 3, 14)
    elsewhere = λ.clone()
    elsewhere[..., :4] += .1
    elsewhere[..., 7:11] += 1.  # variances that nobody asks for
    here, there = m.evaluate(images, λ, noise), m.evaluate(images, elsewhere, noise)
    assert torch.equal(here.z[..., :4], λ[..., :4]) and not torch.equal(here.z[..., 4:], λ[..., 4:7])
    assert torch.equal(here.kl, there.kl) and not torch.equal(here.means, there.means)
    start, refined = m.infer(images, iterations=1, generator=seeded(0))
    assert not torch.allclose(start.latents[..., :4], refined.latents[..., :4])
