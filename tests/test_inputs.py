"""The table of inputs: a row of one's own passes the chapter's checks, and a wrong one is named."""
import json
import sys
import types

import pytest
import torch

from iodine_nb.core import book_folder
from iodine_nb.models.inputs import INPUTS, Input
from iodine_nb.models.iodine import IODINE
from small import TINY


def chapter(row: str):
    "The exported cells of 12_inputs with a row more, and the cells that check them, are run."
    cells = json.loads((book_folder() / "nbs" / "12_inputs.ipynb").read_text())["cells"]
    code = {c["id"]: "".join(c["source"]) for c in cells if c["cell_type"] == "code"}
    module = sys.modules["changed_inputs"] = types.ModuleType("changed_inputs")
    try:
        for name, text in code.items():
            if text.startswith("#| export") or name in ("c003", "c013", "c016", "c017"):
                if name == "c007x": text = text.replace("INPUTS = {\n", f"INPUTS = {{\n    {row},\n")
                exec(text.replace("%matplotlib inline", ""), module.__dict__)
        return module.INPUTS
    finally: del sys.modules["changed_inputs"]


@pytest.mark.parametrize("cut", ["", ", cut=True", ", normalised=True, cut=True"])
def test_a_row_of_ones_own_passes_the_chapters_checks(cut):
    row = f'"own": Input("x - μ_k", "B K C H W", lambda s: s.image[:, None] - s.means{cut})'
    assert len(chapter(row)) == len(INPUTS) + 1


def test_the_chapters_checks_find_a_wrong_row_that_no_preset_uses():
    with pytest.raises(ValueError, match="the row 'own' says 'B K C H W'"):
        chapter('"own": Input("x", "B K C H W", lambda s: s.image)')


@pytest.mark.parametrize("shape", ["C H W", "B 1 3 H W", "B K C", "B K L H W", "", "B 2 C H W"])
def test_a_shape_that_no_row_can_have_is_named(shape, monkeypatch):
    monkeypatch.setitem(INPUTS, "own", Input("x", shape, lambda s: s.image))
    with pytest.raises(ValueError, match=f"the row 'own' has the shape '{shape}'; it must be 'B K C H W'"):
        TINY.change(model__inputs=("image", "own"))


@pytest.mark.parametrize("shape, value, says", [
    ("B K C H W", lambda s: s.image, r"is \(2, \d, 3, 14, 14\) here, .* computed \(2, 3, 14, 14\)"),
    ("B 1 C H W", lambda s: s.means, "but its function computed"),
    ("B K 1 H W", lambda s: s.means, "but its function computed"),
    ("B K L", lambda s: s.means, "but its function computed"),
    ("B K L", lambda s: None, "computed None")])
def test_a_value_of_another_shape_than_its_row_says_is_named(shape, value, says, monkeypatch):
    monkeypatch.setitem(INPUTS, "own", Input("x", shape, value))
    model = IODINE(TINY.change(model__inputs=("image", "own")).model)
    with pytest.raises(ValueError, match=f"the row 'own' says '{shape}', which .*{says}"):
        model.infer(torch.rand(2, *model.config.image))
