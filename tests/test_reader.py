"""Chapters that are written for a reader: captions, exercises, sources, plain words."""
import json, os, re, subprocess, sys
from pathlib import Path

import nbformat, pytest

NBS = Path(__file__).parent.parent / "nbs"
REWRITTEN = ("01_first_look", "02_sixty_lines", "03_ninety_minutes", "04_vae", "05_iterative",
             "06_amortisation_gap", "07_what_helps", "10_distributions", "11_decoder", "12_inputs",
             "13_refinement", "14_iodine", "15_presets", "16_metrics", "17_training", "18_gradient_by_hand",
             "19_parity", "20_ablation", "21_experiment", "22_baselines", "23_own_pictures",
             "24_change_one_thing", "25_own_model", "29_diary", "30_elu_or_relu", "31_gated",
             "32_normalisation", "33_input_encodings", "34_sigma", "35_gradient_cutting", "36_start",
             "37_iterations", "38_paper_code_port", "39_desk", "40_decomposition", "41_explorer",
             "42_generalisation", "43_failures", "44_speed", "45_shape_is_hard", "46_muon", "47_slot_frame",
             "48_what_a_number_means", "49_all_scores", "50_norb", "51_fitted_variance", "52_pca",
             "53_resume_and_nan", "54_capacity", "55_norb_runs", "60_vle", "61_mask_losses",
             "62_size_and_channels", "63_memory_and_inputs", "64_tokens_and_objects", "70_slot_attention",
             "71_attention_start", "72_objects_or_colours", "80_core", "81_sprites", "82_clevr", "83_data",
             "84_sources", "85_gallery", "86_plots", "87_cli", "88_page_engine")
PRIVATE = r"\b(arms?|cards?|the desk|stand-ins?|the post)\b"  # words that were this project's own


def cells(name: str) -> list[dict]:
    return json.loads((NBS / f"{name}.ipynb").read_text())["cells"]


def prose(name: str) -> str:
    "What a chapter says, without code."
    text = "\n\n".join("".join(c["source"]) for c in cells(name) if c["cell_type"] == "markdown")
    return re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)


def without_caption(book: list[dict]) -> list[str]:
    "Cells that draw a figure, and are not followed by a text that begins with an emphasised caption."
    draws = lambda c: any("image/png" in o.get("data", {}) for o in c.get("outputs", []))
    follows = lambda i: "".join(book[i + 1]["source"]) if book[i + 1]["cell_type"] == "markdown" else ""
    return [c["id"] for i, c in enumerate(book) if draws(c) and not re.match(r"\*[^*]", follows(i))]


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_chapter_is_written_for_a_reader(name):
    text = prose(name)
    assert not (bare := without_caption(cells(name))), f"{name}: figures without a caption: {bare}"
    for needed in ("**Before you start.**", "**At the end**", "## Exercises", "## Where this comes back",
                   "**Sources.**"):
        assert needed in text, f"{name} lacks {needed}"
    assert (text.count("<details><summary>Answer</summary>") >= 3
            and text.count("<details>") == text.count("</details>"))


@pytest.mark.parametrize("name", [*REWRITTEN, "89_reference"])
def test_words_are_plain(name):
    assert not (found := re.findall(PRIVATE, prose(name), re.IGNORECASE)), f"{name} says {found}"


def test_the_bibliography_lists_what_any_chapter_cites():
    cited = {p.stem: set(re.findall(r"arXiv:(\d{4}\.\d{4,5})", prose(p.stem))) for p in NBS.glob("*.ipynb")}
    listed = cited["89_reference"]
    lacking = {name: ids - listed for name, ids in cited.items() if ids - listed}
    assert len(listed) > 10 and not lacking, lacking


def test_the_diary_has_every_dated_entry():
    dated = {p.stem: len(re.findall(r"^## \d{4}-\d\d-\d\d · ", prose(p.stem), re.MULTILINE))
             for p in NBS.glob("*.ipynb")}
    raw = "".join("".join(c["source"]) for c in cells("29_diary") if c["cell_type"] == "markdown")
    told = {name: len(re.findall(rf"^### \[.+\]\({name}\.ipynb\)", raw, re.MULTILINE)) for name in dated}
    assert sum(dated.values()) > 40
    assert not (lacks := {n: (told[n], dated[n]) for n in dated if told[n] < dated[n]}), lacks


def sections(name: str) -> dict[str, list[str]]:
    "Code of a chapter by the heading above it; '' is the head of the chapter, with its title."
    found, here = {"": []}, ""
    for i, cell in enumerate(cells(name)):
        text = "".join(cell["source"])
        if cell["cell_type"] == "code": found[here].append(text)
        elif i: found |= {here: [] for here in re.findall(r"^##? (.+)$", text, re.MULTILINE)}
        if cell["cell_type"] == "markdown" and i:
            here = (re.findall(r"^##? (.+)$", text, re.MULTILINE) or [here])[-1]
    return found


def path() -> dict[str, list[str]]:
    "What the path of ninety minutes takes of each chapter: name -> headings."
    text = "".join(cells("03_ninety_minutes")[0]["source"])
    rows = re.findall(r"^\| \d+–\d+ \|.*\|(.*)\|$", text, re.MULTILINE)
    named = lambda row: [s for s in re.findall(r"\*([^*]+)\*", row) if s != "What we found"]
    return {re.search(r"\((\w+)\.ipynb", row)[1]: named(row) for row in rows if "ipynb" in row}


def test_the_path_names_sections_that_exist_and_minutes_that_join():
    text = "".join(cells("03_ninety_minutes")[0]["source"])
    minutes = re.findall(r"^\| (\d+)–(\d+) \|", text, re.MULTILINE)
    assert minutes[0][0] == "0" and minutes[-1][1] == "90"
    assert all(a[1] == b[0] for a, b in zip(minutes, minutes[1:]))
    assert {"01_first_look", "10_distributions", "12_inputs", "14_iodine"} <= path().keys()
    lacking = {n: set(heads) - sections(n).keys() for n, heads in path().items()}
    assert not any(lacking.values()), lacking


def test_the_path_s_sections_of_the_mixture_run_alone():
    parts = sections("10_distributions")
    sources = [s for head in ("", *path()["10_distributions"]) for s in parts[head]]
    names = {}
    for source in sources:
        exec(re.sub(r"^%.*$", "", source, flags=re.MULTILINE), names)
    assert "plain_mixture" in names and "leave_one_out" in names


def test_only_the_tests_see_a_short_version():
    "Where a costly cell does less under nbdev_test (IN_TEST), it is no exported cell, and it says so."
    short = [(p.stem, source) for p in NBS.glob("*.ipynb") for c in cells(p.stem)
             if c["cell_type"] == "code" and "IN_TEST" in (source := "".join(c["source"]))]
    silent = lambda source: not all("nbdev_test" in line for line in source.splitlines() if "IN_TEST" in line)
    assert {"11_decoder", "14_iodine", "40_decomposition", "70_slot_attention"} <= {name for name, _ in short}
    assert not (wrong := [name for name, source in short if "#| export" in source or silent(source)]), wrong


def test_the_book_is_made_of_whole_runs(tmp_path):
    ask = nbformat.v4.new_code_cell("import os; print('IN_TEST' in os.environ)")
    nbformat.write(nbformat.v4.new_notebook(cells=[ask]), tmp_path / "ask.ipynb")
    run = [sys.executable, NBS.parent / "tests" / "run_notebooks.py", tmp_path / "ask.ipynb", "--fresh"]
    said = subprocess.run(run, env=os.environ | {"IN_TEST": "1"}, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("False")


def test_a_missing_caption_is_found():
    figure = {"cell_type": "code", "id": "f", "source": [], "outputs": [{"data": {"image/png": ""}}]}
    for text, wanted in (("*What to notice.*", []), ("**Bold**, no caption.", ["f"]), ("Text.", ["f"])):
        assert without_caption([figure, {"cell_type": "markdown", "source": [text]}]) == wanted
