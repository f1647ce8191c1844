"""The model: gradients against plain autograd in float64, and what must hold for any configuration."""
import pytest
import torch
from hypothesis import given, settings, strategies as st

from iodine_nb.core import Noise, seeded
from iodine_nb.scenes.format import Batch
from iodine_nb.models.decoder import DecoderConfig
from iodine_nb.models.inputs import INPUTS
from iodine_nb.models.iodine import (accumulated, IODINE, IODINEConfig, join_evaluations, loss_weights,
                                     unrolled)
from iodine_nb.models.slot_frame import SlotFrameConfig, SlotFrameIODINE
from iodine_nb.models.refinement import RefinementConfig

options = st.fixed_dictionaries(dict(
    image=st.sampled_from([(3, 7, 9), (1, 8, 5)]), slots=st.integers(1, 4), latent=st.integers(1, 4),
    iterations=st.integers(1, 3), likelihood=st.sampled_from(["gaussian", "logistic"]),
    mixture=st.sampled_from(["joint", "per_channel", "composed"]),
    means=st.sampled_from(["unbounded", "sigmoid"]),
    variance=st.sampled_from(["softplus", "exp"]), start=st.sampled_from(["shared", "per_slot", "drawn"]),
    weights=st.sampled_from(["linear", "port", "last"]),
    flat_inputs=st.sampled_from(["joined", "broadcast"]), coordinates=st.sampled_from(["linear", "cosine"]),
    normalisation=st.sampled_from(["affine", "plain", "none"]),
    mask_gradient=st.sampled_from(["logits", "masks"]),
    inputs=st.sets(st.sampled_from(list(INPUTS)), min_size=1).map(lambda s: tuple(s | {"image"})),
    decoder=st.builds(DecoderConfig, channels=st.just((5, 4)), kernel=st.sampled_from([1, 3, 5]),
                      upsampling=st.integers(0, 2), activation=st.sampled_from(["elu", "tanh"])),
    refinement=st.builds(RefinementConfig, channels=st.just((4, 5)), kernel=st.sampled_from([3, 5]),
                         pooling=st.sampled_from(["average", "flatten"]), mlp=st.sampled_from([(), (6,)]),
                         lstm=st.sampled_from([0, 5]), update=st.sampled_from(["additive", "gated"]),
                         update_from=st.sampled_from(["hidden", "cell"]))))


def build(config, gain=.2):
    torch.manual_seed(0)
    model = (SlotFrameIODINE if isinstance(config, SlotFrameConfig) else IODINE)(config).double()
    with torch.no_grad():
        for p in model.parameters(): p.add_(gain * torch.randn_like(p))
    return model


def draws(model, config, n=2):
    image = torch.rand(n, *config.image, generator=seeded(1), dtype=torch.float64)
    noise = [model.noise(n, config.slots, seeded(2, t)) for t in range(config.iterations + 1)]
    return image, noise


@settings(max_examples=40, deadline=None)
@given(options, st.booleans(), st.booleans())
def test_accumulated_gradients_equal_autograd_with_the_same_cuts(fields, detached, own_frame):
    config = (SlotFrameConfig(sigma=.3, **fields | dict(latent=fields["latent"] + 2)) if own_frame
              else IODINEConfig(sigma=.3, **fields))
    model = build(config)
    image, noise = draws(model, config)
    kw = dict(weights=loss_weights(config.iterations, config.weights), kl_weight=.7, sigma_factor=1.1)
    start = lambda: model.start(2, config.slots, seeded(3))
    value, evaluations, ours = accumulated(model, image, start(), noise, cut_posterior=detached, **kw)
    plain, reference_evaluations = unrolled(model, image, start(), noise, cut_decoder=True,
                                            cut_posterior=detached, **kw)
    reference = torch.autograd.grad(plain, list(model.parameters()), allow_unused=True)
    assert (torch.allclose(value, plain, rtol=1e-12)
            and torch.allclose(evaluations[-1].posterior, reference_evaluations[-1].posterior, rtol=1e-12))
    scale = max(r.abs().max() for r in reference if r is not None)
    for (name, p), a, b in zip(model.named_parameters(), ours, reference):
        b = torch.zeros_like(p) if b is None else b
        assert (a - b).norm() <= 1e-9 * b.norm() + 1e-13 * scale, name


def test_in_its_own_frame_a_slots_place_is_not_drawn_and_costs_nothing():
    config = SlotFrameConfig((1, 8, 8), 3, 5, iterations=2, start="drawn", decoder=DecoderConfig((4,), 3),
                             refinement=RefinementConfig((4,), lstm=4, mlp=(4,)))
    model = build(config)
    image, noise = draws(model, config)
    λ = model.start(2, 3, seeded(3)).detach()
    moved = λ.clone(); moved[..., :2] += .7
    e, other, further = (model.evaluate(image, l, n)
                         for l, n in ((λ, noise[0]), (λ, noise[1]), (moved, noise[0])))
    assert (torch.equal(e.z[..., :2], λ[..., :2]) and torch.equal(e.z[..., :2], other.z[..., :2])
            and not torch.allclose(e.z[..., 2:], other.z[..., 2:]))
    assert torch.equal(e.kl, further.kl) and not torch.allclose(e.mask_logits, further.mask_logits)
    with pytest.raises(ValueError, match="a slot's frame needs a latent of at least 3"):
        config.change(latent=2)


@pytest.mark.parametrize("mode", ["exact", "truncated", "detached"])
def test_backward_hands_out_the_gradients(mode):
    config = IODINEConfig((3, 6, 6), 2, 3, iterations=2, gradients=mode, decoder=DecoderConfig((4,), 3),
                          refinement=RefinementConfig((4,), lstm=4, mlp=(4,)))
    model = build(config)
    batch = Batch(torch.rand(2, 3, 6, 6, generator=seeded(0), dtype=torch.float64))
    terms = model.loss(batch, generator=seeded(1))
    assert set(terms) == {"loss", "nll", "kl", "mse"}
    (3 * terms["loss"]).backward()
    tripled = [p.grad.clone() if p.grad is not None else None for p in model.parameters()]
    model.zero_grad()
    model.loss(batch, generator=seeded(1))["loss"].backward()
    for a, p in zip(tripled, model.parameters()):
        assert (a is None and p.grad is None) or torch.allclose(a, 3 * p.grad, rtol=1e-12)


@pytest.mark.parametrize("mode, cuts", [("exact", {}), ("truncated", dict(cut_decoder=True)),
                                        ("detached", dict(cut_posterior=True))])
def test_a_mode_of_gradients_cuts_what_it_says(mode, cuts):
    "Truncated: past decodings carry no gradient; detached: nor does the λ that f_φ is shown."
    model = build(IODINEConfig((3, 6, 6), 2, 3, iterations=3, gradients=mode, decoder=DecoderConfig((4,), 3),
                               refinement=RefinementConfig((4,), lstm=4, mlp=(4,))))
    images, generator = draws(model, model.config)[0], seeded(4)
    noise = [model.noise(2, 2, generator) for _ in range(4)]
    found = torch.autograd.grad(model.loss(Batch(images), generator=seeded(4))["loss"], model.parameters())
    grads = lambda how: torch.autograd.grad(unrolled(model, images, model.start(2, 2, None), noise,
                                                     loss_weights(3), **how)[0], model.parameters())
    far = lambda a, b: max(((x - y).norm() / y.norm().clamp_min(1e-6)).item() for x, y in zip(a, b))
    others = [{}, dict(cut_decoder=True), dict(cut_posterior=True)]
    assert [far(found, grads(how)) < 1e-7 for how in others] == [how == cuts for how in others]


def test_exact_gradients_against_finite_differences():
    "With the five inputs left out there is nothing to cut, so `exact` is the true gradient of the loss."
    free = tuple(n for n, i in INPUTS.items() if not i.cut)
    config = IODINEConfig((1, 5, 4), 2, 2, iterations=2, sigma=.5, gradients="exact", inputs=free,
                          decoder=DecoderConfig((3,), 3), refinement=RefinementConfig((3,), lstm=3, mlp=()))
    model = build(config)
    batch = Batch(torch.rand(1, 1, 5, 4, generator=seeded(0), dtype=torch.float64))
    loss = lambda: model.loss(batch, generator=seeded(1))["loss"]
    loss().backward()
    for name, p in model.named_parameters():
        flat, i = p.data.view(-1), p.numel() // 2
        old = flat[i].item()
        flat[i] = old + 1e-5; up = loss().item()
        flat[i] = old - 1e-5; down = loss().item()
        flat[i] = old
        assert (up - down) / 2e-5 == pytest.approx(p.grad.view(-1)[i].item(), rel=1e-4, abs=1e-5), name


def test_images_of_a_batch_do_not_touch_each_other():
    config = IODINEConfig((3, 6, 6), 3, 3, iterations=2, decoder=DecoderConfig((4,), 3),
                          refinement=RefinementConfig((4,), lstm=4, mlp=(4,)))
    model = build(config)
    image, noise = draws(model, config, 4)
    kw = dict(weights=loss_weights(2))
    _, together, _ = accumulated(model, image, model.start(4, 3, None), noise, **kw)
    _, alone, _ = accumulated(model, image[1:2], model.start(1, 3, None), [n[1:2] for n in noise], **kw)
    assert torch.allclose(together[-1].posterior[1:2], alone[-1].posterior, rtol=1e-10)


def test_slots_are_exchangeable():
    config = IODINEConfig((3, 6, 6), 3, 3, iterations=2, decoder=DecoderConfig((4,), 3),
                          refinement=RefinementConfig((4,), lstm=4, mlp=(4,)))
    model = build(config)
    image, noise = draws(model, config)
    order = [2, 0, 1]
    run = lambda n: accumulated(model, image, model.start(2, 3, None), n, weights=loss_weights(2))
    (a, ea, _), (b, eb, _) = run(noise), run([n[:, order] for n in noise])
    assert torch.allclose(a, b, rtol=1e-10) and torch.allclose(ea[-1].posterior[:, order], eb[-1].posterior,
                                                               rtol=1e-8)


def test_bfloat16_is_close_and_finite():
    config = IODINEConfig((3, 8, 8), 3, 4, iterations=2, sigma=.3, decoder=DecoderConfig((8, 8), 3, 1),
                          refinement=RefinementConfig((8,), lstm=8, mlp=(8,)))
    torch.manual_seed(0)
    model = IODINE(config).to(memory_format=torch.channels_last)
    batch = Batch(torch.rand(2, 3, 8, 8, generator=seeded(0)))
    full = model.loss(batch, generator=seeded(1))
    with torch.autocast("cpu", torch.bfloat16): half = model.loss(batch, generator=seeded(1))
    half["loss"].backward()
    assert (abs(full["loss"] - half["loss"]) < .02 * abs(full["loss"])
            and all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters()))


def test_per_slot_starts_cannot_grow():
    model = IODINE(IODINEConfig((3, 6, 6), 2, 3, iterations=1, start="per_slot",
        decoder=DecoderConfig((4,), 3), refinement=RefinementConfig((4,), lstm=0, mlp=())))
    with pytest.raises(ValueError, match="start for each of 2 slots"):
        model.infer(torch.rand(1, 3, 6, 6), slots=3)
    with pytest.raises(ValueError, match="images: 1×6×6 .* but this model takes 3×6×6"):
        model.infer(torch.rand(1, 1, 6, 6))


@settings(max_examples=10, deadline=None)
@given(options)
def test_descent_of_an_image_does_not_depend_on_the_others(fields):
    config = IODINEConfig(**fields | {"latent": 3})
    model, images = build(config), torch.rand(3, *config.image, generator=seeded(1), dtype=torch.float64)
    infer = lambda rows: model.infer(images[rows], restarts=2, descent=3, generator=Noise((5,), rows, 3))
    together, apart = infer(torch.arange(3)), [infer(torch.tensor([i])) for i in range(3)]
    assert len(together) == config.iterations + 2
    for i, alone in enumerate(apart):
        assert torch.allclose(together[-1].posterior[i], alone[-1].posterior[0], rtol=1e-6, atol=1e-9)


def test_descent_leads_down_and_refuses_less_than_none():
    model = build(IODINEConfig((3, 6, 6), 2, 4, iterations=2, kl_weight=.1, decoder=DecoderConfig((6,), 3),
                               refinement=RefinementConfig((4,), lstm=0, mlp=())))
    *_, last, lower = model.infer(torch.rand(32, 3, 6, 6, generator=seeded(1), dtype=torch.float64),
                                  descent=40, generator=seeded(0))
    assert lower.loss.mean() < .8 * last.loss.mean()
    with pytest.raises(ValueError, match="descent at least 0, are 2, 1, 2 and -1"):
        model.infer(torch.rand(1, 3, 6, 6).double(), descent=-1)
    with pytest.raises(ValueError,
                       match="kl_weight must be at least 0 and sigma_factor above 0, are -1.0 and 1.0"):
        model.infer(torch.rand(1, 3, 6, 6).double(), kl_weight=-1.)
    with pytest.raises(ValueError, match="kl_weight: must be at least 0, is -0.1"):
        IODINEConfig(kl_weight=-.1)


def test_explanation_asks_the_pixel():
    model = build(IODINEConfig((1, 4, 5), 2, 3, iterations=1))
    image, means = ((torch.rand(3, 1, 4, 5, generator=seeded(0)) > .5).double(),
                    torch.tensor([0., 1.]).double()[None, :, None, None, None].expand(3, 2, 1, 4, 5))
    logits = torch.tensor([1., 0.]).double()[None, :, None, None, None].expand(3, 2, 1, 4, 5)
    e = model.evaluate(image, model.start(3, 2, None), torch.zeros(3, 2, 3).double())._replace(means=means,
        mask_logits=logits, mixture=model.mixture(image, means, logits, .1))
    assert (e.segmentation == 0).all() and torch.equal(e.explanation, image[:, 0].long())
    other = torch.randn(3, 2, 1, 4, 5, generator=seeded(1)).double()
    assert torch.equal(e._replace(mask_logits=other).segmentation, (other[:, 1, 0] > other[:, 0, 0]).long())


def test_the_background_has_what_it_draws_as_well():
    "Slots 0 and 1 have a row each, three pixels white, and draw grey in the other; slot 2 draws black."
    model = build(IODINEConfig((1, 2, 8), 3, 3, iterations=1))
    means, logits = torch.zeros(1, 3, 1, 2, 8).double(), torch.zeros(1, 3, 1, 2, 8).double()
    means[:, 0, :, 0, :3], means[:, 1, :, 1, 5:], means[:, 0, :, 1], means[:, 1, :, 0] = 1, 1, .5, .5
    logits[:, 0, :, 0] = logits[:, 1, :, 1] = 1
    start, z = model.start(1, 3, None), torch.zeros(1, 3, 3).double()
    empty = model.evaluate(torch.zeros(1, 1, 2, 8).double(), start, z)
    read = lambda image, drawn: empty._replace(means=drawn, mask_logits=logits,
                                               mixture=model.mixture(image, drawn, logits, .1))
    image = torch.stack([means[:, 0, :, 0], means[:, 1, :, 1]], 2)
    e = read(image, means)
    assert e.segmentation.tolist() == [[[0] * 8, [1] * 8]]
    assert e.background_first.tolist() == [[[0, 0, 0, 2, 2, 2, 2, 2], [2, 2, 2, 2, 2, 1, 1, 1]]]
    means[0, 0, 0, 0, 5] = .05  # slot 2, which draws 0, loses (.1 x - .0025) / .02 nats at x
    for value, slot in ((.044, 2), (.046, 0)):  # .095 and .105 nats
        image[0, 0, 0, 5] = value
        assert read(image, means).background_first[0, 0, 5] == slot



# the paper's five, through which "gradients are not propagated" (appendix B)
CUT = {"means_gradient", "mask_gradient", "pixel_likelihood", "leave_one_out", "posterior_gradient"}


@pytest.mark.parametrize("name", [n for n in INPUTS if n != "coordinates"])
def test_five_inputs_are_data_and_the_others_carry_gradients(name):
    config = IODINEConfig((3, 6, 6), 3, 3, normalisation="none", decoder=DecoderConfig((4,), 3),
                          refinement=RefinementConfig((4,), lstm=4, mlp=(4,)))
    model = build(config)
    image, noise = draws(model, config)
    image.requires_grad_()
    e = model.evaluate(image, model.start(2, 3, None), noise[0])
    g = [v.requires_grad_() for v in model.gradients(e, keep_graph=True)]
    assert model.inputs.one(name, model.state(image, e, g)).requires_grad == (name not in CUT)


@pytest.mark.parametrize("frozen_start", [False, True])
def test_what_is_seen_is_what_the_refinement_saw(frozen_start):
    "Computed again from the evaluation: the rows of the table as they were handed on, without coordinates."
    model = build(IODINEConfig((3, 6, 6), 2, 3, iterations=1, decoder=DecoderConfig((4,), 3),
                               refinement=RefinementConfig((4,), lstm=0, mlp=())))
    if frozen_start: model.initial_posterior.requires_grad_(False)
    image, noise = draws(model, model.config)
    e = model.evaluate(image, model.start(2, 2, None).detach().requires_grad_(), noise[0])
    state = model.state(image, e, model.gradients(e))
    found = model.seen(image, e.detached())
    assert set(found) == {n for n, i in INPUTS.items() if not i.flat} - {"coordinates"}
    for name, v in found.items(): assert torch.allclose(v, model.inputs.one(name, state)), name


def test_the_gradient_of_masks_is_that_of_logarithms_over_masks():
    config = IODINEConfig((3, 6, 6), 2, 3, iterations=1, mask_gradient="masks",
                          decoder=DecoderConfig((4,), 3), refinement=RefinementConfig((4,), lstm=0, mlp=()))
    model = build(config)
    image, noise = draws(model, config)
    e = model.evaluate(image, model.start(2, 2, None).detach().requires_grad_(), noise[0])
    masks = e.masks.detach().requires_grad_()
    joint = (masks.log() + e.mixture.log_components.detach()).logsumexp(1).sum()
    assert torch.allclose(model.gradients(e)[2], torch.autograd.grad(-joint, masks)[0])


def test_restarts_are_chosen_by_the_image_and_the_last_loss():
    model = build(IODINEConfig((3, 6, 6), 2, 3, iterations=2, sigma=.3, decoder=DecoderConfig((4,), 3),
                               refinement=RefinementConfig((4,), lstm=4, mlp=(4,))))
    images = torch.rand(6, 3, 6, 6, generator=seeded(1), dtype=torch.float64)
    generator = seeded(0)
    single = [model.infer(images, generator=generator) for _ in range(3)]
    best = model.infer(images, restarts=3, generator=seeded(0))
    losses = torch.stack([run[-1].loss for run in single])
    assert torch.equal(best[-1].loss, losses.min(0).values) and len(set(losses.argmin(0).tolist())) > 1
    for t, e in enumerate(best):
        for i, chosen in enumerate(losses.argmin(0).tolist()):
            assert torch.equal(e.latents[i], single[chosen][t].latents[i])
            assert torch.equal(e.mixture.log_masks[i], single[chosen][t].mixture.log_masks[i])


@pytest.mark.parametrize("start", ["shared", "per_slot", "drawn"])
def test_where_inference_begins(start):
    "At one learned place, at one for each slot, or at places drawn around the one."
    model = build(IODINEConfig((3, 6, 6), 3, 4, iterations=1, start=start, decoder=DecoderConfig((4,), 3),
                               refinement=RefinementConfig((4,), lstm=0, mlp=())))
    learned = model.initial_posterior
    assert learned.shape == ((3 if start == "per_slot" else 1), 8)
    λ, (mean, s) = model.start(5, 2, seeded(7)), learned[:2].chunk(2, -1)
    drawn = model.noise(5, 2, seeded(7)) if start == "drawn" else torch.zeros(5, 2, 4)
    assert torch.equal(λ, torch.cat([mean + drawn, s.expand(5, 2, 4)], -1))
    assert torch.equal(model.first_guess(torch.zeros(5, 3, 6, 6).double(), 2, seeded(7)), λ)


@pytest.mark.parametrize("mode", ["exact", "truncated"])
def test_what_the_loss_is_made_of(mode):
    "With all the weight on the last iteration: what the picture costs, and the KL by both of its weights."
    model = build(IODINEConfig((3, 6, 6), 2, 3, iterations=2, weights="last", gradients=mode, kl_weight=.5,
                               decoder=DecoderConfig((4,), 3), refinement=RefinementConfig((4,), lstm=4)))
    images = torch.rand(2, 3, 6, 6, generator=seeded(1), dtype=torch.float64)
    terms = model.loss(Batch(images), kl_weight=3., generator=seeded(2))
    last = model.infer(images, kl_weight=3., generator=seeded(2))[-1]
    wanted = dict(nll=-last.log_likelihood.mean(), kl=last.kl.sum(1).mean(),
                  mse=(last.reconstruction - images).square().mean())
    wanted["loss"] = wanted["nll"] + 1.5 * wanted["kl"]
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: v.item() for k, v in wanted.items()})


def test_means_are_bounded_only_where_that_is_asked_for():
    config = IODINEConfig((3, 6, 6), 2, 3, iterations=1, decoder=DecoderConfig((4,), 3),
                          refinement=RefinementConfig((4,), lstm=0, mlp=()))
    free, bounded = build(config), build(config.change(means="sigmoid"))  # with the same weights
    z = torch.randn(2, 2, 3, generator=seeded(0), dtype=torch.float64)
    (means, logits), (between, same) = free.decode(z), bounded.decode(z)
    assert torch.equal(between, means.sigmoid()) and torch.equal(logits, same) and means.min() < 0


def test_evaluations_are_cut_and_joined_by_the_image():
    model = build(IODINEConfig((3, 6, 6), 2, 3, iterations=1, decoder=DecoderConfig((4,), 3),
                               refinement=RefinementConfig((4,), lstm=0, mlp=())))
    e = model.infer(torch.rand(3, 3, 6, 6, generator=seeded(1), dtype=torch.float64), generator=seeded(2))[-1]
    last, first = e.rows(slice(2, 3)), e.rows(slice(0, 2))
    assert torch.equal(last.mixture.log_masks, e.mixture.log_masks[2:]) and len(first.loss) == 2
    joined = join_evaluations([last, first])
    assert type(joined) is type(e) and joined.latents.shape == e.latents.shape
    for of in (lambda v: v.loss, lambda v: v.latents, lambda v: v.mixture.log_joint, lambda v: v.masks):
        assert torch.equal(of(joined), of(e)[[2, 0, 1]])
        assert torch.equal(of(join_evaluations([e])), of(e))  # and one part is what it was


def test_the_defaults_are_those_that_the_records_leave_unsaid():
    "CLEVR6 as it was published; a record that does not name a field means these values."
    c = IODINEConfig()
    assert (c.image, c.slots, c.latent, c.iterations) == ((3, 128, 128), 7, 64, 5)
    assert (c.sigma, c.prior_variance, c.kl_weight, c.start_variance) == (.1, 1., 1., 1.)
    assert (c.likelihood, c.mixture, c.means, c.variance) == ("gaussian", "joint", "unbounded", "softplus")
    assert (c.start, c.weights, c.gradients, c.flat_inputs) == ("shared", "linear", "exact", "joined")
    assert (c.coordinates, c.normalisation, c.mask_gradient) == ("linear", "affine", "logits")
    assert c.inputs == tuple(INPUTS)
