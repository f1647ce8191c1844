"""The ray tracer, against solids that are sampled point by point, and the scenes, against their rules."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from iodine_nb.scenes.clevr import (KINDS, Look, Solids, clevr, draw, enter, norb, norb_grid, norb_scenes,
                                    render)

quick = settings(max_examples=25, deadline=None)


def inside(kind, p):
    "Whether points [..., 3] are inside a unit solid, from its definition."
    if KINDS[kind] == "sphere": return (p**2).sum(-1) < 1
    if KINDS[kind] == "cube": return (abs(p) < 1).all(-1)
    return ((p[..., :2] ** 2).sum(-1) < 1) & (abs(p[..., 2]) < 1)


@quick
@given(st.integers(0, 2**32 - 1), st.sampled_from(range(3)))
def test_rays_enter_where_points_begin_to_be_inside(seed, kind):
    rng = np.random.default_rng(seed)
    o = rng.normal(size=(40, 3))
    o *= (2.5 / np.linalg.norm(o, axis=1))[:, None]
    d = rng.normal(size=(40, 3)) * .6 - o
    found = enter(kind, torch.tensor(o.T[None]), torch.tensor(d.T[None]))[0].numpy()
    t = np.linspace(0, 3, 30_001)
    for i in range(40):
        within = inside(kind, o[i] + t[:, None] * d[i])
        if within.sum() > 1: assert abs(t[within.argmax()] - found[i]) < 2e-4
        # a corner between two samples
        elif not within.any() and np.isfinite(found[i]):
            assert inside(kind, o[i] + np.linspace(found[i], found[i] + 2e-4, 50)[:, None] * d[i]).any()


@quick
@given(st.integers(0, 2**32 - 1))
def test_the_nearest_surface_wins_under_any_frame(seed):
    rng = np.random.default_rng(seed)
    frame, centre, kind = (rng.normal(size=(5, 3, 3)) + 2 * np.eye(3),
                           rng.normal(size=(5, 3)) * 1.5 + [0, 0, 4], rng.integers(0, 3, 5))
    solids = Solids(kind[None], torch.tensor(frame[None]), torch.tensor(centre[None]), torch.zeros(1, 5, 3),
                    torch.zeros(1, 5, dtype=torch.bool))
    o, d = np.array([9., 0., 8.]), rng.normal(size=(30, 3)) * [1, 1, 1.5] - [9., 0., 4.]
    t, which = (v[0].numpy()
                for v in solids.first_hit(torch.tensor(o)[None, :, None], torch.tensor(d.T[None])))
    s = np.linspace(0, 3, 6001)
    for i in range(30):
        p = o + s[:, None] * d[i]
        within = np.stack([inside(k, (p - c) @ f.T) for k, f, c in zip(kind, frame, centre)] + [p[:, 2] < 0])
        if within.any():
            assert t[i] < s[within.any(0).argmax()] + 1e-6  # nothing that a sample met was missed
        if np.isfinite(t[i]):  # and where it hits, that solid begins, however thin it is there
            p = o + (t[i] + np.linspace(-1e-6, 1e-4, 2000))[:, None] * d[i]
            assert ((p[:, 2] < 0).any() if which[i] == 5
                    else inside(kind[which[i]], (p - centre[which[i]]) @ frame[which[i]].T).any())


def test_scenes_do_not_depend_on_the_batch_and_repeat_with_the_seed():
    look = Look(size=(20, 30), supersampling=2)
    s, again = (clevr(6, np.random.default_rng(7), (3, 6), look) for _ in range(2))
    assert (all(np.array_equal(v, again.factors[k]) for k, v in s.factors.items())
            and np.array_equal(s.image, again.image))
    _, solids, eye, lamps, _ = draw(6, np.random.default_rng(7), (3, 6), look)
    for rays in (1, 3000, 10**9):
        assert np.abs((render(solids, look, eye, lamps, rays=rays)[0].movedim(1, -1) * 255).numpy()
                      - s.image).max() < .51
    assert not np.array_equal(clevr(6, np.random.default_rng(8), (3, 6), look).image, s.image)


def test_the_rules_of_placement():
    whole = Look(size=(240, 320), crop=(0., 240., 0., 320.), supersampling=1)
    s = clevr(12, np.random.default_rng(2), (3, 10), whole)
    for i in range(len(s)):
        here = np.flatnonzero(s.visibility[i])[1:]
        assert 3 <= len(here) <= 10 and s.visibility[i, :len(here) + 1].all()
        pixels = np.array([(s.mask[i] == e).sum() for e in here])
        assert (pixels > 150).all()  # 200, counted on every fourth
        for e in here:
            if pixels[e - 1] < 400: continue
            rows, columns = np.nonzero(s.mask[i] == e)
            c, r, depth = s.factors["pixel_coords"][i, e]
            assert (columns.min() - 1 <= c <= columns.max() + 1 and rows.min() - 25 <= r <= rows.max() + 25
                    and 5 < depth < 17)
    assert (set(np.unique(s.factors["shape"])) <= {0, 1, 2, 3} and s.factors["color"].max() <= 8
            and s.factors["z"].max() < .71)


def test_every_count_is_as_likely_as_drawn():
    count = clevr(300, np.random.default_rng(3), (3, 10),
                  Look(size=(4, 4), supersampling=1)).visibility.sum(1) - 1
    assert np.bincount(count, minlength=11)[3:].min() > 15  # 37.5 on average: rejection does not favour few


def test_metal_mirrors_and_rubber_does_not():
    "Seen in a metal ball, a red wall makes it red; in a rubber one it does not."
    def ball(metal, wall):
        frames = torch.stack([torch.eye(3), torch.diag(torch.tensor([10., .2, .2]))])[None]
        colour = torch.tensor([[[.8, .8, .8], wall]])
        solids = Solids(np.array([[0, 1]]), frames, torch.tensor([[[0., 0., 1.], [4., 0., 1.]]]), colour,
                        torch.tensor([[metal, False]]))
        picture, which = render(solids, Look(size=(48, 48), crop=(60., 180., 100., 220.)),
                                torch.tensor([[1., -8., 3.]]), torch.tensor([Look().lamps]))
        return picture[0][:, which[0] == 0].mean(1)
    red, grey = [.9, .1, .1], [.4, .4, .4]
    change = lambda metal: (ball(metal, red) - ball(metal, grey)).abs().max()
    assert change(True) > .01 > change(False)


@pytest.mark.parametrize("wrong, said", [(dict(size=(64,)), "size"), (dict(crop=(5., 1., 0., 9.)), "crop"),
    (dict(strengths=(1.,)), "strengths"), (dict(supersampling=0), "supersampling"), (dict(scale=0.), "scale"),
                                         (dict(half_width=-1.), "half_width")])
def test_a_wrong_look_names_the_field(wrong, said):
    with pytest.raises(ValueError, match=said): Look().change(**wrong)


def test_too_many_objects_are_refused():
    for wrong in ((6, 3), (-1, 2), (0, 0), (3, 300)):
        with pytest.raises(ValueError, match="objects: must be"):
            clevr(1, np.random.default_rng(0), wrong, Look(size=(4, 4)))
    with pytest.raises(ValueError, match="objects"):
        clevr(1, np.random.default_rng(0), (60, 60), Look(size=(4, 4)))


def test_toys():
    grid = norb_grid("testing")
    assert grid.shape == (24_300, 5) and set(grid[:, 1]) == {0, 1, 2, 3, 5}
    image, where = norb(*grid[:8].T, size=32)
    assert image.shape == where.shape == (8, 2, 32, 32) and where.mean() > .05
    s = norb_scenes(5, np.random.default_rng(0), "testing", 24)
    assert (set(s.factors) == {"category", "instance", "elevation", "azimuth", "lighting"}
            and (s.mask > 0).any((1, 2)).all())
    with pytest.raises(ValueError, match="training or testing"): norb_grid("validation")
