"""Iterative inference models: through the one trainer, resumed, loaded, and better than where they start."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from iodine_nb.core import seeded
from iodine_nb.scenes.format import Batch
from iodine_nb.experiments.experiment import build, export_weights, load_model, train as train_experiment
from iodine_nb.experiments.presets import preset
from iodine_nb.models.iterative import (SEEN, InferenceNetwork, IterativeConfig, IterativeModel, binarise,
                                        elbo_scores, optimise)
from iodine_nb.scenes.sprites import single_dsprites

TINY = preset("iterative_small").change(model__image=(1, 14, 14), model__hidden=(16, 16),
    training__batch_size=8, training__log_every=2, training__checkpoint_every=3, training__evaluate_every=100)
images = lambda n=8, size=14: Batch.of(single_dsprites(n, np.random.default_rng(0), size)).image


def train(run, steps):
    return train_experiment(TINY.change(training__steps=steps), run, progress=False)


def test_a_resumed_run_is_the_uninterrupted_one_and_its_weights_load(tmp_path):
    train(tmp_path / "whole", 8)
    train(tmp_path / "cut", 5)
    train(tmp_path / "cut", 8)
    for run in ("whole", "cut"): export_weights(tmp_path / run, tmp_path / f"{run}.safetensors")
    whole, cut = (load_model(tmp_path / f"{run}.safetensors")[0] for run in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), cut.state_dict().values()))
    assert torch.equal(whole.infer(images(), generator=seeded(0))[-1].posterior,
                       cut.infer(images(), generator=seeded(0))[-1].posterior)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["direct", "additive", "gated"]), st.sets(st.sampled_from(SEEN), min_size=1),
       st.sampled_from(["log_sign", "normalised"]), st.booleans(), st.integers(1, 4))
def test_gradients_are_those_of_the_plain_loss(update, inputs, form, highway, iterations):
    "In float64: the decoder learns from the last loss, the inference network from the mean of all."
    torch.manual_seed(1)
    m = IterativeModel(IterativeConfig((1, 5, 5), 2, (6, 6), iterations, 2, tuple(inputs), form, "elu",
                                       update, highway)).double()
    x, noise = images(3, 5).double(), torch.randn(iterations + 1, 3, 2, 2, dtype=torch.float64,
                                                  generator=seeded(2))
    draws = iter(noise)
    m_step = m.step
    m.step = lambda x, λ, generator, keep_graph=False: _step(m, x, λ, next(draws), keep_graph)
    m.loss(Batch(x))["loss"].backward()
    mine, theirs = [*m.network.parameters(), *m.head.parameters()], list(m.decoder.parameters())
    found = [p.grad for p in mine + theirs]
    m.step = m_step
    e, total = m.estimate(x, m.start(x).requires_grad_(), noise[0]), 0.
    for eps in noise[1:]:
        g, = torch.autograd.grad(-e.elbo.sum(), e.posterior, retain_graph=True)
        e = m.estimate(x, m.refine(x, e._replace(gradient=g)), eps)
        total = total - e.elbo.mean() / iterations
    expected = [*torch.autograd.grad(total, mine, retain_graph=True),
                *torch.autograd.grad(-e.elbo.mean(), theirs)]
    assert max((a - b).abs().max().item() for a, b in zip(found, expected)) < 1e-10


def _step(m, x, λ, noise, keep_graph):
    with torch.enable_grad():
        e = m.estimate(x, leaf := λ.detach().requires_grad_(), noise)
        return e._replace(gradient=torch.autograd.grad(-e.elbo.sum(), leaf, retain_graph=keep_graph)[0])


@given(st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_pairs_lose_nothing(rows, seed):
    "ReLU of [h, -h] keeps h: the difference of its halves. ReLU alone does not."
    torch.manual_seed(seed)
    v, network = torch.randn(rows, 7), InferenceNetwork(7, (10,), "relu_pairs", False)
    plus, minus = network(v).chunk(2, -1)
    assert (torch.allclose(plus - minus, network.layers[0][0](v), atol=1e-6) and (plus >= 0).all()
            and (minus >= 0).all())


def test_what_an_image_gets_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    m, x, λ = build(TINY), images(), torch.randn(8, 20)
    noise = torch.randn(8, 1, 10)
    alone = torch.cat([m.estimate(x[i:i + 1], λ[i:i + 1], noise[i:i + 1]).elbo for i in range(8)])
    assert torch.allclose(m.estimate(x, λ, noise).elbo, alone, atol=1e-4)


@pytest.mark.parametrize("name", ["iterative_desk", "iterative_blind", "vae_desk", "iterative_plane"])
def test_the_shipped_weights_are_what_their_cards_say(name):
    model, card = load_model(name)
    x = Batch.of(single_dsprites(320, np.random.default_rng(1))).image  # what held-out files are made from
    found = elbo_scores(model, Batch(x), seeded(0))["elbo"].mean().item()
    start = model.infer(x, 0, seeded(0))[0].elbo.mean().item()
    assert found == pytest.approx(card["scores"]["held_out_elbo"], abs=1.) and found > start + 50


def test_an_optimiser_on_λ_improves_the_elbo():
    model = load_model("iterative_desk")[0]
    trace = optimise(model, images(16, 28), 30, .2, "adam", generator=seeded(0))
    assert len(trace) == 31 and trace[-1].elbo.mean() > trace[0].elbo.mean() + 50


def test_bad_requests_say_what_would_be_right():
    with pytest.raises(ValueError, match="iterations: must be at least 0, is -1"):
        build(TINY).infer(images(), -1)
    with pytest.raises(ValueError, match="highway needs layers of one width"): IterativeConfig(hidden=(8, 9))
    with pytest.raises(ValueError, match="inputs: must be some of image"): IterativeConfig(inputs=("x",))
    with pytest.raises(ValueError, match="even widths"):
        IterativeConfig(hidden=(7, 7), activation="relu_pairs")
    grey = torch.full((4000, 1, 2, 2), .25)
    assert (binarise(grey, seeded(0)).mean().item() == pytest.approx(.25, abs=.01)
            and set(binarise(grey).unique().tolist()) == {0., 1.})
