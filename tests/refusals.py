"""Calls that would give a result which looks right, or a long traceback. Each must end in one sentence. Run
by test_edges in a process of its own, without the type checks of the tests, which users do not have."""
import math, re, sys, types
from dataclasses import replace

import numpy as np
import torch

from iodine_nb.core import Noise, normal, seeded
from iodine_nb.experiments.ablation import meant, small
from iodine_nb.experiments.experiment import arguments_of, build
from iodine_nb.models.decoder import Decoder, DecoderConfig
from iodine_nb.models.iodine import IODINEConfig
from iodine_nb.models.iterative import binarise
from iodine_nb.models.slot_attention import AddedDecoder
from iodine_nb.models.vae import VAE, VAEConfig
from iodine_nb.models.vle import NetworkConfig, VLEConfig
from iodine_nb.scenes.clevr import Look, norb
from iodine_nb.scenes.format import Batch, Generated, Loader, crop_and_resize
from iodine_nb.scenes.sprites import recoloured, tetrominoes, textured
from iodine_nb.tools.explorer import page_html
from iodine_nb.tools.plots import plot_by_slot, plot_decomposition, plot_iterations
from iodine_nb.tools.probes import dci
from iodine_nb.tools.speed import measure
from iodine_nb.tools.watch import figure_of
from iodine_nb.training.baselines import Clusters
from iodine_nb.training.fit import TrainingConfig
from iodine_nb.training.metrics import contingency, matched_slots, probe_factors, segmentation_scores
from small import TINY

GREY, FOUR = torch.rand(2, 3, 8, 8), tetrominoes(4, np.random.default_rng(0), cell=2)
LABELS, SMALL = torch.randint(0, 3, (2, 8, 8)), DecoderConfig((4,), 3)
PCA_VAE = VAE(VAEConfig((1, 8, 8), components=3, likelihood="gaussian"))


class Odd(torch.nn.Module):
    "A model of one's own, whose argument no file could say."
    def __init__(self, width: int = 2.5): super().__init__()


FOUR_PICTURES = Batch.of(FOUR).image
DRAWN = types.SimpleNamespace(masks=torch.ones(4, 1, 1, 14, 14), reconstruction=FOUR_PICTURES)
TWICE = [types.SimpleNamespace(name="w")] * 2

CALLS = [
    (lambda: TrainingConfig(steps=3.), "steps: must be int, is 3.0"),
    (lambda: TrainingConfig(seed=True), "seed: must be int, is True"),
    (lambda: IODINEConfig(image=[3, 8, 8]), r"image: must be tuple, is \[3, 8, 8\]"),
    (lambda: VLEConfig((3, 8)), r"image: must be 3 values, is \(3, 8\)"),
    (lambda: IODINEConfig(slots="2"), "slots: must be int, is '2'"),
    (lambda: IODINEConfig(decoder=None), "decoder: must be a table of fields"),
    (lambda: IODINEConfig(decoder={"kernel": 3}), "decoder: must be DecoderConfig"),
    (lambda: VAEConfig(skips="no"), "skips: must be bool, is 'no'"),
    (lambda: segmentation_scores(LABELS / 255, LABELS), r"true: must be whole numbers \[B, H, W\]"),
    (lambda: segmentation_scores(LABELS, LABELS.float()), "predicted: must be whole numbers"),
    (lambda: segmentation_scores(LABELS[0], LABELS[0]), "true: must be whole numbers"),
    (lambda: Batch.of(replace(FOUR, image=FOUR.image / 255)), "scenes: image: must be uint8"),
    (lambda: Batch.of(replace(FOUR, mask=FOUR.mask[:3])), "scenes: mask: must be"),
    (lambda: Generated(lambda n, rng: Batch(255 * GREY), "bright"), "bright: images: must be from 0 to 1"),
    (lambda: Loader(None, 0), "batch_size: must be at least 1, is 0"),
    (lambda: crop_and_resize(FOUR, (9, 2, 0, 9), None), "crop: must be rows"),
    (lambda: crop_and_resize(FOUR, (0, 99, 0, 9), None), "crop: must be rows"),
    (lambda: binarise(255 * GREY), "images: must be from 0 to 1, are from"),
    (lambda: binarise(GREY * math.nan), "images: must be from 0 to 1, are from nan"),
    (lambda: Clusters(2).infer(255 * GREY), "images: must be from 0 to 1, are from"),
    (lambda: Clusters(2).infer(GREY.movedim(1, 3)), r"images: must be \[B, 1 or 3, H, W\]"),
    (lambda: Decoder(SMALL, 4, (3, 8, 8))(torch.zeros(1, 2, 5)), "z: must have 4 numbers a slot, has 5"),
    (lambda: AddedDecoder(SMALL, 4, (3, 8, 8))(torch.zeros(1, 2, 1)), "z: must have 4 numbers a slot, has 1"),
    (lambda: build(replace(TINY, model=VAEConfig())), "model: is of VAEConfig, iodine needs IODINEConfig"),
    (lambda: PCA_VAE.infer(GREY[:, :1]), "model: PCA's axes are not known"),
    (lambda: probe_factors(np.zeros((9, 2)), {"x": np.zeros(8)}), "factors/x: has 8 rows for 9 latents"),
    (lambda: dci(np.zeros((9, 2)), {"x": np.arange(18.)}), "factors/x: has 18 rows for 9 latents"),
    (lambda: contingency(LABELS, LABELS, 2, 3), "true: labels must be below 2, one is 2"),
    (lambda: matched_slots(None, None, 3), "mask: objects are matched"),
    (lambda: small("relux"), "variant: must be 'base' or"),
    (lambda: meant(TINY, {"training__seed": 3}), "training.seed: a variant has none"),
    (lambda: arguments_of(Odd), "Odd: width: must be"),
    (lambda: VLEConfig(network=NetworkConfig(dropout=2.)), "model.network.dropout: must be below 1, is 2.0"),
    (lambda: figure_of("desk", None, "iteration"), "what: must be 'decomposition' or"),
    (lambda: norb(0, 0, 0, 0, -1), "lighting: must be from 0 to 5, is from -1 to -1"),
    (lambda: Look(camera=(1., 2.)), "camera and lamps: must be places of 3 numbers"),
    (lambda: recoloured(None, np.ones((1, 1, 3)), "gray"), "colours: must be 'own' or"),
    (lambda: textured(None, None, LABELS.numpy(), 2, "grtaing"), "texture: must be 'flat' or"),
    (lambda: normal(Noise((0,), torch.arange(1), 1), 4, 2, device="cpu"), "generator: draws noise for 1 row"),
    (lambda: seeded(0, -1), "seed: must be a whole number from 0 up, is -1"),
    (lambda: measure(IODINEConfig(), "truncated", 2, threads=0), "threads: must be at least 1, is 0"),
    (lambda: plot_decomposition(GREY, DRAWN), r"images: \(2, 3, 8, 8\), but the decomposition is of"),
    (lambda: plot_decomposition(FOUR_PICTURES[:3], DRAWN), "images: .*, but the decomposition is of"),
    (lambda: plot_by_slot(Batch(FOUR_PICTURES), {"by slot": DRAWN}), "batch: has no masks"),
    (lambda: plot_iterations(GREY, [DRAWN]), "images: .*, but the decomposition is of"),
    (lambda: page_html(TWICE), "models: w, w are not all of different names")]


def answer(call) -> str:
    try: return f"gave {call()!r}"[:120]
    except ValueError as e: return str(e)
    except Exception as e: return f"raised {type(e).__name__}: {e}"


if __name__ == "__main__":
    answers = [(said, answer(call)) for call, said in CALLS]
    wrong = [f"{said}: {found}" for said, found in answers if not re.match(said, found)]
    assert IODINEConfig(sigma=1) == IODINEConfig(sigma=1.)  # a whole number is one of real ones
    sys.exit("\n".join(wrong) or 0)
