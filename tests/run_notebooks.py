"""Run notebooks from top to bottom and keep their outputs; with --fresh, print them and leave the file alone.

Figures are written to pics/ only where the environment says IODINE_NB_BOOK=1, as `make book` does."""
import argparse, os, sys, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def skipped(cell) -> bool:
    return cell.cell_type == "code" and "#| eval: false" in cell.source


def is_live(out) -> bool:
    "Whether an output is a widget or a progress bar, of which nothing is left without a kernel."
    return "application/vnd.jupyter.widget-view+json" in out.get("data", {})


def run(path: Path, fresh: bool) -> None:
    "Execute one notebook in its own folder; cells marked `eval: false` are left out."
    notebook, begun = nbformat.read(path, 4), time.monotonic()
    client = NotebookClient(notebook, timeout=1800, kernel_name="python3",
                            extra_arguments=["--log-level=ERROR"],
                            resources={"metadata": {"path": str(path.parent)}})
    with client.setup_kernel():
        for i, cell in enumerate(notebook.cells):
            if cell.cell_type != "code" or skipped(cell): continue
            client.execute_cell(cell, i)
            cell.outputs = [out for out in cell.outputs if not is_live(out)]
            if fresh: show(cell)
    if not fresh: nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - begun:.0f} s", flush=True)


def show(cell) -> None:
    "What a cell printed."
    for out in cell.outputs:
        data = out.get("data", {})
        text = out.get("text") or data.get("text/markdown") or data.get("text/plain", "")
        if text and not text.startswith("<Figure"): print(text.rstrip(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--fresh", action="store_true")
    arguments = parser.parse_args()
    os.environ.pop("IN_TEST", None)  # which nbdev_test sets: some cells are then cut short
    for path in arguments.notebooks:
        try: run(path, arguments.fresh)
        except CellExecutionError as e: sys.exit(f"{path}: {e}")
