import functools, hashlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from iodine_nb.scenes.format import check_scenes
from iodine_nb.scenes.sprites import (COLOURS, SCHEMES, TETROMINOES, VARIANTS, multi_dsprites, silhouettes,
                                      tetrominoes)

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


def digest(s):
    "Of every byte of the scenes."
    parts = s.image, s.mask, s.visibility, *(s.factors[k] for k in sorted(s.factors))
    return hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in parts)).hexdigest()[:16]


def test_seeds_give_the_scenes_that_they_have_always_given():
    "The digests are those of the code before there were options of colour and texture."
    assert digest(tetrominoes(40, np.random.default_rng(3))) == "bee3f7ab79bcc358"
    small = tetrominoes(40, np.random.default_rng(3), cell=2, shapes=2, grid=6)
    assert digest(small) == "58cf8fb1f0fece29"
    for variant, n, expected in (("binarized", 20, "63be84de9cdd64cd"),
                                 ("colored_on_grayscale", 1010, "96ef80b4645193ed"),
                                 ("colored_on_colored", 20, "bfc45fc0cf3280a9")):
        assert digest(multi_dsprites(n, np.random.default_rng(4), variant, size=32)) == expected


@functools.cache
def in_own_colours(make): return make(300, np.random.default_rng(6), colours="own")


@pytest.mark.parametrize("make", [tetrominoes, multi_dsprites])
@pytest.mark.parametrize("colours", SCHEMES)
def test_what_colours_say_is_so(make, colours):
    "And the shapes, their places and the background are those of the published kind, from the same seed."
    plain, s = in_own_colours(make), make(300, np.random.default_rng(6), colours=colours)
    assert (s.mask == plain.mask).all() and (s.image[s.mask == 0] == plain.image[s.mask == 0]).all()
    assert all((s.factors[k] == v).all() for k, v in plain.factors.items() if k != "color")
    colour = [c[seen][1:] for c, seen in zip(s.factors["color"], s.visibility)]  # of every scene's objects
    different = [len(np.unique(c, axis=0)) for c in colour]
    if colours == "own": assert max(different) >= 3
    if colours == "two":
        assert max(different) == 2 and all(d == min(2, len(c)) for d, c in zip(different, colour))
        assert len({tuple((c == c[:1]).all(1)) for c in colour if len(c) == 3}) == 2  # which one is alone
    if colours == "one": assert max(different) == 1
    if colours == "grey":
        own = [c[seen][1:] for c, seen in zip(plain.factors["color"], plain.visibility)]
        assert all((c == o.max(1, keepdims=True)).all() for c, o in zip(colour, own))
    if colours == "hue":
        assert all(d == len(c) for d, c in zip(different, colour))
        for c in colour:
            low, high = c.min(1, keepdims=True), c.max(1, keepdims=True)
            assert .5 <= high.min() and (low / high).max() <= .5 + 1e-6  # value, saturation
            pure = (c - low) / (high - low)
            assert np.abs(pure - pure[:1]).max() < 1e-5


@pytest.mark.parametrize("make", [tetrominoes, multi_dsprites])
def test_textures(make):
    "They darken, by one factor a pixel, objects only; gratings are stripes of the angle and period they say."
    flat, noise, grating = (make(50, np.random.default_rng(6), texture=t)
                            for t in ("flat", "noise", "grating"))
    for s in (noise, grating):
        assert (s.mask == flat.mask).all() and (s.image[s.mask == 0] == flat.image[s.mask == 0]).all()
        bright = s.image[s.mask > 0].max(1) / flat.image[s.mask > 0].max(1)
        assert .09 < bright.min() < .13 and bright.max() <= 1 and .5 < bright.mean() < .6
        assert (np.abs(s.image - flat.image * (s.image.max(3) / np.maximum(flat.image.max(3), 1))[..., None])
                [s.mask > 0] <= 1.5).all()
    for i in range(50):
        y, x = np.nonzero(grating.mask[i] == 1)
        angle, period = (grating.factors[k][i, 1] for k in ("angle", "period"))
        assert 4 <= period <= 8 and 0 <= angle <= np.pi
        wave = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period
        bright = grating.image[i, y, x].max(1) / flat.image[i, y, x].max(1)
        basis = np.stack([np.sin(wave), np.cos(wave), np.ones(len(x))], 1)
        assert np.abs(basis @ np.linalg.lstsq(basis, bright, rcond=None)[0] - bright).max() < .02


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
