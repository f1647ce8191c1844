"""Many processes, and processes that die: what a long run has to survive."""
import multiprocessing, os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from iodine_nb.core import write_json
from iodine_nb.experiments.experiment import Experiment, build, load_model, save_weights
from iodine_nb.training.fit import Record
from small import ARGUMENTS, TINY, scenes, train, train_alone

BIN = Path(sys.executable).parent
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def job(processes, run, data, steps):
    "iodine-nb train under torchrun."
    line = (f"{BIN}/torchrun --standalone --no-python --nproc-per-node {processes} -- {BIN}/iodine-nb "
            f"train --data {data.path} --held-out {data.path} --run {run} desk {ARGUMENTS} "
            f"--training.steps {steps}")
    return subprocess.Popen(line.split(), env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, start_new_session=True)


def finished(process):
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out


def children_of(pid):
    "The processes that one has started: those of torchrun have sessions of their own and outlive its group."
    return [int(n) for n in subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True,
                                           text=True).stdout.split()]


def test_two_processes_equal_one_and_resume_as_one(tmp_path, data):
    finished(job(2, tmp_path / "two", data, 6))
    one = train(tmp_path / "one", data, 6, held_out=data)
    log = Record(tmp_path / "two").log()
    assert [line["step"] for line in log] == [2, 4, 6, 6]  # one process wrote
    for k, v in one.log()[-1].items():
        assert log[-1][k] == pytest.approx(v, abs=1e-5), k  # the processes shared the scoring
    for steps in (6, 9):
        if steps == 9:
            one, _ = train(tmp_path / "one", data, 9), train(tmp_path / "two", data, 9)  # on with one process
        a, b = load_file(one.checkpoint), load_file(tmp_path / "two/checkpoint.safetensors")
        assert a.keys() == b.keys()
        for k in a:
            if not k.startswith("model/"): continue
            # a shift of all mask logits changes nothing: its gradient is rounding, which Adam blows up
            shift = k == "model/decoder.layers.2.bias"
            assert torch.allclose(a[k], b[k], atol=1e-3 if shift else 1e-6), k


def test_fit_returns_when_the_checkpoint_is_there_and_closes_the_group(tmp_path, data):
    (tmp_path / "twice.py").write_text(f"""
import atexit, os, sys, time; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
import iodine_nb.training.fit as training
from iodine_nb.scenes.format import SceneFile
from small import train
save = training.save_checkpoint
def late(*args): time.sleep(1); save(*args)
training.save_checkpoint = late
def said():  # runs after what fit registers
    Path({str(tmp_path)!r}, "group-" + os.environ["RANK"]).write_text(str(torch.distributed.is_initialized()))
atexit.register(said)
for steps in (3, 6): train({str(tmp_path / "twice")!r}, SceneFile({str(data.path)!r}), steps)
""")
    finished(subprocess.Popen([BIN / "torchrun", "--standalone", "--nproc-per-node", "2",
        tmp_path / "twice.py"], env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    # a thread of it that outlives Python aborts its process, now and then
    assert [(tmp_path / f"group-{rank}").read_text() for rank in (0, 1)] == ["False", "False"]
    a, b = (load_file(train(tmp_path / "once", data, 6).checkpoint),
            load_file(tmp_path / "twice/checkpoint.safetensors"))
    assert all(torch.allclose(a[k], b[k], atol=1e-3 if k == "model/decoder.layers.2.bias" else 1e-6)
               for k in a if k.startswith("model/"))  # that bias: as above


def test_a_killed_process_ends_the_job_and_it_resumes(tmp_path, data):
    process = job(2, tmp_path / "run", data, 100_000)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run/checkpoint.safetensors").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(.05)
        os.kill(children_of(process.pid)[-1], signal.SIGKILL)
        out = process.communicate(timeout=60)[0]
    finally:
        if process.poll() is None:
            for pid in (*children_of(process.pid), process.pid): os.kill(pid, signal.SIGKILL)
    assert process.returncode != 0 and "SIGKILL" in out
    reached = int(Record(tmp_path / "run").log()[-1]["step"])
    record = train(tmp_path / "run", data, reached + 30)
    assert record.log()[-1]["step"] == reached + 30


@pytest.fixture
def data(tmp_path): return scenes(tmp_path / "d.h5")


def test_kill_minus_nine_thirty_times(tmp_path, data, monkeypatch):
    # so that the fork server can import what its children run
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    context, rng = multiprocessing.get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(["small", "torch._dynamo"])  # the first optimiser would import it: 1.5 s
    checkpoint, stamp = tmp_path / "killed/checkpoint.safetensors", None
    for _ in range(30):
        process = context.Process(target=train_alone, args=(tmp_path / "killed", data.path, 1_000_000))
        process.start()
        deadline = time.monotonic() + 60
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == stamp:  # until it has written one
            assert time.monotonic() < deadline and process.is_alive()
            time.sleep(.002)
        time.sleep(rng.uniform(0, .15))
        process.kill(); process.join(30)
        stamp = checkpoint.stat().st_mtime_ns
        load_file(checkpoint)  # whole, whenever it was killed
    with safe_open(checkpoint, "pt") as f: end = int(f.metadata()["step"]) + 10
    for name in ("killed", "whole"):
        process = context.Process(target=train_alone, args=(tmp_path / name, data.path, end))
        process.start(); process.join(300)
        assert process.exitcode == 0
    a, b = load_file(checkpoint), load_file(tmp_path / "whole/checkpoint.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


fuzz = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIELDS = {"model__slots": st.integers(-1, 5), "model__latent": st.integers(-1, 5),
          "model__iterations": st.integers(-1, 2), "model__sigma": st.sampled_from([-1., 0., .05, 1., "x"]),
          "model__start": st.sampled_from(["shared", "per_slot", "drawn", "here"]),
          "kind": st.sampled_from(["iodine", "slot_frame", "here"]),
          "model__inputs": st.sampled_from([("image",), ("posterior",), ("picture",), ()]),
          "model__image": st.sampled_from([(3, 14, 14), (2, 14, 14), (3, 14), (3, 0, 14)]),
          "model__decoder__kernel": st.sampled_from([0, 2, 3, -3]),
          "model__decoder__channels": st.sampled_from([(4,), (), (0,), (4, 4, 4)]),
          "model__decoder__upsampling": st.integers(-1, 3),
          "model__refinement__channels": st.sampled_from([(4,), (), (4, 0)]),
          "model__refinement__lstm": st.integers(-1, 4),
          "model__refinement__mlp": st.sampled_from([(), (4,), (-4,)]),
          "training__batch_size": st.integers(-1, 20), "training__accumulate": st.integers(0, 3),
          "training__learning_rate": st.sampled_from([-1., 0., 1e-3, 2.]),
          "training__beta1": st.sampled_from([-.1, 0., .9, 1.]), "training__clip": st.sampled_from([-1., 5.]),
          "training__warmup": st.integers(-1, 3), "training__decay": st.sampled_from([0., .5, -1.])}


@fuzz
@given(st.dictionaries(st.sampled_from(list(FIELDS)), st.none(), max_size=4).flatmap(
    lambda d: st.fixed_dictionaries({k: FIELDS[k] for k in d})), st.integers(0, 10**6))
def test_any_configuration_runs_or_is_refused_before_training(tmp_path, data, changes, number):
    run = tmp_path / f"run{number}-{len(list(tmp_path.iterdir()))}"
    try: chosen = TINY.change(**changes)
    except ValueError as e:
        assert any(k.split("__")[-1] in str(e) for k in changes), e
        return
    try: train(run, data, 2, chosen)
    except ValueError as e:
        assert not run.exists(), "refused, but after training began"
        assert "d.h5" in str(e) or any(k.split("__")[-1] in str(e) for k in changes), e


@fuzz
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=5)
                        | st.sampled_from(["model", "training", "image", "name"]), s, max_size=3)))
def test_random_configurations_are_refused_with_a_sentence(value):
    try: Experiment.from_dict(value)
    except ValueError as e: assert str(e)


@fuzz
@given(st.binary(max_size=300), st.integers(0, 200))
def test_random_weights_are_refused_with_a_sentence(tmp_path, noise, keep):
    path = tmp_path / "w.safetensors"
    if not (tmp_path / "good").exists():
        save_weights(tmp_path / "good.safetensors", build(TINY, seed=0), {"preset": TINY.to_dict()})
        (tmp_path / "good").write_bytes((tmp_path / "good.safetensors").read_bytes())
        write_json(tmp_path / "w.json", {"preset": TINY.to_dict()})
    path.write_bytes((tmp_path / "good").read_bytes()[:keep] + noise)
    with pytest.raises(ValueError, match="w.safetensors"): load_model(path)
