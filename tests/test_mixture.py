"""The parts of the model against their definitions: densities, mixtures, inputs, updates, weights."""
import math

import pytest
import torch
from torch import distributions as D

from iodine_nb.core import seeded
from iodine_nb.models.distributions import Posterior, component_log_likelihood, posterior, spatial_mixture
from iodine_nb.experiments.presets import preset
from iodine_nb.models.decoder import DecoderConfig
from iodine_nb.models.inputs import ALL_INPUTS, INPUTS, RefinementInputs, check_inputs
from iodine_nb.models.iodine import IODINE, IODINEConfig, loss_weights
from iodine_nb.models.refinement import Refinement, RefinementConfig

torch.manual_seed(0)
IMAGE, MEANS = torch.rand(2, 3, 4, 5).double(), torch.rand(2, 3, 3, 4, 5).double()
LOGITS = torch.randn(2, 3, 1, 4, 5).double()


def logistic(mean, scale):
    base = D.Uniform(torch.zeros_like(mean), torch.ones_like(mean))
    return D.TransformedDistribution(base, [D.SigmoidTransform().inv, D.AffineTransform(mean, scale)])


@pytest.mark.parametrize("likelihood, density", [("gaussian", D.Normal), ("logistic", logistic)])
@pytest.mark.parametrize("mixture", ["joint", "per_channel", "composed"])
def test_a_pixel_has_the_density_of_its_mixture(likelihood, density, mixture):
    by_channel = density(MEANS, torch.tensor(.3, dtype=torch.float64)).log_prob(IMAGE[:, None])
    assert torch.allclose(component_log_likelihood(IMAGE[:, None], MEANS, .3, likelihood), by_channel)
    m, weights = spatial_mixture(IMAGE, MEANS, LOGITS, .3, likelihood, mixture), LOGITS.softmax(1)
    joint = by_channel.sum(2, keepdim=True)
    together = (weights * MEANS).sum(1, keepdim=True)
    total = {"joint": (weights * joint.exp()).sum(1, keepdim=True).log(),
             "per_channel": (weights * by_channel.exp()).sum(1, keepdim=True).log().sum(2, keepdim=True),
             "composed": component_log_likelihood(IMAGE[:, None], together, .3, likelihood).sum(
                 2, keepdim=True)}[mixture]
    assert torch.allclose(m.log_likelihood, total) and torch.allclose(m.log_components, joint)
    assert torch.allclose(m.masks, weights) and torch.allclose(m.log_masks, weights.log())
    assert torch.allclose(m.mask_posterior, joint.exp() / joint.exp().sum(1, keepdim=True))
    assert torch.allclose(m.log_joint, weights.log() + joint)
    whole = (weights * joint.exp()).sum(1, keepdim=True).log()  # the pixel as one thing, per channel or not
    for k in range(3):  # without slot k, the other masks shared out anew
        others = [j for j in range(3) if j != k]
        w = weights[:, others] / weights[:, others].sum(1, keepdim=True)
        without = (w * joint[:, others].exp()).sum(1, keepdim=True).log()
        assert torch.allclose(m.leave_one_out[:, k:k + 1], whole - without)


@pytest.mark.parametrize("field, wrong", [("likelihood", "gauss"), ("mixture", "compose")])
def test_an_unknown_name_is_refused(field, wrong):
    with pytest.raises(ValueError, match=f"^{field}: must be .* is '{wrong}'$"):
        spatial_mixture(IMAGE, MEANS, LOGITS, .3, **{field: wrong})
    with pytest.raises(ValueError, match="^variance: must be softplus or exp, is 'sofplus'$"):
        posterior(torch.zeros(2, 4), "sofplus")


@pytest.mark.parametrize("form, variance", [("softplus", lambda s: torch.log1p(s.exp()) + 1e-8),
                                            ("exp", torch.exp)])
def test_a_posterior_is_a_gaussian(form, variance):
    λ, noise = torch.randn(2, 3, 8).double(), torch.randn(2, 3, 4).double()
    q = posterior(λ, form)
    assert torch.equal(q.mean, λ[..., :4]) and torch.allclose(q.variance, variance(λ[..., 4:]))
    assert torch.allclose(q.sample(noise), q.mean + q.variance.sqrt() * noise)
    ours = D.Normal(q.mean, q.variance.sqrt())
    for prior in (1., .3):
        kl = D.kl_divergence(ours, D.Normal(torch.zeros(()), math.sqrt(prior))).sum(-1)
        assert torch.allclose(q.kl(prior), kl)
    assert torch.equal(q.kl(), q.kl(1.))
    far = posterior(torch.tensor([[0., 0., -90., 90.]]), "exp")
    assert torch.allclose(far.variance.log(), torch.tensor([[-20., 20.]]))
    assert isinstance(q, Posterior)
    assert posterior(torch.tensor([[0., -90.]]), "softplus").variance.item() == pytest.approx(1e-8)


@pytest.mark.parametrize("kind", ["affine", "plain", "none"])
@pytest.mark.parametrize("flat", ["joined", "broadcast"])
def test_inputs_are_normalised_and_put_together_in_the_order_of_the_table(kind, flat):
    from test_iodine import DecoderConfig, IODINEConfig, build
    names = ("posterior_gradient", "coordinates", "means_gradient", "image", "posterior")
    config = IODINEConfig((3, 6, 6), 2, 3, inputs=names, normalisation=kind, flat_inputs=flat,
                          decoder=DecoderConfig((4,), 3))
    model = build(config, 0.)
    image = torch.rand(2, 3, 6, 6, generator=seeded(1)).double()
    e = model.evaluate(image, model.start(2, 2, None), model.noise(2, 2, seeded(2)))
    g = model.gradients(e)
    spatial, vectors = model.inputs(model.state(image, e, g))
    def normal(v, groups=1):
        if kind == "none": return v.flatten(0, 1)
        parts = v.flatten(0, 1).reshape(4, groups, -1)
        spread = (parts.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return ((parts - parts.mean(2, keepdim=True)) / spread).reshape(v.flatten(0, 1).shape)
    flats = torch.cat([e.posterior.flatten(0, 1), normal(g[0], 2 if kind == "plain" else 1)], 1)
    axis = torch.linspace(-1, 1, 6).double()
    place = torch.stack([axis[:, None].expand(6, 6), axis.expand(6, 6)]).expand(4, -1, -1, -1)
    wanted = torch.cat([image.repeat_interleave(2, 0), normal(g[1]), place], 1)
    if flat == "broadcast":
        wanted, flats = torch.cat([wanted, flats[..., None, None].expand(-1, -1, 6, 6)], 1), flats[:, :0]
    assert torch.allclose(spatial, wanted, atol=1e-6) and torch.allclose(vectors, flats)
    assert (model.inputs.channels, model.inputs.flat) == (spatial.shape[1], vectors.shape[1])
    assert "coordinates" not in model.inputs.state_dict()  # weights do not hold constants


def test_inputs_that_are_not_in_the_table_or_all_flat_are_refused():
    for names, said in ((("image", "colour"), "'colour' is not"), (("posterior",), "image-shaped"),
                        ((), "image-shaped")):
        with pytest.raises(ValueError, match=said): check_inputs(names)
    assert RefinementInputs(("coordinates",), (3, 6, 6), 2, "cosine").channels == 8
    cut = {"means_gradient", "mask_gradient", "pixel_likelihood", "leave_one_out", "posterior_gradient"}
    assert {n for n, i in INPUTS.items() if i.normalised} == cut  # appendix B's layer norms


@pytest.mark.parametrize("update", ["additive", "gated"])
@pytest.mark.parametrize("pooling", ["average", "flatten"])
@pytest.mark.parametrize("source, lstm", [("hidden", 5), ("cell", 5), ("hidden", 0)])
def test_the_refinement_is_what_its_configuration_says(update, pooling, source, lstm):
    c = RefinementConfig((4, 6), 3, pooling, (7, 8), lstm, "elu", update, source)
    torch.manual_seed(1)
    f = Refinement(c, 2, 3, 2, (7, 9))
    spatial, flat, λ = torch.randn(4, 2, 7, 9), torch.randn(4, 3), torch.randn(4, 4)
    new, memory = f(spatial, flat, λ)
    again, _ = f(spatial, flat, new, memory)
    elu, conv = torch.nn.functional.elu, torch.nn.functional.conv2d
    h = spatial
    for layer in f.convolutions[::2]: h = elu(conv(h, layer.weight, layer.bias, 2, 1))
    assert h.shape[1:] == (6, 2, 3)
    h = h.mean((2, 3)) if pooling == "average" else h.flatten(1)
    for layer in f.mlp[::2]: h = elu(layer(h))
    h, state = torch.cat([h, flat], 1), None
    assert [layer.out_features for layer in f.mlp[::2]] == [7, 8]
    for before, found in ((λ, new), (new, again)):
        if lstm: state = f.lstm(h, state)
        out = f.head(state[["hidden", "cell"].index(source)] if lstm else h)
        if update == "additive": wanted = before + out
        else: wanted = out[:, :4] * (1 - out[:, 4:].sigmoid()) + before * out[:, 4:].sigmoid()
        assert torch.allclose(found, wanted, atol=1e-6)
    assert (memory is None) == (lstm == 0)
    for wrong in (dict(kernel=2), dict(kernel=0), dict(lstm=-1), dict(mlp=(0,)), dict(channels=(4, 0))):
        with pytest.raises(ValueError, match=f"refinement.{min(wrong)}"): c.change(**wrong)


def test_what_is_not_said_is_the_published_clevr6_network():
    f = RefinementConfig((64, 64, 64, 64), 3, "average", (256, 256), 256, "elu", "additive", "hidden")
    c = IODINEConfig((3, 128, 128), 7, 64, "gaussian", "joint", .1, "unbounded", 1., 1., DecoderConfig(), 5,
                     "softplus", "shared", 1., "linear", "exact", ALL_INPUTS, "joined", "linear", "affine",
                     "logits", f)
    assert RefinementConfig() == f and IODINEConfig() == preset("clevr6").model == c


@pytest.mark.parametrize("changes, said", [
    (dict(image=(2, 8, 8)), "image"), (dict(image=(3, 8)), "image"), (dict(image=(3, 0, 8)), "image"),
    (dict(slots=0), "slots"), (dict(latent=0), "latent"), (dict(iterations=0), "iterations"),
    (dict(kl_weight=-.1), "kl_weight"), (dict(sigma=0.), "sigma"),
    (dict(prior_variance=0.), "prior_variance"),
    (dict(start_variance=.9e-8), "start_variance"), (dict(start_variance=1.1e8), "start_variance")])
def test_configurations_that_no_model_can_have(changes, said):
    with pytest.raises(ValueError, match=f"^{said}: must be"): IODINEConfig(**changes)


def test_the_least_configuration_is_one():
    c = IODINEConfig((1, 1, 1), 1, 1, iterations=1, kl_weight=0., start_variance=1e-8, sigma=1e-3,
                     decoder=DecoderConfig((1,), 1), refinement=RefinementConfig((1,), 1, mlp=(1,), lstm=0))
    e = IODINE(c).infer(torch.rand(2, 1, 1, 1), slots=1, iterations=0, kl_weight=0., sigma_factor=1e-3)
    assert len(e) == 1 and e[0].loss.isfinite().all()
    assert torch.equal(e[0].loss, -e[0].log_likelihood)  # nothing is paid for the KL
    assert c.change(start_variance=1e8).start_variance == 1e8


def test_how_much_each_iteration_counts():
    assert loss_weights(4) == [0, .25, .5, .75, 1] and loss_weights(3, "port") == [.25, .5, .75, 1]
    assert loss_weights(3, "last") == [0, 0, 0, 1]
