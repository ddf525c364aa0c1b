"""Registration of what it was not made for: it is seen, told with a reason, and harms no others."""

import os
import warnings

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

from dataclasses import replace
from functools import cache

import nibabel as nib
import numpy as np
import pytest
from analytic_head import MOVING_SHAPE, TURNED, apart_mm, fixed_scan, moving_scan, rigid

from mrmill import layout
from mrmill.config import Register
from mrmill.phantom import CONTRASTS, Warp, acquire, standard_head
from mrmill.phantom.presets import T2W
from mrmill.reasons import Rejected
from mrmill.records import Outcome, Record
from mrmill.register import register_study
from mrmill.register.atlas import Atlas
from mrmill.register.engines import Found, find
from mrmill.register.quality import problems, state
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform
from mrmill.shards import Study
from mrmill.volumes import Volume, write_volume

AUTO, MATTES = Register(), Register(engine="mattes")


@pytest.fixture(autouse=True)
def _no_warnings():
    """Numpy tells of NaN and overflow by warnings: here they are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def outcome_of(fixed, moving, settings, same_head=True):
    """Register two scans: the state it ends in, what was found or the rejection."""
    try:
        found = find(fixed, moving, settings, same_head)
    except Rejected as rejected:
        told = rejected.as_entry()
        return told["reason"] if told["found"] and told["limit"] else "untold", rejected
    assert all(np.isfinite(value) for value in found.quality.values())
    turn = found.transform.matrix[:3, :3]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(turn) > 0
    limits = settings.coreg_limits if same_head else settings.atlas_limits
    return state(problems(found.quality, limits)), found


# People, on the phantom: a head with everything around the brain

NO_WARP = Warp(np.ones(3), np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1))
POLES_MM = np.array([0, -17, 10]) + np.vstack([np.diag([55, 65, 45]), -np.diag([55, 65, 45])])
MOVED = (4, 3, -5), (5, -4, 6)


@cache
def taken(contrast, *pose, person=None, height_mm=4, slices=38):
    """Scan the phantom in axial slices, 4 mm apart; `person` is the seed of a head's own shape."""
    head = standard_head(2.0)
    acquisition = replace(
        T2W, modality=contrast, columns=144, rows=144, slices=slices, pixel_mm=1.6,
        thickness_mm=3.6, gap_mm=0.4, centre_mm=(0, -17, height_mm),
    )  # fmt: skip
    warp = NO_WARP if person is None else Warp.random(np.random.default_rng(person))
    painted, pose = head.paint(CONTRASTS[contrast]), rigid(*pose).matrix
    rng = np.random.default_rng(len(contrast))  # another noise in every contrast
    scanned = acquire(head, painted, warp, acquisition, pose, pose, rng)
    return Scan(Volume(scanned.voxels, scanned.affine), scanned.brain > 0)


def errors(found, *pose):
    """Largest distance in mm at the poles of the brain, and angle in degrees."""
    truth = rigid(*pose)
    apart = np.linalg.norm(found.transform(POLES_MM) - truth(POLES_MM), axis=1).max()
    return apart, truth.inverse().then(found.transform).rotation_degrees


@pytest.mark.parametrize(
    "pose",
    [((15, 0, 0), (0, 0, 30)), ((0, 0, -15), (30, 0, 0)), ((5, -8, 10), (200, 0, 0))],
    ids=["15 degrees and 30 mm", "about another axis", "origin off by 200 mm"],
)
def test_a_moved_head_is_recovered(pose):
    end, found = outcome_of(taken("T1w"), taken("T2w", *pose), AUTO)
    apart_mm, degrees = errors(found, *pose)
    assert end == "ok"
    assert apart_mm < 1
    assert degrees < 1


@pytest.mark.parametrize("height_mm", [-40, -20, 20, 40, 60])
def test_a_slab_of_20_mm_is_recovered_or_flagged(height_mm):
    slab = taken("T2w", *MOVED, height_mm=height_mm, slices=5)
    end, found = outcome_of(taken("T1w"), slab, MATTES)
    apart_mm, degrees = errors(found, *MOVED)
    assert end != "ok" or (apart_mm < 1 and degrees < 1)


def test_most_slabs_of_20_mm_are_not_flagged():
    """Else the test above would pass for an engine that flags all of them."""
    slabs = [taken("T2w", *MOVED, height_mm=mm, slices=5) for mm in (-20, 0, 20, 40)]
    ends = [outcome_of(taken("T1w"), slab, MATTES)[0] for slab in slabs]
    assert ends.count("ok") >= 3


@pytest.mark.parametrize("person", range(3))
def test_another_persons_head_is_flagged(person):
    """Mutual information alone would not do: the best pose of two brains is a good one."""
    other = taken("T2w", *MOVED, person=person)
    end, found = outcome_of(taken("T1w"), other, MATTES)
    assert end != "ok"
    assert found.quality["stretch"] > 0.022
    own = taken("T1w", person=person)
    assert outcome_of(own, other, MATTES)[0] == "ok"


@pytest.mark.parametrize("has_mask", [True, False], ids=["a mask of something", "an empty mask"])
def test_a_series_of_the_neck_is_not_a_brain(has_mask):
    neck = taken("T2w", height_mm=-120, slices=20)
    assert not neck.brain.any()
    if has_mask:
        brain = np.zeros_like(neck.brain)
        brain[60:80, 60:80, 8:14] = True
        neck = Scan(neck.volume, brain)
    assert outcome_of(taken("T1w"), neck, MATTES)[0] == "reg_failed"


def test_noise_does_not_pass_as_a_brain():
    like = moving_scan()
    noise = np.random.default_rng(0).normal(300, 60, MOVING_SHAPE).astype(np.float32)
    moving = Scan(Volume(noise, like.volume.affine), like.brain)
    assert outcome_of(fixed_scan(), moving, AUTO)[0] == "reg_failed"
    assert outcome_of(fixed_scan(), moving, MATTES, same_head=False)[0] == "reg_failed"


def test_a_mirrored_head_ends_in_a_state():
    """No rigid metric can be sure of it: docs/registration.md says how often it is flagged."""
    head = moving_scan()
    mirrored = Scan(Volume(head.volume.data[::-1], head.volume.affine), head.brain[::-1])
    end, found = outcome_of(fixed_scan(), mirrored, MATTES)
    assert end in ("ok", "needs_review", "reg_failed")
    assert np.linalg.det(found.transform.matrix[:3, :3]) == pytest.approx(1)  # turned, not mirrored


# Images that are none, on the analytic head


def with_values(change):
    def changed(head):
        return Scan(Volume(change(head.volume.data), head.volume.affine), head.brain)

    return changed


def with_brain(change):
    return lambda head: Scan(head.volume, change(head.brain))


def part(*slices):
    def cut(head):
        affine = head.volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [s.start or 0 for s in slices]
        data = np.asfortranarray(head.volume.data[slices])
        return Scan(Volume(data, affine), head.brain[slices])

    return cut


def with_one(value):
    def change(data):
        data = data.copy()
        data[20, 22, 18] = value
        return data

    return with_values(change)


def one_voxel(brain):
    one = np.zeros_like(brain)
    one[tuple(np.argwhere(brain)[len(np.argwhere(brain)) // 2])] = True
    return one


ALL = slice(None)
UNUSABLE = {
    "empty": with_values(np.zeros_like),
    "constant": with_values(lambda data: np.full_like(data, 7)),
    "one NaN": with_one(np.nan),
    "one infinite voxel": with_one(-np.inf),
    "nothing but NaN": with_values(lambda data: np.full_like(data, np.nan)),
    "larger than float32 can add up": with_values(lambda data: data * np.float32(1e35)),
    "float64 beyond float32": with_values(lambda data: data.astype(np.float64) * 1e200),
    "smaller than float32 can tell apart": with_values(lambda data: data * np.float32(1e-42)),
    "one voxel": part(slice(20, 21), slice(22, 23), slice(18, 19)),
}
LOST = {
    "8 voxels": part(slice(19, 21), slice(21, 23), slice(17, 19)),
    "one slice": part(ALL, ALL, slice(18, 19)),
    "one row": part(ALL, slice(22, 23), slice(18, 19)),
    "no brain": with_brain(np.zeros_like),
    "brain of one voxel": with_brain(one_voxel),
    "brain everywhere": with_brain(np.ones_like),
    "two values": with_values(lambda data: (data > data.mean()).astype(np.uint8)),
}
FINE = {
    "values up to 1e31": with_values(lambda data: data * np.float32(1e28)),
    "values below 1e-28": with_values(lambda data: data * np.float32(1e-31)),
    "values around 0": with_values(lambda data: data - data.mean()),
    "no value above 0": with_values(lambda data: -1 - data),
    "one voxel of 1e30": with_one(1e30),
    "int16": with_values(lambda data: (data - 500).astype(np.int16)),
    "uint8": with_values(lambda data: (data * 255 / data.max()).astype(np.uint8)),
    "uint16": with_values(lambda data: data.astype(np.uint16)),
    "int32": with_values(lambda data: (data * 1e5).astype(np.int32)),
    "float64": with_values(lambda data: data.astype(np.float64)),
    "C order": with_values(np.ascontiguousarray),
}


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("what", [*UNUSABLE, *LOST])
def test_what_cannot_be_registered_fails_with_a_reason(what, side):
    scans = {"fixed": fixed_scan(), "moving": moving_scan()}
    scans[side] = {**UNUSABLE, **LOST}[what](scans[side])
    end, found = outcome_of(*scans.values(), MATTES, same_head=side == "moving")
    assert end == "reg_failed"
    assert isinstance(found, Rejected) == (what in UNUSABLE)


@pytest.mark.parametrize("what", ["8 voxels", "one slice", "no brain"])
def test_the_published_recipe_does_not_trip_over_it_either(what):
    assert outcome_of(fixed_scan(), LOST[what](moving_scan()), AUTO)[0] == "reg_failed"


@pytest.mark.parametrize("what", FINE)
def test_what_is_odd_and_fine_is_registered(what):
    end, found = outcome_of(FINE[what](fixed_scan()), FINE[what](moving_scan()), MATTES)
    assert end == "ok"
    assert apart_mm(found.transform, TURNED) < 1


def test_an_image_lies_on_itself():
    fixed = fixed_scan()
    end, found = outcome_of(fixed, fixed, AUTO)
    assert end == "ok"
    assert apart_mm(found.transform, RigidTransform()) < 0.2
    assert found.quality["similarity"] > 0.3


def test_a_head_small_in_a_field_of_2_m_is_found():
    field, shape, corner = (250, 250, 60), (28, 30, 26), (100, 120, 20)
    near = moving_scan(shape, (8, 8, 8))
    inside = tuple(slice(a, a + n) for a, n in zip(corner, shape, strict=True))
    data, brain = np.zeros(field, np.uint16), np.zeros(field, bool)
    data[inside], brain[inside] = near.volume.data, near.brain
    affine = near.volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ corner
    end, found = outcome_of(fixed_scan(), Scan(Volume(data, affine), brain), MATTES)
    assert end == "ok"
    assert apart_mm(found.transform, TURNED) < 1
    assert found.quality["overlap"] < 0.05


# The way out of doubt


def lost_mattes(fixed, moving, settings, same_head):
    away = TURNED.then(rigid(shift_mm=(0, 0, 60)))
    return Found(away, "mattes", away)


def test_where_mattes_is_lost_the_published_recipe_wins(monkeypatch):
    monkeypatch.setattr("mrmill.register.engines.mattes.find", lost_mattes)
    end, found = outcome_of(fixed_scan(), moving_scan(), AUTO)
    assert (end, found.engine) == ("ok", "ants")
    assert apart_mm(found.transform, TURNED) < 2


def test_the_published_recipe_is_not_asked_where_nothing_is_in_doubt(monkeypatch):
    def no_need(*_):
        raise AssertionError

    monkeypatch.setattr("mrmill.register.engines.ants.find", no_need)
    end, found = outcome_of(fixed_scan(), moving_scan(), AUTO)
    assert (end, found.engine) == ("ok", "mattes")


def test_the_best_that_was_found_is_kept_where_the_recipe_gives_up(monkeypatch):
    def gives_up(*_):
        raise Rejected("reg_failed", "the engine gave up", "an optimum")

    monkeypatch.setattr("mrmill.register.engines.mattes.find", lost_mattes)
    monkeypatch.setattr("mrmill.register.engines.ants.find", gives_up)
    end, found = outcome_of(fixed_scan(), moving_scan(), AUTO)
    assert (end, found.engine) == ("reg_failed", "mattes")


# A study of one good series and of bad ones

UID, CENTER, GOOD = "2END5JBWVA", "t1w-raw-axi", "t2w-raw-axi"


def sheared(path):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 1] += 0.5
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)


def without_end(path):
    path.write_bytes(path.read_bytes()[:-2000])


def in_4d(path):
    image = nib.load(path)
    nib.save(
        nib.Nifti1Image(np.asarray(image.dataobj)[..., None].repeat(2, -1), image.affine), path
    )


def as_it_is(head):
    return head


BAD = {
    **{name: (UNUSABLE[name], None, "reg_failed") for name in ("empty", "constant")},
    **{name: (LOST[name], None, "reg_failed") for name in ("8 voxels", "one slice", "no brain")},
    "one NaN": (UNUSABLE["one NaN"], None, "non_finite_voxels"),
    "sheared": (as_it_is, sheared, "sheared_affine"),
    "cut short": (as_it_is, without_end, "unreadable_image"),
    "4D": (as_it_is, in_4d, "not_3d"),
}


def test_bad_series_are_told_and_the_others_of_the_study_go_on(tmp_path):
    made = {CENTER: (fixed_scan(), None), GOOD: (moving_scan(), None)}
    made |= {name: (change(moving_scan()), harm) for name, (change, harm, _) in BAD.items()}
    folder, series = tmp_path / "deface", []
    for series_id, (acquired, harm) in made.items():
        files = {k: layout.native_mask(UID, series_id, k) for k in ("brain", "defacing")}
        files["img"] = layout.native_image(UID, series_id)
        for kind, data in (("img", acquired.volume.data), ("brain", acquired.brain),
                           ("defacing", np.ones_like(acquired.brain))):  # fmt: skip
            kept = data if kind == "img" else data.astype(np.uint8)
            write_volume(folder / files[kind], kept, acquired.volume.affine)
        if harm:
            harm(folder / files["img"])
        entry = {"series_key": series_id, "series_id": series_id, "files": files}
        center = {"is_center_modality": series_id == CENTER}
        series.append({**entry, **center, "state": "accepted", "reason": ""})
    record = Record(UID, "key", Outcome(series=series))
    study = Study(UID, "P", "b", upstream={"deface": record}, folders={"deface": folder})
    fixed = fixed_scan()
    atlas = Atlas(fixed.volume, fixed.brain, "test", "0" * 64)
    outcome = register_study(study, tmp_path / "register", MATTES, atlas, {})
    ends = {(e["series_id"], e["space"]): (e["state"], e["reason"]) for e in outcome.series}
    assert outcome.state == "accepted"
    for space in ("coreg", "atlas"):
        assert {ends[name, space] for name in (CENTER, GOOD)} == {("accepted", "")}
        assert {n: ends[n, space] for n in BAD} == {
            n: ("rejected", r) for n, (*_, r) in BAD.items()
        }
    assert all(e["found"] for e in outcome.series if e["state"] == "rejected")
