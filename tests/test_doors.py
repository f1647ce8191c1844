"""Edges of what makes, keeps and shows scenes."""
import errno
import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import small
from iodine_nb.cli import main
from iodine_nb.core import whole_file, write_json
from iodine_nb.experiments.experiment import card_of, held_out_scenes, save_weights
from iodine_nb.scenes.format import save_scenes
from iodine_nb.scenes.sprites import multi_dsprites, tetrominoes
from iodine_nb.tools.plots import plot_scenes, save
from iodine_nb.training.metrics import segmentation_scores
from small import scenes

ROOT = Path(__file__).parent.parent


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
    for count, seed in ((5, 1), (4, 2)):
        with pytest.raises(ValueError, match=f"t.h5: holds 4 scenes of seed 1, asked for are {count} of seed"
                           f" {seed}"):
            held_out_scenes(small.TINY, path, count, seed)


def test_figures_of_a_script_are_closed(tmp_path, monkeypatch):
    "Also where there is no book whose pictures they would be."
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path); monkeypatch.delenv("IODINE_NB_BOOK", raising=False)
    before = len(plt.get_fignums())
    for folder in (tmp_path, None):
        path = save(plot_scenes(tetrominoes(2, np.random.default_rng(0), cell=2)), "a", folder)
        assert path == (folder and folder / "a.png") and len(plt.get_fignums()) == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_is_no_ordinary_file_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir(); os.mkfifo(tmp_path / "pipe"); (tmp_path / "file").touch()
    for name, said in (("folder", "folder: is a folder"), ("pipe", "pipe: is not an ordinary file"),
                       ("file/x", "file/x: cannot be written there")):
        with pytest.raises(OSError, match=said): write_json(tmp_path / name, 1)
    assert (tmp_path / "folder").is_dir() and (tmp_path / "pipe").is_fifo() and len(os.listdir(tmp_path)) == 3


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    def fills(path):
        with whole_file(path) as p:
            p.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (tmp_path / "a.json").write_text("before")
    with pytest.raises(OSError, match="a.json: could not be written .No space left on device.; make room"):
        fills(tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "before"


def test_too_little_memory_and_ctrl_c_end_any_command_in_a_line(tmp_path, monkeypatch, capsys):
    from iodine_nb import cli
    for what, status, said in ((MemoryError("Unable to allocate 10 GiB"), 2, "not enough memory (Unable to"),
                               (KeyboardInterrupt(), 130, "stopped")):
        def raises(*args): raise what
        monkeypatch.setattr(cli, "_write", raises)
        assert main(f"data tetrominoes --out {tmp_path}/a.h5 --scenes 1".split()) == status
        assert said in capsys.readouterr().err


def test_ctrl_c_while_the_command_is_still_imported_ends_in_the_same_line(tmp_path):
    "What it needs takes seconds to import; here, a first part of it during which somebody gives up."
    (tmp_path / "numpy.py").write_text(  # as in a terminal: jobs in the background ignore it
        "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "os.kill(os.getpid(), signal.SIGINT)")
    command = Path(sys.executable).parent / "iodine-nb"
    found = subprocess.run([command, "presets"], env=os.environ | {"PYTHONPATH": str(tmp_path)},
                           capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "iodine-nb: stopped\n")


def test_a_field_that_tyro_refuses_is_named_as_the_person_wrote_it(tmp_path, capsys):
    with pytest.raises(SystemExit) as e: main(f"data clevr --out {tmp_path}/a.h5 --look.size 0 0".split())
    said = capsys.readouterr().err
    assert e.value.code == 2 and "size: must be height and width" in said and "dummy" not in said


@pytest.mark.parametrize("limit, parts", [(1 << 19, 1), (3_000_000, 40)])
def test_a_disk_that_fills_while_scenes_are_written_ends_in_a_sentence(tmp_path, limit, parts):
    "In a process of its own, as HDF5 used to crash; no file may grow past the limit, as on a full disk."
    code = f"""
import resource, signal, numpy as np
from iodine_nb.scenes.format import Scenes, save_scenes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1))
noise = lambda: np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
parts = (Scenes(noise(), None, np.ones((30, 1), bool)) for _ in range({parts}))
try: save_scenes({str(tmp_path / 's.h5')!r}, parts, "t", {{}})
except OSError as e: print(e)
"""
    (tmp_path / "s.h5").write_bytes(b"mine")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "s.h5: the next scenes may need" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"] and (tmp_path / "s.h5").read_bytes() == b"mine"


def test_a_scene_file_is_no_larger_than_what_it_holds(tmp_path):
    "The room that is taken beforehand is given back."
    path = tmp_path / "s.h5"
    save_scenes(path, [tetrominoes(20, np.random.default_rng(i), cell=2) for i in range(3)], "t", {})
    assert path.stat().st_size < 60_000 and path.stat().st_size > 20_000


def test_slices_backwards_and_factors_that_are_no_numbers(tmp_path):
    file = scenes(tmp_path / "s.h5")
    forwards = file[:].image
    for i in (slice(None, None, -1), slice(12, 3, -2), slice(3, 12, -1), slice(-1, None, -20)):
        assert (file[i].image == forwards[i]).all() and len(file[i]) == len(forwards[i])
    made = file[:]
    made.factors["x"][3] = np.nan
    with pytest.raises(ValueError, match="n.h5: factors/x: holds NaN or infinity"):
        save_scenes(tmp_path / "n.h5", made, "t", {})
    assert not (tmp_path / "n.h5").exists()


@pytest.mark.parametrize("text", ["null", "[]", "3", '"x"', "{}", '{"model": null}',
                                  '{"model": {}, "files": []}', '{"model": {}, "data_file": null}'])
def test_a_configuration_that_is_none_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json: .*must be"): card_of(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"")
    (tmp_path / "w.json").write_text(text.replace('"model"', '"preset"'))
    with pytest.raises(ValueError, match="w.json: .*(must be|has no field 'preset')"):
        card_of(tmp_path / "w.safetensors")


@pytest.mark.parametrize("line, said", [
    ("show w --scenes 0", "scenes: must be at least 1, is 0"),
    ("show w --first -1", "first: must be at least 0"),
    ("show w --width 0", "width: must be from 0.5 to 50"), ("show w --width nan", "width: must be from 0.5"),
    ("show w --seed -1", "seed: must be at least 0, is -1"),
    ("ablation base --folder a --seeds 0", "seeds, processes: must be at least 1, are 0 and 1"),
    ("ablation base --folder a --steps 0", "training.steps: must be at least 1, is 0")])
def test_counts_that_cannot_be_are_refused(line, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scenes(tmp_path / "s.h5")
    save_weights(tmp_path / "w.safetensors", small.build(small.TINY, 0), {"preset": small.TINY.to_dict()})
    assert main(line.replace(" w ", " w.safetensors s.h5 ").split()) == 2
    assert said in capsys.readouterr().err


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="kl_weight must be at least 0 and sigma_factor above 0, are nan"):
        small.build(small.TINY, 0).infer(torch.rand(1, 3, 14, 14), kl_weight=math.nan)
