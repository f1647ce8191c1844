"""The book as a web site: it builds offline, its links lead somewhere, it works from a file."""
import importlib.util, re, resource, shutil, subprocess, sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

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


def wrong_links(folder: Path) -> list[str]:
    "A sentence for every link, within the site, that leads nowhere."
    pages = {p.resolve(): Page(p.read_text()) for p in folder.rglob("*.html")}
    wrong = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc: continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir(): target = target / "index.html"
            if not target.exists(): wrong.append(f"{path.name} links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names:
                wrong.append(f"{path.name} links to {link}, a place that is not in that page")
    return wrong


def test_every_link_leads_somewhere(site):
    assert not (wrong := wrong_links(site)), "\n".join(wrong[:20])


def test_a_wrong_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"></a><a href="b.html"></a><a href="#there"></a>')
    assert len(wrong_links(tmp_path)) == 2


def test_nothing_is_loaded_from_elsewhere_and_pictures_have_words(site):
    for path in site.rglob("*.html"):
        page = Page(path.read_text())
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


@browser_test
def test_it_fits_a_phone(site, browser):
    page, _, complaints = watched(browser, viewport={"width": 390, "height": 844}, device_scale_factor=2)
    for name in ("index", "book/29_diary", "book/02_sixty_lines", "book/11_decoder", "book/12_inputs",
                 "api/iodine_nb.models.iodine"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page.goto((site / "book/11_decoder.html").as_uri())
    control = page.locator("div.drag input").first
    words = control.locator("xpath=following-sibling::div")
    before = words.inner_text()
    control.focus(); page.keyboard.press("ArrowRight")
    assert words.inner_text() != before and not complaints
