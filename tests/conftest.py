"""With several workers (pytest -n 2 --dist loadgroup) a file that sets up something costly stays on one."""
import shutil

import pytest

TOGETHER = {"test_browser": "browser", "test_page_engine": "browser", "test_site": "site",
            "test_probes": "probes", "test_wheel": "wheel"}  # file: worker


def pytest_collection_modifyitems(items):
    for item in items:
        if group := TOGETHER.get(item.path.stem): item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="module")
def browser():
    "Debian's chromium; who uses it is skipped where there is none."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()
