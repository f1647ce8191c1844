from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import adjusted_rand_score

from iodine_nb.scenes.format import Batch, SceneFile, Scenes, save_scenes
from iodine_nb.scenes.sprites import multi_dsprites, tetrominoes
from iodine_nb.training.baselines import Clusters, baseline_scores, baselines
from iodine_nb.training.metrics import (adjusted_rand_index, card_table, contingency, decomposition_scores,
                                        disentanglement, each_tensor, evaluate, intersection_over_union,
                                        loss_scores, lowest, match_slots, matched_slots, mean_and_spread,
                                        mean_iou, object_latents, probe_factors, score_table,
                                        segmentation_scores, way_of)

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


def test_scores_by_masks_by_explanation_and_with_the_background_first():
    truth = torch.tensor([[[0, 1, 1], [0, 2, 2]]])
    last = SimpleNamespace(segmentation=torch.zeros_like(truth), explanation=truth,
                           background_first=2 - truth, reconstruction=torch.full((1, 3, 2, 3), .5))
    model, batch = (SimpleNamespace(infer=lambda images, generator=None: [None, last]),
                    Batch(torch.zeros(1, 3, 2, 3), truth.byte()))
    by_masks, by_explanation = (decomposition_scores(model, batch),
                                decomposition_scores(model, batch, by="explanation"))
    assert (by_masks["ari_fg"].item() == 0
            and by_explanation["ari_fg"].item() == by_explanation["ari"].item() == 1)
    assert by_masks["mse"].item() == by_explanation["mse"].item() == .25
    assert decomposition_scores(model, batch, by="background")["ari"].item() == 1
    with pytest.raises(ValueError, match="by: must be 'masks' or 'explanation' or 'background', is 'colour'"):
        decomposition_scores(model, batch, by="colour")
    del last.background_first
    with pytest.raises(ValueError, match="masks only, and no likelihood of pixels that background could ask"):
        decomposition_scores(model, batch, by="background")


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


def test_overlaps_and_matches_by_hand():
    table = torch.tensor([[[4., 0.], [1., 2.], [0., 3.]]]).double()
    iou = torch.tensor([[[4/5, 0], [1/7, 2/6], [0, 3/5]]])
    assert torch.allclose(intersection_over_union(table).float(), iou)
    assert intersection_over_union(torch.zeros(1, 1, 1)).item() == 0  # not 0 / 0
    assert match_slots(intersection_over_union(table)).tolist() == [[0, -1, 1]]  # two slots for three
    none = torch.tensor([[[5., 1.], [0., 0.]], [[5., 0.], [0., 1.]]])  # the first picture has no object
    assert mean_iou(none).tolist() == [1., 1.]
    one_slot = torch.tensor([[[4.], [1.], [3.]]])  # an object that has no slot counts as 0
    assert mean_iou(one_slot).tolist() == pytest.approx([3 / 8 / 2])


def test_labels_up_to_sixteen_bits_are_scored():
    true, far = torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 65_535, 65_535]]])
    assert segmentation_scores(true, far)["ari"] == 1
    with pytest.raises(ValueError, match="predicted: labels must be from 0 to 65,535, one is 65536"):
        segmentation_scores(true, far + 1)


def test_the_lowest_loss_wins_and_a_broken_one_loses():
    losses = [torch.tensor([1., torch.nan, 3., torch.inf]), torch.tensor([2., 5., -torch.inf, 7.])]
    assert lowest(losses).tolist() == [0, 1, 1, 1]


def test_nothing_to_score_is_refused(tmp_path):
    save_scenes(tmp_path / "x.h5", tetrominoes(3, np.random.default_rng(0), cell=2), "t", {})
    file, many = SceneFile(tmp_path / "x.h5"), SimpleNamespace(num_processes=4, process_index=0)

    for how in (dict(scenes=0), dict(seeds=())):
        with pytest.raises(ValueError, match="at least one of each is needed"):
            evaluate(Clusters(1), file, **how)
    with pytest.raises(ValueError, match="scenes: 2 cannot be divided among 4 processes"):
        evaluate(Clusters(1), file, scenes=2, accelerator=many)
    seen = []
    def score(model, batch, generator):
        seen.append((len(batch), generator.draw(2)))
        return {"b": torch.arange(len(batch)), "a": batch.image.mean((1, 2, 3))}
    found = evaluate(None, file, (4, 5), 2, score=score)
    assert [n for n, _ in seen] == [2, 1, 2, 1] and found["b"] == [1 / 3] * 2 and list(found) == ["b", "a"]
    assert found["a"][0] == pytest.approx(file[:].image.mean() / 255)
    assert len({tuple(v.flatten().tolist()) for _, v in seen}) == 4  # noise of their own
    half = SimpleNamespace(num_processes=2, process_index=1, device="cpu", reduce=lambda total, how: total)
    seen.clear()
    evaluate(None, file, (4,), 3, score=score, accelerator=half)
    assert [n for n, _ in seen] == [1]  # the second of three


def test_losses_are_scores_of_every_picture():
    class Model(torch.nn.Module):
        def loss(self, batch, generator): return {"loss": batch.image.mean() * (1 + (generator is not None))}
    class Plain(torch.nn.Module):
        def loss(self, batch): return {"loss": batch.image.mean()}
    batch = Batch(torch.full((3, 1, 2, 2), .5))
    assert loss_scores(Model(), batch, torch.Generator())["loss"].tolist() == [1.] * 3
    assert loss_scores(Plain(), batch, torch.Generator())["loss"].tolist() == [.5] * 3


def test_scores_in_words():
    assert score_table({"z": [1.], "mse": [.25, .75], "ari_fg": [1., 1.]}) == (
        "ARI-FG   1.0000 ± 0.0000\nMSE      0.5000 ± 0.2500\nz        1.0000")
    assert [way_of(k) for k in ("best_of_1", "best_of_3_descent_20", "best_of_10_iterations_5_kl_0.5",
                                "best_of_1_explanation", "best_of_3_background")] == [
        "single runs", "best of 3, descent 20", "best of 10, T = 5, KL × 0.5", "best of 1, by explanation",
        "best of 3, background first"]
    assert mean_and_spread([.5]) == "0.500" and mean_and_spread([0., 1.], 2) == "0.50 ± 0.50"
    card = {"a": {"best_of_1": dict(ari_fg=[.5], ari=[.25], miou=[1.], mse=[.00123, .00123])}}
    row = "| a | single runs | 0.500 | 0.250 | 1.000 | 0.0012 ± 0.0000 |"
    assert card_table(card).splitlines()[2] == row


def test_nested_tensors_are_changed_and_none_stays():
    Pair = namedtuple("Pair", "a b")
    found = each_tensor(Pair(Pair(torch.ones(1), None), torch.ones(2)), lambda v: v + 1)
    assert found.a.a.item() == 2 and found.a.b is None and found.b.tolist() == [2, 2]


class Twice:
    "Takes made scenes apart without a fault; a slot's vector says which object it is, and in which scene."
    def infer(self, images, generator=None):
        scene, k = (images[:, 0, 0, 0] * 255).round(), torch.arange(3.)
        masks = torch.nn.functional.one_hot(self.true, 3).movedim(-1, 1)[:, :, None].float()
        latents = torch.stack([scene[:, None].expand(-1, 3), k.expand(len(images), 3)], -1)
        self.asked = getattr(self, "asked", []) + [len(images)]
        return [SimpleNamespace(masks=masks[:len(images)], segmentation=self.true[:len(images)],
                                latents=latents, means=None, reconstruction=None)]


def test_vectors_come_with_the_factors_of_their_objects():
    true = np.array([[[0, 1], [2, 2]]] * 5, np.uint8)
    image = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 2, 2, 1)).copy()
    number = np.arange(5)[:, None] * 10 + np.arange(3)
    scenes, model = Scenes(image, true, np.ones((5, 3), bool), {"number": number}), Twice()
    model.true = torch.from_numpy(true).long()
    latents, factors = object_latents(model, scenes, part=2)
    assert model.asked == [2, 2, 1] and latents.shape == (10, 2)
    assert (factors["number"] == latents[:, 0] * 10 + latents[:, 1]).all()
    half = torch.tensor([[[1, 1], [2, 2]]])  # slot 1 has object 1 and background, whose pixels do not count
    e = SimpleNamespace(segmentation=half, masks=torch.zeros(1, 3, 1, 2, 2), means=None, reconstruction=None,
                        latents=None)
    assert [v.tolist() for v in matched_slots(e, torch.tensor([[[0, 1], [2, 1]]]), 3)] == [[], [], []]
    assert [v.tolist() for v in matched_slots(e, torch.tensor([[[0, 1], [2, 1]]]), 3, .4)] == [
        [0, 0], [1, 2], [1, 2]]


def test_probes_read_what_is_there_and_importance_is_shared():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 3))
    factors = {"x": 2 * z[:, 0] + 1, "shape": (z[:, 1] > 0).astype(int), "same": np.ones(300),
               "orientation": np.arctan2(z[:, 2], 1.), "color": np.stack([z[:, 0], np.zeros(300)], 1)}
    scores, importance, dci = probe_factors(z, factors)
    assert set(scores) == {"x", "shape", "orientation cos", "orientation sin", "color 0"}
    assert scores["x"]["linear"] > .99 and scores["x"]["forest"] > .9 and scores["x"]["chance"] == 0
    assert scores["shape"]["kinds"] and not scores["x"]["kinds"] and not scores["color 0"]["kinds"]
    assert .45 < scores["shape"]["chance"] < .6
    assert scores["shape"]["forest"] > .95 and scores["shape"]["linear"] > .85
    assert importance.shape == (3, 5) and [importance[:, i].argmax() for i in (0, 1, 3)] == [0, 1, 2]
    assert dci == disentanglement(importance) and dci["completeness"] > .7
    assert probe_factors(z, {"x": factors["x"]}, seed=1)[0]["x"] != scores["x"]


def test_disentanglement_by_hand():
    found = lambda rows: tuple(round(v, 6) for v in disentanglement(np.array(rows)).values())
    assert found([[1., 0.], [0., 1.]]) == (1., 1.) and found([[1., 1.], [1., 1.]]) == (0., 0.)
    share = lambda *p: -sum(v * np.log2(v) for v in p)
    assert found([[3., 1.], [0., 4.]]) == (round(1 - share(.75, .25) / 2, 6),
                                           round(1 - share(.2, .8) / 2, 6))
    assert found([[1.], [0.], [0.]])[1] == 1. and found([[1.], [1.], [1.]])[1] == 0.
    assert found([[2., 2.]])[1] == 1.


def test_by_default_the_first_scenes_are_scored_in_parts_with_three_seeds(tmp_path):
    "The noise of a scene follows from its part and its place in it, so the sizes of parts belong to a score."
    save_scenes(tmp_path / "x.h5", tetrominoes(321, np.random.default_rng(0), cell=1), "t", {})
    file, seen = SceneFile(tmp_path / "x.h5"), []
    def score(model, batch, generator):
        seen.append((len(batch), generator.draw(1).sum().item()))
        return {"mse": batch.image.mean((1, 2, 3))}
    found = evaluate(None, file, score=score)
    assert [n for n, _ in seen] == [64] * 15 and len(found["mse"]) == 3
    again = evaluate(None, file, (0, 1, 2), 64, 320, score=score)
    assert again == found and seen[:15] == seen[15:] and len(set(seen)) == 15


def test_a_model_looks_at_the_file_before_it_is_scored(tmp_path):
    save_scenes(tmp_path / "x.h5", tetrominoes(2, np.random.default_rng(0), cell=2), "t", {})
    class Picky(Clusters):
        def check_images(self, shape, name): raise ValueError(f"{name}: {shape} is not for me")
        def infer(self, *_, **__): raise AssertionError
    with pytest.raises(ValueError, match=r"x.h5: \(3, 14, 14\) is not for me"):
        evaluate(Picky(1), SceneFile(tmp_path / "x.h5"))


def test_the_first_slot_is_one_that_an_object_may_have():
    e = SimpleNamespace(segmentation=torch.tensor([[[2, 0], [2, 1]]]), masks=torch.zeros(1, 3, 1, 2, 2),
                        means=None, reconstruction=None, latents=None)
    assert [v.tolist() for v in matched_slots(e, torch.tensor([[[0, 1], [0, 2]]]), 3)] == [
        [0, 0], [1, 2], [0, 1]]


def test_angles_are_read_as_places_on_a_circle():
    "In degrees, and in steps of twenty degrees: the end of a turn is where it began."
    turn = 2 * np.pi * np.random.default_rng(0).uniform(size=30)
    factors = {"rotation": turn * 180 / np.pi, "azimuth": turn * 9 / np.pi}
    scores, *_ = probe_factors(np.stack([np.cos(turn), np.sin(turn)], 1), factors)
    assert set(scores) == {f"{k} {part}" for k in factors for part in ("cos", "sin")}
    for k, v in scores.items(): assert v["linear"] > .99, k


def test_probes_are_judged_on_vectors_that_they_have_not_seen():
    "So where vectors say nothing, the score says so; on what it was fitted to a forest would look good."
    rng = np.random.default_rng(0)
    factors = {"x": rng.normal(size=120), "shape": rng.integers(0, 2, 120)}
    scores, *_ = probe_factors(rng.normal(size=(120, 3)), factors)
    assert scores["x"]["forest"] < .2 and scores["x"]["linear"] < .2 and scores["shape"]["forest"] < .7
