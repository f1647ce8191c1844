"""With several workers (pytest -n 2) a file that sets up something costly stays on one."""
import shutil

import pytest

TOGETHER = {"test_browser": "browser", "test_page_engine": "browser", "test_site": "site",
            "test_probes": "probes", "test_wheel": "wheel"}  # file: worker


def worker_of(nodeid: str) -> str:
    "What is given to a worker at once: a group of the files above, or a single test."
    file = nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")
    return TOGETHER.get(file, nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The groups first, then test by test. The groups of xdist itself (--dist loadgroup) are not seen with
    pytest 9.2 and pytest-xdist 3.8: every worker built the site, the wheel and the pages for itself."""
    from xdist.scheduler import LoadScopeScheduling
    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid): return worker_of(nodeid)
    return Groups(config, log)


@pytest.fixture(scope="module")
def browser():
    "Debian's chromium; who uses it is skipped where there is none."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()
