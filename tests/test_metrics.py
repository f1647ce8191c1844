from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import adjusted_rand_score

from iodine_nb.scenes.format import Batch, SceneFile, save_scenes
from iodine_nb.scenes.sprites import multi_dsprites, tetrominoes
from iodine_nb.training.baselines import Clusters, baseline_scores, baselines
from iodine_nb.training.metrics import (adjusted_rand_index, contingency, decomposition_scores, evaluate,
                                        mean_iou, segmentation_scores)

labels = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n)] * 2))


@settings(max_examples=300, deadline=None)
@given(labels)
def test_ari_equals_scikit_learn(pair):
    true, predicted = (torch.tensor([v]) for v in pair)
    ours = adjusted_rand_index(contingency(true, predicted, 5, 5)).item()
    assert abs(ours - adjusted_rand_score(*pair)) < 1e-12


@settings(max_examples=100, deadline=None)
@given(labels)
def test_foreground_ari_leaves_out_true_background(pair):
    true, predicted = (np.array(v) for v in pair)
    ours = adjusted_rand_index(contingency(torch.tensor(true[None]), torch.tensor(predicted[None]), 5,
                                           5)[:, 1:]).item()
    assert (abs(ours - (adjusted_rand_score(true[true > 0], predicted[true > 0]) if (true > 0).any() else 1))
            < 1e-12)


def test_renaming_slots_changes_nothing():
    g = torch.Generator().manual_seed(0)
    true, predicted = torch.randint(0, 4, (3, 8, 8), generator=g), torch.randint(0, 5, (3, 8, 8), generator=g)
    renamed = torch.tensor([3, 1, 4, 0, 2])[predicted]
    a, b = segmentation_scores(true, predicted), segmentation_scores(true, renamed)
    for k in a: assert torch.allclose(a[k], b[k])


def test_mean_iou_by_hand():
    true = torch.tensor([[0, 1, 1, 1, 2, 2]])
    # slot 5 has two of object 1's three pixels and one of object 2's: IoU 2/4; slot 3 has one of object 2's:
    # 1/2
    predicted = torch.tensor([[0, 5, 5, 0, 5, 3]])
    assert abs(mean_iou(contingency(true, predicted, 3, 6)).item() - (2 / 4 + 1 / 2) / 2) < 1e-12


def test_scores_by_masks_or_by_explanation():
    truth = torch.tensor([[[0, 1, 1], [0, 2, 2]]])
    last = SimpleNamespace(segmentation=torch.zeros_like(truth), explanation=truth,
                           reconstruction=torch.full((1, 3, 2, 3), .5))
    model, batch = (SimpleNamespace(infer=lambda images, generator=None: [None, last]),
                    Batch(torch.zeros(1, 3, 2, 3), truth.byte()))
    by_masks, by_explanation = (decomposition_scores(model, batch),
                                decomposition_scores(model, batch, by="explanation"))
    assert (by_masks["ari_fg"].item() == 0
            and by_explanation["ari_fg"].item() == by_explanation["ari"].item() == 1)
    assert by_masks["mse"].item() == by_explanation["mse"].item() == .25
    with pytest.raises(ValueError, match="by: must be masks or explanation, is 'colour'"):
        decomposition_scores(model, batch, by="colour")


def test_a_baseline_is_scored_as_any_model_is(tmp_path):
    scenes = tetrominoes(6, np.random.default_rng(0), cell=2)
    save_scenes(tmp_path / "x.h5", scenes, "tetrominoes", {})
    found = baseline_scores(Batch.of(scenes), 4)
    assert list(found) == list(baselines(4)) and found["one slot for everything"]["ari_fg"] == [0]
    for name, model in baselines(4).items():
        one, other = evaluate(model, SceneFile(tmp_path / "x.h5"), batch_size=4)["mse"][:2]
        assert one == other and abs(one - found[name]["mse"][0]) < 1e-7


def test_what_clusters_paint_is_their_mean_colour():
    "So the error of a clustering by colour is what k-means lowers: smaller with every cluster."
    batch = Batch.of(tetrominoes(3, np.random.default_rng(2), cell=3))
    errors = []
    for k in (1, 2, 4, 8):
        s, = Clusters(k).infer(batch.image)
        assert torch.equal(s.masks.sum(1), torch.ones(3, 1, 21, 21)) and s.masks.shape[1] == k
        for i in range(3):
            for label in s.segmentation[i].unique():
                here = s.segmentation[i] == label
                mean = batch.image[i][:, here].mean(1)
                assert torch.allclose(s.reconstruction[i][:, here], mean[:, None], atol=1e-5)
        errors.append(((s.reconstruction - batch.image) ** 2).mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < .2 * errors[0]


def test_colour_solves_flat_sprites_and_one_colour_undoes_it():
    for colours, low, high in (("own", .999, 1), ("one", -.1, .1)):
        batch = Batch.of(multi_dsprites(8, np.random.default_rng(3), size=32, colours=colours))
        found = baseline_scores(batch, 6)["k-means, colour"]
        assert low <= found["ari_fg"][0] <= high and found["ari"][0] > .8
