"""The way from a folder of pictures to a figure, from a question to a table, and from a class to weights."""
import ast, json, re, shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import equal, nn, zeros

from iodine_nb import cli
from iodine_nb.cli import in_order, main
from iodine_nb.experiments import ablation
from iodine_nb.experiments.experiment import (card_of, experiment_with, export_weights, fitted, load_model,
                                              scenes_of, train)
from iodine_nb.experiments.presets import ABOUT, about, preset, presets
from iodine_nb.models.inputs import INPUTS, Input
from iodine_nb.scenes.format import SceneFile
from iodine_nb.scenes.sources import of_one_object
from iodine_nb.tools.watch import _EachScene
from iodine_nb.training.fit import Record, TrainingConfig, fit, loss_parameters
from iodine_nb.training.metrics import decomposition_scores
from small import ARGUMENTS, TINY, scenes

NOTEBOOKS = Path(__file__).parent.parent / "nbs"
NAMES = ["own", "desk", "desk_start", "small"]


@pytest.mark.parametrize("words, outer, name, inner", [
    ("--run r --data d own --training.steps 3", "--run r --data d", "own", "--training.steps 3"),
    ("desk --run r --training.steps 3 --data=d", "--run r --data=d", "desk", "--training.steps 3"),
    ("--training.steps 3 desk-start --held_out h", "--held_out h", "desk_start", "--training.steps 3"),
    ("--data d --run r", "--data d --run r", None, ""),
    ("--initial desk --run small --data d", "--initial desk --run small --data d", None, ""),
    ("--model.inputs image means --run r small", "--run r", "small", "--model.inputs image means"),
    ("mine:Model --run r --model.slots 3", "--run r", "mine:Model", "--model.slots 3")])
def test_options_stand_on_either_side_of_the_preset(words, outer, name, inner):
    assert in_order(words.split(), NAMES) == (outer.split(), name, inner.split())


@pytest.mark.parametrize("words", ["desks --run r", "--training.steps 3 --run r desk_strat"])
def test_a_wrong_name_is_answered_with_a_near_one(words):
    with pytest.raises(ValueError, match="preset: there is none called 'desk.*near are desk"):
        in_order(words.split(), NAMES)


def test_without_a_name_it_is_own_fitted_to_the_file_and_options_win(tmp_path, monkeypatch):
    scenes(tmp_path / "mine.h5")
    seen = []
    monkeypatch.setattr(cli.experiment, "train", lambda x, *rest: seen.append(x))
    assert main(["train", "--data", str(tmp_path / "mine.h5"), "--run", str(tmp_path / "r")]) == 0
    assert main(["train", "--model.slots", "9", "--data", str(tmp_path / "mine.h5"), "--run", "r"]) == 0
    assert [(x.name, x.model.image, x.model.slots) for x in seen] == [
        ("own", (3, 14, 14), 5), ("own", (3, 14, 14), 9)]


def test_own_asks_for_a_file(capsys, tmp_path):
    assert main(["train", "--run", str(tmp_path / "r")]) == 2
    assert "data: give a scene file" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_every_preset_has_a_line(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(presets()) and lines[0].startswith("own: your own pictures")
    assert not ABOUT.keys() - presets().keys() and "37 minutes" in about("desk_start")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run of a tiny model on a file, with a file that is held out, and its weights."
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, seed in (("mine", 0), ("test", 1)): scenes(folder / f"{name}.h5", seed)
        line = "train desk --data mine.h5 --held-out test.h5 --run run --weights w.safetensors "
        assert main((line + "--training.steps 6 " + ARGUMENTS).split()) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    "A copy of that for each test, which may change it; the working directory is there."
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_where_there_is_no_terminal_every_entry_of_the_log_is_a_line(run, capsys):
    line = "train desk --data mine.h5 --held-out test.h5 --run again --training.steps 4 "
    main((line + ARGUMENTS).split())
    said = capsys.readouterr()
    lines = [s for s in said.err.splitlines() if s.startswith("step ")]
    assert [s.split(":")[0] for s in lines] == ["step 2 of 4", "step 4 of 4"]
    assert re.search(r"MSE 0\.\d+, KL .*ARI-FG held out .*about 00:00 left", lines[-1])


def test_old_scores_a_resume_and_the_length_of_the_fall_are_said(run, capsys):
    line = ("train desk --data mine.h5 --held-out test.h5 --run again --training.schedule cosine "
            f"{ARGUMENTS} --training.evaluate-every 3 --training.evaluate-scenes 4 ")
    def said(more):
        capsys.readouterr()
        assert main((line + more).split()) == 0
        return capsys.readouterr().err.splitlines()

    first = said("--training.steps 6 --training.decay-steps 10")
    assert first[0] == ("the learning rate falls over 10 steps (training.decay_steps), not over the 6 of "
                        "this run (training.steps)")
    logged = {s.split(" of ")[0]: s for s in first if s.startswith("step ")}
    scored = [line["step"] for line in Record("again").log() if "ari_fg" in line]
    for step in (2, 4, 6):
        old = max((s for s in scored if s < step), default=None)
        assert ("(step " in logged[f"step {step}"]) == (step not in scored and old is not None)
        if step not in scored and old: assert f"(step {old}), MSE held out" in logged[f"step {step}"]
    assert any(step not in scored and any(s < step for s in scored) for step in (2, 4, 6))
    then = said("--training.steps 10 --training.decay-steps 10")
    assert then[0] == "again: goes on from step 6 of 10" and "falls over" not in " ".join(then)
    assert said("--training.steps 10 --training.decay-steps 10") == [
        "again: all 10 steps are done; for more, raise training.steps"]


@pytest.mark.parametrize("weights", ["w.safetensors", "run"])
def test_weights_stay_with_their_own_scenes(run, weights, capsys):
    assert list(scenes_of(weights, run)) == ["test.h5 (held out)"]
    (run / "test.h5").unlink()
    assert list(scenes_of(weights, run)) == ["mine.h5 (what it was trained on)"]
    config = {"w.safetensors": run / "w.json", "run": run / "run/config.json"}[weights]
    card = json.loads(config.read_text())
    card["data_file"]["source"] = "{}"  # not from a generator of ours
    config.write_text(json.dumps(card))
    scenes(run / "mine.h5", seed=5)
    assert main(["eval", weights]) == 2
    assert "its own scenes, mine.h5 or test.h5, are not here or have changed" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["f.png", "f.svg", "f.pdf"])
@pytest.mark.parametrize("what", ["decomposition", "iterations", "traversal"])
def test_figures_have_the_width_that_is_asked_for(run, out, what, capsys):
    assert main(["show", "w.safetensors", "--out", out, "--what", what, "--width", "3"]) == 0
    assert "K = 4, D = 4, T = 1" in capsys.readouterr().out
    if out == "f.png": assert abs(Image.open(out).width - 900) <= 1
    if out == "f.svg": assert 'width="216pt"' in Path(out).read_text()
    if out == "f.pdf": assert b"/MediaBox [ 0 0 216 " in Path(out).read_bytes()


def test_a_figure_of_another_kind_is_refused(run, capsys):
    assert main(["show", "run", "--out", "f.gif"]) == 2
    assert "out: must end in .png, .svg or .pdf, is f.gif" in capsys.readouterr().err


def test_a_run_is_watched_until_its_end(run, capsys):
    assert main(["watch", "run"]) == 0
    assert "step 6 of 6: run/watch.png" in capsys.readouterr().out
    assert Image.open("run/watch.png").height > 300 and "refresh" in Path("run/watch.html").read_text()
    (run / "run/checkpoint.safetensors").unlink()
    before = Image.open("run/watch.png").height
    assert main(["watch", "run", "--once"]) == 0
    assert Image.open("run/watch.png").height < before  # curves only
    assert main(["watch", "nothing"]) == 2


def test_ablations_from_the_terminal_go_on_on_a_file(run, capsys, monkeypatch):
    tiny = TINY.change(training__evaluate_every=2, training__evaluate_scenes=4)
    monkeypatch.setattr(cli, "preset", lambda name: tiny)
    line = ["ablation", "base", "model.sigma=.1", "--folder", "variants", "--data", "mine.h5", "--held-out",
            "test.h5", "--seeds", "1", "--steps", "2"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "1 of 2: base, seed 0: step 2" in said and "| model.sigma=.1 | 1 |" in said
    assert main(line) == 0 and "of 2:" not in capsys.readouterr().out  # nothing is trained twice
    scenes(run / "mine.h5", seed=7)
    assert main(line) == 2 and "another configuration: data" in capsys.readouterr().err


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("3[0-8]_*.ipynb")), ids=lambda p: p.stem)
def test_the_cells_under_again_train(notebook, tmp_path):
    every = json.loads(notebook.read_text())["cells"]
    cells = ["".join(c["source"]) for c in every if c["cell_type"] == "code"]
    again = next(c for c in cells if "again = " in c)
    asked = next(c for c in cells if c.startswith("ask = small("))
    tiny = lambda *variants, **how: ablation.Ablation(tmp_path / "none", ablation.TINY,
                                                  {a: ablation.VARIANTS[a] for a in variants}, (0,))
    imports = "\n".join(ast.unparse(n) for c in cells for n in _tree(c) if "import" in ast.unparse(n))
    names = {}
    exec(imports, names)
    names |= {"small": tiny, "runs_folder": lambda: tmp_path / "runs",
              "run": lambda ask, held_out, processes: ablation.run(ask, held_out, progress=False)}
    exec(ast.unparse(_tree(asked)[0]), names)
    exec(again, names)
    found = names["again"].records()
    assert found.keys() == names["ask"].variants.keys() and names["again"].folder == tmp_path / "runs/_again"


def _tree(cell: str) -> list[ast.stmt]:
    "The statements of a cell; its magics are left out."
    body = ast.parse("\n".join(s for s in cell.splitlines() if not s.startswith(("%", "!")))).body
    return [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))] or body


def test_a_new_input_is_off_until_it_is_asked_for(monkeypatch):
    before = preset("small").to_dict()
    monkeypatch.setitem(INPUTS, "new", Input("x", "B 1 C H W", lambda s: s.image[:, None]))
    assert "new" not in type(preset("small").model)().inputs and preset("small").to_dict() == before
    assert "new" in preset("small").change(model__inputs=("image", "new")).model.inputs


class Lone(nn.Module):
    "A model of one's own."
    def __init__(self, image: tuple[int, int, int] = (3, 14, 14), slots: int = 2):
        super().__init__()
        self.mean = nn.Parameter(zeros(image))
        self.slots = slots

    def loss(self, batch): return {"loss": (batch.image - self.mean).square().mean()}


def test_a_class_is_enough(tmp_path):
    data = scenes(tmp_path / "d.h5")
    x = experiment_with(Lone, TrainingConfig(steps=2, batch_size=4), slots=3)
    record = train(x, tmp_path / "run", data, data, progress=False)
    export_weights(record.path, tmp_path / "w.safetensors")
    model, _ = load_model(tmp_path / "w.safetensors")
    assert type(model) is Lone and model.slots == 3 and card_of(tmp_path / "w.safetensors")[0] == x
    assert "loss" in record.log()[-1] and fitted(x, data).model.slots == 5
    with pytest.raises(ValueError, match="3×14×14 .* takes 3×7×7"):
        train(x.change(model__image=(3, 7, 7)), tmp_path / "other", data, progress=False)


def test_what_a_model_lacks_is_said_before_the_first_step(tmp_path):
    data = scenes(tmp_path / "d.h5")
    with pytest.raises(ValueError, match="Lone has no `infer`; pass `score="):
        fit(Lone(), data, TrainingConfig(steps=2, batch_size=4), tmp_path / "r", data, decomposition_scores)
    assert not (tmp_path / "r").exists()
    Lone.wants = lambda self, batch, beta: None
    try:
        asks = type("Asks", (Lone,), {"loss": Lone.wants})()
        with pytest.raises(ValueError, match="needs 'beta'"): loss_parameters(asks, {})
    finally: del Lone.wants


def test_scores_come_early():
    config = TrainingConfig(steps=1_000, evaluate_every=800)
    assert [s for s in range(1, 1_001) if config.scored_after(s)] == [100, 200, 400, 800, 1_000]


def test_weights_and_runs_are_begun_from_alike(run):
    for initial in ("w.safetensors", "run"):
        line = f"train desk --data mine.h5 --run from_{initial[0]} --initial {initial} --training.steps 1 "
        assert main((line + ARGUMENTS).split()) == 0
    a, b = Record(run / "from_w").log(), Record(run / "from_r").log()
    assert a[0]["loss"] == b[0]["loss"] and SceneFile(run / "mine.h5")


def test_eval_of_one_seed_has_no_spread_and_stands_beside_the_record(run, capsys):
    capsys.readouterr()
    assert main(["eval", "w.safetensors", "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    assert "1 sampling seed, best of 1" in said and "±" not in said.split("recorded: ")[0]
    assert re.search(r"recorded: ARI-FG .* \(16 scenes\)", said)
    main(["eval", "w.safetensors", "--seeds", "1", "--restarts", "2"])
    assert "recorded" not in capsys.readouterr().out


def test_scenes_of_one_object_are_told():
    assert of_one_object(np.array([1, 2, 2, -1])) == (
        "1 of 3 scenes have one object, which ARI-FG cannot judge: one slot for everything gets 1 there")
    assert of_one_object(np.array([1] + 10 * [2])) == "" and of_one_object(np.array([-1])) == ""


def test_a_scene_has_the_same_noise_in_every_figure():
    few, many = (_EachScene(0, range(*r), "cpu") for r in ((1, 3), (0, 6)))
    for _ in range(2):
        a, b = few.draw(4, 5), many.draw(4, 5)
        assert equal(a, b[1:3]) and not equal(b[0], b[1])


def test_a_scene_file_in_the_place_of_a_preset_is_noticed(capsys):
    assert main(["train", "mine.h5", "--run", "r"]) == 2
    assert "is it a scene file? --data mine.h5" in capsys.readouterr().err


def test_slots_are_asked_for_only_if_nobody_said_them(tmp_path, capsys):
    "Without masks their number is a guess, which is named; with the option it is none."
    folder = tmp_path / "bare"
    folder.mkdir()
    for i in range(4): Image.fromarray(np.full((28, 28, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    assert main(["data", "folder", str(folder), "--out", str(tmp_path / "bare.h5")]) == 0
    capsys.readouterr()
    file = SceneFile(tmp_path / "bare.h5")
    x = fitted(preset("own"), file)
    cli._say_what(x, file, None, tmp_path)
    assert f"{file.path} has no masks to count objects by, so 5 slots are assumed" in capsys.readouterr().out
    cli._say_what(x.change(model__slots=6), file, None, tmp_path)
    assert "masks" not in capsys.readouterr().out
