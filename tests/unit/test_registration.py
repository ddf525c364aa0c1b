import json
import os

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import nibabel as nib
import numpy as np
import pytest

from mrmill import __version__, layout, register
from mrmill.config import Register
from mrmill.reasons import Rejected
from mrmill.records import Outcome, Record
from mrmill.register import check, register_study
from mrmill.register.atlas import Atlas
from mrmill.register.engines import Found, find
from mrmill.register.quality import measure, normalised_mutual_information
from mrmill.register.resampling import resample
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform, read_transform
from mrmill.shards import Study
from mrmill.volumes import Volume, read_volume, write_volume

SETTINGS = Register()
UID = "2END5JBWVA"
BRAIN_MM = np.array([55.0, 65.0, 50.0])
BLOBS = np.random.default_rng(3).uniform(-1, 1, size=(40, 3)) * BRAIN_MM * 0.7


def rigid(degrees=(0, 0, 0), shift_mm=(0, 0, 0)):
    turn = nib.eulerangles.euler2mat(*np.radians(degrees))
    return RigidTransform(nib.affines.from_matvec(turn, shift_mm))


def grid(shape, spacing, degrees=(0, 0, 0), center_mm=(0, 0, 0), flip=(1, 1, 1)):
    """An oblique affine whose field has a given middle."""
    turn = rigid(degrees).matrix[:3, :3] @ np.diag(np.multiply(spacing, flip))
    origin = np.array(center_mm) - turn @ ((np.array(shape) - 1) / 2)
    return nib.affines.from_matvec(turn, origin)


def head(points_mm):
    """The anatomy itself: an ellipsoid of brain with blobs in it, no left-right symmetry."""
    radius = np.linalg.norm(points_mm / BRAIN_MM, axis=-1)
    value = np.where(radius < 1, 100.0, np.where(radius < 1.25, 40.0, 0.0))
    for number, blob in enumerate(BLOBS):
        distance = ((points_mm - blob) ** 2).sum(axis=-1)
        value += (radius < 1) * (30 + number) * np.exp(-distance / 2 / 6**2)
    return value, radius < 1


def scan(shape, affine, pose=None, contrast=lambda value: value):
    """Acquire the head on a grid; `pose` takes points of the standard head to this scan."""
    indices = np.moveaxis(np.indices(shape), 0, -1)
    points = nib.affines.apply_affine(affine, indices)
    value, brain = head((pose or RigidTransform()).inverse()(points.reshape(-1, 3)))
    image = contrast(value).reshape(shape).astype(np.float32)
    return Scan(Volume(image, affine), brain.reshape(shape))


@pytest.fixture(scope="module")
def fixed():
    shape = (44, 50, 40)
    return scan(shape, grid(shape, (4, 4, 4)))


def apart_mm(found, truth):
    """Largest distance between two transforms at the six poles of the brain."""
    poles = np.vstack([np.diag(BRAIN_MM), -np.diag(BRAIN_MM)])
    return np.linalg.norm(found(poles) - truth(poles), axis=1).max()


# The engine


@pytest.mark.parametrize(
    ("degrees", "shift_mm"), [((15, 0, 0), (0, 0, 30)), ((5, -8, 10), (200, 0, -10))]
)
def test_a_turned_and_shifted_head_of_another_contrast_is_found(fixed, degrees, shift_mm):
    truth = rigid(degrees, shift_mm)
    shape = (52, 40, 52)
    affine = grid(shape, (4, 5, 4), (3, 0, 8), truth.matrix[:3, 3], flip=(-1, 1, 1))
    moving = scan(shape, affine, truth, contrast=lambda v: 250 * np.sqrt(v) - 1.2 * v)
    found = find(fixed, moving, SETTINGS).transform
    assert apart_mm(found, truth) < 1
    quality = measure(found, fixed, moving)
    assert quality["brain_dice"] > 0.95
    assert quality["similarity"] > quality["similarity_headers"] + 0.1


def test_the_same_seed_gives_the_same_transform_and_leaves_no_file(fixed, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    moving = scan((30, 30, 30), grid((30, 30, 30), (6, 6, 6)), rigid((4, 0, 0), (3, 0, 0)))
    once, twice, other = (
        find(fixed, moving, SETTINGS.model_copy(update={"seed": seed})).transform.matrix
        for seed in (42, 42, 7)
    )
    np.testing.assert_array_equal(once, twice)
    assert not np.array_equal(once, other)  # else the seed would not reach the engine
    assert not list(tmp_path.iterdir())


def test_an_engine_that_gives_up_is_a_rejection(fixed):
    empty = Volume(np.zeros((20, 20, 20), np.float32), grid((20, 20, 20), (8, 8, 8)))
    with pytest.raises(Rejected, match="reg_failed"):
        find(fixed, Scan(empty, empty.data > 0), SETTINGS)


def test_noise_does_not_pass_as_a_brain(fixed):
    noise = np.random.default_rng(0).normal(100, 30, (30, 30, 30)).astype(np.float32)
    like = scan((30, 30, 30), grid((30, 30, 30), (6, 6, 6)))
    moving = Scan(Volume(noise, like.volume.affine), like.brain)
    found = find(fixed, moving, SETTINGS).transform
    with pytest.raises(Rejected, match="reg_failed"):
        check(measure(found, fixed, moving), SETTINGS)


# Measures


def test_mutual_information_is_1_for_a_relabelling_and_0_for_noise():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 32, size=50_000)
    assert normalised_mutual_information(values, 100.0 - 3 * values) == pytest.approx(1)
    assert normalised_mutual_information(values, rng.permutation(values)) < 0.01
    assert normalised_mutual_information(values, np.zeros(50_000)) == 0


def test_measures_of_a_known_displacement(fixed):
    shape = fixed.volume.data.shape
    quality = measure(rigid(shift_mm=(0, 0, 25)), fixed, fixed)
    assert quality["rotation_degrees"] == 0
    assert quality["translation_mm"] == pytest.approx(25)
    assert quality["overlap"] == pytest.approx(1 - 25 / (4 * shape[2]), abs=0.01)
    # two balls of radius 1 whose middles are 0.5 apart share (4 + d)(2 - d)^2 / 16 of one
    assert quality["brain_dice"] == pytest.approx(4.5 * 1.5**2 / 16, abs=0.01)
    assert measure(rigid((0, 12, 0)), fixed, fixed)["rotation_degrees"] == pytest.approx(12)


def test_measures_of_a_field_that_is_missed(fixed):
    quality = measure(rigid(shift_mm=(500, 0, 0)), fixed, fixed)
    assert [quality[n] for n in ("similarity", "overlap", "brain_dice")] == [0, 0, 0]


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


@pytest.fixture
def engine(monkeypatch, atlas, study):
    """An engine that knows the truth, and can be made to be wrong about a series."""
    poses = dict(POSES)

    def whose(volume):
        for entry in study.upstream["deface"].outcome.series:
            image = read_volume(study.folders["deface"] / entry["files"]["img"])
            if image.data.shape == volume.data.shape:
                return poses[entry["series_id"]]
        return RigidTransform()

    def known(fixed, moving, _):
        pose = whose(fixed.volume).inverse().then(whose(moving.volume))
        return Found(pose, "known", RigidTransform())

    monkeypatch.setattr("mrmill.register.find", known)
    return poses


def states(outcome):
    return {(e["series_id"], e["space"]): (e["state"], e["reason"]) for e in outcome.series}


GOOD = ("accepted", "")


def test_every_series_comes_to_lie_on_the_center_and_on_the_atlas(study, atlas, engine, tmp_path):
    outcome = register_study(study, tmp_path / "register", SETTINGS, atlas)
    assert set(states(outcome).values()) == {GOOD}
    folder, moving = tmp_path / "register", (T2, FLAIR)
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")}
    assert written == {name for entry in outcome.series for name in entry["files"].values()}
    assert written == {
        *(f"coreg/{layout.coreg_image(UID, s)}" for s in moving),
        *(f"coreg/{layout.coreg_transform(s)}" for s in moving),
        *(f"atlas/{layout.atlas_image(UID, s)}" for s in (CENTER, *moving)),
        *(f"atlas/{layout.atlas_mask(UID, CENTER, kind)}" for kind in ("brain", "defacing")),
        f"atlas/{layout.atlas_transform(CENTER)}",
        *(f"coreg/{layout.transform_json(layout.coreg_transform(s))}" for s in moving),
        f"atlas/{layout.transform_json(layout.atlas_transform(CENTER))}",
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
def test_beside_each_transform_a_json_says_what_it_is(
    study, atlas, engine, tmp_path, name, moving, target
):
    outcome = register_study(study, tmp_path / "register", SETTINGS, atlas)
    text = (tmp_path / "register" / f"{name}.json").read_text()
    said = json.loads(text)
    read = read_transform(tmp_path / "register" / f"{name}.mat")
    np.testing.assert_allclose(said["matrix"], read.matrix, rtol=0, atol=1e-9)
    assert (said["study_uid"], said["moving"]) == (UID, {"series_id": moving})
    assert said["fixed"].items() >= target.items()
    assert said["engine"] == {"asked": SETTINGS.engine, "found_by": "known"}
    assert (said["seed"], said["versions"]["mrmill"]) == (SETTINGS.seed, __version__)
    space = name.partition("/")[0]
    (entry,) = [e for e in outcome.series if (e["space"], e["series_id"]) == (space, moving)]
    assert said["quality"] == entry["quality"]
    assert str(tmp_path) not in text


def test_a_series_goes_to_the_atlas_from_its_own_grid_at_once(study, atlas, engine, tmp_path):
    register_study(study, tmp_path / "register", SETTINGS, atlas)
    own = read_volume(study.folders["deface"] / layout.native_image(UID, T2))
    to_atlas = [
        read_transform(tmp_path / "register/atlas" / layout.atlas_transform(CENTER)),
        read_transform(tmp_path / "register/coreg" / layout.coreg_transform(T2)),
    ]
    composed = RigidTransform(to_atlas[1].matrix @ to_atlas[0].matrix)
    written = read_volume(tmp_path / "register/atlas" / layout.atlas_image(UID, T2))
    expected = resample(own, Volume(written.data, atlas.volume.affine), composed)
    np.testing.assert_allclose(written.data, expected, atol=0.01)


def test_a_series_that_does_not_fit_stays_out_of_both_spaces(study, atlas, engine, tmp_path):
    engine[T2] = WRONG
    outcome = register_study(study, tmp_path / "register", SETTINGS, atlas)
    failed = {(T2, space): ("rejected", "reg_failed") for space in ("coreg", "atlas")}
    assert outcome.state == "accepted"
    assert states(outcome) == dict.fromkeys(states(outcome), GOOD) | failed
    assert not list(tmp_path.rglob(f"*_coreg_{T2}*"))


def test_a_center_that_does_not_fit_the_atlas_keeps_its_study_out_of_it(
    study, atlas, engine, tmp_path, monkeypatch
):
    known = register.find
    shape = atlas.volume.data.shape

    def lost(fixed, moving, settings):
        found = known(fixed, moving, settings)
        away = Found(found.transform.then(WRONG), "known", found.start)
        return away if fixed.volume.data.shape == shape else found

    monkeypatch.setattr("mrmill.register.find", lost)
    found = states(register_study(study, tmp_path / "register", SETTINGS, atlas))
    assert {found[s, "coreg"] for s in POSES} == {GOOD}
    assert {found[s, "atlas"] for s in POSES} == {("rejected", "center_reg_failed")}
    assert not list(tmp_path.rglob("*_atlas_*"))


def test_a_broken_file_fails_its_series_alone(study, atlas, engine, tmp_path):
    (study.folders["deface"] / layout.native_mask(UID, FLAIR, "brain")).unlink()
    found = states(register_study(study, tmp_path / "register", SETTINGS, atlas))
    assert {found[FLAIR, "coreg"][0], found[FLAIR, "atlas"][0]} <= {"failed", "rejected"}
    assert {found[s, space] for s in (CENTER, T2) for space in ("coreg", "atlas")} == {GOOD}


def test_without_the_atlas_space_there_is_no_work_for_it(study, engine, tmp_path):
    outcome = register_study(study, tmp_path / "register", SETTINGS, None)
    assert {entry["space"] for entry in outcome.series} == {"coreg"}
    assert not (tmp_path / "register/atlas").exists()


def test_registering_a_study_twice_gives_the_same_bytes(study, atlas, engine, tmp_path):
    outcomes = [register_study(study, tmp_path / n, SETTINGS, atlas) for n in ("a", "b")]
    assert outcomes[0] == outcomes[1]
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*")]
    assert files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
