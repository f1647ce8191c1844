"""With several workers (pytest -n 2 --dist loadgroup) a file that sets up something costly stays on one."""
import pytest

TOGETHER = ("test_browser", "test_wheel")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in TOGETHER: item.add_marker(pytest.mark.xdist_group(item.path.stem))
