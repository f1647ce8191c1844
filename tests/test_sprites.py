import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from iodine_nb.scenes.format import check_scenes
from iodine_nb.scenes.sprites import COLOURS, TETROMINOES, VARIANTS, multi_dsprites, silhouettes, tetrominoes

# The published table, written out again here: what one cell's pixels are, row by row.
CELL = ["191 255 255 255 223", "127 159 159 159 191", "127 159 159 159 191", "127 159 159 159 191",
        "95 63 63 63 127"]


def draw(scenes, i):
    "Scene i drawn pixel by pixel from its factors alone."
    image = np.zeros((35, 35, 3), np.uint8)
    for e in (1, 2, 3):
        top, left, colour = (scenes.factors["x"][i, e], scenes.factors["y"][i, e],
                             scenes.factors["color"][i, e])
        for r, row in enumerate(TETROMINOES[int(scenes.factors["shape"][i, e])].split("/")):
            for c, cell in enumerate(row):
                if cell == "0": continue
                for dy in range(5):
                    for dx, value in enumerate(CELL[dy].split()):
                        image[int(top) + 5 * r + dy, int(left) + 5 * c + dx] = int(value) * colour
    return image


def test_tetrominoes_match_the_published_cell_table():
    scenes = tetrominoes(60, np.random.default_rng(0))
    for i in range(60): assert (scenes.image[i] == draw(scenes, i)).all()
    assert set(np.unique(scenes.factors["shape"])) - {0} <= set(TETROMINOES)


def test_every_shape_and_colour_appears():
    scenes = tetrominoes(600, np.random.default_rng(1))
    assert set(np.unique(scenes.factors["shape"][:, 1:])) == set(TETROMINOES)
    assert len(np.unique(scenes.factors["color"][:, 1:].reshape(-1, 3), axis=0)) == len(COLOURS)
    assert {0, 35 - 20} <= set(scenes.factors["x"][:, 1:].ravel())  # the edges are reached


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 3))
def test_tetrominoes_masks_partition_the_image(seed, cell, shapes):
    s = tetrominoes(5, np.random.default_rng(seed), cell=cell, shapes=shapes)
    check_scenes(s)
    for e in range(1, shapes + 1): assert ((s.mask == e).sum((1, 2)) == 4 * cell**2).all()
    assert ((s.mask == 0) == (s.image.max(-1) == 0)).all()


def test_the_same_seed_gives_the_same_scenes():
    for make in (tetrominoes, multi_dsprites):
        a, b = make(20, np.random.default_rng(3)), make(20, np.random.default_rng(3))
        assert (a.image == b.image).all() and (a.mask == b.mask).all()


def test_too_many_shapes_say_so():
    with pytest.raises(ValueError, match="do not fit"):
        tetrominoes(1, np.random.default_rng(0), shapes=30, grid=5)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(VARIANTS)), st.sampled_from([24, 32, 64]))
def test_multi_dsprites(seed, variant, size):
    s = multi_dsprites(6, np.random.default_rng(seed), variant, size)
    fewest, most = VARIANTS[variant]
    check_scenes(s)
    assert s.image.shape == (6, size, size, 1 if variant == "binarized" else 3)
    for i in range(6):
        assert fewest <= s.visibility[i, 1:].sum() <= most
        assert set(np.unique(s.mask[i])) <= set(np.flatnonzero(s.visibility[i]))
        for e in np.flatnonzero(s.visibility[i, 1:]) + 1:
            assert (s.mask[i] == e).sum() >= 30 / 64**2 * size**2
        colours = np.unique(np.concatenate([s.image[i].reshape(size * size, -1), s.mask[i].reshape(-1, 1)],
                                           1), axis=0)
        assert len(colours) == len(np.unique(s.mask[i]))  # one colour an entity


def test_later_sprites_cover_earlier_ones():
    s = multi_dsprites(50, np.random.default_rng(0), "binarized")
    f, checked = s.factors, 0
    for i in range(50):
        drawn = [silhouettes(*(f[k][i, e:e + 1] - (k == "shape")
                               for k in ("shape", "scale", "orientation", "x", "y")))[0] for e in (1, 2)]
        both = drawn[0] & drawn[1]
        if both.any() and s.visibility[i, 1:3].all():
            assert (s.mask[i][both] >= 2).all()
            checked += 1
    assert checked
