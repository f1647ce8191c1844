"""The wheel, installed into an empty folder, works away from the checkout: weights, commands, explorer."""
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest

from iodine_nb.cli import OPENING

TOP = Path(__file__).parent.parent
# as pyproject.toml says
PACKED = ("desk", "framed_sprites", "muon_clevr", "attention_tetrominoes", "iterative_blind",
          "iterative_plane")


def run(*command, cwd: Path, **variables) -> str:
    "What a command prints; its complaints are shown if it fails."
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=os.environ | variables, capture_output=True,
                          text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with nothing but what the wheel brings.

    It is built from copies (links, where the file system can), as building leaves a folder `build` behind,
    and would pack what an earlier one left there."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    def link(a, b):
        try: os.link(a, b)
        except OSError: shutil.copy(a, b)
    for name in ("pyproject.toml", "README.md", "LICENSE"): shutil.copy(TOP / name, source)
    for name in ("iodine_nb", "data/weights"):
        shutil.copytree(TOP / name, source / name, copy_function=link,
                        ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source,
        cwd=source)
    wheel, = (source / "dist").glob("*.whl")
    assert wheel.stat().st_size < 25e6, f"{wheel.name} has {wheel.stat().st_size / 1e6:.0f} MB"
    run(*pip, "install", "--no-deps", "--target", out, wheel, cwd=source)
    return out


def python(installed: Path, cwd: Path, *command) -> str:
    "Of this environment, but importing the book from the folder, and from nowhere near the checkout."
    return run(sys.executable, "-P", *command, cwd=cwd, PYTHONPATH=str(installed), OMP_NUM_THREADS="1",
               IODINE_NB_WEIGHTS="")


def test_weights_travel(installed, tmp_path):
    "And the explorer's command is there: asked for its help in the same process, as a start costs seconds."
    load = ("import json, iodine_nb; where = {'file': iodine_nb.__file__}\n"
            "from iodine_nb.experiments.experiment import load_model\n"
            "model, _ = load_model('desk'); where['weights'] = sum(p.numel() for p in model.parameters())\n"
            "print(json.dumps(where), flush=True)\n"
            "from iodine_nb.cli import main; main(['explore', '--help'])")
    said = python(installed, tmp_path, "-c", load)
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert Path(found["file"]).is_relative_to(installed) and found["weights"] > 1e5
    assert "usage: iodine-nb explore" in said
    names = {p.stem for p in (installed / "iodine_nb/weights").glob("*.safetensors")}
    assert names == set(PACKED) == {p.stem for p in (installed / "iodine_nb/weights").glob("*.json")}


def test_the_page_engine_travels(installed):
    found = {p.name for p in (installed / "iodine_nb/web").iterdir()}
    assert found == {p.name for p in (TOP / "iodine_nb/web").iterdir()} >= {"engine.js", "kernel.wasm"}


def test_the_command_line_scores_them(installed, tmp_path):
    "On scenes that it generates; nothing but the scores is written into the working directory."
    said = python(installed, tmp_path, installed / "bin/iodine-nb", "eval", "desk", "--scenes", "8",
                  "--seeds", "1",
                  "--out", "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert ("8 scenes" in said and scores["ari_fg"][0] > .5
            and [p.name for p in tmp_path.iterdir()] == ["scores.json"])


def test_it_writes_the_page(installed, tmp_path):
    "With weights that travel; every model that the page opens with does."
    said = python(installed, tmp_path, installed / "bin/iodine-nb", "explore", "desk", "--no-browser",
                  "--out", "page.html")
    page = tmp_path / "page.html"
    assert said.splitlines()[-1].startswith(str(page)) and "weights-desk" in page.read_text()
    assert set(OPENING) <= set(PACKED)
