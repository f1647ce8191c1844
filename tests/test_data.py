"""Formats, against bytes written here from the formats' descriptions."""
import gzip, os, struct
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from iodine_nb.cli import main
from iodine_nb.scenes.format import (PUBLISHED, Batch, Generated, Loader, SceneFile, Scenes, check_scenes,
                                     crop_and_resize, import_folder, import_published, mask_known,
                                     save_scenes)
from iodine_nb.scenes.sources import describe, import_arrays, other_kind
from iodine_nb.scenes.sprites import tetrominoes
from iodine_nb.training.baselines import Clusters
from iodine_nb.training.metrics import decomposition_scores, evaluate, matched_slots, segmentation_scores

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def varint(n):
    out = []
    while True:
        n, low = n >> 7, n & 127
        out.append(low | (128 if n else 0))
        if not n: return bytes(out)


def message(number, data): return varint(number * 8 + 2) + varint(len(data)) + data
def bytes_list(values): return message(1, b"".join(message(1, bytes([int(v)])) for v in values))
def blob(values): return message(1, message(1, bytes(int(v) for v in values)))
def float_list(values): return message(2, message(1, b"".join(struct.pack("<f", v) for v in values)))


def checksum(data):
    "TensorFlow's: CRC-32C turned right by 15 bits, plus a constant."
    turned = crc32c(data) >> 15 | crc32c(data) << 17 & 0xFFFFFFFF
    return struct.pack("<I", (turned + 0xA282EAD8) % 2**32)


def record(features):
    entries = b"".join(message(1, message(1, k.encode()) + message(2, v)) for k, v in features.items())
    data = message(1, entries)
    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def example(layout, rng, objects=2, one_blob=False):
    "Features of a random scene of a data set, and what should be read."
    (h, w, c), e, write = layout.image, layout.entities, blob if one_blob else bytes_list
    image, mask = rng.integers(0, 256, (h, w, c)), rng.integers(0, objects + 1, (h, w))
    masks = np.zeros((e, h, w), np.uint8)
    for y in range(h):
        for x in range(w): masks[mask[y, x], y, x] = 255
    stored = np.stack(list(masks), -1) if layout.entity_last else masks
    visible = [1.] * (objects + 1) + [0.] * (e - objects - 1)
    features = {"image": write(image.ravel()), "mask": write(stored.ravel()),
                "visibility": float_list(visible)}
    factors = {}
    for name, size in layout.factors.items():
        factors[name] = rng.integers(0, 4, (e, size) if size > 1 else e)
        features[name] = (bytes_list if name in layout.codes else float_list)(factors[name].ravel())
    return features, image, mask, visible, factors


@pytest.mark.parametrize("name", ["tetrominoes", "multi_dsprites_binarized",
                                  "multi_dsprites_colored_on_colored", "multi_dsprites_colored_on_grayscale"])
@pytest.mark.parametrize("one_blob", [False, True])
def test_tfrecords_field_by_field(tmp_path, name, one_blob):
    rng, layout = np.random.default_rng(0), PUBLISHED[name]
    made = [example(layout, rng, one_blob=one_blob) for _ in range(3)]
    (tmp_path / "x.tfrecords").write_bytes(gzip.compress(b"".join(record(m[0]) for m in made)))
    assert import_published(tmp_path / "x.tfrecords", tmp_path / "x.h5", name, progress=False) == 3
    read = SceneFile(tmp_path / "x.h5")[:]
    for i, (_, image, mask, visible, factors) in enumerate(made):
        assert ((read.image[i] == image).all() and (read.mask[i] == mask).all()
                and (read.visibility[i] == np.array(visible, bool)).all())
        for k, v in factors.items(): assert (read.factors[k][i] == v).all()


def test_clevr6_crop_and_filter(tmp_path):
    rng, layout = np.random.default_rng(0), PUBLISHED["clevr_with_masks"]
    made = [example(layout, rng, objects) for objects in (5, 6, 7)]
    (tmp_path / "c.tfrecords").write_bytes(gzip.compress(b"".join(record(m[0]) for m in made)))
    assert import_published(tmp_path / "c.tfrecords", tmp_path / "c.h5", "clevr_with_masks", objects=6,
                            size=(192, 192), progress=False) == 2
    read = SceneFile(tmp_path / "c.h5")[:]
    for i in (0, 1):
        assert ((read.image[i] == made[i][1][29:221, 64:256]).all()
                and (read.mask[i] == made[i][2][29:221, 64:256]).all())
        assert (read.factors["material"][i] == made[i][4]["material"]).all()
    assert (import_published(tmp_path / "c.tfrecords", tmp_path / "d.h5", "clevr_with_masks", progress=False)
            == 3)
    assert SceneFile(tmp_path / "d.h5").shape == (3, 128, 128)


def test_objects_room_has_four_backgrounds(tmp_path):
    layout = PUBLISHED["objects_room_train"]
    # four backgrounds, one object
    image, which = np.zeros((64, 64, 3), np.uint8), np.arange(64 * 64).reshape(64, 64) % 5
    masks = np.stack([(which == e) * 255 for e in range(7)])
    (tmp_path / "o.tfrecords").write_bytes(
        gzip.compress(record({"image": bytes_list(image.ravel()), "mask": bytes_list(masks.ravel())})))
    import_published(tmp_path / "o.tfrecords", tmp_path / "o.h5", "objects_room_train", progress=False)
    read = SceneFile(tmp_path / "o.h5")[:]
    assert (((read.mask[0] == 1) == (which == 4)).all() and (read.mask[0][which < 4] == 0).all()
            and layout.backgrounds == 4)
    assert read.visibility.tolist() == [[True, True, False, False]]


def test_a_hidden_wall_is_still_background(tmp_path):
    which = np.arange(64 * 64).reshape(64, 64) % 3  # only the first three of the four backgrounds are seen
    masks = np.stack([(which == e) * 255 for e in range(4)])
    (tmp_path / "o.tfrecords").write_bytes(gzip.compress(
        record({"image": bytes_list(np.zeros(64 * 64 * 3)), "mask": bytes_list(masks.ravel())})))
    import_published(tmp_path / "o.tfrecords", tmp_path / "o.h5", "objects_room_empty_room", objects=0,
                     progress=False)
    read = SceneFile(tmp_path / "o.h5")[:]
    assert (read.mask == 0).all() and read.visibility.tolist() == [[True]]


def test_parts_that_differ_are_not_saved(tmp_path):
    one, other = tetrominoes(2, np.random.default_rng(0)), tetrominoes(2, np.random.default_rng(1))
    del other.factors["color"]
    with pytest.raises(ValueError, match="s.h5: factors/color: not in all scenes"):
        save_scenes(tmp_path / "s.h5", [one, other], "s", {})
    with pytest.raises(ValueError, match="s.h5: image: the scenes from 2 on are"):
        save_scenes(tmp_path / "s.h5", [one, tetrominoes(2, np.random.default_rng(1), cell=2)], "s", {})
    assert not list(tmp_path.iterdir())


def test_skip_and_count(tmp_path):
    rng = np.random.default_rng(0)
    made = [example(PUBLISHED["tetrominoes"], rng) for _ in range(7)]
    (tmp_path / "t.tfrecords").write_bytes(b"".join(record(m[0]) for m in made))  # not gzipped: read as well
    for how in (dict(skip=2), dict(skip_before=2), dict(skip=1, skip_before=1)):
        assert import_published(tmp_path / "t.tfrecords", tmp_path / "t.h5", "tetrominoes", **how, count=3,
                                progress=False) == 3
        assert (SceneFile(tmp_path / "t.h5")[:].image == np.stack([m[1] for m in made[2:5]])).all()


@quick
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_are_refused(tmp_path, data, zipped):
    (tmp_path / "noise").write_bytes(gzip.compress(data) if zipped else data)
    for read in (lambda: import_published(tmp_path / "noise", tmp_path / "out.h5", "tetrominoes",
                                          progress=False), lambda: SceneFile(tmp_path / "noise")):
        with pytest.raises(ValueError, match="(noise|out.h5): "): read()
    assert not (tmp_path / "out.h5").exists()


@quick
@given(st.integers(0, 10_000))
def test_a_cut_download_is_refused(tmp_path, cut):
    rng = np.random.default_rng(0)
    whole = gzip.compress(record(example(PUBLISHED["tetrominoes"], rng)[0]))
    (tmp_path / "t").write_bytes(whole[:cut % len(whole)])
    with pytest.raises(ValueError):
        import_published(tmp_path / "t", tmp_path / "t.h5", "tetrominoes", progress=False)
    assert os.listdir(tmp_path) == ["t"]


@quick
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(1, 4),
       st.integers(0, 999), st.booleans())
def test_scene_files_give_back_what_was_written(tmp_path, n, h, w, c, e, seed, masks):
    rng = np.random.default_rng(seed)
    scenes = Scenes(rng.integers(0, 256, (n, h, w, c), np.uint8), rng.integers(0, e, (n, h, w), np.uint8),
                    rng.random((n, e)) > .5, {"f": rng.random((n, e)), "g": rng.random((n, e, 2))})
    if not masks: scenes.mask = None
    elif not scenes.mask.any(): scenes.visibility[:, 1:] = False
    save_scenes(tmp_path / "s.h5", [scenes[:1], scenes[1:]], "s", {})
    with SceneFile(tmp_path / "s.h5").file as _: pass
    read = SceneFile(tmp_path / "s.h5")[:]
    assert (read.image == scenes.image).all() and (read.visibility == scenes.visibility).all()
    assert (read.mask == scenes.mask).all() if masks else read.mask is None
    assert all((read.factors[k] == scenes.factors[k]).all() for k in scenes.factors)


def test_scene_files_that_are_wrong_name_the_field(tmp_path):
    def written(**fields):
        with h5py.File(tmp_path / "w.h5", "w") as f:
            for k, v in fields.items(): f[k] = v
        return tmp_path / "w.h5"
    image, visible = np.zeros((2, 4, 5, 3), np.uint8), np.ones((2, 2), bool)
    for fields, match in [(dict(image=image), "visibility"),
                          (dict(image=image.astype(float), visibility=visible), "image must be uint8"),
                          (dict(image=image[..., :2], visibility=visible), "image must be"),
        (dict(image=image, visibility=visible, mask=np.zeros((2, 5, 4), np.uint8)), "mask must be"),
        (dict(image=image, visibility=visible, mask=np.full((2, 4, 5), 9, np.uint8)), "entity 9"),
                          (dict(image=image, visibility=visible.astype(int)), "visibility must be bool"),
                          (dict(image=image, visibility=visible[0]), "visibility must be bool")]:
        with pytest.raises(ValueError, match=match) as e: SceneFile(written(**fields))[:]
        assert "w.h5" in str(e.value)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "s.h5"
    save_scenes(path, tetrominoes(3, np.random.default_rng(0)), "s", {})
    before = path.read_bytes()
    def parts():
        yield tetrominoes(3, np.random.default_rng(1))
        raise OSError("No space left on device")
    with pytest.raises(OSError): save_scenes(path, parts(), "s", {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["s.h5"]


def test_every_scene_once_an_epoch(tmp_path):
    save_scenes(tmp_path / "s.h5", tetrominoes(30, np.random.default_rng(0)), "s", {})
    loader = Loader(SceneFile(tmp_path / "s.h5"), 10, seed=5)
    for epoch in (0, 4):
        seen = np.concatenate([loader.batch(epoch * 3 + i).image.numpy() for i in range(3)]).reshape(30, -1)
        assert len(np.unique(seen, axis=0)) == 30
    with pytest.raises(ValueError, match="fewer than a batch"): Loader(SceneFile(tmp_path / "s.h5"), 31)


def numbered(n, masks=True, rng=np.random.default_rng(0)):
    "Scenes whose image, mask and factors all say which scene it is."
    i = np.arange(n, dtype=np.uint8)
    image, mask = (np.broadcast_to(i[:, None, None, None], (n, 3, 4, 1)).copy(),
                   np.broadcast_to(i[:, None, None] % 2, (n, 3, 4)).copy())
    factors = {"number": np.stack([i, 2 * i], 1), "place": np.stack([i, -1. * i], 1)[..., None] * np.ones(3),
               "even": np.stack([i % 2 == 0] * 2, 1)}
    return Scenes(image, mask if masks else None, np.stack([i >= 0, i % 2 == 1], 1), factors)


def all_say_the_same(batch, masks=True):
    i = (batch.image[:, 0, 0, 0] * 255).round()
    f = batch.factors
    assert (f["number"].dtype == torch.int64 and f["place"].dtype == torch.float32
            and f["even"].dtype == torch.bool and f["place"].shape == (len(batch), 2, 3))
    assert (torch.equal(f["number"], torch.stack([i, 2 * i], 1).long())
            and torch.equal(f["place"][..., 2], torch.stack([i, -i], 1))
            and torch.equal(f["even"][:, 0], i % 2 == 0))
    assert torch.equal(batch.mask[:, 0, 0], (i % 2).byte()) if masks else batch.mask is None
    return i.int().tolist()


@quick
@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 99), st.booleans(),
       st.sampled_from([1, 200, 500, 8 << 30]))
def test_masks_and_factors_come_with_their_images(tmp_path, n, size, seed, masks, memory):
    size = min(n, size)
    save_scenes(tmp_path / "n.h5", [numbered(n, masks)[:n // 2], numbered(n, masks)[n // 2:]] if n > 1
                else numbered(n, masks), "n", {})
    loader = Loader(SceneFile(tmp_path / "n.h5"), size, seed, memory=memory)
    assert [i for b in loader.in_order() for i in all_say_the_same(b, masks)] == list(range(n))
    for step in (0, 1, 7):
        assert all_say_the_same(loader.batch(step), masks) == loader.rows(step).tolist()
        for part in range(2):
            assert (size < 2 or all_say_the_same(loader.batch(step, part, 2), masks)
                    == loader.rows(step)[part::2].tolist())


def test_masks_and_factors_count_in_the_memory(tmp_path):
    scenes = numbered(40)  # 12 + 12 bytes, and 2 × 8 + 2 × 3 × 4 + 2
    for masks, one in ((True, 66), (False, 54)):
        save_scenes(tmp_path / "n.h5", scenes if masks else replace(scenes, mask=None), "n", {})
        assert Loader(SceneFile(tmp_path / "n.h5"), 2, memory=one * 40).window == 40
        assert Loader(SceneFile(tmp_path / "n.h5"), 2, memory=one * 40 - 1).window == 38


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("make", [lambda s: s, Batch.of])
def test_a_stream_has_what_its_scenes_have(masks, make):
    stream = Generated(lambda n, rng: make(numbered(40, masks)[rng.permutation(40)[:n]]), "numbered").loader(
        9, 3, "cpu")
    whole = all_say_the_same(stream.batch(5), masks)
    assert (len(set(whole)) == 9 and all_say_the_same(stream.batch(5, 1, 3), masks) == whole[1::3]
            and all_say_the_same(stream.batch(6), masks) != whole)
    assert all_say_the_same(stream.batch(5).to("cpu")[torch.tensor([8, 0])], masks) == [whole[8], whole[0]]
    there = stream.batch(5).to("meta")
    assert ({v.device.type for v in (there.image, *there.factors.values(), *([there.mask] if masks else []))}
            == {"meta"} and (there.mask is not None) == masks)


def test_parts_with_and_without_masks_are_not_mixed(tmp_path):
    scenes = numbered(4)
    for parts in ([scenes, replace(scenes, mask=None)], [replace(scenes, mask=None), scenes]):
        with pytest.raises(ValueError, match="s.h5: mask: not in all scenes; the scenes from 4 on"):
            save_scenes(tmp_path / "s.h5", parts, "s", {})
        with pytest.raises(ValueError, match="both: mask: not in all"): Scenes.joined(parts, "both")
    assert not list(tmp_path.iterdir())
    assert all_say_the_same(Batch.of(Scenes.joined([scenes[:1], scenes[1:]]))) == [0, 1, 2, 3]


def test_pictures_without_masks_stay_without(tmp_path):
    (tmp_path / "p").mkdir()
    Image.fromarray(np.full((6, 9, 3), 7, np.uint8)).save(tmp_path / "p/0.png")
    import_folder(tmp_path / "p", tmp_path / "f.h5", size=(3, 4), progress=False)
    file = SceneFile(tmp_path / "f.h5")
    assert (not file.has_masks and file[:].mask is None and Loader(file, 1).batch(0).mask is None
            and file[:].visibility.tolist() == [[True]])
    with h5py.File(tmp_path / "f.h5") as f: assert set(f) == {"image", "visibility"}


def test_wrong_scenes_name_all_fields():
    s = replace(numbered(4), factors={"a": np.zeros((4, 3)), "b": np.full((4, 2), "x")},
                visibility=np.ones((4, 1), bool))
    with pytest.raises(ValueError, match="toy: mask: holds entity 1.*; factors/a: must begin with .4, 1., is "
                       ".4, 3.; factors/b: .*; factors/b: must be numbers"):
        check_scenes(s, "toy")


def test_folder_masks(tmp_path):
    (tmp_path / "p").mkdir(); (tmp_path / "m").mkdir()
    for i, values in enumerate([(0, 50, 200), (0, 7, 7)]):
        Image.fromarray(np.full((6, 9, 3), i, np.uint8)).save(tmp_path / f"p/{i}.png")
        Image.fromarray(np.repeat(np.array([values], np.uint8), 6, 0).repeat(3, 1)).save(
            tmp_path / f"m/{i}.png")
    import_folder(tmp_path / "p", tmp_path / "f.h5", tmp_path / "m", progress=False)
    read = SceneFile(tmp_path / "f.h5")[:]
    assert read.mask[:, 0].tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 1, 1, 1]]
    assert read.visibility.tolist() == [[True, True, True], [True, True, False]]
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(tmp_path / "m/1.png")
    with pytest.raises(ValueError, match="1.png.*mask is"):
        import_folder(tmp_path / "p", tmp_path / "g.h5", tmp_path / "m", progress=False)


def folders(tmp_path, masks):
    "A folder of black pictures and one of these masks, name -> picture."
    (tmp_path / "p").mkdir(); (tmp_path / "m").mkdir()
    for name, mask in masks.items():
        Image.new("RGB", mask.size).save(tmp_path / f"p/{name.split('.')[0]}.png")
        mask.save(tmp_path / f"m/{name}")
    return tmp_path / "p", tmp_path / "f.h5", tmp_path / "m"


def test_some_pictures_have_masks_and_the_rest_none(tmp_path, capsys):
    "What is not known is said, and counts for no score but those that need no mask."
    mask = np.zeros((14, 14), np.uint8)
    mask[2:6, 2:6], mask[8:, 8:] = 9, 200
    made = {f"{i}.png": Image.fromarray(np.roll(mask, i)) for i in range(4)}
    pictures, out, masks = folders(tmp_path, made)
    for i in (1, 3): (masks / f"{i}.png").unlink()
    line = f"data folder {pictures} --masks {masks} --out {out}"
    assert main(line.split()) == 0 and "f.h5: 4 scenes, 2 of them with masks" in capsys.readouterr().out
    file = SceneFile(out)
    assert mask_known(file[:].mask).tolist() == [True, False, True, False]
    assert file[:].visibility.tolist() == [[True] * 3, [False] * 3] * 2
    assert "2: 2  (objects a scene: scenes; 2 without a mask)" in describe(file)
    save_scenes(tmp_path / "copy.h5", SceneFile(out)[:], "t", {})  # and comes back
    assert mask_known(SceneFile(tmp_path / "copy.h5")[:].mask).tolist() == [True, False, True, False]

    class Right(torch.nn.Module):
        "Knows the masks that there are, and sees every picture a little too light, some more than others."
        def infer(self, images, generator=None):
            true = torch.from_numpy(np.stack([np.roll(mask, i) for i in range(4)])).long()
            light = torch.tensor([.1, .3, .1, .3]).view(4, 1, 1, 1)
            return [SimpleNamespace(segmentation=true, reconstruction=images + light)]
    scores = evaluate(Right(), file, (0,))
    assert scores["ari_fg"] == scores["ari"] == scores["miou"] == [1.]
    assert scores["mse"] == [pytest.approx(.05)]
    batch = next(Loader(file, 4).in_order())
    by_scene = decomposition_scores(Right(), batch)
    assert by_scene["ari_fg"].isnan().tolist() == [False, True, False, True]
    only = segmentation_scores(batch.mask[1:2], batch.mask[1:2].long() % 3)
    assert set(only) == {"ari_fg", "ari", "miou"} and all(v.isnan().all() for v in only.values())
    for name in ("0.png", "2.png"): (masks / name).rename(masks / f"x{name}")
    assert main(line.split()) == 2 and "no mask has the name of a picture" in capsys.readouterr().err


def test_slots_are_matched_with_objects_where_masks_are_known():
    true = torch.tensor([[[0, 1], [2, 2]], [[255] * 2] * 2], dtype=torch.uint8)
    e = SimpleNamespace(segmentation=torch.tensor([[[2, 0], [1, 1]]] * 2), masks=torch.zeros(2, 3, 1, 2, 2),
                        means=None, reconstruction=None, latents=None)
    assert [v.tolist() for v in matched_slots(e, true, 3)] == [[0, 0], [1, 2], [0, 1]]


def test_a_scene_is_not_known_in_full_or_in_no_part(tmp_path):
    made = numbered(4)
    made.mask[1] = 255
    with pytest.raises(ValueError, match="s.h5: mask: holds entity 255"):  # as it has a background
        save_scenes(tmp_path / "s.h5", made, "t", {})
    made.visibility[1] = False
    save_scenes(tmp_path / "s.h5", made, "t", {})
    made.mask[1, 0, 0] = 0
    with pytest.raises(ValueError, match="s.h5: mask: holds entity 255"):
        save_scenes(tmp_path / "s.h5", made, "t", {})


def test_files_of_others_whose_masks_show_nothing_are_refused(tmp_path):
    "With objects that visibility names at the door; without, where a score would be 1 for any model."
    made = tetrominoes(4, np.random.default_rng(0), cell=2)
    for name, visibility in (("a.h5", made.visibility), ("b.h5", np.ones((4, 1), bool))):
        with h5py.File(tmp_path / name, "w") as f:
            f["image"], f["mask"], f["visibility"] = made.image, np.zeros_like(made.mask), visibility
    with pytest.raises(ValueError, match="a.h5: mask: all are 0, but visibility names"):
        SceneFile(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="b.h5: mask: no mask shows an object, so ARI-FG would be 1"):
        evaluate(Clusters(2), SceneFile(tmp_path / "b.h5"), (0,))
    mse = lambda model, batch, generator: {"mse": batch.image.mean((1, 2, 3))}
    assert evaluate(Clusters(2), SceneFile(tmp_path / "b.h5"), (0,), score=mse)["mse"]


def test_other_layouts_are_told_how_they_are_imported(tmp_path, capsys):
    made = tetrominoes(4, np.random.default_rng(0), cell=2)
    with h5py.File(tmp_path / "mask.h5", "w") as f:
        f["image"], f["mask"], f["visibility"] = made.image, made.mask[..., None], made.visibility
    with h5py.File(tmp_path / "names.h5", "w") as f: f["imgs"], f["masks"] = made.image, made.mask
    for name in ("mask.h5", "names.h5"):
        with pytest.raises(ValueError, match=f"{name}: .*`iodine-nb data arrays` imports"):
            SceneFile(tmp_path / name)
    line = f"data arrays {tmp_path}/mask.h5 --image image --mask mask --out {tmp_path}/o.h5"
    assert main(line.split()) == 0
    assert (SceneFile(tmp_path / "o.h5")[:].mask == made.mask).all()
    assert other_kind(tmp_path / "o.h5") is None
    assert other_kind(tmp_path / "names.h5") == (
        "an HDF5 file of another layout, with imgs, masks; `iodine-nb data arrays` imports it")
    np.save(tmp_path / "x.npy", made.image)
    Image.fromarray(made.image[0]).save(tmp_path / "x.png")
    for name, how in (("x.npy", "data arrays --image array"), ("x.png", "data folder")):
        with pytest.raises(ValueError, match=f"{name}: .*another kind, which `iodine-nb data inspect` names"):
            SceneFile(tmp_path / name)
        assert main(["data", "inspect", str(tmp_path / name)]) == 2
        assert f"`iodine-nb {how}` imports" in capsys.readouterr().err


def test_coloured_masks_and_masks_of_16_bits(tmp_path):
    red, deep = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint16)
    red[0], red[1], deep[2], deep[3] = (255, 0, 0), (0, 255, 0), 300, 4000
    how = folders(tmp_path, {"0.png": Image.fromarray(red), "1.png": Image.fromarray(deep)})
    import_folder(*how, progress=False)
    assert SceneFile(how[1])[:].mask[:, :, 0].tolist() == [[2, 1, 0, 0], [0, 0, 1, 2]]


def test_masks_that_lost_their_objects_or_gained_some_are_refused(tmp_path):
    square = np.zeros((32, 32), np.uint8)
    square[8:20, 8:20] = 200
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for i, (name, mask, why) in enumerate([
            ("0.png", square // 255, "no mask holds an object"), ("0.jpg", square, "stored without loss"),
            ("0.png", noise, "values or colours")]):
        (tmp_path / str(i)).mkdir()
        how = folders(tmp_path / str(i), {name: Image.fromarray(mask)})
        with pytest.raises(ValueError, match=why): import_folder(*how, progress=False)
        assert not how[1].exists()


def test_pictures_that_would_fill_the_memory_are_refused_or_read_small(tmp_path, monkeypatch):
    (tmp_path / "p").mkdir()
    Image.new("RGB", (30_000, 10)).save(tmp_path / "p/long.png")
    for fit in ("crop", "stretch", "pad"):
        import_folder(tmp_path / "p", tmp_path / "f.h5", size=(8, 8), fit=fit, progress=False)
        assert SceneFile(tmp_path / "f.h5").shape == (3, 8, 8)
    with pytest.raises(ValueError, match="size: height and width must be at least 1"):
        import_folder(tmp_path / "p", tmp_path / "g.h5", size=(0, 0), progress=False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="long.png: not a picture that can be read"):
        import_folder(tmp_path / "p", tmp_path / "g.h5", size=(8, 8), progress=False)


def test_a_flipped_bit_of_a_record_is_seen(tmp_path):
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    whole = record(example(PUBLISHED["tetrominoes"], np.random.default_rng(0))[0])
    for at in (3, 9, 500, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        (tmp_path / "t").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or cut short after 0 records.*checksum"):
            import_published(tmp_path / "t", tmp_path / "out.h5", "tetrominoes", progress=False)


def test_a_record_that_unpacks_to_too_much_is_refused(tmp_path):
    length = struct.pack("<Q", 3 << 30)
    (tmp_path / "t").write_bytes(gzip.compress(length + checksum(length) + bytes(1 << 20)))
    with pytest.raises(ValueError, match="t: damaged .*a record of 3,072 MiB; at most 256 are read"):
        import_published(tmp_path / "t", tmp_path / "out.h5", "tetrominoes", progress=False)


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    import shutil
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(OSError, match="s.h5: the next scenes may need 1 MB"):
        save_scenes(tmp_path / "s.h5", tetrominoes(20, np.random.default_rng(0)), "t", {})
    assert not list(tmp_path.iterdir())


def test_values_of_other_files_are_not_shown(tmp_path):
    save_scenes(tmp_path / "s.h5", tetrominoes(4, np.random.default_rng(0)), "t", {})
    (tmp_path / "secret").write_bytes(bytes(range(48)))
    for name in ("external", "linked", "virtual"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["visibility"] = np.ones((1, 1), bool)
            if name == "external":
                there = [(str(tmp_path / "secret"), 0, 48)]
                f.create_dataset("image", (1, 4, 4, 3), np.uint8, external=there)
            if name == "linked": f["image"] = h5py.ExternalLink(str(tmp_path / "s.h5"), "image")
            if name == "virtual":
                layout = h5py.VirtualLayout((4, 35, 35, 3), np.uint8)
                layout[:] = h5py.VirtualSource(str(tmp_path / "s.h5"), "image", (4, 35, 35, 3))
                f.create_virtual_dataset("image", layout)
        for read in (SceneFile, lambda path: import_arrays(path, tmp_path / "o.h5", "image"), other_kind):
            with pytest.raises(ValueError, match=f"{name}.h5: the values of image lie in another file"):
                read(tmp_path / f"{name}.h5")


def test_a_scene_file_is_a_dataset_of_pytorch(tmp_path):
    made = tetrominoes(10, np.random.default_rng(0))
    save_scenes(tmp_path / "s.h5", made, "t", {})
    file = SceneFile(tmp_path / "s.h5")
    seen = torch.cat([b["image"] for b in DataLoader(file, batch_size=4, num_workers=2)])
    assert torch.equal((seen * 255).round().byte(), torch.from_numpy(made.image).movedim(-1, 1))
    assert torch.equal(file[-1]["mask"], torch.from_numpy(made.mask[-1])) and len(list(file)) == 10
    assert (file[[7, 0, 7, -1]].mask == made.mask[[7, 0, 7, 9]]).all() and len(file[[]]) == 0
    with pytest.raises(IndexError, match="no scene 10 of 10"): file[10]


def test_splits_and_runs_have_scenes_of_their_own(tmp_path):
    source, scenes = Generated(tetrominoes, "tetrominoes"), []
    for split in ("train", "validation", "test"):
        source.write(tmp_path / f"{split}.h5", 32, 1, split)
        scenes.append(SceneFile(tmp_path / f"{split}.h5")[:].image)
    drawn = (source.loader(32, 1, "cpu").batch(0).image * 255).round().byte().movedim(1, -1).numpy()
    for i, one in enumerate([*scenes, drawn]):
        assert all((one != other).any() for other in [*scenes, drawn][:i])
    assert (scenes[2] == tetrominoes(32, np.random.default_rng(1)).image).all()  # as it always was


def test_thin_lines_grow_faint_and_do_not_vanish(tmp_path):
    (tmp_path / "p").mkdir()
    picture = np.zeros((192, 192, 3), np.uint8)
    picture[:, 97:99] = 255
    Image.fromarray(picture).save(tmp_path / "p/0.png")
    import_folder(tmp_path / "p", tmp_path / "f.h5", size=(32, 32), progress=False)
    small = crop_and_resize(Scenes(picture[None], None, np.ones((1, 1), bool)), None, (32, 32))
    assert (SceneFile(tmp_path / "f.h5")[:].image == small.image).all()
    assert small.image[0].astype(int).sum(1).mean() == pytest.approx(255 * 2 / 6, rel=.05)


def test_masks_that_are_not_known_are_not_stored_as_zeros(tmp_path):
    made = tetrominoes(4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="s.h5: mask: all are 0, but visibility names objects"):
        save_scenes(tmp_path / "s.h5", replace(made, mask=np.zeros_like(made.mask)), "t", {})
    assert not list(tmp_path.iterdir())


def test_negative_counts_are_refused(tmp_path):
    (tmp_path / "t").write_bytes(record(example(PUBLISHED["tetrominoes"], np.random.default_rng(0))[0]))
    for how in (dict(skip=-1), dict(skip_before=-1), dict(count=-1)):
        with pytest.raises(ValueError, match="must be 0 or more"):
            import_published(tmp_path / "t", tmp_path / "o.h5", "tetrominoes", progress=False, **how)


def test_transparent_pixels_are_black(tmp_path):
    (tmp_path / "p").mkdir()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "p/0.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "p/1.png", transparency=1)
    import_folder(tmp_path / "p", tmp_path / "f.h5", progress=False)
    assert not SceneFile(tmp_path / "f.h5")[:].image.any()
