"""Other people's files: whatever the bytes, a sentence or the right numbers."""
import gzip, io, struct

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from iodine_nb.cli import main
from iodine_nb.scenes.format import SceneFile, import_folder
from iodine_nb.scenes.sources import (describe, fetch, import_arrays, import_idx, other_kind, read_idx,
                                      read_norb_matrix, write_norb_matrix)
from iodine_nb.scenes.sprites import multi_dsprites

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(hnp.arrays(st.sampled_from(["u1", "<i2", "<i4", "<f4", "<f8"]),
                  hnp.array_shapes(max_dims=5, max_side=5), elements=st.integers(0, 100)), st.booleans())
def test_norb_matrices_come_back(tmp_path, values, zipped):
    path = tmp_path / ("m.mat.gz" if zipped else "m.mat")
    write_norb_matrix(path, values)
    back = read_norb_matrix(path)
    assert back.dtype == values.dtype and back.shape == values.shape and (back == values).all()


@quick
@given(st.binary(max_size=80), st.sampled_from([b"", b"\x55\x4c\x3d\x1e", b"\0\0\x08\x03", b"\0\0\x08\xff",
    b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x1f\x8b\x08\0", b"\x93NUMPY\x01\0"]), st.booleans())
def test_random_bytes_end_in_a_sentence(tmp_path, noise, begin, zipped):
    path = tmp_path / "noise"
    path.write_bytes(gzip.compress(begin + noise) if zipped else begin + noise)
    for read in (read_norb_matrix, read_idx, lambda p: import_arrays(p, tmp_path / "out.h5", "image"),
                 lambda p: import_idx(p, tmp_path / "out.h5")):
        try: read(path)
        except ValueError as e: assert "noise" in str(e)
    try: assert other_kind(path), "no noise is a scene file"
    except ValueError as e: assert "noise" in str(e)
    assert main(["data", "inspect", str(path)]) == 2


@quick
@given(st.integers(0, 2**32 - 1), st.sampled_from(["last", "first", "none"]),
       st.sampled_from(["index", "layers", "layers last", "255"]), st.sampled_from(["npz", "h5"]),
       st.booleans())
def test_arrays_of_any_layout(tmp_path, seed, channels, masks, kind, real):
    s = multi_dsprites(3, np.random.default_rng(seed),
                       "binarized" if channels == "none" else "colored_on_grayscale", size=16)
    image = {"last": s.image, "first": s.image.transpose(0, 3, 1, 2), "none": s.image[..., 0]}[channels]
    layers = s.mask[:, None] == np.arange(s.visibility.shape[1])[:, None, None]
    mask = {"index": s.mask.astype(np.int64), "layers": layers, "layers last": layers.transpose(0, 2, 3, 1),
            "255": layers.astype(np.uint8)[..., None] * 255}[masks]
    fields, path = {"a": image / 255 if real else image, "b": mask}, tmp_path / f"f.{kind}"
    if kind == "npz": np.savez(path, **fields)
    else:
        with h5py.File(path, "w") as f:
            for k, v in fields.items(): f[k] = v
    import_arrays(path, tmp_path / "out.h5", "a", "b", part=2)
    back = SceneFile(tmp_path / "out.h5")[:]
    assert (back.image == s.image).all() and (back.mask == s.mask).all()
    assert (back.visibility == s.visibility[:, :back.visibility.shape[1]]).all()


@quick
@given(st.sampled_from(["png", "tiff", "jpeg", "bmp", "webp"]), st.sampled_from(["RGB", "L", "RGBA", "I;16"]),
       st.integers(0, 120), st.binary(max_size=60), st.booleans())
def test_random_pictures_end_in_a_sentence(tmp_path, kind, mode, keep, noise, mask):
    "A picture of which the end, or all, is noise; as a picture, or as a mask of one."
    for folder in ("p", "m"): (tmp_path / folder).mkdir(exist_ok=True)
    whole = io.BytesIO()
    if kind != "tiff" and mode == "I;16" or kind == "jpeg" and mode == "RGBA": mode = "L"
    Image.new(mode, (5, 4)).save(whole, kind)
    for old in tmp_path.glob("?/*"): old.unlink()
    Image.new("RGB", (5, 4)).save(tmp_path / "p/0.png")
    (tmp_path / ("m/0." if mask else "p/1.")).with_suffix(f".{kind}").write_bytes(
        whole.getvalue()[:keep] + noise)
    try: import_folder(tmp_path / "p", tmp_path / "o.h5", tmp_path / "m" if mask else None, progress=False)
    except ValueError as e: assert str(tmp_path) in str(e)


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "p.npz", image=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="p.npz: image: cannot be read"):
        import_arrays(tmp_path / "p.npz", tmp_path / "out.h5", "image")


def test_mnist_as_published(tmp_path, capsys):
    digits = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as f:
        f.write(struct.pack(">HBB3I", 0, 8, 3, 3, 28, 28) + digits.tobytes())
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(buffer.getvalue())
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">HBBI", 0, 8, 1, 3) + bytes([7, 2, 1])))
    assert main(f"data idx {tmp_path}/t10k-images-idx3-ubyte.gz --labels "
                f"{tmp_path}/t10k-labels-idx1-ubyte.gz --out {tmp_path}/m.h5".split()) == 0
    scenes = SceneFile(tmp_path / "m.h5")
    assert ((scenes[:].image[..., 0] == digits).all()
            and scenes[:].factors["label"][:, 1].tolist() == [7, 2, 1] and scenes[:].mask is None)
    capsys.readouterr()
    assert ("not known" in describe(scenes)
            and main(["data", "inspect", f"{tmp_path}/m.h5", "--sheet", f"{tmp_path}/s.png"]) == 0)
    assert ((tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
            and "3 scenes, 28×28, 1 channel," in capsys.readouterr().out)


@pytest.mark.parametrize("line",
    ["tetrominoes --cell 2", "multi-dsprites --size 24 --grey .2 .4", "single-dsprites --size 16",
     "clevr --look.size 16 16 --look.supersampling 1 --objects 3 4", "norb --size 16 --split testing"])
def test_every_generator_from_the_command_line(tmp_path, line, capsys):
    for name in ("a", "b"):
        assert main(["data", *line.split(), "--out", f"{tmp_path}/{name}.h5", "--scenes", "3", "--seed",
                     "5"]) == 0
    a, b = SceneFile(tmp_path / "a.h5"), SceneFile(tmp_path / "b.h5")
    assert len(a) == 3 and (a[:].image == b[:].image).all() and a.attributes["seed"] == 5
    assert main(["data", "inspect", f"{tmp_path}/a.h5"]) == 0 and "3 scenes" in capsys.readouterr().out


def scenes_of(tmp_path, mask, image=None):
    "What arrays with this mask are imported as."
    image = np.zeros((2, 4, 6, 3), np.uint8) if image is None else image
    np.savez(tmp_path / "a.npz", image=image, **({} if mask is None else {"mask": mask}))
    import_arrays(tmp_path / "a.npz", tmp_path / "a.h5", "image", None if mask is None else "mask")
    return SceneFile(tmp_path / "a.h5")[:]


@pytest.mark.parametrize("wrong", [256, -1, .5, np.nan])
def test_labels_that_are_no_entities_are_refused(tmp_path, wrong):
    mask = np.zeros((2, 4, 6), np.asarray(wrong).dtype)
    mask[1, 2, 3], mask[0, 0, 0] = wrong, 1
    with pytest.raises(ValueError, match="a.npz: mask: must be whole numbers from 0"):
        scenes_of(tmp_path, mask)
    assert not (tmp_path / "a.h5").exists()


def test_soft_layers_and_masks_without_an_object_are_refused(tmp_path):
    layers = np.full((2, 3, 4, 6), 1 / 3)
    with pytest.raises(ValueError, match="a.npz: mask: must be whole numbers"): scenes_of(tmp_path, layers)
    with pytest.raises(ValueError, match="a.npz: mask: mask: every pixel must belong"):
        scenes_of(tmp_path, np.zeros((2, 3, 4, 6), np.uint8))
    with pytest.raises(ValueError, match="a.npz: mask: no mask holds an object"):
        scenes_of(tmp_path, layers.astype(int)[:, 0])


def test_masks_as_models_have_them(tmp_path):
    index = np.random.default_rng(0).integers(0, 3, (2, 4, 6))
    layers = index[:, None] == np.arange(3)[:, None, None]
    for mask in (index, index[:, None], index[..., None], layers, layers[:, :, None], layers[..., None] * 255,
                 np.moveaxis(layers, 1, -1), index.astype(float)):
        assert (scenes_of(tmp_path, mask).mask == index).all(), mask.shape


def test_what_white_is(tmp_path):
    deep = np.full((2, 4, 6), 65535, np.uint16)
    assert (scenes_of(tmp_path, None, deep).image == 255).all()
    np.save(tmp_path / "b.npy", np.full((2, 4, 6), .2, np.float32))
    import_arrays(tmp_path / "b.npy", tmp_path / "b.h5", "array")
    assert (SceneFile(tmp_path / "b.h5")[:].image == 51).all()
    assert "objects    not known" in describe(SceneFile(tmp_path / "b.h5"))
    late = np.zeros((600, 2, 2), np.uint8)  # black at first
    late[-1] = 200
    np.savez(tmp_path / "a.npz", image=late)
    import_arrays(tmp_path / "a.npz", tmp_path / "a.h5", "image")
    assert (SceneFile(tmp_path / "a.h5")[-1]["image"] * 255 == 200).all()
    with pytest.raises(ValueError, match="a.npz: image: 16 bits, but no value above 255"):
        scenes_of(tmp_path, None, deep // 257)


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    from iodine_nb.scenes import sources
    monkeypatch.setattr(sources, "_MOST", 2000)
    big = np.zeros((3000,), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", image=big)
    (tmp_path / "i.gz").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 3000) + bytes(3000)))
    write_norb_matrix(tmp_path / "n.gz", big)
    for read, name in ((lambda: import_arrays(tmp_path / "a.npz", tmp_path / "o.h5", "image"), "a.npz"),
                       (lambda: read_idx(tmp_path / "i.gz"), "i.gz"),
                       (lambda: read_norb_matrix(tmp_path / "n.gz"), "n.gz")):
        with pytest.raises(ValueError, match=f"{name}: would unpack to"): read()


def test_a_file_that_is_there_is_checked_like_one_that_came(tmp_path):
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"rubbish")
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.gz: has 7 bytes, should have 1,648,877"):
        fetch("mnist_test", tmp_path)
    assert (tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes() == b"rubbish"
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(bytes(1_648_877))  # as long as it should be
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.gz: has SHA-256 .*, should have 8d422c7b"):
        fetch("mnist_test", tmp_path)


def test_a_sheet_says_what_it_can_be_and_overwrites_nothing_else(tmp_path, capsys):
    scenes_of(tmp_path, None)
    (tmp_path / "x.png").write_bytes(b"mine")
    assert main(["data", "inspect", str(tmp_path / "a.h5"), "--sheet", str(tmp_path / "x.jpg")]) == 2
    assert "must end in .png, .svg or .pdf" in capsys.readouterr().err
    assert (tmp_path / "x.png").read_bytes() == b"mine"
