"""The library is what the notebooks export, and they are clean: both commands of nbdev change nothing."""
import subprocess, sys
from pathlib import Path

TOP = Path(__file__).parent.parent


def contents() -> dict[Path, bytes]:
    "Every notebook and every module, as it is on disk."
    kinds = (("nbs", "*.ipynb"), ("iodine_nb", "*.py"))
    return {p: p.read_bytes() for folder, kind in kinds for p in sorted((TOP / folder).rglob(kind))}


before = contents()
for command in ("nbdev_clean", "nbdev_export"):
    subprocess.run([Path(sys.executable).parent / command], cwd=TOP, check=True)
after = contents()
changed = [str(p.relative_to(TOP)) for p in before.keys() | after.keys() if before.get(p) != after.get(p)]
if changed:
    sys.exit(f"out of sync: {', '.join(sorted(changed))}. They are corrected now: look at them and commit.")
print("notebooks clean, library in sync")
