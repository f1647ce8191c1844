"""Build the site from the committed notebooks and their outputs: site/build.py [folder, default _docs].

Nothing is executed or fetched. The folder `source` in it is what Sphinx reads, `html` is the site."""
import ast, base64, configparser, gzip, html, json, re, shutil, struct, subprocess, sys, zlib
import xml.etree.ElementTree as ET
from importlib import resources
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
SETTINGS = configparser.ConfigParser()
SETTINGS.read(TOP / "settings.ini")
HOME = SETTINGS["DEFAULT"]["doc_host"] + SETTINGS["DEFAULT"]["doc_baseurl"]

# The sidebar: parts, and the notebooks in each, by number. Every notebook stands in exactly one of them.
PARTS = {
    "A first look": [0, 1, 2, 3],
    "One latent": [4, 5, 6, 7],
    "IODINE, idea by idea": [*range(10, 20)],
    "Experiments of your own": [*range(20, 29)],
    "The log": [29, *range(30, 40)],
    "Results": [*range(40, 50)],
    "One latent on NORB": [*range(50, 56)],
    "Variable length": [*range(60, 70)],
    "Neighbours": [*range(70, 80)],
    "Appendices": [*range(80, 100)],
}


# The page of 41_explorer: its models, and the doors to it. Of each chapter: the cell after which one
# stands, the model, which scene (of the chapter's own if it has any), and what to say.
EXPLORED = ("framed_sprites", "slots_clevr", "muon_clevr", "attention_tetrominoes")
DOORS = {
    "01_first_look": ("c006", "framed_sprites", 0,
                      "The first of these scenes, to take apart and to drag. The other four are there, too."),
    "41_explorer": ("p002b", "framed_sprites", 0,
                    "This page, to try: drag an object, or change one of its numbers."),
    "43_failures": ("c032", "muon_clevr", 0, "The first of these scenes, and the other five: choose a slot "
                    "to see what is in it, and open “How it got there”. “Infer again” tries another start."),
}


def notebooks() -> dict[int, Path]:
    "The book's notebooks by number."
    return {int(p.name[:2]): p for p in sorted((TOP / "nbs").glob("[0-9][0-9]_*.ipynb"))}


def parts() -> dict[str, list[Path]]:
    "The notebooks of every part; ValueError names one that stands in none, or in two."
    found, places = notebooks(), [n for numbers in PARTS.values() for n in numbers]
    for n, path in found.items():
        if places.count(n) != 1:
            raise ValueError(
                f"PARTS: {path.name} stands in {places.count(n)} parts of the sidebar, must be in one")
    return {part: [found[n] for n in numbers if n in found] for part, numbers in PARTS.items()}


def markdown(source: str) -> str:
    "Markdown of a notebook, with links that leave the folder of the notebooks mended."
    return source.replace("](../CONTRIBUTING.md)", "](../contributing.md)").replace("](../README.md)",
        "](../index.md)")


def alternative(cells: list[dict], i: int, heading: str) -> str:
    "What to say in place of a figure: its caption, the emphasised text below it, else the heading above."
    below = ("".join(cells[i + 1]["source"]) if i + 1 < len(cells)
             and cells[i + 1]["cell_type"] == "markdown" else "")
    caption = re.match(r"\*(?!\*)(.+?)\*(?:\n\n|$)", below.strip(), re.DOTALL)
    text = caption[1] if caption else f"Figure in the section: {heading}"
    return re.sub(r"\s+", " ", re.sub(r"[*`$\\{}]|\]\([^)]*\)|\[", "", text)).strip()[:300]


def prepared(path: Path) -> dict:
    "A notebook as the site shows it: without cells that are hidden, with directives as tags, with anchors."
    book = json.loads(path.read_text())
    cells, heading = [], path.stem
    for i, cell in enumerate(book["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.+)$", source, re.MULTILINE) or [heading])[-1]
            if cells: source = re.sub(r"^# ", "## ", source, flags=re.MULTILINE)  # a page has one title
            cells.append({**cell, "source": markdown(source)})
            if path.stem in DOORS and cell["id"] == DOORS[path.stem][0]: cells.append(door(path.stem))
            continue
        said = set(re.findall(r"^#\|\s*(\w[\w-]*)", source, re.MULTILINE))
        if said & {"hide", "default_exp"} or not source.strip(): continue
        tags = ["remove-input"] * ("echo" in said) + ["hide-input"] * ("code-fold" in said)
        shown = {**cell, "source": re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip("\n"),
                 "metadata": {
                     "tags": tags, "mystnb": {"image": {"alt": alternative(book["cells"], i, heading)}}}}
        if "export" in said:
            cells.append({"cell_type": "markdown", "id": f"at-{cell['id']}", "metadata": {},
                          "source": f'<span id="cell-{cell["id"]}"></span>'})
        cells.append(shown)
    if path.stem in DOORS and not any(c["id"] == "door" for c in cells):
        raise ValueError(f"DOORS: {path.name} has no markdown cell {DOORS[path.stem][0]}")
    lexer = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return {**book, "cells": cells, "metadata": {**book["metadata"], **lexer}}


def title(path: Path) -> str:
    first = next(c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "markdown")
    return "".join(first["source"]).splitlines()[0].lstrip("# ")


def toctree(caption: str, entries: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""])


def index() -> str:
    "The first page: the README, and the sidebar."
    readme = re.sub(r"\]\(nbs/(\w+\.ipynb)\)", r"](book/\1)", (TOP / "README.md").read_text())
    readme = readme.replace("](CONTRIBUTING.md)", "](contributing.md)")
    readme = re.sub(r"\]\((?!https?:|book/|pics/|contributing|#)[^)]+\)",
                    f"]({SETTINGS['DEFAULT']['git_url']})", readme)
    trees = [toctree(part, [f"{name(p)} <book/{p.name}>" for p in paths])
             for part, paths in parts().items() if paths]
    try_it = "**Without installing anything:** [choose a scene and drag its objects](gallery.md)."
    readme = readme.replace("## Two commands", f"{try_it}\n\n## Two commands", 1)
    told = '<a href="log.xml">New entries of the log, as an Atom feed.</a>'
    return "\n\n".join([readme, told, toctree("Try it", ["gallery"]), *trees,
                        toctree("Reference", ["api/index", "contributing"])])


def name(path: Path) -> str:
    "A notebook's title in the sidebar."
    said = title(path)
    return said[0].upper() + said[1:] if said.islower() else said


# ---- the page of 41_explorer

def library(*names: str) -> dict:
    "Functions of iodine_nb.tools.page, by themselves: the module imports PyTorch, which need not be here."
    source = ast.parse((TOP / "iodine_nb/tools/page.py").read_text())
    sys.path.insert(0, str(TOP))  # for resources.files("iodine_nb")
    space = dict(base64=base64, gzip=gzip, json=json, re=re, resources=resources, struct=struct)
    mine = [n for n in source.body if isinstance(n, (ast.FunctionDef, ast.Assign))
            and {getattr(n, "name", ""), *(t.id for t in getattr(n, "targets", []))} & set(names)]
    exec(compile(ast.Module(mine, []), "tools/page.py", "exec"), space)
    return space


def explored(model: str) -> dict:
    "What 88_page_engine wrote down of a model: what the page is told, whose its scenes are, the scenes."
    return json.loads((TOP / f"data/runs/{model}/page.json").read_text())


def explorer() -> str:
    "The page, in one file."
    page = library("_IMPORT", "page_file", "joined_modules", "_with_worker", "page_script", "packed",
                   "one_file", "stored_weights")
    records = {model: explored(model) for model in EXPLORED}
    read = lambda model: page["stored_weights"](json.loads((TOP / f"data/weights/{model}.json").read_text()),
                                                (TOP / f"data/weights/{model}.safetensors").read_bytes())
    return page["one_file"]([r["about"] for r in records.values()], {m: read(m) for m in EXPLORED},
                            {model: r["scenes"] for model, r in records.items()})


def png(pixels: bytes, channels: int, height: int, width: int) -> bytes:
    "A picture [H, W, C] with one or three channels."
    row = width * channels
    lines = b"".join(b"\0" + pixels[y * row:(y + 1) * row] for y in range(height))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(
        ">I", zlib.crc32(kind + data))
    kind = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = (b"IHDR", kind), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pictures(model: str) -> list[bytes]:
    "The scenes of a model as PNG files."
    record = explored(model)
    c, h, w = record["about"]["image"]
    pixels, size = gzip.decompress(base64.b64decode(record["scenes"])), c * h * w
    return [png(pixels[i:i + size], c, h, w) for i in range(0, len(pixels), size)]


def scene_link(model: str, i: int, above: str) -> str:
    "A picture that opens the page on its scene."
    words = html.escape(f"scene {i + 1} of {explored(model)['about']['data']}")
    return (f'<a class="scene" href="{above}explorer.html#model={model}&amp;scene={i}">'
            f'<img src="{above}scenes/{model}-{i}.png" alt="Open the explorer on {words}"></a>')


def door(chapter: str) -> dict:
    "A cell that opens the page on a scene of this chapter: in its place, or by itself on a narrow screen."
    _, model, scene, words = DOORS[chapter]
    own = explored(model)["chapters"]
    i = scene + (own.index(chapter) if chapter in own else 0)
    to = f"../explorer.html#model={model}&amp;scene={i}"
    return {"cell_type": "markdown", "id": "door", "metadata": {}, "source":
            f'<div class="door">{scene_link(model, i, "../")}<div><p>{words}</p>'
            f'<p><a class="open" href="{to}">Open the explorer</a></p></div></div>'}


def gallery() -> str:
    "A page of scenes, each of which opens the page of 41_explorer."
    lines = ["# Scenes to take apart", "", "Choose a picture. The [explorer](book/41_explorer.ipynb) opens "
             "on it, has a model take it apart while you watch, and lets you drag its objects. It runs on "
             "your machine, in one file: the first opening loads about twelve megabytes, and no picture "
             "leaves the machine."]
    for model in EXPLORED:
        record = explored(model)
        lines += ["", "## {data}, {image[1]}×{image[2]}: {name}".format(**record["about"]), ""]
        for chapter in dict.fromkeys(record["chapters"]):
            few = [scene_link(model, i, "") for i, c in enumerate(record["chapters"]) if c == chapter]
            said = (f"Scenes of [{chapter}](book/{chapter}.ipynb):" if chapter else
                    f"Taken apart by `{model}`. The first has the most objects of those that come apart "
                    "well; the others are not chosen.")
            lines += [said, "", f'<div class="scenes">{"".join(few)}</div>', ""]
    return "\n".join(lines)


# ---- the log

def entries() -> list[dict]:
    "Every dated entry of the log, newest first: date, title, notebook, the text that follows."
    found = []
    for path in notebooks().values():
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                for block in re.split(r"^(?=## )", source, flags=re.MULTILINE):
                    if head := re.match(r"## (\d{4}-\d\d-\d\d) · (.+)\n?", block):
                        found.append(dict(date=head[1], title=head[2], path=path, text=block[head.end():]))
    return sorted(found, key=lambda e: (e["date"], e["path"].name), reverse=True)


def opening(text: str) -> str:
    "The first paragraphs of an entry: up to the first list, table or code, about a hundred words at most."
    kept, words = [], 0
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if not paragraph or re.match(r"[|*\-#]\s|\||```|\d\.", paragraph) or words > 60: break
        kept.append(paragraph); words += len(paragraph.split())
    return "\n\n".join(kept)


def feed() -> bytes:
    "The log as an Atom feed (RFC 4287)."
    space = "http://www.w3.org/2005/Atom"
    ET.register_namespace("", space)
    root = ET.Element(f"{{{space}}}feed")
    def add(parent, tag, text=None, **attributes):
        element = ET.SubElement(parent, f"{{{space}}}{tag}", attributes)
        element.text = text
        return element
    found = entries()
    add(root, "title", "The log of iodine_nb"); add(root, "id", f"{HOME}/book/29_diary.html")
    add(root, "updated", f"{found[0]['date']}T00:00:00Z")
    add(root, "link", href=f"{HOME}/log.xml", rel="self")
    add(add(root, "author"), "name", SETTINGS["DEFAULT"]["author"])
    for e in found:
        page = f"{HOME}/book/{e['path'].stem}.html#{anchor(e['date'] + ' · ' + e['title'])}"
        entry = add(root, "entry")
        add(entry, "title", e["title"]); add(entry, "id", page)
        add(entry, "updated", f"{e['date']}T00:00:00Z")
        add(entry, "link", href=page); add(entry, "summary", opening(e["text"]))
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def anchor(heading: str) -> str:
    "The name that MyST gives to a heading, as GitHub does."
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# ---- the reference

def signature(node: ast.AST) -> str:
    if isinstance(node, ast.ClassDef): return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){result}"


def public(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")


def described(node: ast.AST, source: str) -> list[str]:
    "One function or class: its name, signature and docstring, and where it is made."
    where = source[:source.find(ast.get_source_segment(source, node))]
    notebook, cell = re.findall(r"^# %% (?:\.\./)+nbs/(\w+)\.ipynb #(\w+)", where, re.MULTILINE)[-1]
    said = html.escape(ast.get_docstring(node) or "", quote=False)
    fields = [f"    {ast.unparse(n)}" for n in node.body if isinstance(n, ast.AnnAssign)] \
        if isinstance(node, ast.ClassDef) else []
    methods = [n for n in getattr(node, "body", []) if isinstance(n, ast.FunctionDef)
               and not n.name.startswith("_")]
    lines = [f"## {node.name}", "", "```python", signature(node), *fields, "```", "", said, "",
             f'<a class="cell-link" href="../book/{notebook}.html#cell-{cell}">the cell that makes it, in '
             f'{notebook}</a>', ""]
    for m in methods:
        lines += [
            f"* `{signature(m)}`: {html.escape(ast.get_docstring(m) or '', quote=False).splitlines()[0]}"
            if ast.get_docstring(m) else f"* `{signature(m)}`"]
    return [*lines, ""]


def api(folder: Path) -> None:
    "A page for every module, from its docstrings; the modules are read, not imported."
    folder.mkdir()
    pages = []
    for path in sorted((TOP / "iodine_nb").rglob("*.py")):
        if path.name.startswith("_"): continue
        module, source = ".".join(path.relative_to(TOP).with_suffix("").parts), path.read_text()
        if "# %% " not in source: continue
        tree = ast.parse(source)
        lines = [f"# {module}", "", ast.get_docstring(tree) or "", ""]
        for node in filter(public, tree.body): lines += described(node, source)
        (folder / f"{module}.md").write_text("\n".join(lines))
        pages.append(module)
    links = "\n".join(f"* [{p}]({p}.md)" for p in pages)
    (folder / "index.md").write_text("# The library\n\nEvery function and class, from its docstring, with "
                                     "a link to the cell that makes it.\n\n"
                                     f"{links}\n\n" + toctree("Modules", pages))


def build(out: Path) -> None:
    source, site = out / "source", out / "html"
    shutil.rmtree(out, ignore_errors=True)
    (source / "book").mkdir(parents=True)
    for path in notebooks().values(): (source / "book" / path.name).write_text(json.dumps(prepared(path)))
    shutil.copytree(TOP / "pics", source / "pics")
    (source / "index.md").write_text(index())
    (source / "gallery.md").write_text(gallery())
    contributing = re.sub(r"\]\(nbs/(\w+\.ipynb)\)", r"](book/\1)", (TOP / "CONTRIBUTING.md").read_text())
    (source / "contributing.md").write_text(contributing)
    api(source / "api")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", TOP / "site", "-d",
                    out / "doctrees", source, site], check=True)
    (site / "log.xml").write_bytes(feed())
    (site / "explorer.html").write_text(explorer())
    (site / "scenes").mkdir()
    for model in EXPLORED:
        for i, picture in enumerate(pictures(model)): (site / f"scenes/{model}-{i}.png").write_bytes(picture)
    print(f"open {site / 'index.html'}")


if __name__ == "__main__": build(Path(sys.argv[1] if len(sys.argv) > 1 else TOP / "_docs"))
