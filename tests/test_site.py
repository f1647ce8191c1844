"""The book as a web site: it builds offline, its links lead somewhere, it works from a file."""
import functools, importlib.util, json, re, resource, shutil, subprocess, sys, time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from iodine_nb.experiments.experiment import load_model
from iodine_nb.tools.page import page_bytes, page_script

TOP = Path(__file__).parent.parent
MISSING = [m for m in ("sphinx", "myst_nb", "furo", "sphinx_copybutton", "mathjax")
           if not importlib.util.find_spec(m)]
NAMED = ("canonical", "index", "search", "next", "prev")  # links of a page that load nothing
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(bool(MISSING), reason="the group `site` is not installed: no site is built")
browser_test = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: browser tests are skipped")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, TOP / "site/build.py", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 120
    return out / "html"


class Page(HTMLParser):
    "Of a page: the names that a link may lead to, the links, what it loads, and pictures without words."
    def __init__(self, text):
        super().__init__()
        self.names, self.links, self.loads, self.mute = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.names |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        loads = a.get("href") if tag == "link" and a.get("rel") not in NAMED \
            else a.get("src")
        if loads: self.loads.append(loads)
        if tag == "img" and not a.get("alt"): self.mute.append(a.get("src", "")[:80])


@functools.cache
def page_of(path: Path, changed: int) -> Page: return Page(path.read_text())

def pages_of(folder: Path) -> dict[Path, Page]:
    "Every page of a site by its place; each is read once."
    return {p: page_of(p, p.stat().st_mtime_ns) for p in map(Path.resolve, folder.rglob("*.html"))}


def is_scene(fragment: str) -> bool:
    "Whether the site's page of 41_explorer has this scene."
    asked = {k: v[0] for k, v in parse_qs(fragment).items()}
    record = TOP / "data/runs" / asked.get("model", "") / "page.json"
    return record.exists() and 0 <= int(asked["scene"]) < len(json.loads(record.read_text())["chapters"])


def wrong_links(folder: Path) -> list[str]:
    "A sentence for every link, within the site, that leads nowhere."
    pages = pages_of(folder)
    wrong = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc: continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir(): target = target / "index.html"
            if not target.exists(): wrong.append(f"{path.name} links to {link}, which is not there")
            elif target.name == "explorer.html" and parts.fragment:
                if not is_scene(parts.fragment): wrong.append(f"{path.name} links to {link}, no scene there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names:
                wrong.append(f"{path.name} links to {link}, a place that is not in that page")
    return wrong


def test_every_link_leads_somewhere(site):
    assert not (wrong := wrong_links(site)), "\n".join(wrong[:20])


def test_a_wrong_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"></a><a href="b.html"></a><a href="#there"></a>'
        '<a href="explorer.html#model=muon_clevr&amp;scene=2"></a>'
        '<a href="explorer.html#model=muon_clevr&amp;scene=99"></a>')
    (tmp_path / "explorer.html").write_text("")
    assert len(wrong_links(tmp_path)) == 3


def test_nothing_is_loaded_from_elsewhere_and_pictures_have_words(site):
    for path, page in pages_of(site).items():
        assert not [s for s in page.loads if urlsplit(s).netloc], path.name
        assert not page.mute, f"{path.name}: pictures without an alternative text: {page.mute[:3]}"


def test_every_chapter_and_every_entry_is_there(site):
    names = {p.stem for p in (TOP / "nbs").glob("[0-9]*.ipynb")}
    assert names == {p.stem for p in (site / "book").glob("*.html")}
    sidebar = (site / "index.html").read_text().split('class="sidebar-tree"')[1]
    assert all(f'href="book/{n}.html"' in sidebar for n in names)
    dates = [m for p in (TOP / "nbs").glob("*.ipynb")
             for m in re.findall(r'"## (\d{4}-\d\d-\d\d) · ', p.read_text())]
    space = "{http://www.w3.org/2005/Atom}"
    told = [e.findtext(f"{space}updated")[:10]
            for e in ET.parse(site / "log.xml").getroot().iter(f"{space}entry")]
    assert told == sorted(dates, reverse=True)


def test_a_chapter_without_a_part_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(str(TOP / "site"))
    import build
    monkeypatch.setitem(build.PARTS, "The log", [])
    with pytest.raises(ValueError, match="29_diary.ipynb stands in 0 parts"): build.parts()


@pytest.fixture
def build(monkeypatch):
    "site/build.py as a module."
    monkeypatch.syspath_prepend(str(TOP / "site"))
    import build
    return build


def tensors(data):
    "A model as the page reads it: the header, and the bytes of each tensor."
    length = int.from_bytes(data[:4], "little")
    header, numbers = json.loads(data[4:4 + length]), np.frombuffer(data, np.float16, offset=4 + length)
    places = header.pop("tensors")
    return header, {name: (t["shape"], numbers[t["start"]:t["start"] + int(np.prod(t["shape"]))].tobytes())
                    for name, t in places.items()}


def test_the_explorer_is_the_library_s(build):
    "Though no library is imported to build it: the same scripts, weights, and names of numbers."
    names = "_IMPORT", "page_file", "joined_modules", "_with_worker", "page_script", "stored_weights"
    page = build.library(*names)
    assert page["page_script"]() == page_script()
    for name in build.EXPLORED:
        model, card = load_model(name)
        stored = (TOP / f"data/weights/{name}.safetensors").read_bytes()
        header, theirs = tensors(page["stored_weights"](card, stored))
        full, ours = tensors(page_bytes(model))
        assert theirs == ours and type(model.config).from_dict(header.pop("model")) == model.config
        assert header == {k: v for k, v in full.items() if k != "model"}
        about = build.explored(name)["about"]
        assert [about["latents"], about["directions"]] == [card["latents"], card["directions"]], \
            f"run the cell of 88_page_engine that writes {name}/page.json"


def test_the_site_needs_no_pytorch():
    "A Python in which torch cannot be imported makes the explorer all the same."
    code = ("import sys; sys.modules['torch'] = sys.modules['numpy'] = None; sys.path.insert(0, 'site'); "
            "import build; print(len(build.explorer()), len(build.gallery()))")
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout.split()[0]) > 1e6, done.stderr


def test_pictures_of_scenes(build, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(build.png(pixels.tobytes(), 3, 5, 7))
    (tmp_path / "b.png").write_bytes(build.png(pixels[..., 0].tobytes(), 1, 5, 7))
    assert (np.asarray(Image.open(tmp_path / "a.png")) == pixels).all()
    assert (np.asarray(Image.open(tmp_path / "b.png")) == pixels[..., 0]).all()


def test_a_door_without_its_cell_is_refused(build, monkeypatch):
    monkeypatch.setitem(build.DOORS, "01_first_look", ("gone", *build.DOORS["01_first_look"][1:]))
    with pytest.raises(ValueError, match="^DOORS: 01_first_look.ipynb has no markdown cell gone"):
        build.prepared(TOP / "nbs/01_first_look.ipynb")


def watched(browser, **options):
    "A page, and lists of what it asks of other places and of what it complains about."
    page, asked, complaints = browser.new_page(**options), [], []
    page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or asked.append(r.url))
    page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    return page, asked, complaints


@browser_test
def test_it_works_from_a_file(site, browser):
    page, asked, complaints = watched(browser, viewport={"width": 1280, "height": 900})
    page.goto((site / "book/10_distributions.html").as_uri())
    page.wait_for_selector("mjx-container svg")
    assert page.locator("button.copybtn").count() and page.locator("a.next-page").count()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(3):
        if page.evaluate("document.body.dataset.theme") == "dark": break
        page.locator(".theme-toggle-content button, .content-icon-container .theme-toggle").first.click()
    assert page.evaluate("document.body.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.goto((site / "search.html").as_uri() + "?q=responsibility")
    page.wait_for_selector('#search-results li a[href*="10_distributions"]')
    assert not asked and not complaints, (asked, complaints)


def explored(frame, seconds=120):
    "Model and scene of the explorer, when the scene has been taken apart."
    deadline, ask = time.monotonic() + seconds, "document.querySelector('.iodine')?.explorer"
    while not frame.evaluate(f"(x => Boolean(x && x.idle))({ask})"):
        assert time.monotonic() < deadline, frame.evaluate(f"{ask}?.find('.said').textContent")
        time.sleep(.1)
    assert frame.evaluate(f"{ask}.trace.length") > 1
    return frame.evaluate(f"(x => [x.model.name, x.scene])({ask})")


@browser_test
def test_pictures_of_the_gallery_open_the_explorer(site, browser):
    "Each on its own scene, without asking anybody for anything."
    page, asked, complaints = watched(browser, viewport={"width": 1280, "height": 900})
    for i, scene in ((3, ["framed_sprites", 3]), (-1, ["attention_tetrominoes", 19])):
        page.goto((site / "gallery.html").as_uri())
        assert page.evaluate("[...document.querySelectorAll('.scene img')].every((i) => i.naturalWidth > 30)")
        pictures = page.locator("div.scenes a.scene").all()
        assert len(pictures) == 82
        pictures[i].click()
        assert explored(page.main_frame) == scene
    assert not asked and not complaints, (asked, complaints)


@browser_test
@pytest.mark.parametrize("chapter, scene", [("01_first_look", ["framed_sprites", 16]),
                                            ("41_explorer", ["framed_sprites", 0]),
                                            ("43_failures", ["muon_clevr", 16])])
def test_chapters_have_a_door_to_the_explorer(site, browser, chapter, scene):
    "It opens in the door's place, as dark as the chapter; nothing of it is loaded before."
    page, asked, complaints = watched(browser, viewport={"width": 1280, "height": 900})
    loaded = []
    page.on("request", lambda r: "/explorer.html" in r.url and loaded.append(r.url))
    page.goto((site / f"book/{chapter}.html").as_uri())
    page.evaluate("document.body.dataset.theme = 'dark'")
    assert page.locator(".door").count() == 1 and not loaded
    page.locator(".door a.open").click()
    page.wait_for_selector(".door.opened iframe")
    assert explored(page.frames[1]) == scene
    assert "dark" in page.frames[1].evaluate("document.querySelector('.iodine').className")
    assert page.frames[1].evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not asked and not complaints, (asked, complaints)


@browser_test
def test_on_a_phone_the_door_leads_to_the_explorer(site, browser):
    page, _, complaints = watched(browser, viewport={"width": 390, "height": 844})
    page.goto((site / "book/41_explorer.html").as_uri())
    page.locator(".door a.open").click()
    page.wait_for_url("**/explorer.html#*")
    assert explored(page.main_frame) == ["framed_sprites", 0]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and not complaints


@browser_test
def test_it_fits_a_phone(site, browser):
    page, _, complaints = watched(browser, viewport={"width": 390, "height": 844}, device_scale_factor=2)
    for name in ("index", "gallery", "book/43_failures", "book/29_diary", "book/02_sixty_lines",
                 "book/11_decoder", "book/12_inputs", "api/iodine_nb.models.iodine"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page.goto((site / "book/11_decoder.html").as_uri())
    control = page.locator("div.drag input").first
    words = control.locator("xpath=following-sibling::div")
    before = words.inner_text()
    control.focus(); page.keyboard.press("ArrowRight")
    assert words.inner_text() != before and not complaints
