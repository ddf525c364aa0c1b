"""The deface stage: three files per series, one status each, and a center at the end."""

import nibabel as nib
import numpy as np
import pytest

from mrmill.config import ConfigError, Deface
from mrmill.decisions import read_decisions
from mrmill.deface import deface_study
from mrmill.records import Outcome, Record
from mrmill.shards import Study
from mrmill.volumes import write_volume

UID = "2END5JBWVA"
SHAPE = (60, 70, 50)
# oblique, 3 x 3 x 4 mm: 180 x 210 x 200 mm
TURN = np.array([[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]])
TURN /= np.linalg.norm(TURN, axis=0)


def affine():
    result = np.eye(4)
    result[:3, :3] = TURN @ np.diag([-3, 3, 4])
    result[:3, 3] = (95, -120, -110)
    return result


def ball(centre=(30, 32, 32), radii=(21, 25, 15)):
    grid = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1


BRAIN = ball()
HEAD = np.random.default_rng(5).integers(200, 900, SHAPE).astype(np.uint16)


class FakeMasker:
    """Answers with a given mask per value of the image's first voxel; raises what is an error."""

    name, version = "fake", "0"

    def __init__(self, *answers):
        self.answers = answers
        self.calls = 0

    def __call__(self, volume):
        self.calls += 1
        answer = self.answers[int(volume.data[0, 0, 0])]
        if isinstance(answer, Exception):
            raise answer
        return answer.astype(np.uint8)


@pytest.fixture
def make_study(tmp_path):
    """A study of series given as (image, modality); the first one is the center."""

    def make(*series):
        entries = []
        for number, (image, modality) in enumerate(series):
            write_volume(tmp_path / "convert" / f"S{number}.nii.gz", image, affine())
            entries.append(
                {
                    "series_key": f"KEY{number}",
                    "series_id": f"{modality.lower()}-raw-axi-{number}",
                    "file": f"S{number}.nii.gz",
                    "state": "accepted",
                    "reason": "",
                    "is_center_modality": number == 0,
                    # numbers run against the order of the list
                    "SeriesNumber": 1 if number == 0 else 100 - number,
                    "row": {"classified_modality": modality},
                }
            )
        entries.append({"series_key": "LOC", "state": "rejected", "reason": "localizer"})
        curate = Record(UID, "key", Outcome(series=entries))
        return Study(
            UID, "P1", "batch00", {}, {"curate": curate}, {"convert": tmp_path / "convert"}
        )

    return make


@pytest.fixture
def run(make_study, tmp_path):
    """Deface a study: (series), answers of the masker, decisions -> outcome."""

    def deface(series, answers, decisions=()):
        settings, masker = Deface(backend="deepbet", device="cpu"), FakeMasker(*answers)
        decided = read_decisions(table(decisions), "deface.decisions")
        return deface_study(make_study(*series), tmp_path / "out", settings, masker, decided)

    def table(decisions):
        if not decisions:
            return None
        path = tmp_path / "decisions.csv"
        lines = ["study_uid,series_id,decision", *decisions]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return deface


def image(answer=0, dtype=np.uint16):
    """A head whose first voxel says which mask the fake masker answers with."""
    voxels = HEAD.astype(dtype)
    voxels[0, 0, 0] = answer
    return voxels


def load(tmp_path, entry, kind):
    return nib.load(tmp_path / "out" / entry["files"][kind])


@pytest.mark.parametrize("offset", [0, 0.5])
def test_the_three_files_lie_on_the_grid_of_the_input(run, tmp_path, offset):
    source = image(dtype=np.float32) + np.float32(offset)
    entry = run([(source, "T1w")], [BRAIN]).series[0]
    before = nib.load(tmp_path / "convert" / "S0.nii.gz")
    assert sorted(entry["files"].values()) == [
        f"img/{UID}_t1w-raw-axi-0.nii.gz",
        f"seg/{UID}_t1w-raw-axi-0_brain-mask.nii.gz",
        f"seg/{UID}_t1w-raw-axi-0_defacing-mask.nii.gz",
    ]
    types = {"img": np.float32 if offset else np.uint16, "brain": np.uint8, "defacing": np.uint8}
    for kind, dtype in types.items():
        after = load(tmp_path, entry, kind)
        assert after.get_data_dtype() == dtype
        assert after.shape == before.shape
        np.testing.assert_array_equal(after.affine, before.affine)
        np.testing.assert_allclose(after.get_sform(), after.get_qform(), atol=1e-6)
        assert after.header["sform_code"] > 0
        assert after.header["qform_code"] > 0


@pytest.mark.parametrize("offset", [0, 0.5])
def test_only_the_removed_region_changes_and_it_is_zero(run, tmp_path, offset):
    source = image(dtype=np.float32) + np.float32(offset)
    entry = run([(source, "T1w")], [BRAIN]).series[0]
    after, kept, brain = (
        np.asarray(load(tmp_path, entry, kind).dataobj) for kind in ("img", "defacing", "brain")
    )
    assert set(np.unique(kept)) == {0, 1}
    np.testing.assert_array_equal(after[kept == 1], source[kept == 1])
    assert (after[kept == 0] == 0).all()
    np.testing.assert_array_equal(brain, BRAIN)
    assert (kept[brain == 1] == 1).all()
    assert entry["quality"]["removed_share"] == pytest.approx((kept == 0).mean(), abs=1e-3)


def test_the_recorded_plane_tells_kept_from_removed(run, tmp_path):
    entry = run([(image(), "T1w")], [BRAIN]).series[0]
    kept = np.asarray(load(tmp_path, entry, "defacing").dataobj).astype(bool)
    position = np.indices(SHAPE).reshape(3, -1).T @ affine()[:3, :3].T + affine()[:3, 3]
    outward = position @ entry["plane"]["normal"] - entry["plane"]["offset_mm"]
    clear = np.abs(outward) > 1e-3
    np.testing.assert_array_equal(kept.ravel()[clear], (outward < 0)[clear])
    assert entry["backend"] == {"name": "fake", "version": "0"}


def test_a_series_that_cannot_be_defaced_leaves_the_others_alone(run, tmp_path):
    constant = np.full(SHAPE, 7, np.uint16)
    series = [(image(0), "T1w"), (image(1), "T2w"), (image(2), "FLAIR"), (constant, "SWI")]
    outcome = run(series, [BRAIN, RuntimeError("secret"), np.zeros(SHAPE)])
    assert [(e["state"], e["reason"]) for e in outcome.series] == [
        ("accepted", ""),
        ("failed", "error"),
        ("rejected", "empty_mask"),
        ("rejected", "constant_image"),
    ]
    assert outcome.state == "accepted"
    assert "secret" not in str(outcome)
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 3


def test_a_bad_mask_waits_for_a_person_with_its_files(run, tmp_path):
    outcome = run([(image(0), "T1w"), (image(1), "T2w")], [BRAIN, np.ones(SHAPE)])
    entry = outcome.series[1]
    assert (entry["state"], entry["reason"]) == ("rejected", "needs_review")
    assert "brain_ml" in entry["found"]
    assert "brain_ml 600 to 2200" in entry["limit"]
    assert all((tmp_path / "out" / name).is_file() for name in entry["files"].values())


def test_a_person_admits_a_bad_mask_and_rejects_a_good_one(run):
    decisions = [f"{UID},t2w-raw-axi-1,admit", f"{UID},t1w-raw-axi-2,reject", "OTHER,x,reject"]
    series = [(image(0), "T1w"), (image(1), "T2w"), (image(0), "T1w")]
    outcome = run(series, [BRAIN, np.ones(SHAPE)], decisions)
    assert [(e["state"], e["reason"]) for e in outcome.series] == [
        ("accepted", ""),
        ("accepted", ""),
        ("rejected", "review_rejected"),
    ]
    assert outcome.series[1]["quality"]["brain_ml"] > 2200


def test_an_unknown_decision_is_an_error(run):
    with pytest.raises(ConfigError, match="admit or reject"):
        run([(image(0), "T1w")], [BRAIN], [f"{UID},t1w-raw-axi-0,maybe"])


def test_an_island_in_the_face_is_kept_and_shown_to_a_person(run, tmp_path):
    island = np.zeros(SHAPE, bool)
    island[28:31, 65:68, 3:5] = True
    entry = run([(image(), "T1w")], [BRAIN | island]).series[0]
    kept = np.asarray(load(tmp_path, entry, "defacing").dataobj).astype(bool)
    assert kept[island].all()
    assert not kept[25:34, 60:70, 1].any()
    assert entry["reason"] == "needs_review"
    assert entry["quality"]["beyond_plane_ml"] == pytest.approx(island.sum() * 0.036, abs=0.01)


def test_a_mask_that_runs_into_the_orbits_is_shown_to_a_person(run):
    """The plane is as far from the brain in every series of a head."""
    leaking = BRAIN | ball(centre=(30, 46, 22), radii=(14, 14, 10))
    series = [(image(0), "T1w"), (image(1), "T2w"), (image(0), "FLAIR")]
    entries = run(series, [BRAIN, leaking]).series
    assert [e["reason"] for e in entries] == ["", "needs_review", ""]
    assert entries[1]["quality"]["plane_shift_mm"] > 4
    assert "plane_shift_mm" in entries[1]["found"]
    assert entries[2]["quality"]["plane_shift_mm"] == pytest.approx(0, abs=1e-6)


def test_the_center_of_curate_stays_where_it_is_accepted(run):
    outcome = run([(image(), "T1w"), (image(), "T1w"), (image(), "T2w")], [BRAIN])
    assert [e["is_center_modality"] for e in outcome.series] == [True, False, False]


def test_a_lost_center_passes_to_the_next_t1w_by_series_number(run):
    series = [(image(1), "T1w"), (image(), "T1w"), (image(), "T2w"), (image(), "T1w")]
    outcome = run(series, [BRAIN, np.zeros(SHAPE)])
    # SeriesNumber 97 (the last) comes before 99 (the second)
    assert [e["is_center_modality"] for e in outcome.series] == [False, False, False, True]
    assert [e["series_id"][-1] for e in outcome.series] == ["0", "1", "2", "3"]
    assert outcome.state == "accepted"


def test_a_study_without_a_t1w_left_is_rejected(run):
    outcome = run([(image(1), "T1w"), (image(), "T2w")], [BRAIN, np.zeros(SHAPE)])
    assert (outcome.state, outcome.reason) == ("rejected", "no_center")
    assert len(outcome.series) == 2


def test_a_study_whose_only_t1w_failed_unexpectedly_is_failed_not_rejected(run):
    outcome = run([(image(0), "T1w"), (image(1), "T2w")], [MemoryError(), BRAIN])
    assert (outcome.state, outcome.reason) == ("failed", "error")
    assert outcome.error.startswith("MemoryError test_deface.py:")


def test_the_same_study_gives_the_same_bytes(run, tmp_path):
    def files():
        return {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*.nii.gz")}

    run([(image(), "T1w")], [BRAIN])
    first = files()
    run([(image(), "T1w")], [BRAIN])
    assert files() == first
