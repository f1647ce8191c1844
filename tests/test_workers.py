"""With several workers, what is costly to set up is set up once."""
import os, shutil, subprocess, sys
from pathlib import Path


def test_tests_of_one_group_run_in_one_worker(tmp_path):
    "Here, of two files that share a browser, beside a file without a group."
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    test = ("import os, pytest, time\n@pytest.mark.parametrize('i', range(6))\n"
            "def test_where(i):\n    time.sleep(.05)\n"
            "    with open('{}', 'a') as f: f.write(os.environ['PYTEST_XDIST_WORKER'] + '\\n')\n")
    for file, said in (("test_browser", "group"), ("test_page_engine", "group"), ("test_core", "single")):
        (tmp_path / f"{file}.py").write_text(test.format(tmp_path / said))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    clean |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", tmp_path],
                          cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    group, single = ((tmp_path / said).read_text().split() for said in ("group", "single"))
    assert len(group) == 12 and len(set(group)) == 1 and len(single) == 6
