"""The VAEs of the NORB log: closed forms, splits, presets at their published sizes, real bytes, and NaN."""
import itertools, math, struct

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from iodine_nb.core import read_json
from iodine_nb.experiments import norb as runs
from iodine_nb.experiments.experiment import Experiment, build
from iodine_nb.experiments.norb import norb_runs
from iodine_nb.experiments.presets import preset
from iodine_nb.models.vae import (PUBLISHED, SMALL, VAE, VAEConfig, bernoulli_nll, bits_per_dimension, family,
                                  fitted_pca, gaussian_nll, posteriors)
from iodine_nb.scenes.format import Batch, SceneFile, Scenes, save_scenes
from iodine_nb.scenes.norb import PAIRS, SPLITS, all_pairs, made_by, toys_file
from iodine_nb.training.fit import fit

TINY = VAEConfig((1, 8, 8), channels=(2, 3), convolutions=1, hidden=(6,), latent=3)
DENSE = VAEConfig((1, 8, 8), components=5, hidden=(6,), latent=3, likelihood="gaussian")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(path, n=24, size=8):
    image = np.random.default_rng(0).integers(0, 256, (n, size, size, 1), np.uint8)
    save_scenes(path, Scenes(image, None, np.ones((n, 1), bool)), "noise", {})
    return SceneFile(path)


def test_likelihoods_are_those_of_torch():
    x, logits, spread = (noise(4, 1, 5, 5).sigmoid(), noise(4, 1, 5, 5, seed=1),
                         noise(4, 1, 5, 5, seed=2).exp())
    white = (x > .5).double()
    theirs = -Bernoulli(logits=logits).log_prob(white).sum((1, 2, 3))
    assert (bernoulli_nll(white, logits) - theirs).abs().max() < 1e-12
    for variance in (spread, spread[:1, :, :1, :1], spread[0]):
        theirs = -Normal(logits, variance.sqrt()).log_prob(x).sum((1, 2, 3))
        assert (gaussian_nll(x, logits, variance) - theirs).abs().max() < 1e-11


@pytest.mark.parametrize("kind, change", [("log_variance", {}), ("clamped", {}), ("softplus", {}),
                                          ("linear", dict(epsilon=.1, epsilon_in="everywhere"))])
def test_kl_is_that_of_torch(kind, change):
    drawn, counted = posteriors(noise(6, 8), TINY.change(latent=4, posterior=kind, **change))
    theirs = kl_divergence(Normal(drawn.mean, drawn.variance.sqrt()), Normal(0., 1.)).sum(1)
    assert (counted.kl() - theirs).abs().max() < 1e-12


def test_the_logs_epsilon_is_in_the_kl_only():
    drawn, counted = posteriors(noise(6, 8),
                                TINY.change(latent=4, posterior="linear", epsilon=.1, epsilon_in="kl"))
    assert ((counted.variance - drawn.variance) - .1).abs().max() < 1e-15 and (drawn.variance == 0).any()


def test_bits_per_dimension():
    "A uniform density on [0, 1] says nothing about 255 steps of grey; half as wide, it says one bit."
    assert bits_per_dimension(0., 100) == math.log2(255)
    assert abs(bits_per_dimension(100 * math.log(2), 100) - (math.log2(255) - 1)) < 1e-12


def test_optimal_variance_is_the_likeliest():
    torch.manual_seed(0)
    model, x = VAE(TINY.change(likelihood="optimal")).double(), noise(6, 1, 8, 8).sigmoid()
    mean = noise(6, 1, 8, 8, seed=1).sigmoid()
    best = model.output_variance(None, x, mean)
    assert abs(best.item() - ((x - mean) ** 2).mean().item()) < 1e-15
    at = lambda factor: gaussian_nll(x, mean, best * factor).sum()
    assert at(1.) < min(at(.99), at(1.01))


def test_an_error_of_one_row_is_a_beta():
    "The gradient of (mean over rows of the error) + KL is that of error + H · KL, divided by H = 8 rows."
    x, found = Batch(torch.rand(4, 1, 8, 8)), []
    for beta, rows in ((1., 8), (8., 1)):
        torch.manual_seed(0)
        model = VAE(TINY.change(beta=beta, likelihood="gaussian"))
        terms = model.loss(x, torch.Generator().manual_seed(0))
        loss = terms["nll"] / rows + terms["kl"] if rows > 1 else terms["loss"] / 8
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    assert (found[0] - found[1]).abs().max() < 1e-5 * found[0].abs().max()


def test_frozen_heads_are_neither_trained_nor_saved():
    heads = [VAE(DENSE.change(likelihood=k)) for k in ("head", "frozen_head")]
    assert [any("output_variance" in k for k in m.state_dict()) for m in heads] == [True, False]
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert count(heads[0]) - count(heads[1]) == 6 * 5 + 5


def test_pca_is_in_the_model(tmp_path):
    file, torch_model = pictures(tmp_path / "p.h5"), VAE(DENSE)
    torch_model.prepare(file)
    other = VAE(DENSE)
    other.load_state_dict(torch_model.state_dict())
    x = Batch.of(file[:4]).image
    c = torch.from_numpy(fitted_pca(file, 5).transform(x.flatten(1).numpy())).float()
    assert (other.observed(x) - c).abs().max() < 1e-5
    seen = other.eval().infer(x, torch.Generator().manual_seed(0))[-1]
    assert (seen.mse - ((seen.reconstruction - x) ** 2).mean((1, 2, 3))).abs().max() < 1e-6
    with pytest.raises(ValueError, match="components: 5 are needed, the PCA has 3"):
        other.hold(fitted_pca(file, 3))


def test_a_picture_is_a_scene_of_one_slot():
    model, x = VAE(TINY).eval(), torch.rand(3, 1, 8, 8)
    e = model.infer(x, torch.Generator().manual_seed(0))[-1]
    assert e.latents.shape == e.latent_variance.shape == (3, 1, 3) and e.means.shape == (3, 1, 1, 8, 8)
    assert (e.masks == 1).all() and (e.segmentation == 0).all() and torch.equal(e.loss, e.nll + e.kl)
    means, mask_logits = model.decode(e.latents)
    assert torch.equal(means[:, 0], e.reconstruction) and (mask_logits == 0).all()
    assert torch.equal(model.sample(2, torch.Generator().manual_seed(1)),
                       model.sample(2, torch.Generator().manual_seed(1)))


def test_no_instance_is_in_two_splits():
    assert sorted(itertools.chain(*SPLITS.values())) == list(range(10))
    pairs = all_pairs()
    assert len(np.unique(pairs, axis=0)) == PAIRS == len(pairs)
    assert [2 * int(np.isin(pairs[:, 1], toys).sum()) for toys in SPLITS.values()] == [68_040, 19_440, 9_720]


def test_parameters_of_the_unet():
    "Skips double the inputs of the first convolution of every decoder level but the lowest."
    count = lambda c: sum(p.numel() for p in VAE(c).parameters())
    for plain in (PUBLISHED["norb_conv"][0], SMALL["norb_conv_48"][0]):
        assert count(plain.change(skips=True)) - count(plain) == sum(9 * n * n for n in plain.channels[:-1])
    conv = lambda i, o, k: i * o * k * k + o
    level = lambda i, o: conv(i, o, 3) + 2 * o + conv(o, o, 3) + 2 * o
    ch = (16, 32, 64, 128, 256, 512)
    encoder = (2 + level(1, 16) + sum(conv(a, b, 2) + level(b, b) for a, b in zip(ch, ch[1:])) + 4608 * 256
               + 3 * 256)
    decoder = 10 * 256 + 3 * 256 + 256 * 4608 + 3 * 4608 + level(512, 512)
    decoder += sum(conv(b, a, 2) + level(2 * a, a) for a, b in zip(ch, ch[1:]))
    assert count(PUBLISHED["norb_unet"][0]) == encoder + 256 * 20 + 20 + decoder + 17


@pytest.mark.parametrize("name", family.presets)
def test_every_preset_takes_a_step_at_its_size(name):
    x = preset(name)
    model, before = build(x, 0), None
    if x.model.components: model.pca_axes.copy_(torch.eye(x.model.components, model.pca_axes.shape[1]))
    before = model.to_mean.weight.detach().clone()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    terms = model.loss(Batch(torch.rand(2, *x.model.image)), torch.Generator().manual_seed(0))
    terms["loss"].backward()
    optimiser.step()
    assert terms["loss"].isfinite() and not torch.equal(before, model.to_mean.weight)
    assert Experiment.from_dict(x.to_dict()) == x


def norb_bytes(folder, part, instances, pairs=4):
    "smallNORB's three files as published, written here byte by byte."
    head = lambda magic, *shape: struct.pack(f"<II{max(3, len(shape))}I", magic, len(shape),
                                             *(shape + (1, 1))[:max(3, len(shape))])
    name = f"{folder}/smallnorb-5x{'46789' if part == 'training' else '01235'}x9x18x6x2x96x96-{part}"
    rng, n = np.random.default_rng(1), pairs * len(instances)
    rows = [(i, 3, 2 * k, k % 6) for i in instances for k in range(pairs)]
    with open(f"{name}-dat.mat", "wb") as f:
        f.write(head(0x1E3D4C55, n, 2, 96, 96) + rng.bytes(n * 2 * 96 * 96))
    with open(f"{name}-cat.mat", "wb") as f:
        f.write(head(0x1E3D4C54, n) + struct.pack(f"<{n}i", *[k % 5 for k in range(n)]))
    with open(f"{name}-info.mat", "wb") as f:
        f.write(head(0x1E3D4C54, n, 4) + b"".join(struct.pack("<4i", *r) for r in rows))
    return f"{name}-dat.mat"


def test_real_bytes_train_a_step(tmp_path):
    norb_bytes(tmp_path, "training", (4, 6, 7, 8, 9))
    norb_bytes(tmp_path, "testing", (0, 1, 2, 3, 5))
    files = {split: toys_file(split, tmp_path / "cache", 48, published=tmp_path) for split in SPLITS}
    assert {k: len(v) for k, v in files.items()} == {"train": 56, "validation": 16, "test": 8}
    for split, file in files.items(): assert set(file[:].factors["instance"][:, 1]) == set(SPLITS[split])
    assert "photographs of smallNORB, 48 × 48 pixels, 8 pictures of instances 9" in made_by(files["test"])
    assert set(files["test"][:].factors["camera"][:, 1]) == {0, 1}
    # published in steps of 10°, only even ones: here 20°
    assert files["train"][:].factors["azimuth"][:, 1].max() == 3
    x = preset("norb_conv_48").change(training__steps=1, training__batch_size=8)
    record = fit(build(x, 0), files["train"], x.training, tmp_path / "run", describe=x.to_dict(),
                 progress=False)
    assert math.isfinite(record.log()[-1]["loss"])


def test_files_that_are_missing_cut_or_swapped_are_named(tmp_path):
    cut = norb_bytes(tmp_path, "training", (4, 6, 7, 8, 9))
    with pytest.raises(ValueError,
                       match="testing-dat.mat: no such file.*of smallNORB's six files only 3 are there"):
        toys_file("train", tmp_path / "cache", published=tmp_path)
    norb_bytes(tmp_path, "testing", (4, 6, 7, 8, 9))
    with pytest.raises(ValueError,
                       match=r"testing-info.mat: holds instances \[4, 6, 7, 8, 9\], the testing part has"):
        toys_file("test", tmp_path / "cache", published=tmp_path)
    norb_bytes(tmp_path, "testing", (0, 1, 2, 3, 5))
    with open(cut, "r+b") as f: f.truncate(1000)
    with pytest.raises(ValueError, match="training-dat.mat: 1,000 bytes where .* needs 368,664"):
        toys_file("train", tmp_path / "cache", published=tmp_path)
    assert not list((tmp_path / "cache").glob("*"))


def test_fit_does_not_go_on_from_nan(tmp_path):
    "The log's ε, in the KL only: where the variance is 0, the gradient of its square root is not a number."
    file, x = pictures(tmp_path / "p.h5"), preset("norb_conv_48")
    config = TINY.change(posterior="linear", epsilon=1e-3, likelihood="gaussian")
    training = x.training.change(steps=40, batch_size=8)
    with pytest.raises(FloatingPointError,
                       match="20 steps in a row, up to step 20, without a finite loss and gradient"):
        fit(build(Experiment("vae", "", "", config, training), 0), file, training, tmp_path / "a",
            progress=False)
    good = config.change(epsilon_in="everywhere")
    record = fit(build(Experiment("vae", "", "", good, training), 0), file, training, tmp_path / "b",
                 progress=False)
    assert record.log()[-1]["step"] == 40


@pytest.mark.parametrize("change, said", [
    (dict(image=(1, 50, 50)), "channels: 6 levels need a size that 32 divides, image is 50 × 50"),
    (dict(components=5), "likelihood: coefficients are no probabilities"),
    (dict(whitened=True), "whitened: only PCA's"),
    (dict(components=5, likelihood="head", skips=True), "skips: the dense layers"),
    (dict(variance=0.), "variance: must be positive"),
    (dict(components=10_000, likelihood="head"), "components: must be at most 9216"),
    (dict(latent=0), "latent")])
def test_what_cannot_be_is_said(change, said):
    with pytest.raises(ValueError, match=said): VAEConfig().change(**change)


def test_every_way_to_resume_leaves_its_trace(tmp_path, monkeypatch):
    "What must be so, whatever the model: what is forgotten shows where it is used, and nowhere before."
    files = {split: pictures(tmp_path / f"{split}.h5") for split in SPLITS}
    quick = dict(model__image=(1, 8, 8), model__components=5, model__hidden=(6,), model__latent=2,
                 training__steps=4, training__batch_size=8, training__evaluate_scenes=8,
                 training__evaluate_every=4)
    base = runs.resume_base
    monkeypatch.setattr(runs, "resume_base", lambda way, seed: base(way, seed).change(**quick))
    found = {way: seeds[0] for way, seeds in runs.run_resumes(files, fitted_pca(files["train"], 5), (0,),
                                                              3).items()}
    assert tuple(found) == runs.RESUMES
    before, training = ({way: run[key] for way, run in found.items()} for key in ("before", "training"))
    for way in ("no optimiser state", "another random state"): assert before[way] == before["complete"]
    assert training["no batch norm statistics"] == training["complete"]
    assert before["no batch norm statistics"] != before["complete"]
    assert training["no optimiser state"][0] == training["complete"][0]
    assert training["no optimiser state"][1] != training["complete"][1]
    assert training["another random state"][0] != training["complete"][0]
    assert before["head not saved"] != found["head not saved"]["stopped_at"]


def test_what_the_records_of_unseen_toys_say():
    "Chapter 50: paintings beat copies. Chapter 51: the best likelihood has nearly the largest error."
    names = "unseen", "by_likelihood", "pca"
    unseen, said, pca = (read_json(norb_runs() / f"{name}.json") for name in names)
    assert unseen["painted"] < unseen["copied"] / 2 < unseen["mean"] and np.shape(unseen["by_toy"]) == (5, 10)
    nothing = -.5 * (np.log(2 * np.pi * np.array(pca["variance"][:125])) + 1).sum()
    assert abs(nothing - said["nothing"]) < 4  # two standard errors of 754 pictures
    elbo, mse = ({name: run[k] for name, run in said["models"].items()} for k in ("elbo", "mse"))
    assert min(elbo, key=elbo.get) == max(mse, key=mse.get) == "head"
    assert [name for name in elbo if elbo[name] > nothing] == ["softplus head"]
    assert mse["softplus head"] > 2 * max(mse["optimal"], mse["per coefficient"])
