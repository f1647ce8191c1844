from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import adjusted_rand_score

from iodine_nb.scenes.format import Batch
from iodine_nb.training.metrics import (adjusted_rand_index, contingency, decomposition_scores, mean_iou,
                                        segmentation_scores)

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
