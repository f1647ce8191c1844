"""Where a wrong number could look right: runs, weights, configurations and pictures to be refused."""
import json, math, multiprocessing, subprocess, sys, time, types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import small
from iodine_nb import cli
from iodine_nb.core import check_inference, seeded, takes_gradients
from iodine_nb.experiments.experiment import Experiment, begin_with, export_weights, load_model, save_weights
from iodine_nb.experiments.experiment import train as train_experiment
from iodine_nb.experiments.presets import preset
from iodine_nb.models.inputs import RefinementInputs
from iodine_nb.models.iodine import IODINE, IODINEConfig, accumulated, loss_weights, unrolled
from iodine_nb.models.vle import ConvLSTM
from iodine_nb.scenes.format import Batch, SceneFile
from iodine_nb.tools.speed import measure
from iodine_nb.training import fit as training
from iodine_nb.training.fit import OptimiserConfig, Ramp, Record, TrainingConfig, open_tensors
from iodine_nb.training.metrics import evaluate
from small import TINY, scenes, train


@pytest.fixture
def data(tmp_path): return scenes(tmp_path / "d.h5")


@pytest.fixture
def weights(tmp_path):
    save_weights(path := tmp_path / "w.safetensors", small.build(TINY, seed=0), {"preset": TINY.to_dict()})
    return path


# Checkpoints

def altered(checkpoint, change, **header):
    "Write a checkpoint anew with other tensors and header fields; None leaves a field out."
    tensors, before = open_tensors(checkpoint)
    header = {k: v for k, v in (before | header).items() if v is not None}
    save_file({k: v for k, v in change(tensors).items()}, checkpoint, header)


FIRST = "optimiser/initial_posterior/exp_avg"


@pytest.mark.parametrize("change, header, said", [
    (lambda t: {k: v for k, v in t.items() if k.startswith("model/")}, {}, "holds no state of the optimiser"),
    (lambda t: {k: v for k, v in t.items() if k != FIRST}, {}, "state of initial_posterior is not whole"),
    (lambda t: t | {FIRST: t[FIRST] * torch.nan}, {}, "state of initial_posterior is not whole and finite"),
    (lambda t: t | {FIRST: t[FIRST][:, :3].clone()}, {}, "state of initial_posterior is not whole"),
    (lambda t: t | {"model/initial_posterior": t["model/initial_posterior"] + torch.inf}, {},
     "initial_posterior holds NaN or infinity"),
    (dict, {"step": None}, "its header has no step"), (dict, {"step": "three"}, "its header has no step"),
    (dict, {"config": None}, "its header has no configuration"),
    (dict, {"config": "[]"}, "its header has no configuration")])
def test_half_a_checkpoint_does_not_resume(tmp_path, data, change, header, said):
    record = train(tmp_path / "a", data, 3)
    altered(record.checkpoint, change, **header)
    before, log = record.checkpoint.read_bytes(), record.log()
    with pytest.raises(ValueError, match=f"checkpoint.safetensors: .*{said}"): train(tmp_path / "a", data, 6)
    assert record.checkpoint.read_bytes() == before and record.log() == log


class Explodes(torch.nn.Module):
    "Its first step is good, its second too, and after that its loss is infinite."
    def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.zeros(1))
    def loss(self, batch): return {"loss": -(80 * self.w).exp().sum()}


@pytest.mark.parametrize("every, said", [(1, "The checkpoint, of step 1, is from before them"),
                                         (2, "No checkpoint was written")])
def test_a_run_that_breaks_down_leaves_a_checkpoint_that_does_not(tmp_path, data, every, said):
    "The second step breaks the weights; what it made is in no checkpoint."
    config = TINY.training.change(learning_rate=.9, checkpoint_every=every, steps=40, warmup=0,
                                  schedules={})
    with pytest.raises(FloatingPointError, match=f"20 steps in a row, up to step 22, .*{said}"):
        training.fit(Explodes(), data, config, tmp_path / "a", progress=False)
    record = Record(tmp_path / "a")
    assert record.checkpoint.exists() == (every == 1)
    if every == 1: assert load_file(record.checkpoint)["model/w"].item() == pytest.approx(.9)


def test_no_checkpoint_while_steps_are_skipped(tmp_path, data, monkeypatch):
    "Neither when one is due, nor at the end; the first good step writes it, as if nothing had been between."
    step, written, bad = training.train_step, [], {3, 4, 5, 11}
    save = training.save_checkpoint
    def loss(self, batch, **how):
        terms = IODINE_loss(self, batch, **how)
        return terms | {"loss": terms["loss"] * (torch.nan if self.now in bad else 1.)}
    def counted(model, loader, optimiser, accelerator, config, n, *rest):
        model.model.now = n
        return step(model, loader, optimiser, accelerator, config, n, *rest)
    IODINE_loss = IODINE.loss
    monkeypatch.setattr(IODINE, "loss", loss)
    monkeypatch.setattr(training, "train_step", counted)
    monkeypatch.setattr(training, "save_checkpoint", lambda *a: written.append(a[3]) or save(*a))
    record = train(tmp_path / "a", data, 12)
    assert written == [6, 9] and open_tensors(record.checkpoint)[1]["step"] == "9"
    assert [line["skipped"] for line in record.log()] == [0, .5, 1, 0, 0, .5]


def test_twenty_bad_steps_in_a_row_end_a_run_and_nineteen_do_not(tmp_path, data, monkeypatch):
    IODINE_loss, calls = IODINE.loss, []
    def loss(self, batch, **how):
        calls.append(1)
        terms = IODINE_loss(self, batch, **how)
        return terms | {"loss": terms["loss"] * (1. if len(calls) % 20 == 0 else torch.nan)}
    monkeypatch.setattr(IODINE, "loss", loss)
    train(tmp_path / "a", data, 60)  # nineteen bad, one good, three times
    assert len(calls) == 60
    record = Record(tmp_path / "a")
    assert sum(line["skipped"] for line in record.log()) * 2 == 57


def test_steps_that_are_not_finite_are_not_taken(tmp_path, data, monkeypatch):
    IODINE_loss, seen = IODINE.loss, []
    def loss(self, batch, **how):
        seen.append([p.detach().clone() for p in self.parameters()])
        terms = IODINE_loss(self, batch, **how)
        factor = [1., torch.nan, torch.inf, 1.][len(seen) - 1]
        return terms | {"loss": terms["loss"] * factor}
    monkeypatch.setattr(IODINE, "loss", loss)
    train(tmp_path / "a", data, 4, TINY.change(training__log_every=1))
    assert any(not torch.equal(a, b) for a, b in zip(seen[0], seen[1]))
    assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in zip(*seen[1:]))


def test_gradients_are_clipped_to_their_norm(tmp_path, data, monkeypatch):
    "Momentum without a past is the gradient times 1 - beta1."
    def first(name, clip, steps=1):
        chosen = TINY.change(training__clip=clip, training__log_every=1, training__beta1=.5)
        record = train(tmp_path / name, data, steps, chosen)
        moments = [v for k, v in load_file(record.checkpoint).items() if k.endswith("/exp_avg")]
        return record.log()[0]["grad_norm"], torch.cat([m.flatten() for m in moments]).norm().item() / .5
    norm, taken = first("free", 1e6)
    assert norm == pytest.approx(taken, rel=1e-4) and norm > 1
    recorded, clipped = first("clipped", .25 * norm)
    assert recorded == pytest.approx(norm, rel=1e-4) and clipped == pytest.approx(.25 * norm, rel=1e-3)


def test_schedules_reach_the_loss(tmp_path, data):
    "A ramp of sigma, from where it starts; the logged likelihood is that of the sigma of its step."
    def nll(name, **schedules):
        chosen = TINY.change(training__log_every=1, training__schedules=schedules)
        log = train(tmp_path / name, data, 3, chosen).log()
        return [(line["nll"], line.get("sigma_factor")) for line in log]
    plain, ramp = nll("plain"), nll("ramp", sigma_factor=Ramp(3., 1., 2))
    constant = nll("three", sigma_factor=Ramp(3., 3., 0))
    assert [s for _, s in ramp] == [3., 2., 1.] and ramp[0][0] == constant[0][0] != plain[0][0]
    assert Ramp(3., 1., 2).at(0) == 3. and Ramp(3., 1., 2).at(1) == 2. and Ramp(3., 1., 2).at(9) == 1.


# Weights

def test_weights_with_nan_are_refused_at_every_door(tmp_path, weights, data, capsys):
    tensors = load_file(weights)
    save_file(tensors | {"initial_posterior": tensors["initial_posterior"] * torch.nan}, weights)
    for act in (lambda: load_model(weights), lambda: begin_with(small.build(TINY, 0), weights)):
        with pytest.raises(ValueError, match="w.safetensors: initial_posterior holds NaN or infinity"): act()
    assert cli.main(["eval", str(weights), str(data.path)]) == 2
    assert "initial_posterior holds NaN or infinity" in capsys.readouterr().err
    model = small.build(TINY, 0)
    with torch.no_grad(): model.refinement.head.bias[0] = torch.inf
    with pytest.raises(ValueError, match="model: refinement.head.bias holds NaN"):
        model.infer(torch.rand(1, 3, 14, 14))


def test_a_score_that_is_not_finite_is_no_score_and_ends_no_run(tmp_path, data, capsys):
    calls = []
    def score(model, batch, generator):
        calls.append(1)
        return {"mse": torch.full((len(batch.image),), torch.nan if len(calls) == 3 else .5)}
    config = TINY.training.change(steps=3, evaluate_every=1, schedules={})
    record = training.fit(small.build(TINY, 0), data, config, tmp_path / "a", data, score, progress=False)
    assert [line["step"] for line in record.log() if "seconds" not in line] == [1, 3]
    assert "step 2: mse: the mean over scenes is nan" in capsys.readouterr().err
    calls[:] = [1, 1]
    with pytest.raises(FloatingPointError, match="mse: the mean over scenes is nan"):
        evaluate(small.build(TINY, 0), data, (0,), score=score)


@pytest.mark.parametrize("wrap", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}"])
def test_names_from_wrappers_are_read(tmp_path, weights, wrap):
    plain, tensors = load_model(weights)[0].state_dict(), load_file(weights)
    save_file({wrap.format(k): v for k, v in tensors.items()}, weights)
    found = load_model(weights)[0].state_dict()
    assert all(torch.equal(found[k], v) for k, v in plain.items())
    save_file(tensors | {wrap.format(k): v.clone() for k, v in tensors.items()}, weights)
    with pytest.raises(ValueError, match="w.safetensors: has .* twice, also as"): load_model(weights)


def test_a_missing_card_is_said(weights):
    weights.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="w.json: missing; weights need this JSON file beside them"):
        load_model(weights)


@pytest.mark.parametrize("changes, said", [
    (dict(model__refinement__lstm=40_000), "this model has"),
    (dict(model__image=(3, 40_000, 40_000)), "needs 52 GiB besides its weights")])
def test_a_card_is_compared_before_it_takes_memory(tmp_path, changes, said, monkeypatch):
    chosen = TINY.change(model__refinement__pooling="average")
    card = {"preset": chosen.change(**changes).to_dict()}
    save_weights(tmp_path / "w.safetensors", small.build(chosen, 0), card)
    make, devices = IODINE.__init__, []
    def built(self, c): make(self, c); devices.append(self.initial_posterior.device.type)
    monkeypatch.setattr(IODINE, "__init__", built)
    with pytest.raises(ValueError, match=said): load_model(tmp_path / "w.safetensors")
    assert devices == ["meta"]


def test_weights_of_another_kind_are_refused_in_one_short_sentence(weights, data, capsys):
    card = {"preset": TINY.to_dict() | {"kind": "slot_attention"}}
    weights.with_suffix(".json").write_text(json.dumps(card))
    assert cli.main(["eval", str(weights), str(data.path)]) == 2
    said = capsys.readouterr().err
    assert "no such field of SlotAttentionConfig" in said and len(said) < 250 + len(str(weights))


# Configurations

@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_no_configuration_holds_what_is_not_finite(wrong):
    for make, field in ((lambda: TrainingConfig(clip=wrong), "clip"), (lambda: Ramp(0., wrong), "end"),
                        (lambda: OptimiserConfig("adam", wrong), "learning_rate"),
                        (lambda: IODINEConfig(sigma=wrong), "sigma"),
                        (lambda: TINY.change(model__sigma=wrong), "model.sigma"),
                        (lambda: TINY.change(training__schedules={"kl_weight": {"start": wrong}}),
                         r"training.schedules.kl_weight.start"),
                        (lambda: Experiment.from_dict(json.loads(json.dumps(
                            {"training": {"beta1": wrong}}))), "training.beta1")):
        with pytest.raises(ValueError, match=f"^{field}: must be a finite number"): make()
    with pytest.raises(ValueError, match="training.clip: must be a finite number"):
        TINY.change(training__clip=10**400)


def test_no_configuration_holds_what_is_none_of_a_fields_choices():
    for make, said in ((lambda: IODINEConfig((3, 8, 8), 3, 4, 2), "likelihood: must be .*, is 2"),
                       (lambda: IODINEConfig(mixture="single"), "mixture: must be .*, is 'single'"),
                       (lambda: TrainingConfig(schedule="linear"), "schedule: must be .*, is 'linear'"),
                       (lambda: TINY.change(model__start="none"), "model.start: must be .*, is 'none'")):
        with pytest.raises(ValueError, match=f"^{said}$"): make()


def test_functions_refuse_what_is_none_of_their_choices():
    for make, said in ((lambda: loss_weights(3, "linaer"), "weights: must be 'linear' or 'port' or 'last'"),
                       (lambda: RefinementInputs(["image"], (3, 4, 4), 2, coordinates="sine"), "coordinates"),
                       (lambda: RefinementInputs(["image"], (3, 4, 4), 2, normalisation=""), "normalisation"),
                       (lambda: RefinementInputs(["image"], (3, 4, 4), 2, flat="channels"), "flat_inputs"),
                       (lambda: ConvLSTM(2, 2, "cell"), "memory_output: must be 'hidden' or 'gate'"),
                       (lambda: measure(TINY.model, "fast", 1), "mode: must be 'port' or 'exact'")):
        with pytest.raises(ValueError, match=f"^{said}"): make()


def test_users_calls_are_refused_too():
    "Without the types that these tests check everywhere, as the library is used: a process of its own."
    found = subprocess.run([sys.executable, Path(__file__).with_name("refusals.py")], capture_output=True,
                           text=True, timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr


def test_weights_are_not_written_where_their_description_goes(tmp_path):
    for name in ("w.json", "w.pt", "w"):
        with pytest.raises(ValueError, match="must end in .safetensors"):
            save_weights(tmp_path / name, torch.nn.Linear(1, 1), {})
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_knows_its_configuration_again_by_value():
    assert training.difference({"clip": 5, "at": (1, 2)}, {"clip": 5., "at": [1, 2]}) is None
    assert training.difference({"clip": 5}, {"clip": 6.}) == "clip is 5, here 6.0"


@pytest.mark.parametrize("schedules, said", [
    ({"kl_weight": dict(steps=-1)}, "steps: must be at least 0"),
    ({"kl_weight": dict(steps=1.5)}, "training.schedules.kl_weight.steps: must be int"),
    ({"kl_weight": dict(start="small")}, "training.schedules.kl_weight.start: must be float"),
    ({"kl_weight": dict(end=-.1)}, "schedules.kl_weight: goes from 1.0 to -0.1, must stay at least 0"),
    ({"sigma_factor": dict(start=0.)}, "schedules.sigma_factor: goes from 0.0 .* must stay above 0")])
def test_ramps_are_looked_at(schedules, said):
    with pytest.raises(ValueError, match=said): TINY.change(training__schedules=schedules)


@pytest.mark.parametrize("changes, said", [(dict(seed=2**63), "seed: must be below"),
                                           (dict(decay=1e300), "decay: must be above 0, at most 1")])
def test_numbers_that_overflow_later_are_refused_at_once(changes, said):
    with pytest.raises(ValueError, match=f"training.{said}"): TrainingConfig(**changes)


@pytest.mark.parametrize("variance", ["softplus", "exp"])
@pytest.mark.parametrize("wanted", [1e-8, 1e-3, 1., 99., 101., 1000., 1e8])
def test_the_start_has_the_variance_that_is_asked_for(variance, wanted):
    c = TINY.model.change(variance=variance, start_variance=wanted)
    e = IODINE(c).infer(torch.rand(1, 3, 14, 14), iterations=0)[0]
    assert torch.allclose(e.latent_variance, torch.tensor(wanted), rtol=1e-4, atol=1.1e-8)
    for wrong in (1e-9, 1e9):
        with pytest.raises(ValueError, match="start_variance: must be between 1e-8 and 1e8"):
            c.change(start_variance=wrong)


# Pictures

def test_pictures_of_another_scale_are_refused():
    model = small.build(TINY, 0)
    images = torch.rand(2, 3, 14, 14)
    for wrong, said in ((images * 255, "images: must be from 0 to 1, are from .* to 2"),
                        (images * 2 - 1, "images: must be from 0 to 1, are from -"),
                        (images.double(), "images: must be torch.float32 .* are torch.float64"),
                        (images.where(images > .5, torch.nan), "images: must be from 0 to 1, are from nan"),
                        (images[:, :1], "images: 1×14×14")):
        with pytest.raises(ValueError, match=said): model.infer(wrong)
    with pytest.raises(ValueError, match="torch.float32 .* are torch.uint8"):
        check_inference(model, (images * 255).byte())
    for edge in (torch.zeros_like(images), torch.ones_like(images), images[:0]): check_inference(model, edge)


@pytest.mark.parametrize("name", ["norb_pca_tiny", "vle_small", "slots_tetrominoes", "iterative_small"])
def test_models_of_every_kind_look_at_pictures_and_weights_first(name):
    model = small.build(preset(name), 0).eval()
    images = torch.rand(1, *model.config.image)
    for wrong, said in ((images * 255, "must be from 0 to 1"), (images - 1, "must be from 0 to 1"),
                        (images.double(), "must be torch.float32"),
                        (images.where(images > .5, torch.nan), "are from nan"),
                        (images[..., 1:], "but this model takes")):
        with pytest.raises(ValueError, match=f"images: .*{said}"): model.infer(wrong)
    with torch.no_grad(): next(model.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="model: .* holds NaN or infinity"): model.infer(images)


def test_a_run_that_broke_down_is_not_the_best_restart(monkeypatch):
    model, run, calls = small.build(TINY, 0), IODINE.run, []
    def breaks(self, *args, **how):
        calls.append(found := run(self, *args, **how))
        if len(calls) == 1: found[-1] = found[-1]._replace(loss=found[-1].loss * torch.nan)
        return found
    monkeypatch.setattr(IODINE, "run", breaks)
    kept = model.infer(torch.rand(2, 3, 14, 14), restarts=2)[-1]
    assert torch.equal(kept.loss, calls[1][-1].loss)


# Gradients

@pytest.mark.parametrize("kind", ["iodine", "iterative"])
def test_inference_mode_changes_nothing(kind):
    if kind == "iodine": model, channels = small.build(TINY, 0), 3
    else:
        model = small.build(Experiment.from_dict({"kind": "iterative", "model": {
            "image": [1, 14, 14], "latent": 3, "hidden": [8]}}), 0)
        channels = 1
    images = torch.rand(2, channels, 14, 14)
    plain = model.infer(images, generator=seeded(0))[-1]
    with torch.no_grad(): losses = model.loss(Batch(images), generator=seeded(0))
    with torch.inference_mode():
        inside = images + 0  # a tensor of inference mode
        again = model.infer(inside, generator=seeded(0))[-1]
        found = model.loss(Batch(inside), generator=seeded(0))
    assert torch.equal(plain.posterior, again.posterior)
    assert all(torch.equal(losses[k], found[k]) for k in losses)
    assert takes_gradients(lambda self, x: x)(None, images) is images


@pytest.mark.parametrize("mode", ["exact", "truncated", "detached"])
def test_a_loss_without_gradients_is_the_same_and_has_no_backward_pass(mode, monkeypatch):
    model = small.build(TINY.change(model__gradients=mode, model__iterations=2, model__weights="port"), 0)
    batch = Batch(torch.rand(2, 3, 14, 14))
    with_graph = model.loss(batch, generator=seeded(0))
    asked, grad = [], torch.autograd.grad
    watched = lambda out, of, *rest, **how: asked.append(of) or grad(out, of, *rest, **how)
    monkeypatch.setattr(torch.autograd, "grad", watched)
    with torch.no_grad(): without = model.loss(batch, generator=seeded(0))
    assert all(torch.equal(with_graph[k], without[k]) for k in without) and not without["loss"].requires_grad
    assert [len(of) for of in asked] == [3, 3]  # for λ, μ and m of the two refinements, of no parameter


@pytest.mark.parametrize("mode", ["exact", "truncated", "detached"])
@pytest.mark.parametrize("frozen", ["decoder", "refinement", "inputs", "initial_posterior",
                                    "decoder.layers.0", "refinement initial_posterior",
                                    "decoder inputs refinement"])
def test_frozen_parameters_stay_and_the_others_get_the_same_gradients(mode, frozen, tmp_path, data):
    chosen = TINY.change(model__gradients=mode, model__iterations=2, model__weights="port")
    batch = Batch(torch.rand(2, 3, 14, 14))
    whole, part = small.build(chosen, 0), small.build(chosen, 0)
    still = {n for n, _ in part.named_parameters() if n.startswith(tuple(frozen.split()))}
    assert still
    for n, p in part.named_parameters(): p.requires_grad_(n not in still)
    for model in (whole, part): model.loss(batch, generator=seeded(0))["loss"].backward()
    for (n, p), q in zip(part.named_parameters(), whole.parameters()):
        if n in still: assert p.grad is None
        else: assert torch.allclose(p.grad, q.grad, rtol=1e-5, atol=1e-7), n
    before = {n: p.detach().clone() for n, p in part.named_parameters()}
    for steps in (3, 5):  # and it is resumed
        torch.manual_seed(0)
        fit_config = chosen.training.change(steps=steps)
        training.fit(part, data, fit_config, tmp_path / "run", progress=False)
    moved = {n for n, p in part.named_parameters() if not torch.equal(p, before[n])}
    assert not moved & still and moved


def test_tied_weights_are_trained_and_kept(tmp_path, data):
    class Tied(torch.nn.Module):
        "Two layers with one matrix."
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.b.weight = self.a.weight
        def loss(self, batch):
            x = batch.image.mean((2, 3))
            return {"loss": (self.b(self.a(x)) - x).square().mean()}
    config = TINY.training.change(steps=4, schedules={})
    training.fit(Tied(), data, config, tmp_path / "a", progress=False)
    torch.manual_seed(0); whole = Tied()
    training.fit(whole, data, config.change(steps=8), tmp_path / "b", progress=False)
    torch.manual_seed(0); parts = Tied()
    for steps in (3, 8): training.fit(parts, data, config.change(steps=steps), tmp_path / "c", progress=False)
    assert parts.a.weight is parts.b.weight and torch.equal(parts.a.weight, whole.a.weight)
    save_weights(tmp_path / "t.safetensors", whole, {})
    assert torch.equal(load_file(tmp_path / "t.safetensors")["b.weight"], whole.a.weight)


@pytest.mark.parametrize("mode", ["truncated", "detached"])
def test_weights_shared_by_decoder_and_refinement_get_both_gradients(mode):
    torch.manual_seed(0)
    model = IODINE(TINY.model.change(iterations=2, start="per_slot", latent=4)).double()
    shared = model.refinement.mlp[0].bias
    model.decoder.layers[0].conv.bias = shared  # both have eight numbers
    image = torch.rand(2, 3, 14, 14, dtype=torch.float64)
    noise = [model.noise(2, 4, seeded(t)) for t in range(3)]
    how = dict(weights=loss_weights(2), cut_posterior=mode == "detached")
    start = lambda: model.start(2, 4, None)
    _, _, ours = accumulated(model, image, start(), noise, **how)
    value, _ = unrolled(model, image, start(), noise, cut_decoder=True, **how)
    for a, b in zip(ours, torch.autograd.grad(value, list(model.parameters()))):
        assert (a - b).norm() <= 1e-9 * b.norm() + 1e-12


# What surrounds a run

@pytest.mark.parametrize("name, value, fine", [
    ("MIXED_PRECISION", "bf16", False), ("MIXED_PRECISION", "no", True), ("USE_FSDP", "true", False),
    ("GRADIENT_ACCUMULATION_STEPS", "2", False), ("GRADIENT_ACCUMULATION_STEPS", "1", True),
    ("DYNAMO_BACKEND", "inductor", False), ("USE_CPU", "false", True), ("LOG_LEVEL", "info", True)])
def test_the_configuration_decides_alone(tmp_path, data, monkeypatch, name, value, fine):
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    if fine:
        train(tmp_path / "a", data, 1)
        return
    with pytest.raises(ValueError, match=f"ACCELERATE_{name}: is {value}, which would change the run"):
        train(tmp_path / "a", data, 1)
    assert not (tmp_path / "a").exists()


def hold(run, data):
    "Train, and in the middle wait until somebody else has tried."
    torch.set_num_threads(1)
    step = training.train_step
    def waits(*args):
        if args[5] == 4:
            (run / "here").touch()
            while (run / "here").exists(): time.sleep(.01)
        return step(*args)
    training.train_step = waits
    train(run, SceneFile(data), 6)


def test_two_commands_do_not_train_in_one_folder(tmp_path, data):
    run = tmp_path / "a"
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(run, data.path))
    process.start()
    while not (run / "here").exists(): assert process.is_alive(); process.join(.05)
    (run / ".log.jsonl.1.part").touch()
    log = (run / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match="another process is training in this folder"): train(run, data, 6)
    assert (run / "log.jsonl").read_bytes() == log and (run / ".log.jsonl.1.part").exists()
    (run / "here").unlink()
    process.join(60)
    assert process.exitcode == 0 and open_tensors(Record(run).checkpoint)[1]["step"] == "6"
    train(run, data, 8)  # what a kill left half-written is cleared away, and the lock leaves nothing
    assert not list(run.glob(".*"))


def test_ctrl_c_ends_a_command_with_a_line(weights, data, monkeypatch, capsys):
    def asked(*args, **how): raise KeyboardInterrupt
    monkeypatch.setattr(cli, "score", asked)
    assert cli.main(["eval", str(weights), str(data.path)]) == 130
    assert capsys.readouterr().err == "iodine-nb: stopped\n"


@pytest.mark.parametrize("command", ["eval", "show", "explore"])
def test_a_device_that_is_not_there_is_refused_in_one_sentence(weights, data, capsys, command, tmp_path):
    out = ["--out", str(tmp_path / "x.png")]
    for wrong in ("cuda:77", "tpu", "meta"):
        assert cli.main([command, str(weights), str(data.path), "--device", wrong, *out]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"iodine-nb: device: {wrong} is not to be had here; there is cpu")
        assert len(said) < 120
    assert cli.main([command, str(weights), str(data.path), "--device", "cpu", *out,
                     *{"eval": ["--seeds", "1"], "explore": ["--no-browser"]}.get(command, [])]) == 0


def test_models_elsewhere_are_given_what_they_look_at_there(monkeypatch, data):
    "Probes and explorer, on a device that only says that it is another: what meets the model has been moved."
    from iodine_nb.tools import explorer, probes
    model, moved = small.build(TINY, 0), []
    monkeypatch.setattr(explorer, "device_of", lambda model: moved.append("explorer") or torch.device("cpu"))
    monkeypatch.setattr(probes, "device_of", lambda model: moved.append("probes") or torch.device("cpu"))
    shown = explorer.show("tiny", model, data[:2])
    list(explorer.answers(shown, {"do": "infer", "image": data[:1].image.astype("float32").ravel() / 255}))
    z = torch.zeros(TINY.model.slots * 4).numpy()
    list(explorer.answers(shown, {"do": "decode", "z": z}))
    assert moved.count("explorer") >= 6
    found = probes.find_objects(model, data[:2], least_iou=0.)
    probes.redraw(model, found, 0, found.own[:1])
    assert moved.count("probes") >= 3


# Going on with other settings

def test_another_rate_or_batch_is_a_new_run_that_begins_with_the_weights(tmp_path, data):
    record = train(tmp_path / "a", data, 3)
    other = TINY.change(training__learning_rate=1e-4, training__batch_size=8, training__steps=2)
    with pytest.raises(ValueError, match=r"training\.\w+ is .*begin another run with --initial .*a$"):
        train(tmp_path / "a", data, 6, other)
    for initial in (record.path, record.checkpoint):
        folder = tmp_path / f"b{initial.name}"
        run = train_experiment(other, folder, data, initial=str(initial), progress=False)
        about = json.loads((run.path / "config.json").read_text())["initial"]
        assert about["weights"] == "a/checkpoint.safetensors" and len(about["sha256"]) == 64
    model = small.build(other, 5)
    begin_with(model, record.path)
    saved = load_file(record.checkpoint)
    assert all(torch.equal(v, saved[f"model/{k}"]) for k, v in model.state_dict().items())
    export_weights(run.path, tmp_path / "w.safetensors")


# TensorBoard

def test_a_record_goes_to_tensorboard(tmp_path, data, monkeypatch, capsys):
    "What is written, by a writer of our own; the package is no requirement of the tests."
    record = train(tmp_path / "a", data, 4, held_out=data)
    found = []
    class Writer:
        def __init__(self, folder, purge_step): found.append((folder, purge_step))
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def add_scalar(self, *value): found.append(value)
    module = types.ModuleType("torch.utils.tensorboard"); module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    assert cli.main(["log", str(record.path), "--tensorboard", str(tmp_path / "tb")]) == 0
    assert found[0] == (tmp_path / "tb" / "a", 0)
    log = {(name, step): value for name, value, step in found[1:]}
    assert log["training/nll", 2] == record.log()[0]["nll"]
    assert log["held out/mse", 4] == record.log()[-1]["mse"]
    assert len(log) == sum(len(line.keys() - {"step", "seconds"}) for line in record.log())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert cli.main(["log", str(record.path), "--tensorboard", str(tmp_path / "tb")]) == 2
    assert "pip install 'iodine_nb[tensorboard]'" in capsys.readouterr().err
    assert cli.main(["log", str(tmp_path / "typo"), "--tensorboard", str(tmp_path / "tb")]) == 2
    assert not (tmp_path / "typo").exists()
