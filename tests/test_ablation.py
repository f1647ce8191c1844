"""Ablations: what is finished is read, what is not goes on, and an end that was asked for is the end."""
import os, signal
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from iodine_nb.experiments import experiment as module
from iodine_nb.experiments.ablation import (VARIANTS, Ablation, by_colour, compared, final_scores, finished,
                                             run, small, variant_of, variants_table, welch)
from iodine_nb.models.inputs import ALL_INPUTS, INPUTS
from small import TINY

TINY = TINY.change(training__steps=4, training__evaluate_every=2, training__evaluate_scenes=4)


def test_a_stop_ends_all_arms_and_the_same_call_goes_on(tmp_path, monkeypatch):
    ask = Ablation(tmp_path / "runs", TINY, {"a": {}, "b": dict(model__sigma=.2)}, (0,))
    fit = module.fit
    def stopped(model, source, *rest, **named):
        batch = source.make
        def make(n, rng):
            os.kill(os.getpid(), signal.SIGTERM)
            return batch(n, rng)
        source.make = make
        return fit(model, source, *rest, **named)
    monkeypatch.setattr(module, "fit", stopped)
    run(ask, tmp_path / "test.h5")
    assert (not finished(ask, "a", 0) and ask.record("a", 0).log() == []
            and not ask.record("b", 0).path.exists())
    assert ask.record("a", 0).checkpoint.exists()
    monkeypatch.undo()
    run(ask, tmp_path / "test.h5")
    assert all(finished(ask, variant, 0) for variant in "ab") and len(final_scores(ask)["b"]) == 1


def test_two_processes_train_what_one_does(tmp_path):
    ask = Ablation(tmp_path / "two", TINY, {"a": {}}, (0, 1))
    run(ask, tmp_path / "test.h5", processes=2)
    one = Ablation(tmp_path / "one", TINY, {"a": {}}, (0, 1))
    run(one, tmp_path / "test.h5")
    for seed in (0, 1):
        a, b = (x.record("a", seed).curve("nll")[1] for x in (ask, one))
        assert a == pytest.approx(b, rel=1e-4) and len(a)


def test_long_runs_are_read_at_the_step_that_is_asked_for(tmp_path):
    long = Ablation(tmp_path / "runs", TINY, {"a": {}}, (0,))
    run(long, tmp_path / "test.h5")
    short = Ablation(long.folder, TINY.change(training__steps=2), long.variants, long.seeds)
    whole, part = (x.record("a", 0).curve("nll") for x in (long, short))
    assert (finished(short, "a", 0) and part[0].tolist() == [2] and part[1][0] == whole[1][0]
            and whole[0].tolist() == [2, 4])
    before = (long.record("a", 0).path / "log.jsonl").read_bytes()
    run(short, tmp_path / "test.h5")  # nothing to do, and nothing lost
    assert (long.record("a", 0).path / "log.jsonl").read_bytes() == before
    # goes on
    run(Ablation(long.folder, TINY.change(training__steps=6), long.variants, long.seeds),
        tmp_path / "test.h5")
    assert long.record("a", 0).curve("nll")[1].tolist() == whole[1].tolist()


def test_the_arms_of_the_log_are_configurations_and_differ():
    texts = [str(small(variant).experiment(variant, 0).to_dict()) for variant in VARIANTS]
    assert len(set(texts)) == len(VARIANTS)


def test_the_committed_records_are_of_their_arms():
    for variant in VARIANTS:
        for seed in (0, 1, 2):
            finished(small(variant), variant, seed)  # ValueError, if a record is of another configuration
    assert {len(r) for r in small("base", "relu", "gated", "no normalisation",
                                  "image and gradients").records().values()} == {3}
    half = ("base", "broadcast", "sigma .15", "per channel", "exact", "detached", "shared start",
            "no warm-up", "T = 1", "sigmoid means", "port")
    assert {name: len(r) for name, r in small(*half, steps=3_000).records().items()} == dict.fromkeys(half, 3)


def test_a_difference_has_its_interval():
    a, b = [.7362, .722, .7753], [.7751, .7923, .7944]
    found, low, high = welch(a, b)
    se2 = [np.var(v, ddof=1) / 3 for v in (a, b)]
    freedom = sum(se2) ** 2 / sum(s ** 2 / 2 for s in se2)  # Welch 1947
    wide = stats.t.ppf(.975, freedom) * sum(se2) ** .5
    assert found == pytest.approx(np.mean(a) - np.mean(b))
    assert (low, high) == pytest.approx((found - wide, found + wide), abs=1e-9)
    with pytest.raises(ValueError, match="at least two"): welch([1.], [1., 2.])


def test_the_table_shows_every_run_and_the_baseline():
    ask = small("base", "relu")
    text = compared(ask, {"ari_fg": .5})
    for score in final_scores(ask)["relu"]: assert f"{score:.3f}" in text
    assert text.count("\n| ARI-FG |") == 3 and text.count("k-means") == 1
    difference, low, high = welch(*(final_scores(ask)[name] for name in ("relu", "base")))
    assert f"{difference:+.3f} ({low:+.3f} to {high:+.3f})" in text


def test_colour_alone_finds_most_of_the_small_tetrominoes():
    found = by_colour(small("base"), scenes=20)
    assert .6 < found["ari_fg"] < .9 and 0 < found["held_out_mse"] < .01


@pytest.mark.parametrize("text, field, wanted", [
    ("model.inputs=image,means", "inputs", ("image", "means")),
    ("model.inputs=image means", "inputs", ("image", "means")),
    ("model.inputs=('image', 'means'),model.sigma=.2", "inputs", ("image", "means")),
    ("model.inputs=image", "inputs", ("image",)),
    ("model.inputs=-means,-masks", "inputs", tuple(n for n in ALL_INPUTS if n not in ("means", "masks"))),
    ("model.inputs=-means", "inputs", tuple(n for n in ALL_INPUTS if n != "means")),
    ("model.inputs=+own", "inputs", (*ALL_INPUTS, "own")),
    ("model.inputs=+own,-masks", "inputs", (*(n for n in ALL_INPUTS if n != "masks"), "own")),
    ("model.image=3,16,16", "image", (3, 16, 16)),
    ("model.image=+2,-14", "image", (3, 14, 2)),
    ("model.latent=+3", "latent", 3)])
def test_a_tuple_is_written_with_commas_or_as_what_is_added_and_taken(text, field, wanted, monkeypatch):
    monkeypatch.setitem(INPUTS, "own", INPUTS["means"])
    model = Ablation(Path(), TINY, {"a": variant_of(text)}).experiment("a", 0).model
    assert getattr(model, field) == wanted
    if "sigma" in text: assert model.sigma == .2


@pytest.mark.parametrize("text, said", [
    ("model.inputs=True", "model.inputs: must be tuple, for example model.inputs=image,means, is True"),
    ("model.inputs=+means", "model.inputs: 'means' is already in the base's image, means"),
    ("model.inputs=-own", "model.inputs: 'own' is not in the base's image, means"),
    ("model.image=3,big,14", r"model.image\[1\]: must be int, is 'big'"),
    ("model.inptus=+means", "model.inptus: no such field")])
def test_what_is_wrong_with_a_tuple_is_said(text, said):
    asked = Ablation(Path(), TINY, {"a": variant_of(text)})
    with pytest.raises(ValueError, match=said): asked.experiment("a", 0)


def test_the_table_has_a_range_only_for_several_runs():
    one, three = (variants_table(small("base", seeds=seeds)) for seeds in ((0,), (0, 1, 2)))
    assert "–" not in one and "(" not in one and three.count("–") == 3
