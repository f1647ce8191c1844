"""The page in a real browser, from a file and in JupyterLab; skipped where there is no Debian `chromium`."""
import json, os, re, shutil, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iodine_nb.tools.explorer import picture_of, shown, write_page
from iodine_nb.tools.probes import appearance

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: browser tests are skipped")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    "A page with two models, one of which knows the place of its slots."
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    write_page(path, [shown("framed_sprites", count=8), shown("muon_clevr", count=4)])
    return path


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    "A page with three more, whose numbers have other names."
    path = tmp_path_factory.mktemp("page") / "others.html"
    names = "desk_sprites", "attention_tetrominoes", "slots_sprites"
    write_page(path, [shown(name, count=2) for name in names])
    return path


class Visit:
    "A visitor's tab: what it asks for and what it complains of are noted."
    def __init__(self, browser, url, **how):
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}} | how)
        self.requests, self.complaints = [], []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("console", lambda m: self.complaints.append(m.text)
                     if m.type in ("error", "warning") else None)
        self.begun = time.monotonic()
        self.page.goto(url)

    def ask(self, script, *arguments):
        "What an expression gives, in which `x` is the explorer."
        return self.page.evaluate(f"async (a) => {{ const x = document.querySelector('.iodine').explorer; "
                                  f"return {script}; }}", list(arguments))

    def wait(self, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not self.ask(condition):
            assert time.monotonic() < deadline, f"not in {seconds} s: {condition}"
            time.sleep(.02)

    def ready(self, strips=False):
        "The scene is taken apart, what was asked for is done, and the film strips are drawn."
        self.wait("x && x.idle && !x.stale" if strips else "x && x.idle")
        return self

    def afresh(self):
        "As if just opened."
        self.ask("(x.find('select').value !== x.models[0].name && await x.choose(x.models[0].name), "
                 "x.scene !== 0 && await x.openScene(0), x.slot = x.first, x.view = 'composed', "
                 "x.slots !== x.inferred && x.reset(), x.history = new x.history.constructor(x.inferred), "
                 "x.changed())")
        for summary in self.page.locator(".more details[open] summary").all(): summary.click()
        return self.ready()

    def leave(self):
        assert not self.complaints, self.complaints
        assert [u for u in self.requests if not u.startswith("blob:")] == [self.requests[0]], self.requests
        self.page.close()

    def picture(self): return self.ask("[...x.composed.picture]")
    def said(self): return self.page.locator(".said").inner_text()
    def centres(self):
        "Row and column of the centre of each slot's mask, where it is larger than a half."
        k, n = self.ask("x.slots.length"), self.ask("x.N")
        masks = np.array(self.ask("[...x.composed.masks]")).reshape(k, -1)
        y, x = np.divmod(np.arange(n), self.ask("x.W"))
        weight = np.clip(masks - .5, 0, None)
        return np.stack([weight @ y, weight @ x], 1) / weight.sum(1, keepdims=True).clip(1e-9), weight.sum(1)

    def at(self, row, column):
        "Where a pixel of the picture lies on the screen."
        box = self.page.locator(".canvas canvas").bounding_box()
        return (box["x"] + (column + .5) * box["width"] / self.ask("x.W"),
                box["y"] + (row + .5) * box["height"] / self.ask("x.H"))

    def drag(self, slot, rows, columns, steps=8):
        (centres, _), mouse = self.centres(), self.page.mouse
        row, column = centres[slot]
        mouse.move(*self.at(row, column))
        mouse.down()
        mouse.move(*self.at(row + rows, column + columns), steps=steps)
        mouse.up()
        self.ready()
        return self.centres()[0] - centres


@pytest.fixture(scope="module")
def tab(browser, file):
    v = Visit(browser, file.as_uri())
    v.ready().ask("x.first = x.slot")
    yield v
    v.leave()


@pytest.fixture
def v(tab):
    "A tab that is used by many tests, as opening a new one takes seconds on a busy machine."
    return tab.afresh()


@pytest.fixture
def visit(browser, file):
    visits = []
    def go(state="", **how):
        visits.append(Visit(browser, file.as_uri() + state, **how))
        return visits[-1]
    yield go
    for v in visits: v.leave()


def test_it_opens_from_a_file(visit):
    "Soon, with a slot for each object of the first scene, and without asking for anything."
    v = visit()
    v.wait("x && x.trace?.length > 0")
    first = time.monotonic() - v.begun
    v.ready()
    print(f"first picture after {first:.2f} s, taken apart after {time.monotonic() - v.begun:.2f} s")
    assert v.page.title() == "Take a scene apart"
    centres, areas = v.centres()
    objects = v.ask("x.slots.map((_, s) => !x.background(s))")
    assert sum(a > 20 and o for a, o in zip(areas, objects)) >= 2
    error = np.square(np.array(v.picture()) - np.array(v.ask("[...x.image]"))).mean()
    assert error < .005


def room(v, pixels=20):
    "An object and a direction in which it can move by so many rows or columns, all of it in the open."
    centres, areas = v.centres()
    objects = [s for s in range(len(centres)) if areas[s] > 20 and not v.ask(f"x.background({s})")]
    radius = np.sqrt(areas / np.pi)
    def free(slot, *move):
        y, x = centres[slot] + move
        away = [np.hypot(*(centres[slot] + move - centres[s])) - radius[s] for s in objects if s != slot]
        return min(y, x, 63 - y, 63 - x, *away) - radius[slot]
    moves = [(pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)]
    return max([(s, *move) for s in objects for move in moves], key=lambda choice: free(*choice))


def test_dragging_moves_one_object(v):
    "By as many pixels as the pointer; undo brings every pixel back."
    before, (slot, rows, columns) = v.picture(), room(v)
    moved = v.drag(slot, rows, columns)
    along = moved[slot] @ np.sign([rows, columns])
    assert 19.3 <= along <= 20.7 and abs(moved[slot]).sum() - along < 1.5  # in the open
    areas = v.centres()[1]  # the background is left out, of which other pixels are covered now
    others = [s for s in range(len(moved))
              if s != slot and areas[s] > 20 and not v.ask(f"x.background({s})")]
    assert others and np.abs(moved[others]).max() < 1
    assert np.abs(np.array(v.picture()) - before).max() > .1
    assert v.ask("x.history.past.length") == 1
    v.page.get_by_role("button", name="Undo").click()
    assert v.ready().picture() == before
    v.page.keyboard.press("Control+y")
    assert v.ready().picture() != before
    print("milliseconds from pointer to picture:", np.median(v.ask("x.times")))


def test_every_gesture_has_a_key(v):
    (slot, rows, columns), keyboard = room(v, 5), v.page.keyboard
    (centres, areas), before = v.centres(), v.picture()
    v.ask(f"x.pick({slot})")
    key = {(1, 0): "Down", (-1, 0): "Up", (0, 1): "Right", (0, -1): "Left"}[tuple(np.sign([rows, columns]))]
    v.page.locator(".canvas").focus()
    keyboard.press(f"Shift+Arrow{key}"); v.ready()
    assert 4 < (v.centres()[0] - centres)[slot] @ np.sign([rows, columns]) < 6
    keyboard.press("r"); assert v.ready().picture() == before
    for _ in range(3): keyboard.press("+"); v.ready()
    larger = v.centres()[1][slot]
    for _ in range(6): keyboard.press("-"); v.ready()
    assert larger > 1.15 * areas[slot] and v.centres()[1][slot] < .9 * areas[slot]
    keyboard.press("r"); v.ready()
    keyboard.press("Delete"); v.ready()
    assert v.centres()[1][slot] == 0 and not v.ask("x.slots[x.slot].shown")
    keyboard.press("Control+z"); assert v.ready().picture() == before
    keyboard.press("d"); v.wait("x.slots.length === 7"); v.ready()
    assert v.ask("x.slot") == 6 and v.page.locator(".slots > .slot").count() == 7
    assert all(v.page.locator(".slots > .slot").nth(i).is_visible() for i in range(7))
    keyboard.press("1"); assert v.ready().ask("x.slot") == 0
    keyboard.press("]"); assert v.ready().ask("x.slot") == 1
    keyboard.press("v"); assert v.ask("x.view") == "picture"
    keyboard.press("i"); v.wait("x.start > 0 && x.history"); v.ready()
    keyboard.press("n"); v.wait("x.scene === 1 && x.history")


def test_a_click_chooses_and_a_strip_is_clicked(v):
    (centres, areas), before = v.centres(), v.picture()
    slot = next(s for s in np.argsort(areas) if areas[s] > 20 and not v.ask(f"x.background({s})"))
    v.page.mouse.click(*v.at(*centres[slot]))
    assert v.ready().ask("x.slot") == slot and v.ask("x.history.past.length") == 0
    v.ready(strips=True)
    assert v.page.locator(".sliders.named .slider").count() >= 4
    strip = v.page.locator(".sliders.named .slider").first.locator("canvas")
    assert strip.count() == 7
    strip.nth(6).click()
    assert v.ready().picture() != before and v.ask("x.history.past.length") > 0


def look(v, slot):
    "What is measured of the slot's object: in pixels where it is sure, of what its slot paints there."
    weight = torch.tensor(v.ask("[...x.object(a[0])]", slot)).view(1, v.ask("x.H"), -1)
    paint = torch.tensor(v.ask("[...x.slots[a[0]].means]", slot)).view(*weight.shape, -1)
    return appearance((weight > .5).float(), paint.movedim(-1, 1).clamp(0, 1))


def apart(a, b, name):
    "How far two looks differ in a property: pixels, a logarithm, parts of 1, radians (of a disc or grey: 0)."
    if name in ("x", "y", "size", "lightness"): return abs((getattr(b, name) - getattr(a, name)).item())
    a, b = (a.colour, b.colour) if name in ("hue", "saturation") else (a.outline, b.outline)
    if name in ("saturation", "shape"): return (b.abs() - a.abs()).norm().item()
    return ((b * a.conj()).angle().abs() * (a.abs() * b.abs()).sqrt()).max().item()


LEAST = {"x": 5, "y": 5, "size": .3, "hue": .5, "lightness": .1, "saturation": .1, "shape": .2, "turn": .5}


def far(look, row):
    "How far the object is towards what stands at the slider's right end; nan where it cannot be said."
    name = row["property"]
    if name in ("x", "y", "size", "lightness"): return getattr(look, name).item()
    if name == "saturation": return look.colour.abs().item()
    if name == "shape": return look.outline.abs()[0, row["moment"] - 1].item()
    if name == "hue": return -torch.cos(look.colour.angle() - np.radians(row["hues"][0])).item()
    return np.nan  # a turn: of which object it would be, and from where


def test_sliders_go_the_way_that_their_ends_say(browser, file, others):
    "To the right is more: of all named numbers that are not folded away, in two models."
    for page, name in ((file, "framed_sprites"), (others, "desk_sprites")):
        v = Visit(browser, page.as_uri())
        v.ready(strips=True)
        assert v.ask("x.model.name") == name
        slot, told = v.ask("x.slot"), 0
        for row in v.ask("x.rowsOfNumbers().filter((r) => r.property)"):
            element = v.page.locator(f".slider input[id$='-{row['d']}']")
            ends = element.locator("xpath=../div[@class='ends']/small").all_inner_texts()
            assert len(ends) == (2 if row["sign"] else 0), row
            if not row["sign"] or not element.is_visible(): continue
            seen = []
            for key in ("Home", "End"):
                element.focus()
                v.page.keyboard.press(key)
                seen.append((far(look(v.ready(), slot), row), v.ask("x.slots[a[0]].z[a[1]]", slot, row["d"])))
                v.page.keyboard.press("r"); v.ready()
            (less, low), (more, high) = seen
            assert np.sign(high - low) == row["sign"] and more > less, (row, seen)
            assert " to ".join(ends) in element.get_attribute("aria-label")
            told += 1
        assert told >= 3
        v.leave()


def sliders_do_what_they_say(v):
    "For each property the number with the largest effect; what was measured, by property."
    slot, best, moved = v.ask("x.slot"), {}, {}
    for row in v.ask("x.rowsOfNumbers().filter((r) => r.property)"):
        shown = v.page.locator(f".slider input[id$='-{row['d']}']").is_visible()
        if shown and row["effect"] > best.get(row["property"], {"effect": 0})["effect"]:
            best[row["property"]] = row
    before = v.picture()
    for name, row in best.items():
        looks, element = [], v.page.locator(f".slider input[id$='-{row['d']}']")
        for place in ("Home", "middle", "End"):
            element.focus()
            if place == "middle": element.locator("xpath=../div/canvas[4]").click()
            else: v.page.keyboard.press(place)
            looks.append(look(v.ready(), slot))
            v.page.keyboard.press("r")
            assert v.ready().picture() == before
        moved[name] = max(apart(a, b, name) for a in looks for b in looks)
        assert moved[name] > LEAST[name], (row, moved)
        first, _, last = (getattr(a, name, None) for a in looks)
        if name in ("x", "y"): moved[name] *= np.sign((last - first).item())
    return moved


def test_sliders_change_what_they_say(v):
    "Of slots that carry their place: to the right and down, by about what the numbers say."
    moved = sliders_do_what_they_say(v.ready(strips=True))
    assert {"x", "y", "size", "hue", "lightness", "shape", "turn"} <= moved.keys()
    for name in ("x", "y"): assert 25 < moved[name] < 35  # of 64 pixels, 15 for one unit of the number


@pytest.mark.parametrize("name, properties", [
    ("desk_sprites", {"x", "size", "lightness", "saturation", "turn"}),
    ("attention_tetrominoes", {"x", "hue", "shape"})])
def test_sliders_of_other_models(browser, others, name, properties):
    v = Visit(browser, others.as_uri())
    v.ready().page.locator("select").select_option(name)
    v.wait(f"x.model.name === '{name}' && x.idle && !x.stale")
    assert sliders_do_what_they_say(v).keys() >= properties
    strong = {}
    for row in v.ask("x.rowsOfNumbers()"):
        element = v.page.locator(f".slider input[id$='-{row['d']}']")
        if element.is_visible(): strong[row.get("property")] = strong.get(row.get("property"), 0) + 1
    assert strong.pop(None, 0) <= 2 and max(strong.values()) <= 3, strong  # the rest is folded away
    v.leave()


def test_sliders_stay_in_order(v):
    "Place, size, colour, shape, turn, then those without a name; also when some were folded away meanwhile."
    names = ["left and right", "up and down", "size", "hue", "lightness", "saturation", "shape", "turn",
             "number"]
    for slot in [*range(v.ask("x.slots.length")), 0]:
        v.ask("x.pick(a[0])", slot)
        said = v.ready(strips=True).page.locator(".sliders.named .slider b").all_inner_texts()
        places = [next(i for i, n in enumerate(names) if s.startswith(n)) for s in said]
        assert said and places == sorted(places), said


WELCOME = "Drag an object; click chooses it."


def test_what_is_said_goes_when_it_is_over(v, pictures):
    welcome = WELCOME
    assert v.said() == welcome
    v.page.keyboard.press("d"); v.wait("x.slots.length === 7"); v.ready()
    assert v.said() == "Slot 7 is a copy, a little aside."
    v.page.keyboard.press("Control+z"); v.ready()
    assert v.said() == welcome
    v.page.locator("input[type=file]").set_input_files(pictures / "dot.png")
    v.wait("x.root.querySelector('.said').classList.contains('wrong')")
    v.page.keyboard.press("2"); v.ready()
    assert v.said() == welcome and "wrong" not in v.page.locator(".said").get_attribute("class")


@pytest.mark.parametrize("steps", [5, 20])
def test_a_model_whose_slots_do_not_carry_their_place(v, steps):
    "The object gets to the pointer all the same, by whatever steps that went; seven slots all show."
    v.page.locator("select").select_option("muon_clevr")
    v.wait("x.model.name === 'muon_clevr' && x.idle")
    tiles = v.page.locator(".slots > .slot")
    assert tiles.count() == 7 and all(tiles.nth(i).is_visible() for i in range(7))
    slot = v.ask("x.slot")
    assert not v.ask("x.background(x.slot)")
    def middle():
        "Of the object: slots of this model have patches of the ground besides."
        weight = np.array(v.ask("[...x.object(a[0])]", slot)).reshape(32, 32)
        return np.array([weight.sum(1) @ np.arange(32), weight.sum(0) @ np.arange(32)]) / weight.sum()
    before = middle()
    columns, mouse = 5 if before[1] < 16 else -5, v.page.mouse
    mouse.move(*v.at(*before)); mouse.down()
    mouse.move(*v.at(before[0], before[1] + columns), steps=steps)
    mouse.up()
    rows, along = (v.ready() and middle()) - before
    assert 4 < along * np.sign(columns) < 6 and abs(rows) < 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "Files that somebody might choose."
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    Image.fromarray(pixels[:20, :20]).save(folder / "dot.png")
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(folder / "deep.png")
    Image.new("RGBA", (64, 64), (255, 255, 255, 0)).save(folder / "clear.png")
    (folder / "poem.png").write_text("Roses are red")
    return folder


def test_own_pictures(v, pictures):
    "One that fits becomes the scene; others get a sentence that names the file, and change nothing."
    before, choose = v.picture(), v.page.locator("input[type=file]")
    for name, sentence in [("dot.png", "dot.png: 20 × 20 pixels are too few; this model looks at 64 × 64"),
                           ("poem.png", "poem.png: not a picture that this browser can read; choose")]:
        choose.set_input_files(pictures / name)
        v.wait(f"x.root.querySelector('.said').textContent.startsWith('{name}')")
        assert v.said().startswith(sentence) and v.ready().picture() == before
        assert "wrong" in v.page.locator(".said").get_attribute("class")
    choose.set_input_files(pictures / "photo.jpg")
    v.wait("x.root.querySelector('.said').textContent.startsWith('photo.jpg')")
    assert v.said() == "photo.jpg: the middle of 120 × 90 pixels, seen at 64 × 64"
    assert v.ready().ask("x.scene") == -1 and v.picture() != before
    for name, light in (("deep.png", 40_000 / 65_535), ("clear.png", 0.)):  # 16 bits; transparent white
        choose.set_input_files(pictures / name)
        v.wait(f"x.root.querySelector('.said').textContent.startsWith('{name}')")
        v.ready()
        assert np.abs(np.array(v.ask("[...x.image]")) - light).max() < .01


def test_a_link_and_a_line_of_python_hold_the_state(v, visit):
    v.drag(*room(v, 8))
    v.page.keyboard.press("d"); v.wait("x.slots.length === 7"); v.ready()
    v.page.keyboard.press("Delete"); v.ready()
    state, seen = v.ask("x.state()"), np.array(v.picture()).reshape(64, 64, 3)
    other = visit("#" + state).ready()
    assert other.ask("x.slots.length") == 7 and not other.ask("x.slots[6].shown")
    assert np.abs(np.array(other.picture()).reshape(64, 64, 3) - seen).max() < .02
    line = v.ask("x.python()")
    there = {}
    exec(line.replace("; picture_of", "; found = picture_of"), there)
    assert np.abs(np.asarray(there["found"]) / 255 - seen).max() < .02
    assert visit("#model=muon_clevr&z=AAAA").ready().said().startswith("state: not of one of the models here")
    with pytest.raises(ValueError, match="has no shown"): picture_of("model=desk&z=AAAA")


def test_a_link_may_hold_a_scene_only(visit):
    "The page opens on it, also when only what follows the # changes; what is not there is said."
    v = visit("#model=muon_clevr&scene=2&theme=dark").ready()
    assert v.ask("[x.model.name, x.scene]") == ["muon_clevr", 2] and v.said() == WELCOME
    assert "dark" in v.page.locator(".iodine").get_attribute("class")
    v.ask("void (location.hash = '#model=framed_sprites&scene=5')")
    v.wait("x.scene === 5 && x.idle")
    assert v.ask("x.model.name") == "framed_sprites" and v.ask("x.trace.length") == 6
    v.ask("void (location.hash = '#model=framed_sprites&scene=99')")
    v.wait("x.scene === 0 && x.idle")
    assert v.said() == "scene: this page has 8 of framed_sprites, so this is the first one"


def test_slots_that_carry_place_and_scale(browser, others):
    "Slot Attention's frames: a drag sets the place, plus and minus the scales."
    v = Visit(browser, others.as_uri() + "#model=slots_sprites&scene=0").ready()
    (slot, rows, columns), before = room(v, 10), v.ask("x.slots.map((s) => [...s.z])")
    moved = v.drag(slot, rows, columns)
    assert 9 < moved[slot] @ np.sign([rows, columns]) < 11
    after = np.array(v.ask("x.slots.map((s) => [...s.z])"))
    assert np.flatnonzero(np.abs(after - before).max(0) > 1e-6).tolist() == [0 if rows else 1]
    v.page.locator(".canvas").focus()
    v.page.keyboard.press("+"); v.ready()
    wider = np.array(v.ask("x.slots.map((s) => [...s.z])")) - after
    assert np.allclose(wider[slot, :4], [0, 0, np.log(1.1), np.log(1.1)], atol=1e-5)
    assert not wider[:, 4:].any()
    v.leave()


def test_two_scenes(v):
    v.page.locator("summary", has_text="Two scenes").click()
    v.page.locator(".two .scenes button").nth(2).click()
    v.wait("x.mate && x.idle")
    before, slot = v.ask("x.slots.map((s) => [...s.z])"), v.ask("x.slot")
    v.page.get_by_role("button", name="Exchange with").click(); v.ready()
    assert v.ask("[...x.mate.slots[x.mate.chosen].z]") == before[slot] != v.ask("[...x.slots[x.slot].z]")
    v.page.keyboard.press("Control+z"); assert v.ready().ask("x.slots.map((s) => [...s.z])") == before
    v.page.locator(".two input").focus(); v.page.keyboard.press("End"); v.ready()
    blended = np.sort(v.ask("x.slots.map((s) => [...s.z])"), 0)
    assert np.allclose(blended, np.sort(v.ask("x.mate.slots.map((s) => [...s.z])"), 0), atol=1e-6)
    v.page.keyboard.press("Control+z"); assert v.ready().ask("x.slots.map((s) => [...s.z])") == before
    v.page.get_by_role("button", name="Bring its slot").click(); assert v.ready().ask("x.slots.length") == 7


def test_how_it_got_there(v):
    v.page.locator("summary", has_text="How it got there").click()
    times = v.page.locator(".times button")
    v.wait("x.root.querySelectorAll('.frames figure').length === 7")
    assert times.count() == 6
    times.first.click(); v.page.keyboard.press("ArrowRight")
    assert v.page.locator(".at").inner_text().startswith("After 1 refinement, loss")
    assert v.page.locator(".frames figure").count() == 9


def test_pictures_to_take_away(v, tmp_path):
    v.ready(strips=True).page.locator("summary", has_text="Take it with you").click()
    seen = np.array(v.picture()).reshape(64, 64, 3)
    for name in ("Picture, PNG", "Picture, SVG", "Film strips, PNG", "Film strips, SVG"):
        with v.page.expect_download() as download: v.page.get_by_role("button", name=name).click()
        download.value.save_as(path := tmp_path / download.value.suggested_filename)
        if path.suffix == ".svg": assert path.read_text().startswith("<svg") and "<image" in path.read_text()
        else: assert min((image := Image.open(path)).size) > 200
        if name == "Picture, PNG":
            middle = np.asarray(image.convert("RGB"))[8::16, 8::16] / 255
            assert np.abs(middle - seen).max() < .01


@pytest.mark.parametrize("how", [dict(viewport={"width": 390, "height": 844}, has_touch=True),
                                 dict(color_scheme="dark"), {}])
def test_it_is_legible(visit, how):
    "On a phone, in the dark: nothing sticks out, everything has a name, text stands out from its background."
    v = visit(**how).ready(strips=True)
    width = v.page.viewport_size["width"]
    for summary in v.page.locator(".more details summary").all(): summary.click()
    assert v.ask("document.documentElement.scrollWidth") <= width
    assert v.page.locator(".canvas canvas").bounding_box()["width"] > min(350, width - 40)
    nameless = v.ask("""[...document.querySelectorAll('button, select, input, [role=application]')]
      .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)""")
    assert nameless == []
    colours = v.ask("""['--ink', '--soft', '--paper', '--card', '--warn', '--accent'].map((name) =>
      getComputedStyle(x.root).getPropertyValue(name))""")
    def light(colour):
        digits = colour.strip("# ")
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        v = np.array([int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)])
        return np.where(v > .04045, ((v + .055) / 1.055)**2.4, v / 12.92) @ [.2126, .7152, .0722]
    ink, soft, paper, card, warn, accent = map(light, colours)
    assert (paper < .1) == (how.get("color_scheme") == "dark")
    for text in (ink, soft, warn, accent):
        for behind in (paper, card):
            assert (max(text, behind) + .05) / (min(text, behind) + .05) > 4.5


def test_fingers(visit):
    "Two of them on a phone: the chosen object grows as they part."
    v = visit(viewport={"width": 390, "height": 844}, has_touch=True).ready()
    slot, (centres, areas) = v.ask("x.slot"), v.centres()
    x, y = v.at(*centres[slot])
    touch = lambda kind, n, at: v.ask("""x.find('.canvas').dispatchEvent(new PointerEvent(a[0], {
      pointerId: a[1], clientX: a[2], clientY: a[3], pointerType: 'touch', bubbles: true }))""",
                                     kind, n, at, y)
    v.ask("x.find('.canvas').setPointerCapture = () => {}")
    touch("pointerdown", 1, x - 20); touch("pointerdown", 2, x + 20)
    for i in range(1, 5): touch("pointermove", 2, x + 20 + 4 * i)
    touch("pointerup", 1, x - 20); touch("pointerup", 2, x + 36)
    assert v.ready().centres()[1][slot] > 1.15 * areas[slot] and v.ask("x.history.past.length") == 1


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url, process, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try: return urllib.request.urlopen(url, timeout=5).status
        except urllib.error.HTTPError as e: return e.code
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, f"nothing answers at {url}"
        time.sleep(.1)


NOTEBOOK = """import torch
from iodine_nb.experiments.experiment import load_model
from iodine_nb.tools.explorer import Explorer
class Mine(torch.nn.Module):  # of which the page's engine knows nothing
    def __init__(self): super().__init__(); self.inner = load_model("desk")[0]
    def infer(self, images, generator=None): return self.inner.infer(images, generator=generator)
    def decode(self, z): return self.inner.decode(z)
display(Explorer("desk"))
Explorer(Mine(), torch.rand(2, 3, 35, 35))"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab with a notebook of one cell, and Jupyter's own folders empty."
    home, folder, port = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks"), free_port()
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [],
            "source": NOTEBOOK}
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (folder / "x.ipynb").write_text(json.dumps({"cells": [cell], "metadata": metadata, "nbformat": 4,
                                                "nbformat_minor": 5}))
    environment = (os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(home),
                                 "IPYTHONDIR": str(home / "ipython"), "PATH": f"{BIN}:{os.environ['PATH']}"}
                   | {f"JUPYTER_{k}_DIR": str(home / k) for k in ("CONFIG", "RUNTIME", "DATA")})
    process = subprocess.Popen(
        [BIN / "jupyter", "lab", "--no-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
         "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}", "--allow-root",
         "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(f"http://127.0.0.1:{port}/api", process)
    yield f"http://127.0.0.1:{port}/lab/tree/x.ipynb"
    process.terminate(); process.wait(20)


def test_in_jupyterlab(browser, lab):
    "Shipped weights in the page's engine, and somebody's own model, which the kernel computes."
    v = Visit(browser, lab)
    page = v.page
    page.wait_for_selector("text=/\\| Idle/", timeout=120_000)
    busy = page.locator("text=/\\| Busy/")
    for _ in range(3):  # JupyterLab may not listen yet; once it does, the cell runs for many seconds
        page.locator(".jp-Notebook .jp-Cell").first.click()
        page.keyboard.press("Shift+Enter")
        for _ in range(50):
            if busy.count() or page.locator(".iodine").count(): break
            page.wait_for_timeout(200)
        else: continue
        break
    page.wait_for_function("document.querySelectorAll('.iodine').length === 2", timeout=120_000)
    for i, served in enumerate((False, True)):
        root = page.locator(".iodine").nth(i)
        page.wait_for_function("(e) => e.explorer.idle", arg=root.element_handle(), timeout=60_000)
        tell = lambda script: root.evaluate(f"(e) => {{ const x = e.explorer; return {script}; }}")
        assert tell("x.trace.length") == 6 and tell("x.slots.length") == 4
        assert tell("'end' in x.host && x.model.name") == ("Mine" if served else "desk")
        before = tell("[...x.composed.picture]")
        tell("(x.find('.canvas').scrollIntoView(), x.find('.canvas').focus())")
        page.keyboard.press("d")
        page.wait_for_function("(e) => e.explorer.idle && e.explorer.history.past.length === 1",
                               arg=root.element_handle(), timeout=30_000)
        assert tell("[...x.composed.picture]") != before
        page.keyboard.press("Control+z")
        assert tell("[...x.composed.picture]") == before
    assert not [u for u in v.requests if not re.match(r"(blob:)?http://127\.0\.0\.1:|data:", u)]
    page.close()
