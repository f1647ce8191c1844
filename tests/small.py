"""A run that takes milliseconds a step, for the tests; importable by the processes that they start."""
import numpy as np
import torch

from iodine_nb.scenes.format import SceneFile, save_scenes
from iodine_nb.experiments.experiment import build
from iodine_nb.experiments.presets import preset
from iodine_nb.scenes.sprites import tetrominoes
from iodine_nb.training.fit import fit

OPTIONS = dict(model__image=(3, 14, 14), model__latent=4, model__iterations=1, model__decoder__channels=(8,),
               model__decoder__upsampling=1, model__refinement__channels=(4,),
               model__refinement__mlp=(8,), model__refinement__lstm=8, training__batch_size=4,
               training__log_every=2, training__checkpoint_every=3, training__evaluate_every=100,
               training__precision="float32")
TINY = preset("desk").change(**OPTIONS)
ARGUMENTS = " ".join(
    f"--{k.replace('__', '.').replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, tuple) else v}"
    for k, v in OPTIONS.items())  # the same for the command line


def scenes(path, seed=0):
    save_scenes(path, tetrominoes(16, np.random.default_rng(seed), cell=2), "tetrominoes",
                {"generator": "tetrominoes"})
    return SceneFile(path)


def train(run, data, steps, chosen=TINY, held_out=None):
    chosen = chosen.change(training__steps=steps)
    return fit(build(chosen, seed=0), data, chosen.training, run, held_out, chosen.score, chosen.to_dict(),
               progress=False)


def train_alone(run, data, steps):
    "The same in a process of its own, with a checkpoint every step."
    torch.set_num_threads(1)
    train(run, SceneFile(data), steps, TINY.change(training__checkpoint_every=1))
