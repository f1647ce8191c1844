"""The explorer in a real browser, in Voila and in JupyterLab; skipped where there is no Debian `chromium`."""
import json, os, re, shutil, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path

import pytest
import websocket

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: browser tests are skipped")
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    "Jupyter's own folders, empty ones."
    home = tmp_path_factory.mktemp("jupyter")
    return (os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
            | {f"JUPYTER_{k}_DIR": str(home / k) for k in ("CONFIG", "RUNTIME", "DATA")}
            | {"IPYTHONDIR": str(home / "ipython")})


def wait_for(url, process, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try: return urllib.request.urlopen(url, timeout=5).status
        except urllib.error.HTTPError as e: return e.code
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, f"nothing answers at {url}"
        time.sleep(.1)


@pytest.fixture(scope="module")
def page():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 800})
        browser.close()


@pytest.fixture(scope="module")
def voila(environment):
    port = free_port()
    begun = time.monotonic()
    process = subprocess.Popen([BIN / "iodine-nb", "explore", "--port", str(port), "--no-browser"],
                               env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(f"http://127.0.0.1:{port}/static/nothing", process)
    yield f"http://127.0.0.1:{port}/", begun
    process.terminate(); process.wait(20)


def drag_a_slider(page):
    "Twenty steps by keyboard: the kernel's words and picture change, and `undo` brings the picture back."
    note, picture = (page.locator("text=/redrawn in/"),
                     page.locator("img.widget-image, .widget-image img").nth(1))
    page.locator(".iodine-slot-2").click()
    page.wait_for_selector("text=/slot 2 · .* 0 to undo · redrawn in/")
    before = picture.get_attribute("src")
    page.locator(".noUi-handle").first.focus()
    for _ in range(20): page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=/slot 2 · .* 1 to undo · redrawn in/")
    page.wait_for_function("([e, s]) => e.getAttribute('src') != s", arg=[picture.element_handle(), before])
    words = note.inner_text()
    page.get_by_role("button", name="undo").click()
    page.wait_for_selector("text=/slot 2 · .* 0 to undo · redrawn in/")
    return words


def nothing_overlaps(page, selectors):
    boxes = [page.locator(s).nth(i).bounding_box() for s in selectors
             for i in range(page.locator(s).count()) if page.locator(s).nth(i).is_visible()]
    for i, a in enumerate(boxes):
        assert a["x"] >= 0 and a["x"] + a["width"] <= 1280
        for b in boxes[:i]:
            assert (a["x"] + a["width"] <= b["x"] + 1 or b["x"] + b["width"] <= a["x"] + 1
                    or a["y"] + a["height"] <= b["y"] + 1 or b["y"] + b["height"] <= a["y"] + 1)


def test_the_web_page(page, voila):
    url, begun = voila
    page.goto(url)
    page.wait_for_selector(".noUi-handle", timeout=60_000)
    page.wait_for_selector("text=composed from its slots")
    print(f"ready after {time.monotonic() - begun:.1f} s; {drag_a_slider(page)}")
    nothing_overlaps(page, ["button.iodine-slot", ".noUi-target", "img"])
    page.get_by_role("tab", name="Iterations").click()
    page.locator(".noUi-handle:visible").first.focus()
    for _ in range(5): page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=/t = 10 .beyond training./")
    page.get_by_label("show what f_φ sees").check()
    page.wait_for_selector("text=leave one out")
    page.get_by_role("tab", name="Objects").click()
    page.get_by_role("button", name="copy its slot").click()
    page.wait_for_selector("text=/1 to undo/")
    assert "from iodine_nb" not in page.content()  # sources are not shown


def test_the_page_runs_no_code_of_its_visitors(page, voila):
    url, _ = voila
    html = urllib.request.urlopen(url, timeout=60).read().decode()
    kernel = re.search(r'"kernelId":\s*"([0-9a-f-]+)"', html)[1]
    def ask(kind, content):
        ws = websocket.create_connection(f"{url.replace('http', 'ws')}api/kernels/{kernel}/channels",
                                         timeout=8)
        header = {"msg_id": "1", "msg_type": kind, "username": "", "session": "s", "version": "5.3",
                  "date": "2026-01-01T00:00:00Z"}
        ws.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content,
                            "channel": "shell", "buffers": []}))
        answers = []
        try:
            while True: answers.append(ws.recv() if (ws.settimeout(6), True)[1] else None)
        except (websocket.WebSocketTimeoutException, websocket.WebSocketConnectionClosedException): pass
        ws.close()
        return [a for a in answers if (b'"1"' in a if isinstance(a, bytes) else '"1"' in a)]
    assert any("kernel_info_reply" in str(a) for a in ask("kernel_info_request", {}))  # the line is open
    code = {"code": "open('visited', 'w')", "silent": False, "store_history": False, "user_expressions": {},
            "allow_stdin": False, "stop_on_error": True}
    assert not ask("execute_request", code)


def test_elsewhere_it_asks_for_a_token(environment):
    port = free_port()
    process = subprocess.Popen([BIN / "iodine-nb", "explore", "--ip", "0.0.0.0", "--port", str(port),
        "--no-browser"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        token = re.search(r"token=(\S+)", process.stdout.readline())[1]
        url = f"http://127.0.0.1:{port}/"
        wait_for(url + "static/nothing", process)
        answer = lambda u: urllib.request.urlopen(u, timeout=60)
        def body(u):
            try: return answer(u).read().decode()
            except urllib.error.HTTPError as e: return f"{e.code}"
        assert "kernelId" not in body(url) and "kernelId" in body(url + f"?token={token}")
    finally:
        process.terminate(); process.wait(20)


def test_a_busy_port_is_said_to_be_busy(capsys):
    from iodine_nb.cli import main
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); s.listen()
        assert main(["explore", "--port", str(s.getsockname()[1]), "--no-browser"]) == 2
    assert "port: cannot listen on 127.0.0.1" in capsys.readouterr().err


def test_in_jupyterlab(page, environment, tmp_path):
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [],
            "source": "from iodine_nb.tools.explorer import explorer\nexplorer('desk')"}
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": [cell],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
                                                  "nbformat": 4, "nbformat_minor": 5}))
    port = free_port()
    process = subprocess.Popen(
        [BIN / "jupyter", "lab", "--no-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
         "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}", "--allow-root",
         "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/api", process)
        page.goto(f"http://127.0.0.1:{port}/lab/tree/x.ipynb")
        page.wait_for_selector("text=/\\| Idle/", timeout=120_000)
        page.locator(".jp-Notebook .jp-Cell").first.click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector(".iodine-slot-0", timeout=120_000)
        page.wait_for_selector(".noUi-handle", timeout=60_000)
        drag_a_slider(page)
    finally:
        process.terminate(); process.wait(20)
