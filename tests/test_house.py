"""The house's shape: which module may import which, how long a cell may be, how imports stand."""
import ast, json, re, sys, tomllib, warnings
from functools import lru_cache
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
LAYERS = ("core", "scenes", "training", "models", "experiments", "tools", "cli")
# families that are written as extensions of others
EXTENDS = {"slot_frame": ("iodine",), "attention_start": ("iodine", "slot_attention")}
EXPORTED, OTHER = 20, 30            # lines of code that a cell may have
NOTEBOOKS = sorted((TOP / "nbs").glob("*.ipynb"))


def modules(package: Path) -> dict[str, ast.Module]:
    "Names within the package, such as models.vae, and syntax trees; nbdev's index is left out."
    files = [p for p in sorted(package.rglob("*.py")) if p.name not in ("_modidx.py", "__init__.py")]
    return {".".join(p.relative_to(package).with_suffix("").parts): ast.parse(p.read_text()) for p in files}


def imported(name: str, tree: ast.Module, package: str, known) -> set[str]:
    "The modules of the package that a module imports anywhere in it, also inside functions."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = [package, *name.split(".")][:-node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            paths = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else: continue
        found |= {p.removeprefix(f"{package}.") for p in paths} & set(known)
    return found - {name}


def is_family(tree: ast.Module) -> bool:
    "Does the module say `family = Family(...)`?"
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    return any(isinstance(t, ast.Name) and t.id == "family" for t in targets)


def wrong_imports(package: Path) -> list[str]:
    "A sentence for every import that runs up a layer, or from one family into another."
    known, wrong = modules(package), []
    for name, tree in known.items():
        if (mine := name.split(".")[0]) not in LAYERS:
            wrong.append(f"{name} is on none of the layers {', '.join(LAYERS)}")
            continue
        for other in sorted(imported(name, tree, package.name, known)):
            theirs, (a, b) = other.split(".")[0], (name.split(".")[-1], other.split(".")[-1])
            if theirs in LAYERS and LAYERS.index(theirs) > LAYERS.index(mine):
                wrong.append(f"{name} imports {other}, which is a layer above it")
            if (mine == theirs == "models" and is_family(tree) and is_family(known[other])
                and b not in EXTENDS.get(a, ())):
                wrong.append(f"{name} imports {other}, but a family does not import another")
    return wrong


def test_imports_run_down():
    assert not (wrong := wrong_imports(TOP / "iodine_nb")), "\n".join(wrong)


@pytest.mark.parametrize("where, line, said", [
    ("scenes/format.py", "from ..models.vae import VAE",
     "scenes.format imports models.vae, which is a layer above"),
    ("scenes/format.py", "from ..models import vae",
     "scenes.format imports models.vae, which is a layer above"),
    ("core.py", "def f():\n    import book.cli", "core imports cli, which is a layer above"),
    ("models/vae.py", "from .iodine import IODINE\nfamily = 0",
     "models.vae imports models.iodine, but a family does not"),
    ("models/slot_frame.py", "from book.models.iodine import IODINE\nfamily = 0", None),
    # only families are kept apart
    ("models/decoder.py", "from ..core import Config\nfrom .vae import VAE", None),
    ("odd/new.py", "", "odd.new is on none of the layers"),
])
def test_an_import_that_runs_up_is_found(tmp_path, where, line, said):
    "In a made-up package of the same shape."
    package = tmp_path / "book"
    files = {"core.py": "", "cli.py": "", "scenes/format.py": "", "models/iodine.py": "family = 0",
             "models/vae.py": ""}
    for name, text in (files | {where: line}).items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    found = wrong_imports(package)
    assert (not found) if said is None else (len(found) == 1 and found[0].startswith(said)), found


def test_the_package_does_not_reach_out_of_its_folder():
    "Files of the checkout are found by core.book_folder(); an installed package has no checkout around it."
    reaches = [name for name, tree in modules(TOP / "iodine_nb").items()
               if "__file__).parent.parent" in ast.unparse(tree)]
    assert not reaches, f"use core.book_folder() or importlib.resources in {', '.join(reaches)}"


def test_the_package_compiles_without_a_warning():
    "A chapter's first quotation becomes the module's text, in which a backslash would be an escape."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in sorted((TOP / "iodine_nb").rglob("*.py")): compile(path.read_text(), str(path), "exec")


@lru_cache
def cells(path: Path) -> list[tuple[int, str]]:
    "Number, counted from 1 as ruff counts them, and source of a notebook's code cells."
    every = json.loads(path.read_text())["cells"]
    return [(i, "".join(c["source"])) for i, c in enumerate(every, 1) if c["cell_type"] == "code"]


def lines_of_code(source: str) -> int:
    "Lines but for blank ones and `#|` directives."
    return sum(bool(s.strip()) and not s.lstrip().startswith("#|") for s in source.splitlines())


def too_long(path: Path) -> list[str]:
    "A sentence for every cell with too many lines."
    wrong = []
    for i, source in cells(path):
        exported = re.search(r"^#\|\s*exporti?\b", source, re.MULTILINE) is not None
        n, most = lines_of_code(source), EXPORTED if exported else OTHER
        kind = "an exported cell" if exported else "a cell"
        if n > most:
            wrong.append(f"{path.name}, cell {i}: {n} lines of code; {kind} has at most {most}, so divide it")
    return wrong


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_keeps_nothing_of_a_kernel_that_is_gone(path):
    "Neither the state of widgets nor a view of one, of which nothing could be drawn."
    notebook = json.loads(path.read_text())
    assert "widgets" not in notebook["metadata"]
    outputs = [out for cell in notebook["cells"] for out in cell.get("outputs", [])]
    assert not any("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for out in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_are_short(path):
    assert not (wrong := too_long(path)), "\n".join(wrong)


def group(node: ast.stmt) -> int:
    "0 the standard library, 1 other packages, 2 this book's own."
    name = node.names[0].name if isinstance(node, ast.Import) else node.module or ""
    ours = name.split(".")[0] in ("iodine_nb", "small", "by_scene")
    if ours or isinstance(node, ast.ImportFrom) and node.level: return 2
    return 0 if name.split(".")[0] in sys.stdlib_module_names else 1


def out_of_order(source: str) -> bool:
    "Does an import at the top level of a cell, or file, follow one of a later group?"
    plain = "\n".join("" if s.lstrip().startswith(("%", "!")) else s for s in source.splitlines())
    try: tree = ast.parse(plain)
    except SyntaxError: return False
    groups = [group(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return groups != sorted(groups)


@pytest.mark.parametrize("path", [*NOTEBOOKS, *sorted((TOP / "tests").glob("*.py"))], ids=lambda p: p.stem)
def test_imports_stand_in_order(path):
    "The standard library, then other packages, then the book's own."
    parts = cells(path) if path.suffix == ".ipynb" else [(0, path.read_text())]
    wrong = [f"{path.name}, cell {i}" if i else path.name for i, source in parts if out_of_order(source)]
    assert not wrong, (
        f"{', '.join(wrong)}: the standard library comes first, then other packages, then iodine_nb")


def test_these_tests_can_fail(tmp_path):
    "Of notebooks that are made up."
    source = [f"x{i} = {i}\n" for i in range(21)] + ["\n", "\n"]
    made = [dict(cell_type="code", source=[first, *source]) for first in ("#| export\n", "#| hide\n")]
    (path := tmp_path / "a.ipynb").write_text(json.dumps({"cells": made}))
    assert too_long(path) == [
        "a.ipynb, cell 1: 21 lines of code; an exported cell has at most 20, so divide it"]
    assert (out_of_order("import torch\nimport json")
            and out_of_order("from iodine_nb.core import x\nimport torch"))
    assert not out_of_order(
        "import json, math\n%matplotlib inline\nfrom torch import nn\nfrom iodine_nb.core import x")


def test_all_folders_are_packed():
    "pyproject.toml lists the packages one by one, as weights lie elsewhere in the checkout."
    settings = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(p.parent.relative_to(TOP).parts) for p in (TOP / "iodine_nb").rglob("*.py")}
    assert set(settings["packages"]) == folders | {"iodine_nb.weights"}
