"""Edges of what makes, keeps and shows scenes."""
import inspect
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import small
from iodine_nb.cli import main
from iodine_nb.core import whole_file, write_json
from iodine_nb.experiments.experiment import held_out_scenes
from iodine_nb.scenes.sprites import multi_dsprites, tetrominoes
from iodine_nb.tools.plots import plot_scenes, save
from iodine_nb.training.metrics import segmentation_scores


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near.json").symlink_to(tmp_path / "far/real.json")
    for value in (1, 2):  # the file behind it made, then replaced
        write_json(tmp_path / "near.json", value)
        assert (tmp_path / "near.json").is_symlink()
        assert (tmp_path / "far/real.json").read_text() == f"{value}\n"


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    program = ("import os, signal, sys\nfrom iodine_nb.core import whole_file\n"
               "with whole_file(sys.argv[1]) as p: p.write_text('half'); "
               "os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "a.json"]).returncode == -9
    left, = tmp_path.iterdir()
    others = [tmp_path / ".a.json.00000000-1.x.part", tmp_path / ".b.json.part"]  # not ours to judge
    for other in others: other.touch()
    with whole_file(tmp_path / "a.json") as p:
        assert not left.exists()
        write_json(tmp_path / "a.json", 1)  # a process that is there: its file stays
        p.write_text("2")
    assert (tmp_path / "a.json").read_text() == "2"
    assert {f for f in tmp_path.iterdir()} == {tmp_path / "a.json", *others}


@pytest.mark.parametrize("wrong", [dict(grey=(1.5, 2.)), dict(grey=(.4, .2)), dict(saturation=(-.1, 1.)),
                                   dict(value=(0., float("nan"))), dict(visible=float("inf"))])
def test_colours_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"multi_dsprites: {next(iter(wrong))} must be from least to most"):
        multi_dsprites(1, np.random.default_rng(0), size=16, **wrong)


def test_ranges_from_the_command_line(tmp_path, capsys):
    line = f"data multi-dsprites --out {tmp_path}/a.h5 --scenes 1 --size 16 --grey 1.5 2"
    assert main(line.split()) == 2 and "grey must be" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("true, predicted, said", [([0, -1], [0, 1], "true: .*one is -1"),
    ([0, 1], [-3, 1], "predicted: .*one is -3"), ([0, 70_000], [0, 1], "true: .*one is 70000"),
    ([0, 1], [0, 1, 1], "predicted: is .1, 1, 3., the true labels are .1, 1, 2.")])
def test_labels_are_looked_at_before_they_are_scored(true, predicted, said):
    score = inspect.unwrap(segmentation_scores)  # without the tests' own check of shapes
    with pytest.raises(ValueError, match=said): score(torch.tensor([[true]]), torch.tensor([[predicted]]))


def test_held_out_scenes_are_those_that_are_asked_for(tmp_path):
    path = tmp_path / "t.h5"
    assert len(held_out_scenes(small.TINY, path, 4)) == 4 == len(held_out_scenes(small.TINY, path, 4))
    for scenes, seed in ((5, 1), (4, 2)):
        with pytest.raises(ValueError, match=f"t.h5: holds 4 scenes of seed 1, asked for are {scenes} of seed"
                           f" {seed}"):
            held_out_scenes(small.TINY, path, scenes, seed)


def test_figures_of_a_script_are_closed(tmp_path):
    plt.switch_backend("agg")
    before = len(plt.get_fignums())
    save(plot_scenes(tetrominoes(2, np.random.default_rng(0), cell=2)), "a", tmp_path)
    assert len(plt.get_fignums()) == before and os.listdir(tmp_path) == ["a.png"]
