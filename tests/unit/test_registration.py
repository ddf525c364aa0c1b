"""Registration of pairs and of a whole study that are as they should be, or nearly."""

import json
import os

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

from dataclasses import replace

import numpy as np
import pytest
from analytic_head import apart_mm, fixed_scan, grid, moving_scan, rigid, scan

from mrmill import __version__, layout
from mrmill.config import Register
from mrmill.reasons import Rejected
from mrmill.records import Outcome, Record
from mrmill.register import describe_fit, register_study
from mrmill.register.atlas import Atlas
from mrmill.register.engines import Found, find
from mrmill.register.quality import Problem, measure, measured, problems, state
from mrmill.register.resampling import resample
from mrmill.register.transforms import RigidTransform, read_transform
from mrmill.shards import Study
from mrmill.volumes import Volume, read_volume, write_volume

SETTINGS = Register()
UID = "2END5JBWVA"


@pytest.fixture(scope="module")
def fixed():
    return fixed_scan()


# The engines


@pytest.mark.parametrize("engine", ["auto", "mattes", "ants"])
@pytest.mark.parametrize(
    ("degrees", "shift_mm"), [((15, 0, 0), (0, 0, 30)), ((5, -8, 10), (200, 0, -10))]
)
def test_a_turned_and_shifted_head_of_another_contrast_is_found(fixed, engine, degrees, shift_mm):
    truth = rigid(degrees, shift_mm)
    moving = moving_scan((52, 40, 52), (4, 5, 4), truth)
    found = find(fixed, moving, Register(engine=engine))
    assert apart_mm(found.transform, truth) < 1
    assert problems(found.quality, SETTINGS.coreg_limits) == []
    assert found.engine == ("ants" if engine == "ants" else "mattes")


def test_the_thicker_slices_may_be_on_either_side(fixed):
    moving = moving_scan()
    there = find(fixed, moving, SETTINGS).transform
    back = find(moving, fixed, SETTINGS).transform
    assert apart_mm(there.then(back), RigidTransform()) < 0.3


def test_the_same_seed_gives_the_same_transform_and_leaves_no_file(fixed, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    moving = scan((30, 30, 30), grid((30, 30, 30), (6, 6, 6)), rigid((4, 0, 0), (3, 0, 0)))
    for engine in ("mattes", "ants"):
        once, twice, other = (
            find(fixed, moving, Register(engine=engine, seed=seed)).transform.matrix
            for seed in (42, 42, 7)
        )
        np.testing.assert_array_equal(once, twice)
        assert not np.array_equal(once, other)  # else the seed would not reach the engine
    assert not list(tmp_path.iterdir())


# Measures and their limits


def at(pose, fixed, moving):
    return measure(Found(pose, "known", pose), fixed, moving)


def test_measures_of_a_known_displacement(fixed):
    shape = fixed.volume.data.shape
    quality = at(rigid(shift_mm=(0, 0, 25)), fixed, fixed)
    assert quality["rotation_degrees"] == 0
    assert quality["translation_mm"] == pytest.approx(25)
    assert quality["overlap"] == pytest.approx(1 - 25 / (4 * shape[2]), abs=0.01)
    # two balls of radius 1 whose middles are 0.5 apart share (4 + d)(2 - d)^2 / 16 of one
    assert quality["brain_dice"] == pytest.approx(4.5 * 1.5**2 / 16, abs=0.01)
    assert at(rigid((0, 12, 0)), fixed, fixed)["rotation_degrees"] == pytest.approx(12)


def test_measures_of_a_field_that_is_missed(fixed):
    quality = at(rigid(shift_mm=(500, 0, 0)), fixed, fixed)
    assert [quality[n] for n in ("similarity", "overlap", "brain_dice", "metric")] == [0, 0, 0, 0]
    assert state(problems(quality, SETTINGS.coreg_limits)) == "reg_failed"


@pytest.mark.parametrize("share", [-0.06, 0.0, 0.06])
def test_stretch_is_by_how_much_the_heads_differ(fixed, share):
    moving = moving_scan(size=(1, 1 + share, 1))
    quality = find(fixed, moving, Register(engine="mattes")).quality
    assert quality["stretch"] == pytest.approx(abs(share), abs=0.012)
    assert bool(problems(quality, SETTINGS.coreg_limits)) == bool(share)


def test_a_pose_beside_the_right_one_stands_out_less(fixed):
    moving = moving_scan(pose=rigid())
    poses = [rigid(shift_mm=(mm, 0, 0)) for mm in (0, 4, 8, 16)]
    seen = [at(pose, fixed, moving) for pose in poses]
    for name in ("prominence", "similarity", "metric", "brain_dice"):
        values = [quality[name] for quality in seen]
        assert values == sorted(values, reverse=True)
    assert [state(problems(q, SETTINGS.coreg_limits)) for q in (seen[0], seen[-1])] == [
        "ok",
        "reg_failed",
    ]


GOOD_FIGURES = {
    "prominence": 40.0, "similarity": 0.1, "metric_gain": 0.4, "brain_dice": 0.9, "spread_mm": 0.0,
    "stretch": 0.01,
}  # fmt: skip


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, []),
        ({"stretch": 0.03}, [Problem(False, "stretch 0.030", "stretch <= 0.022")]),
        ({"stretch": 0.05}, [Problem(True, "stretch 0.050", "stretch <= 0.04")]),
        ({"prominence": 11}, [Problem(False, "prominence 11.000", "prominence >= 12")]),
        ({"prominence": 12, "stretch": 0.022, "brain_dice": 0.75}, []),
        ({"spread_mm": 90}, [Problem(False, "spread_mm 90.000", "spread_mm <= 4")]),
        (
            {"spread_mm": 90, "brain_dice": 0.6, "similarity": 0.01},
            [
                Problem(True, "similarity 0.010", "similarity >= 0.02"),
                Problem(False, "brain_dice 0.600", "brain_dice >= 0.75"),
                Problem(False, "spread_mm 90.000", "spread_mm <= 4"),
            ],
        ),
        ({"stretch": float("nan")}, [Problem(True, "stretch nan", "stretch <= 0.04")]),
    ],
)
def test_problems_are_what_is_beyond_a_limit_the_worst_first(figures, expected):
    seen = problems(GOOD_FIGURES | figures, SETTINGS.coreg_limits)
    assert seen == expected
    states = {None: "ok", False: "needs_review", True: "reg_failed"}
    assert state(seen) == states[expected[0].fails if expected else None]


# The stage

CENTER, T2, FLAIR = "t1w-raw-axi", "t2w-raw-sag", "flair-raw-cor"
POSES = {CENTER: rigid((8, 0, 0), (0, 10, 0)), T2: rigid((0, 9, 0)), FLAIR: rigid((0, 0, 9))}
WRONG = rigid((0, 0, 0), (0, 0, 70))


@pytest.fixture
def study(tmp_path):
    """A study after defacing: center, T2w and FLAIR, each in its own pose and on its own grid."""
    folder, series = tmp_path / "deface", []
    for number, (series_id, pose) in enumerate(POSES.items()):
        shape = (40 + number, 44, 40)
        acquired = scan(shape, grid(shape, (4, 4, 4)), pose)
        kinds = ("brain", "defacing")
        files = {kind: layout.native_mask(UID, series_id, kind) for kind in kinds}
        files["img"] = layout.native_image(UID, series_id)
        affine = acquired.volume.affine
        write_volume(folder / files["img"], acquired.volume.data, affine)
        write_volume(folder / files["brain"], acquired.brain.astype(np.uint8), affine)
        write_volume(folder / files["defacing"], np.ones(shape, np.uint8), affine)
        entry = {"series_key": f"KEY{number}", "series_id": series_id, "files": files}
        center = {"is_center_modality": series_id == CENTER}
        series.append({**entry, **center, "state": "accepted", "reason": ""})
    record = Record(UID, "key", Outcome(series=series))
    return Study(UID, "P", "batch00", upstream={"deface": record}, folders={"deface": folder})


@pytest.fixture
def atlas(fixed):
    return Atlas(fixed.volume, fixed.brain, "test", "0" * 64)


class KnownEngine:
    """An engine that knows the truth, and can be made wrong or doubtful about a series.

    A fixed scan that is no series of the study is the atlas.
    """

    def __init__(self, study):
        self.poses, self.spread_mm, self.asked = dict(POSES), {}, []
        self.shapes = {
            read_volume(study.folders["deface"] / entry["files"]["img"]).data.shape: name
            for entry in study.upstream["deface"].outcome.series
            for name in [entry["series_id"]]
        }

    def find(self, fixed, moving, settings, same_head=True):
        to, of = (self.shapes.get(s.volume.data.shape) for s in (fixed, moving))
        self.asked.append((to, of, same_head))
        start = self.poses[to] if to else RigidTransform()
        pose = start.inverse().then(self.poses[of])
        found = Found(pose, "known", RigidTransform(), self.spread_mm.get(of, 0.0))
        return measured(found, fixed, moving)


@pytest.fixture
def engine(monkeypatch, study):
    known = KnownEngine(study)
    monkeypatch.setattr("mrmill.register.find", known.find)
    return known


@pytest.fixture
def run(study, atlas, engine, tmp_path):
    """Register the study by what a person decided; there is a folder of what it wrote."""

    def register(decided=None, atlas=atlas, settings=SETTINGS):
        decisions = {UID: decided} if decided else {}
        return register_study(study, tmp_path / "register", settings, atlas, decisions)

    return register


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "register"


def states(outcome):
    return {(e["series_id"], e["space"]): (e["state"], e["reason"]) for e in outcome.series}


def entry_of(outcome, series_id, space):
    (entry,) = [e for e in outcome.series if (e["series_id"], e["space"]) == (series_id, space)]
    return entry


def written(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}


SPACES = ("coreg", "atlas")
GOOD = ("accepted", "")
ALL_GOOD = {(series_id, space): GOOD for series_id in POSES for space in SPACES}


def in_atlas(reason):
    return {(series_id, "atlas"): ("rejected", reason) for series_id in POSES}


def in_both(series_id, reason):
    return {(series_id, space): ("rejected", reason) for space in SPACES}


def coreg_files(series_id):
    transform = f"coreg/{layout.coreg_transform(series_id)}"
    image = f"coreg/{layout.coreg_image(UID, series_id)}"
    return {image, transform}


ATLAS_OF_CENTER = {
    f"atlas/{layout.atlas_image(UID, CENTER)}",
    *(f"atlas/{layout.atlas_mask(UID, CENTER, kind)}" for kind in ("brain", "defacing")),
    f"atlas/{layout.atlas_transform(CENTER)}",
}


def test_every_series_comes_to_lie_on_the_center_and_on_the_atlas(run, atlas, engine, folder):
    outcome = run()
    assert states(outcome) == ALL_GOOD
    assert {entry.get("fit", "ok") for entry in outcome.series} == {"ok"}
    # brains onto the atlas are another person's; series onto the center are not
    assert engine.asked == [(None, CENTER, False), (CENTER, T2, True), (CENTER, FLAIR, True)]
    moving = (T2, FLAIR)
    assert written(folder) == {n for entry in outcome.series for n in entry["files"].values()}
    assert written(folder) == {
        *(name for series_id in moving for name in coreg_files(series_id)),
        *(f"atlas/{layout.atlas_image(UID, s)}" for s in moving),
        *ATLAS_OF_CENTER,
    }
    for series_id in POSES:
        image = read_volume(folder / "atlas" / layout.atlas_image(UID, series_id))
        assert image.data.dtype == np.float32
        np.testing.assert_allclose(image.affine, atlas.volume.affine, atol=1e-4)
        seen = np.corrcoef(image.data[atlas.brain], atlas.volume.data[atlas.brain])[0, 1]
        assert seen > 0.9
    mask = read_volume(folder / "atlas" / layout.atlas_mask(UID, CENTER, "brain"))
    assert mask.data.dtype == np.uint8
    assert 2 * (mask.data & atlas.brain).sum() / (mask.data.sum() + atlas.brain.sum()) > 0.95


@pytest.mark.parametrize(
    ("name", "moving", "target"),
    [
        (f"coreg/transform/M_coreg_{T2}", T2, {"series_id": CENTER}),
        (f"atlas/transform/M_atlas_{CENTER}", CENTER, {"atlas": "test", "sha256": "0" * 64}),
    ],
)
def test_a_description_says_what_a_transform_is(run, folder, tmp_path, name, moving, target):
    entry = entry_of(run(), moving, name.partition("/")[0])
    text = describe_fit(entry).decode()
    said = json.loads(text)
    read = read_transform(folder / f"{name}.mat")
    np.testing.assert_allclose(said["matrix"], read.matrix, rtol=0, atol=1e-9)
    assert (said["study_uid"], said["moving"]) == (UID, {"series_id": moving})
    assert said["fixed"].items() >= target.items()
    assert said["engine"] == {"asked": SETTINGS.engine, "found_by": "known"}
    assert (said["seed"], said["versions"]["mrmill"]) == (SETTINGS.seed, __version__)
    assert said["quality"] == entry["quality"]
    assert (said["state"], "review" in said) == ("ok", False)
    assert str(tmp_path) not in text


def test_a_series_goes_to_the_atlas_from_its_own_grid_at_once(run, study, atlas, folder):
    run()
    own = read_volume(study.folders["deface"] / layout.native_image(UID, T2))
    to_atlas = [
        read_transform(folder / "atlas" / layout.atlas_transform(CENTER)),
        read_transform(folder / "coreg" / layout.coreg_transform(T2)),
    ]
    composed = RigidTransform(to_atlas[1].matrix @ to_atlas[0].matrix)
    found = read_volume(folder / "atlas" / layout.atlas_image(UID, T2))
    expected = resample(own, Volume(found.data, atlas.volume.affine), composed)
    np.testing.assert_allclose(found.data, expected, atol=0.01)


def test_without_the_atlas_space_there_is_no_work_for_it(run, engine, folder):
    outcome = run(atlas=None)
    assert {entry["space"] for entry in outcome.series} == {"coreg"}
    assert not (folder / "atlas").exists()
    assert [to for to, _, _ in engine.asked] == [CENTER, CENTER]


def test_registering_a_study_twice_gives_the_same_bytes(study, atlas, engine, tmp_path):
    outcomes = [register_study(study, tmp_path / n, SETTINGS, atlas, {}) for n in ("a", "b")]
    assert outcomes[0] == outcomes[1]
    assert written(tmp_path / "a")
    for file in written(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# What does not fit, and what a person decides about it


def test_a_series_that_does_not_fit_stays_out_of_both_spaces(run, engine, folder):
    engine.poses[T2] = WRONG
    outcome = run()
    assert outcome.state == "accepted"
    assert states(outcome) == ALL_GOOD | in_both(T2, "reg_failed")
    entry = entry_of(outcome, T2, "coreg")
    assert "brain_dice" in entry["found"]
    assert "brain_dice >= 0.5" in entry["limit"]
    assert {name for name in written(folder) if T2 in name} == coreg_files(T2)  # to look at


def test_a_doubtful_series_waits_for_a_person_with_its_files(run, engine, folder):
    engine.spread_mm[T2] = 90.0
    outcome = run()
    assert states(outcome) == ALL_GOOD | in_both(T2, "reg_needs_review")
    for space in SPACES:
        entry = entry_of(outcome, T2, space)
        assert (entry["found"], entry["limit"]) == ("spread_mm 90.000", "spread_mm <= 4")
    assert entry_of(outcome, T2, "coreg")["fit"] == "needs_review"
    assert {name for name in written(folder) if T2 in name} == coreg_files(T2)
    said = json.loads(describe_fit(entry_of(outcome, T2, "coreg")))
    assert (said["state"], "review" in said) == ("needs_review", False)


@pytest.mark.parametrize("doubt", ["needs_review", "reg_failed"])
def test_a_person_who_looked_admits_a_series(run, engine, folder, doubt):
    if doubt == "reg_failed":
        engine.poses[T2] = WRONG
    else:
        engine.spread_mm[T2] = 90.0
    outcome = run({T2: "admit"})
    assert states(outcome) == ALL_GOOD
    entry = entry_of(outcome, T2, "coreg")
    assert (entry["fit"], entry["review"]) == (doubt, "admit")
    said = json.loads(describe_fit(entry_of(outcome, T2, "coreg")))
    assert (said["state"], said["review"]) == (doubt, "admit")
    assert f"atlas/{layout.atlas_image(UID, T2)}" in written(folder)


def test_a_person_refuses_a_series_that_fits_and_nothing_is_done_for_it(run, engine, folder):
    outcome = run({T2: "reject"})
    assert states(outcome) == ALL_GOOD | in_both(T2, "review_rejected")
    assert entry_of(outcome, T2, "coreg")["review"] == "reject"
    assert not [name for name in written(folder) if T2 in name]
    assert T2 not in [of for _, of, _ in engine.asked]


def test_decisions_about_other_studies_change_nothing(study, atlas, engine, tmp_path):
    others = {"OTHERSTUDY": dict.fromkeys(POSES, "reject")}
    outcome = register_study(study, tmp_path / "register", SETTINGS, atlas, others)
    assert states(outcome) == ALL_GOOD


def test_where_no_transform_was_found_there_is_nothing_to_admit(run, engine, monkeypatch, folder):
    def gives_up(fixed, moving, settings, same_head=True):
        if engine.shapes[moving.volume.data.shape] == T2:
            raise Rejected("reg_failed", found="the engine gave up", limit="an optimum")
        return engine.find(fixed, moving, settings, same_head)

    monkeypatch.setattr("mrmill.register.find", gives_up)
    outcome = run({T2: "admit"})
    assert states(outcome) == ALL_GOOD | in_both(T2, "reg_failed")
    assert entry_of(outcome, T2, "coreg")["review"] == "admit"
    assert not [name for name in written(folder) if T2 in name]


@pytest.mark.parametrize("doubt", ["needs_review", "reg_failed"])
def test_a_center_that_may_not_fit_the_atlas_keeps_its_study_out_of_it(
    run, engine, folder, monkeypatch, doubt
):
    def off_atlas(fixed, moving, settings, same_head=True):
        found = engine.find(fixed, moving, settings, same_head)
        if same_head:
            return found
        if doubt == "needs_review":
            return replace(found, quality=found.quality | {"spread_mm": 90.0})
        return measured(Found(found.transform.then(WRONG), "known", found.start), fixed, moving)

    monkeypatch.setattr("mrmill.register.find", off_atlas)
    held = run()
    reason = f"center_{doubt}" if doubt == "reg_failed" else "center_reg_needs_review"
    assert states(held) == ALL_GOOD | in_atlas(reason)
    assert entry_of(held, T2, "atlas")["found"] == entry_of(held, CENTER, "atlas")["found"] != ""
    assert {name for name in written(folder) if name.startswith("atlas/")} == ATLAS_OF_CENTER
    said = json.loads(describe_fit(entry_of(held, CENTER, "atlas")))
    assert said["state"] == doubt
    assert states(run({CENTER: "admit"})) == ALL_GOOD


def test_a_center_refused_by_hand_keeps_its_study_out_of_the_atlas_alone(run, folder):
    outcome = run({CENTER: "reject"})
    assert states(outcome) == ALL_GOOD | in_atlas("review_rejected")
    assert not (folder / "atlas").exists()


def test_a_doubtful_series_of_a_doubtful_center_has_its_own_reason(run, engine):
    engine.spread_mm |= {CENTER: 90.0, T2: 90.0}
    found = states(run())
    assert found == ALL_GOOD | in_atlas("center_reg_needs_review") | in_both(T2, "reg_needs_review")


# Errors stay where they happen


def test_a_broken_file_fails_its_series_alone(run, study):
    (study.folders["deface"] / layout.native_mask(UID, FLAIR, "brain")).unlink()
    outcome = run()
    failed = {(FLAIR, space): ("failed", "error") for space in SPACES}
    assert states(outcome) == ALL_GOOD | failed
    assert entry_of(outcome, FLAIR, "atlas")["error"].startswith("FileNotFoundError")


@pytest.mark.parametrize("lost", [CENTER, T2])
def test_an_unexpected_error_fails_its_series_alone(run, engine, monkeypatch, lost):
    def trips(fixed, moving, settings, same_head=True):
        if engine.shapes[moving.volume.data.shape] == lost:
            raise ZeroDivisionError
        return engine.find(fixed, moving, settings, same_head)

    monkeypatch.setattr("mrmill.register.find", trips)
    outcome = run()
    assert outcome.state == "accepted"
    if lost == T2:
        expected = {(T2, space): ("failed", "error") for space in SPACES}
    else:
        expected = in_atlas("center_reg_failed") | {(CENTER, "atlas"): ("failed", "error")}
    assert states(outcome) == ALL_GOOD | expected
