"""Runs: resume against an uninterrupted run, refusals, records; in seconds, on tiny scenes."""
import gc, inspect, io, json, os, resource, signal, sys, weakref
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from iodine_nb.core import Noise
from iodine_nb.scenes.format import _epoch_order
from iodine_nb.training import fit as training
from iodine_nb.models.iodine import IODINE
from iodine_nb.experiments.experiment import Experiment, experiment_of, export_weights, load_model
from iodine_nb.experiments.presets import presets
from iodine_nb.training.fit import Ramp, Record, TrainingConfig, checkpoint_weights, fit, load_weights
from iodine_nb.training.metrics import evaluate
from small import TINY, scenes, train

@pytest.fixture
def data(tmp_path):
    return scenes(tmp_path / "d.h5")


@pytest.mark.parametrize("precision, optimiser",
                         [("float32", "adam"), ("bfloat16", "adam"), ("float32", "muon")])
def test_resume_equals_an_uninterrupted_run(tmp_path, data, precision, optimiser):
    chosen = TINY.change(training__precision=precision, training__optimiser=optimiser)
    whole = train(tmp_path / "a", data, 11, chosen)
    for steps in (3, 4, 11): parts = train(tmp_path / "b", data, steps, chosen)
    a, b = load_file(whole.checkpoint), load_file(parts.checkpoint)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_crash_loses_only_what_came_after_the_checkpoint(tmp_path, data, monkeypatch):
    whole = train(tmp_path / "a", data, 8)
    step, calls = training.train_step, []
    def dies(*args):
        calls.append(1)
        if len(calls) == 6: raise RuntimeError("power cut")
        return step(*args)
    monkeypatch.setattr(training, "train_step", dies)
    with pytest.raises(RuntimeError): train(tmp_path / "b", data, 8)
    monkeypatch.undo()
    with open(tmp_path / "b/log.jsonl", "a") as f: f.write('{"step": 5, "nl')  # a line cut short
    parts = train(tmp_path / "b", data, 8)
    a, b = load_file(whole.checkpoint), load_file(parts.checkpoint)
    assert all(torch.equal(a[k], b[k]) for k in a) and [line["step"] for line in parts.log()] == [2, 4, 6, 8]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_ends_the_step_and_writes_a_checkpoint(tmp_path, data, monkeypatch, how):
    step, calls = training.train_step, []
    def asked(*args):
        calls.append(1)
        if len(calls) == 5: os.kill(os.getpid(), how)
        return step(*args)
    monkeypatch.setattr(training, "train_step", asked)
    before = signal.getsignal(how)
    train(tmp_path / "b", data, 8)
    monkeypatch.undo()
    assert len(calls) == 5 and signal.getsignal(how) is before
    a, b = train(tmp_path / "a", data, 8), train(tmp_path / "b", data, 8)
    a, b = load_file(a.checkpoint), load_file(b.checkpoint)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("pieces", [2, 4])
def test_accumulation_changes_nothing(tmp_path, data, pieces):
    a, b = train(tmp_path / "a", data, 4), train(tmp_path / "b", data, 4,
                                                 TINY.change(training__accumulate=pieces))
    a, b = load_file(a.checkpoint), load_file(b.checkpoint)
    for k in a:
        if k.startswith("model/"): assert torch.allclose(a[k], b[k], atol=1e-5), k
    with pytest.raises(ValueError, match="training.batch_size: 4 images cannot be cut"):
        train(tmp_path / "c", data, 4, TINY.change(training__accumulate=3))


def test_a_record_without_its_checkpoint_is_not_overwritten(tmp_path, data):
    record = train(tmp_path / "a", data, 3)
    record.checkpoint.unlink()
    log = record.log()
    with pytest.raises(ValueError, match="without its checkpoint"): train(tmp_path / "a", data, 3)
    assert record.log() == log
    Record(tmp_path / "typo").log()
    assert not (tmp_path / "typo").exists()


def test_other_data_is_another_run(tmp_path, data):
    train(tmp_path / "a", data, 3)
    with pytest.raises(ValueError, match="another run: data_file.sha256"):
        train(tmp_path / "a", scenes(tmp_path / "e.h5", seed=1), 6)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, data):
    record = train(tmp_path / "a", data, 3)
    before = record.checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # no file may grow past this: every write fails half-way
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError,
            match=r"checkpoint of step 6 could not be written .*previous checkpoint is intact"):
            train(tmp_path / "a", data, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert record.checkpoint.read_bytes() == before and not list((tmp_path / "a").glob(".*"))
    train(tmp_path / "a", data, 6)


def test_generated_scenes_resume_like_a_file(tmp_path):
    source = TINY.generated()
    whole = train(tmp_path / "whole", source, 7)
    train(tmp_path / "parts", source, 4)
    parts = train(tmp_path / "parts", TINY.generated(), 7)
    a, b = load_file(whole.checkpoint), load_file(parts.checkpoint)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ValueError, match="cell"):
        train(tmp_path / "parts", TINY.change(model__image=(3, 7, 7)).generated(), 9,
              TINY.change(model__image=(3, 7, 7)))


def test_another_seed_gives_another_run(tmp_path, data):
    a, b = train(tmp_path / "a", data, 3), train(tmp_path / "b", data, 3, TINY.change(training__seed=1))
    assert a.log()[0]["nll"] != b.log()[0]["nll"]


def test_checkpoints_of_another_run_are_refused(tmp_path, data):
    train(tmp_path / "a", data, 3)
    before = (tmp_path / "a/checkpoint.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"another run: model.latent is 4, here 5"):
        train(tmp_path / "a", data, 6, TINY.change(model__latent=5))
    with pytest.raises(ValueError, match=r"another run: training.seed is 0, here 9"):
        train(tmp_path / "a", data, 6, TINY.change(training__seed=9))
    assert (tmp_path / "a/checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("cut", [0, 7, 8, 100, 5000, -1])
def test_damaged_checkpoints_are_refused(tmp_path, data, cut):
    record = train(tmp_path / "a", data, 3)
    record.checkpoint.write_bytes(record.checkpoint.read_bytes()[:cut])
    with pytest.raises(ValueError, match="checkpoint.safetensors: not a whole"):
        train(tmp_path / "a", data, 6)


def test_weights_that_do_not_fit_name_the_tensor(tmp_path, data):
    train(tmp_path / "a", data, 3)
    export_weights(tmp_path / "a", tmp_path / "w.safetensors")
    weights = load_file(tmp_path / "w.safetensors")
    save_file({k: v for k, v in weights.items() if k != "initial_posterior"}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="initial_posterior is missing"):
        load_model(tmp_path / "w.safetensors")
    save_file(weights | {"initial_posterior": torch.zeros(1, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"initial_posterior is \[1, 2\], this model has \[1, 8\]"):
        load_model(tmp_path / "w.safetensors")
    (tmp_path / "w.json").write_text("{")
    with pytest.raises(ValueError, match="w.json: not valid JSON"): load_model(tmp_path / "w.safetensors")


def test_steps_without_a_finite_loss_end_the_run(tmp_path, data, monkeypatch):
    loss = IODINE.loss
    monkeypatch.setattr(IODINE, "loss",
                        lambda self, *a, **k: (t := loss(self, *a, **k)) | {"loss": t["loss"] * float("nan")})
    with pytest.raises(FloatingPointError, match="20 steps in a row"): train(tmp_path / "a", data, 40)


@pytest.mark.parametrize("shape", [(8, 19), (19, 8), (16, 8, 5, 5)])
def test_muon_is_torchs_on_matrices_and_adam_on_the_rest(shape):
    torch.manual_seed(0)
    ours, vector, last = (torch.nn.Parameter(torch.randn(s)) for s in (shape, (7,), (32, 4, 5, 5)))
    matrix, other, same = (torch.nn.Parameter(ours.detach().clone().flatten(1)),
        torch.nn.Parameter(vector.detach().clone()), torch.nn.Parameter(last.detach().clone()))
    mine = training.Muon([ours, vector, last], .03, (.9, .999))
    torchs, adam = torch.optim.Muon([matrix], .03, weight_decay=0, momentum=.95,
        adjust_lr_fn="match_rms_adamw"), torch.optim.Adam([other, same], .03, (.9, .999))
    for _ in range(10):
        ours.grad, vector.grad, last.grad = (torch.randn(p.shape) for p in (ours, vector, last))
        matrix.grad, other.grad, same.grad = ours.grad.flatten(1), vector.grad.clone(), last.grad.clone()
        mine.step(), torchs.step(), adam.step()
    assert torch.equal(vector, other) and torch.equal(last, same)
    assert torch.allclose(ours.flatten(1), matrix, atol=1e-6)


class SmallVAE(torch.nn.Module):
    "A VAE of twenty lines that knows nothing of this library."
    def __init__(self, pixels=3 * 14 * 14, latent=5):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(pixels, 2 * latent), torch.nn.Linear(latent, pixels)

    def posterior(self, image):
        mean, log_variance = self.encoder(image.flatten(1)).chunk(2, 1)
        return mean, log_variance.clamp(-10, 10)

    def loss(self, batch, generator, kl_weight=1.):
        mean, log_variance = self.posterior(batch.image)
        z = mean + (log_variance / 2).exp() * generator.draw(mean.shape[1])
        nll = ((self.decoder(z).view_as(batch.image) - batch.image) ** 2).flatten(1).sum(1).mean() / (
            2 * .3**2)
        kl = .5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(1).mean()
        return {"loss": nll + kl_weight * kl, "nll": nll, "kl": kl}


def test_a_model_of_twenty_lines_is_trained_stopped_resumed_scored_saved_and_loaded(tmp_path, data):
    def run(name, steps):
        torch.manual_seed(0)
        config = TrainingConfig(steps=steps, batch_size=8, learning_rate=1e-2, log_every=5, evaluate_every=10,
                                schedules={"kl_weight": Ramp(0., 1., 20)})
        return fit(SmallVAE(), data, config, tmp_path / name, data, progress=False)
    whole, parts = run("whole", 40), (run("parts", 15), run("parts", 40))[1]
    a, b = load_file(whole.checkpoint), load_file(parts.checkpoint)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    steps, held_out = whole.curve("held_out_loss")
    assert list(steps) == [5, 10, 20, 30, 40] and held_out[-1] < held_out[0]
    assert list(whole.curve("kl_weight")[1][:2]) == [4 / 20, 9 / 20]
    loaded = SmallVAE()
    load_weights(loaded, checkpoint_weights(a), whole.checkpoint)
    mse = lambda model, batch, generator: {
        "mse": ((model.decoder(model.posterior(batch.image)[0]) - batch.image.flatten(1)) ** 2).mean(1)}
    assert (evaluate(loaded, data, (0,), score=mse)["mse"][0]
            < evaluate(SmallVAE(), data, (0,), score=mse)["mse"][0])


def test_a_loss_gets_what_it_names_and_a_wrong_schedule_is_refused_before_anything_is_written(tmp_path, data):
    class Mean(torch.nn.Module):
        def __init__(self): super().__init__(); self.mean = torch.nn.Parameter(torch.zeros(3, 14, 14))
        def loss(self, batch): return {"loss": ((batch.image - self.mean) ** 2).mean()}
    config = TINY.training.change(steps=20, learning_rate=.05, log_every=5, schedules={})
    steps, values = fit(Mean(), data, config, tmp_path / "m", progress=False).curve("loss")
    assert list(steps) == [5, 10, 15, 20] and values[-1] < values[0]
    wrong = config.change(schedules__kl_weight=Ramp())
    with pytest.raises(ValueError,
        match="training.schedules.kl_weight: the loss of Mean has no parameter 'kl_weight'; it has batch"):
        fit(Mean(), data, wrong, tmp_path / "w", progress=False)
    with pytest.raises(ValueError, match=r"model: Linear has no method loss\(batch\)"):
        fit(torch.nn.Linear(1, 1), data, config, tmp_path / "w", progress=False)
    assert not (tmp_path / "w").exists()


def test_cards_and_records_from_before_there_were_kinds_are_read():
    ramp = lambda *v: dict(zip(("start", "end", "steps"), v))
    old = {"name": "x", "data": "tetrominoes", "model": {"latent": 10, "frame": "slot"},
           "training": {"steps": 7, "kl_weight": ramp(0., .16, 300), "sigma_factor": ramp(1., 1., 0)}}
    found = Experiment.from_dict(old)
    assert (found.kind, found.model.latent, found.training.steps) == ("slot_frame", 10, 7)
    assert found.training.schedules == {"kl_weight": Ramp(0., .16, 300)}
    assert Experiment.from_dict(old | {"model": {"frame": "picture"}}).kind == "iodine"
    assert Experiment.from_dict({"model": {"hidden": [8, 8]}}).kind == "iterative"
    with pytest.raises(ValueError,
                       match="kind: must be one of .*iodine, iterative, .*slot_frame.*, is 'iodin'"):
        Experiment.from_dict({"kind": "iodin"})


def test_a_finished_run_lets_go_of_its_model(tmp_path, data):
    model = IODINE(TINY.model)
    there = weakref.ref(model)
    fit(model, data, TINY.training.change(steps=1), tmp_path / "run", progress=False)
    del model; gc.collect()
    assert there() is None


def test_the_record_says_what_ran(tmp_path, data):
    config = json.loads((train(tmp_path / "a", data, 3).path / "config.json").read_text())
    assert experiment_of(config) == TINY.change(training__steps=3)
    assert (config["data_file"]["name"] == "tetrominoes" and len(config["data_file"]["sha256"]) == 64
            and config["machine"]["torch"] == torch.__version__)


def test_presets_survive_json():
    for p in presets().values(): assert Experiment.from_dict(json.loads(json.dumps(p.to_dict()))) == p


def test_scenes_that_stream_are_shuffled_within_and_among_windows():
    orders = [_epoch_order(100, 20, 0, epoch).view(5, 20) for epoch in range(4)]
    for order in orders:
        assert torch.equal(order.flatten().sort().values, torch.arange(100))
        for window in order // 20: assert (window == window[0]).all()  # one after the other
        assert all((row.diff() < 0).any() for row in order)
    firsts = {tuple((order[:, 0] // 20).tolist()) for order in orders}
    assert len(firsts) > 1 and any(list(f) != sorted(f) for f in firsts)
    within = {tuple(row.tolist()) for order in orders for row in order if row[0] < 20}
    assert len(within) == 4  # in another order every time


def test_the_rate_rises_and_falls():
    c = TrainingConfig(learning_rate=.01, warmup=4, decay=.1, decay_steps=100)
    assert [c.learning_rate_at(s) for s in (0, 1)] == pytest.approx([.0025, .005 * .1**.01], rel=1e-9)
    assert [c.learning_rate_at(s) for s in (100, 200)] == pytest.approx([1e-3, 1e-4])
    level = c.change(schedule="cosine", warmup=0)
    assert [level.learning_rate_at(s) for s in (0, 50, 100, 200)] == pytest.approx([.01, .0055, .001, .001])
    assert Ramp(2., 4., 4).at(1) == 2.5 and Ramp(2., 4., 4).at(4) == Ramp(2., 4., 4).at(5) == 4.
    assert Ramp(2., 4.).at(0) == 4. and Ramp() == Ramp(1., 1., 0)


def test_defaults_are_those_of_the_released_code():
    c = TrainingConfig()
    assert (c.optimiser, c.schedule, c.learning_rate, c.beta1, c.warmup) == (
        "adam", "exponential", 1e-3, .95, 0)
    assert (c.decay, c.decay_steps, c.clip, c.steps, c.batch_size) == (.1, 10**6, 5., 10**6, 32)
    assert (c.accumulate, c.compile, c.precision, c.schedules, c.seed) == (1, False, "float32", {}, 0)
    assert (c.log_every, c.evaluate_every, c.evaluate_scenes, c.checkpoint_every) == (100, 5000, 320, 1000)


def test_scores_come_three_times_early_and_then_at_equal_distances():
    c = TrainingConfig(steps=2500, evaluate_every=800, log_every=100)
    assert [s for s in range(1, 2501) if c.scored_after(s)] == [100, 200, 400, 800, 1600, 2400, 2500]
    rare = c.change(log_every=300)
    assert [s for s in range(1, 2501) if rare.scored_after(s)] == [400, 800, 1600, 2400, 2500]


@pytest.mark.parametrize("field, wrong, right", [
    ("learning_rate", (0., 1.), (1e-9, .999)), ("beta1", (-.1, 1.), (0., .999)),
    ("decay", (0., 1.01), (1e-9, 1.)), ("clip", (0., -1.), (1e-9,)),
    ("seed", (-1, 2**63), (0, 2**63 - 1)), ("warmup", (-1,), (0,)),
    *((name, (0,), (1,)) for name in ("steps", "batch_size", "accumulate", "log_every", "evaluate_every",
                                      "evaluate_scenes", "checkpoint_every", "decay_steps"))])
def test_where_the_numbers_of_a_training_end(field, wrong, right):
    for value in wrong:
        with pytest.raises(ValueError, match=f"training.{field}: must be"): TrainingConfig(**{field: value})
    for value in right: assert getattr(TrainingConfig(**{field: value}), field) == value


def test_schedules_may_reach_zero_where_that_has_a_value():
    for name, least in (("kl_weight", 0.), ("sigma_factor", 1e-9), ("final_weight", -1.)):
        for ramp in (Ramp(1., least, 5), Ramp(least, 1., 5)): TrainingConfig(schedules={name: ramp})
    for name, much in (("kl_weight", -1e-9), ("sigma_factor", 0.)):
        for ramp in (Ramp(1., much, 5), Ramp(much, 1., 5)):
            with pytest.raises(ValueError, match=f"training.schedules.{name}: goes from"):
                TrainingConfig(schedules={name: ramp})


def test_a_log_is_read_up_to_a_step_and_by_quantity(tmp_path):
    record = Record(tmp_path / "run")
    for line in ({"step": 2, "seconds": 1., "mse": 4., "nll": 7.}, {"step": 2, "mse": 3.},
                 {"step": 4, "seconds": 2., "mse": 2.}, {"step": 4, "mse": 1., "ari_fg": .5}):
        record.append(line)
    curve = lambda name: [v.tolist() for v in record.curve(name)]
    assert curve("mse") == [[2, 4], [4., 2.]] and curve("held_out_mse") == [[2, 4], [3., 1.]]
    assert curve("ari_fg") == curve("held_out_ari_fg") == [[4], [.5]] and curve("nll") == [[2], [7.]]
    assert curve("kl") == [[], []]
    assert (record.at("mse", 4), record.at("held_out_mse", 2), record.at("nll", 4)) == (2., 3., None)
    early = Record(tmp_path / "run", until=2)
    assert early.log() == record.log()[:2] and early.at("mse", 4) is None
    record.begin({"a": 1}, 2)  # what came after the checkpoint goes
    assert record.log() == early.log() and "machine" in json.loads((record.path / "config.json").read_text())


def test_what_a_loss_must_be(tmp_path, data):
    class Model(torch.nn.Module):
        def __init__(self, found):
            super().__init__()
            self.w, self.found = torch.nn.Parameter(torch.ones(1)), found
        def loss(self, batch): return self.found(self.w)
    config = TINY.training.change(steps=1, schedules={})
    for i, found in enumerate((lambda w: {"loss": w}, lambda w: w.sum(), lambda w: {"nll": w.sum()},
                               lambda w: {"loss": w.sum().detach()}, lambda w: {"loss": w.sum(), "x": 1.})):
        with pytest.raises(ValueError, match="the loss of Model must return a dictionary of scalar tensors"):
            fit(Model(found), data, config, tmp_path / str(i), progress=False)
    class Needs(Model):
        def loss(self, batch, temperature, kl_weight=1.): return {"loss": self.w.sum() * temperature}
    with pytest.raises(ValueError, match="the loss of Needs needs 'temperature', which nothing gives"):
        fit(Needs(None), data, config, tmp_path / "n", progress=False)
    assert training.loss_parameters(Needs(None), {"temperature": Ramp()}) == {"temperature"}
    class Takes(Model):
        def loss(self, batch, **how): return {"loss": self.w.sum()}
    assert training.loss_parameters(Takes(None), {"x": Ramp()}) == {"generator", "x"}


def test_a_difference_is_named_by_its_field():
    d = training.difference
    assert d({"a": {"b": 1, "c": [1]}}, {"a": {"b": 1, "c": (1,)}}) is None
    assert d({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b is 1, here 2"
    assert d({"a": 1}, {}) == "a is 1, here null" and d({}, {"z": 0, "b": {}}) == "b is null, here {}"


def test_a_bar_shows_what_a_person_can_judge():
    w = training.in_words
    assert w({"loss": 9., "mse": .12345, "kl": 3.}, {}) == {"MSE": "0.1235", "KL": "3"}
    assert w({"loss": 9., "nll": 2.}, {"elbo": 1.}) == {"loss": "9", "elbo held out": "1"}
    assert w({"loss": 9.}, {"mse": .5, "ari_fg": 1., "ari": 0.}) == {
        "loss": "9", "ARI-FG held out": "1", "MSE held out": "0.5"}
    assert w({"loss": 9.}, {"mse": .5}, 500) == {"loss": "9", "MSE held out": "0.5 (step 500)"}


def test_the_noise_of_a_step_is_not_that_of_an_evaluation(tmp_path, data):
    "Which has the seed and the number of the batch; pieces of a batch get their part of the step's noise."
    config = TINY.training.change(seed=3, batch_size=4)
    alone = SimpleNamespace(num_processes=1, process_index=0, device="cpu")
    loader = data.loader(4, 3, "cpu")
    pieces = inspect.unwrap(training._pieces)  # without the check of types
    draw = lambda c: torch.cat([noise.draw(5) for _, noise in pieces(loader, c, alone, 2)])
    whole = draw(config)
    assert not torch.equal(whole, Noise((3, 2), torch.arange(4), 4).draw(5))
    assert torch.equal(draw(config.change(accumulate=2)), whole[[0, 2, 1, 3]])


def mean_of_pictures():
    "A model of one picture, whose steps take a millisecond."
    class Mean(torch.nn.Module):
        compiled = ("part", "function")
        def __init__(self):
            super().__init__()
            self.mean, self.part = torch.nn.Parameter(torch.zeros(3, 14, 14)), torch.nn.Identity()
        def function(self, image): return image
        def loss(self, batch):
            return {"loss": (self.part(self.function(batch.image)) - self.mean).abs().mean()}
    return Mean(), TINY.training.change(steps=4, schedules={})


def test_held_out_scenes_are_scored_as_a_model_is_used_and_then_training_goes_on(tmp_path, data):
    "Dropout and batch statistics are off in scoring, and on in every step."
    (model, config), modes = mean_of_pictures(), []
    def score(model, batch, generator):
        modes.append(model.training)
        return {"mse": batch.image.mean((1, 2, 3))}
    loss = model.loss
    model.loss = lambda batch: modes.append(model.training) or loss(batch)
    config = config.change(evaluate_every=2, log_every=2)
    fit(model, data, config, tmp_path / "a", data, score, progress=False)
    assert modes == [False, True, True, False, True, True, False] and model.training


def test_who_wants_no_progress_is_told_nothing(tmp_path, data, capsys):
    model, config = mean_of_pictures()
    for steps in (2, 4): fit(model, data, config.change(steps=steps), tmp_path / "a", progress=False)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self): return True


def test_in_a_terminal_a_bar_is_full_at_the_end_and_leaves_its_line(tmp_path, data, monkeypatch):
    model, config = mean_of_pictures()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    fit(model, data, config.change(log_every=1), tmp_path / "a")
    said = terminal.getvalue()
    assert said.endswith("\n") and "a: 100%" in said and "4/4" in said and "loss=" in said
    assert "step 4 of 4" not in said  # which is for where there is no terminal


def test_where_a_run_breaks_down_what_is_said_of_it_begins_a_line(tmp_path, data, monkeypatch):
    model, config = mean_of_pictures()
    model.loss = lambda batch: {"loss": model.mean.sum() * torch.nan}
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(FloatingPointError) as found:  # what is caught keeps the bar
        fit(model, data, config.change(steps=40), tmp_path / "a")
    assert "20 steps in a row" in str(found.value)
    assert "/40" in terminal.getvalue() and terminal.getvalue().endswith("\n")


def test_a_folder_is_held_by_one_and_what_a_kill_left_in_it_goes(tmp_path):
    folder = tmp_path / "runs" / "a"
    with training.alone_in(folder):
        (folder / ".log.jsonl.1.part").touch()
        with pytest.raises(ValueError, match="a: another process is training in this folder"):
            with training.alone_in(folder): raise AssertionError
        assert (folder / ".log.jsonl.1.part").exists()  # it is the other's
    with training.alone_in(folder): assert [f.name for f in folder.iterdir()] == [".lock"]
    assert not list(folder.iterdir())


def test_a_record_makes_its_folder_when_it_has_a_line(tmp_path):
    record = Record(tmp_path / "runs" / "a")
    for step in (1, 2): record.append({"step": step})
    assert record.log() == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("asked", [False, True])
def test_what_a_model_names_is_compiled_where_that_is_asked_for(tmp_path, data, monkeypatch, asked):
    (model, config), found = mean_of_pictures(), []
    monkeypatch.setattr(torch, "compile", lambda part: found.append(part) or part)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: found.append(self))
    with torch._dynamo.config.patch(suppress_errors=False):
        fit(model, data, config.change(steps=1, compile=asked), tmp_path / "a", progress=False)
        assert torch._dynamo.config.suppress_errors == asked  # what cannot be compiled runs as it is
    assert found == ([model.part, model.function] if asked else [])


def test_the_record_has_the_training_that_ran_whatever_else_it_is_told(tmp_path, data):
    model, config = mean_of_pictures()
    about = {"name": "mine", "training": {"steps": 99}, "data_file": "another"}
    record = fit(model, data, config, tmp_path / "a", describe=about, progress=False)
    found = json.loads((record.path / "config.json").read_text())
    assert found["name"] == "mine" and found["training"] == json.loads(json.dumps(config.to_dict()))
    assert found["data_file"]["name"] == "tetrominoes"


def test_a_score_that_breaks_is_told_with_what_broke_it(tmp_path, data):
    model, config = mean_of_pictures()
    def broken(model, batch, generator): return {"mse": batch.image + "one"}
    with pytest.raises(ValueError, match="score: broken does not go .* ended with TypeError"):
        fit(model, data, config, tmp_path / "a", data, broken, progress=False)
    model.infer = lambda images, generator: images.nothing
    with pytest.raises(ValueError, match="ended with AttributeError: .*nothing"):
        fit(model, data, config, tmp_path / "a", data, lambda model, batch, generator: model.infer(
            batch.image, generator), progress=False)
    assert not (tmp_path / "a").exists()
