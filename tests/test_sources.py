"""Other people's files: whatever the bytes, a sentence or the right numbers."""
import gzip, io, struct

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from iodine_nb.cli import main
from iodine_nb.scenes.format import SceneFile
from iodine_nb.scenes.sources import (describe, import_arrays, import_idx, other_kind, read_idx,
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
    b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x1f\x8b\x08\0"]), st.booleans())
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
