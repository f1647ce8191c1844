"""Scores of shipped weights scene by scene; `python tests/by_scene.py` writes them anew, from all 320 scenes.

The tests look at the first batch alone, whose noise is the same whether or not more batches follow."""
import json, sys, tempfile
from pathlib import Path

import numpy as np
import torch

from iodine_nb.experiments.experiment import card_of, load_model, scenes_of
from iodine_nb.training.metrics import evaluate

KEPT = Path(__file__).with_suffix(".json")
FIRST = 64  # evaluate's batch


def scores_by_scene(name: str, folder: Path, scenes: int = 320) -> dict[str, list[float]]:
    "Of the scenes that `iodine-nb eval NAME` takes without a file, the scores of the first so many."
    x, model, found = card_of(name)[0], load_model(name)[0], []
    def noted(model, batch, generator):
        found.append(x.score(model, batch, generator=generator))
        return found[-1]
    file, = scenes_of(name, folder).values()
    evaluate(model, file, seeds=(0,), batch_size=FIRST, scenes=scenes, score=noted)
    return {quantity: torch.cat([part[quantity] for part in found]).tolist() for quantity in found[0]}


def check(name: str, folder: Path) -> None:
    """Kept are the scores of all 320 scenes, whose means the file beside the weights has; those of the first
    batch are found anew."""
    kept, card = json.loads(KEPT.read_text())[name], load_model(name)[1]["scores"]["best_of_1"]
    assert kept.keys() == card.keys()
    for quantity, values in kept.items():
        assert len(values) == 320 and abs(np.mean(values) - card[quantity][0]) < 1e-4, quantity
    # the same scenes and random numbers; elsewhere torch may round otherwise, and a scene may tip over
    for quantity, values in scores_by_scene(name, folder, FIRST).items():
        off = np.abs(np.array(values) - kept[quantity][:FIRST])
        assert sum(off > (1e-4 if quantity.startswith("mse") else .01)) <= 4, (name, quantity, off.round(4))


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in sys.argv[1:] or kept:
        with tempfile.TemporaryDirectory() as folder: found = scores_by_scene(name, Path(folder))
        kept[name] = {quantity: [round(v, 5) for v in values] for quantity, values in found.items()}
        lines = [f" {json.dumps(n)}: {json.dumps(v, separators=(',', ':'))}" for n, v in sorted(kept.items())]
        KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(name, {q: sum(v) / len(v) for q, v in found.items()}, flush=True)
