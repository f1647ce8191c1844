"""What the numbers of a slot mean: cards agree with a new probe, and real masks go where directions say."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from iodine_nb.core import read_json
from iodine_nb.experiments.experiment import card_of, load_model
from iodine_nb.scenes.sprites import silhouettes
from iodine_nb.tools.probes import (
    PROPERTIES, Appearance, appearance, dci, effects, find_objects, follow, hues_of, probe, probe_weights,
    ranges, redraw, redrawn, responses, sign_of, signed, variation)

WEIGHTS = Path(__file__).parent.parent / "data" / "weights"
SLOTS = ("attention_clevr", "attention_tetrominoes", "desk", "desk_clevr", "desk_sprites", "framed_sprites",
         "muon_clevr", "muon_sprites", "slots_clevr", "slots_sprites", "slots_tetrominoes")


def scenes_of(name, n, seed):
    return card_of(name)[0].generated().make(n, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def framed():
    "The framed model, its card, and objects of scenes that the card has not seen."
    torch.set_num_threads(1)
    model, card = load_model("framed_sprites")
    return model, card, find_objects(model, scenes_of("framed_sprites", 16, 91))


@pytest.mark.parametrize("name", SLOTS)
def test_cards_say_what_numbers_mean(name):
    "Every card of a model with slots has both fields, in the form that the explorer reads."
    x, card = card_of(name)
    size = x.model.latent if hasattr(x.model, "latent") else x.model.attention.slot + 4 * (
        x.model.attention.frame == "slot")  # the frame's four numbers stand before the slot's
    numbers = [v["dimension"] for v in card["latents"]]
    assert numbers == sorted(set(numbers)) and set(numbers) <= set(range(size))
    for v in card["latents"]:
        low, high = v["range"]
        assert v["property"] in PROPERTIES and .3 <= v["effect"] <= 1 and low < high
        assert v["sign"] in (-1, 0, 1)
        assert ("moment" in v) == (v["property"] == "shape") and v.get("moment", 1) in (1, 2, 3, 4)
        assert ("hues" in v) == (v["property"] == "hue" and v["sign"] == 1)
    assert set(card["directions"]) <= {"x", "y", "size"}
    assert all(len(d) == size and np.isfinite(d).all() and np.any(d) for d in card["directions"].values())


def test_a_new_probe_on_few_scenes_agrees(framed):
    "Names of clear numbers, their effects and ranges."
    model, card, found = framed
    effect, (low, high) = effects(model, found[:12], values=5), ranges(found)
    part = effect / effect.sum(1, keepdim=True)
    clear = [v for v in card["latents"] if v["effect"] > .5]
    assert {v["property"] for v in clear} >= {"x", "y", "size", "turn"}
    for v in clear:
        d, p = v["dimension"], PROPERTIES.index(v["property"])
        assert part[d, p] > part[d].max() - .05 and abs(part[d, p] - v["effect"]) < .2, v
        width = v["range"][1] - v["range"][0]
        assert abs(low[d] - v["range"][0]) < .35 * width and abs(high[d] - v["range"][1]) < .35 * width, v


def test_names_go_the_way_that_the_card_says(framed):
    "Of most objects; where the card says of a hue what it becomes, objects have about that hue there."
    model, card, found = framed
    few = found[:12]
    again = {v["dimension"]: v for v in signed(model, few, card["latents"], values=5)}
    told = [v for v in card["latents"] if v["sign"]]
    assert {v["property"] for v in told} >= {"x", "y", "size", "lightness", "shape", "hue"}
    for v in told:
        assert again[v["dimension"]]["sign"] in (v["sign"], 0), v
        if v["property"] in ("x", "y", "size", "lightness"): assert again[v["dimension"]]["sign"] == v["sign"]
    hue = next(v for v in told if v["property"] == "hue")
    for end, said in zip(hue["range"], hue["hues"]):
        z = few.own.clone()
        z[:, hue["dimension"]] = end
        seen = torch.cat([redrawn(model, few, i, z[i:i + 1]).colour[:, 0] for i in range(12)]).angle()
        assert torch.cos(seen - math.radians(said)).mean() > .5, (end, said)


def test_objects_that_disagree_have_no_way():
    up, down = torch.tensor([[2.], [3.], [2.5]]), torch.tensor([[-2.], [-3.], [-2.5]])
    assert sign_of(up) == {"sign": 1} and sign_of(down) == {"sign": -1}
    assert sign_of(torch.cat([up, down])) == {"sign": 0}
    assert sign_of(torch.cat([up, up, up, down[:1]])) == {"sign": 1}
    assert sign_of(torch.cat([up, up, up, torch.tensor([[-100.]])])) == {"sign": 1}  # one does not decide
    four = torch.tensor([[.1, -.5, .2, 0.], [0., -.6, -.2, .1]])
    assert sign_of(four) == {"sign": -1, "moment": 2}
    assert hues_of(torch.polar(torch.ones(2, 2), torch.tensor([[0., 1.], [3., 1.]]))) == {"sign": 0}


@pytest.mark.parametrize("pixels", [4., -4.])
def test_masks_go_where_directions_say(framed, pixels):
    "The centre of the mask itself, whatever is painted inside."
    model, card, found = framed
    at = torch.arange(64.)
    for axis, name in enumerate(("x", "y")):
        step, moved = pixels * torch.tensor(card["directions"][name]), []
        for i, z in enumerate(found.own[:30]):
            masks, _ = redraw(model, found, i, torch.stack([z, z + step]))
            masks = (masks - .5).clamp(min=0)  # [2, K, H, W]: where a slot has the say
            area = masks.sum((2, 3)).clamp_min(1e-6)
            centre = torch.stack([(masks.sum(2) * at).sum(2), (masks.sum(3) * at).sum(2)], 2)  # [2, K, 2]
            moved.append(((centre[1] / area[1, :, None]) - (centre[0] / area[0, :, None]))[found.slot[i]])
        moved = torch.stack(moved)
        assert abs(moved[:, axis].median() - pixels) < .1 * abs(pixels), (name, moved[:, axis].median())
        assert moved[:, 1 - axis].median().abs() < .3
        assert ((moved[:, axis] - pixels).abs() < .25 * abs(pixels)).float().mean() > .7


def test_size_grows_by_ten_per_cent(framed):
    model, card, found = framed
    directions = {k: torch.tensor(v) for k, v in card["directions"].items()}
    change = responses(model, found[:30], directions).median(0).values
    assert (change - torch.eye(3)).abs().max() < .2, change


def test_a_latent_can_be_followed():
    "Where there is no direction, an object of CLEVR still goes where it should."
    model, _ = load_model("muon_clevr")
    found = find_objects(model, scenes_of("muon_clevr", 12, 5))
    off = []
    for i in range(6):
        x = redrawn(model, found, i, follow(model, found, i, "x", torch.tensor([0., 3.]))).x
        off.append(abs(x[1] - x[0] - 3).item())
    assert np.median(off) < 1, off


def drawn(shape, turn, x=.5, scale=1.):
    where = silhouettes(*(np.array([v]) for v in (shape, scale, turn, x, .5)), 64)
    return torch.from_numpy(where[0]).float()


def test_measurements_of_known_sprites():
    "Place in pixels, size as a logarithm of lengths, outlines that turn and keep their shape."
    masks = torch.stack([drawn(0, .2), drawn(0, .2, x=.75), drawn(0, .2, scale=.5),
                         drawn(0, .2 + math.pi / 2)])
    a = appearance(masks, torch.tensor([.8, .2, .2]).view(3, 1, 1).expand(4, 3, 64, 64))
    assert abs(a.x[1] - a.x[0] - 8) < .1 and abs(a.y - a.y[0]).max() < .1
    assert abs(a.size[0] - a.size[2] - math.log(2)) < .05
    assert torch.allclose(a.lightness, torch.full((4,), .8, dtype=torch.double), atol=1e-6)
    assert (a.colour.abs() - .75).abs().max() < 1e-6 and a.colour.angle().abs().max() < 1e-6
    assert (a.outline[3] - a.outline[0]).abs().max() < .02  # a quarter turn of a square is none
    row = variation(Appearance(*(v[None, :2] for v in a)))
    assert abs(row["x"] - 16) < .5 and max(row[k] for k in PROPERTIES if k != "x") < .01


def test_dci_of_a_made_up_code():
    "1 where every factor is one number; turning the code leaves only informativeness."
    rng = np.random.default_rng(3)
    factors = {"x": rng.random(900), "y": rng.random(900), "shape": rng.integers(0, 4, 900)}
    code = np.stack([3 * factors["y"], factors["shape"], -factors["x"], rng.normal(size=900)], 1)
    clean = dci(code, factors)
    assert min(clean[k] for k in ("disentanglement", "completeness", "informativeness")) > .98
    turned = dci(code @ np.linalg.qr(rng.normal(size=(4, 4)))[0], factors)
    assert max(turned["disentanglement"], turned["completeness"]) < .7


def test_probing_writes_the_card(tmp_path, monkeypatch):
    "The same seed gives the same card, and what else the card holds stays."
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"attention_tetrominoes{suffix}").write_bytes(
            (WEIGHTS / f"attention_tetrominoes{suffix}").read_bytes())
    card = read_json(path := tmp_path / "attention_tetrominoes.json")
    path.write_text(json.dumps({k: v for k, v in card.items() if k not in ("latents", "directions")}))
    monkeypatch.setenv("IODINE_NB_WEIGHTS", str(tmp_path))
    found = probe_weights("attention_tetrominoes", scenes=24)
    again = probe(load_model("attention_tetrominoes")[0], scenes_of("attention_tetrominoes", 24, 56))
    assert read_json(path) == {**card, **found} and found == again
    hue = [v["dimension"] for v in card["latents"] if v["property"] == "hue" and v["effect"] > .6]
    assert hue and hue[0] in [v["dimension"] for v in found["latents"] if v["property"] == "hue"]
