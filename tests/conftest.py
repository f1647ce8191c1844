"""With several workers (pytest -n 2 --dist loadgroup) a file that sets up something costly stays on one."""
import pytest

TOGETHER = {"test_browser": "browser", "test_page_engine": "browser", "test_wheel": "wheel"}  # file: worker


def pytest_collection_modifyitems(items):
    for item in items:
        if group := TOGETHER.get(item.path.stem): item.add_marker(pytest.mark.xdist_group(group))
