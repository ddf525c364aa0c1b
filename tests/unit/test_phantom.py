"""The phantom: what is written must be what the truth says, and look like what it claims."""

import csv
import json
import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml

from mrmill.phantom import (
    CONTRASTS,
    Acquisition,
    Warp,
    acquire,
    make_export,
    render_face,
    rigid,
    scan_preset,
    standard_head,
)
from mrmill.phantom.dicom import Identity, SeriesLabel, stable_uid, write_series
from mrmill.phantom.presets import DEMO, PRESETS, T1W_3D, T2W, TINY, Preset, coarse
from mrmill.phantom.render import shade_surface
from mrmill.phantom.vendors import VENDORS

CONFIG = Path(__file__).parents[2] / "config"
SAME_SHAPE = Warp(np.ones(3), np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1))
POSE = rigid((5, -4, 7), (6, -9, 3))
IDENTITY = Identity(
    "CANARYID0001", "CANARY^NAME-0001", "20540101", "F", 45, stable_uid("study"),
    stable_uid("frame"), "20990114", "090117", "CANARYACC0001", "CANARYSTUDY001",
)  # fmt: skip
LABEL = SeriesLabel(stable_uid("series"), 4, "092017")
MINI = Preset(5.0, tuple(replace(study, series=study.series[:1]) for study in TINY.studies[:2]))


def scan(acquisition, voxel_mm=4.0, noise=14.0):
    head = standard_head(voxel_mm)
    painted = head.paint(CONTRASTS[acquisition.modality])
    rng = np.random.default_rng(1)
    return acquire(head, painted, SAME_SHAPE, acquisition, POSE, POSE, rng, noise=noise)


def converted(folder, out):
    """Every image that dcm2niix makes of a folder."""
    dcm2niix = pytest.importorskip("dcm2niix")
    out.mkdir()
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "%s", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return [nib.load(path) for path in sorted(out.glob("*.nii"))]


def corners(image):
    indices = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    return nib.affines.apply_affine(image.affine, np.array(indices) * (np.array(image.shape) - 1))


@pytest.fixture(scope="module")
def mini_exports(tmp_path_factory):
    """The first two tiny studies from a very coarse head, as DICOM and as NIfTI."""
    root = tmp_path_factory.mktemp("phantom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "mini", MINI)
        records = {
            kind: make_export(root / kind, preset="mini", kind=kind, seed=3)
            for kind in ("dicom", "nifti")
        }
    return root, records


@pytest.mark.parametrize(
    ("vendor", "acquisition"),
    [
        ("siemens", replace(coarse(T1W_3D), slices=40)),
        ("ge", replace(coarse(T1W_3D), rows=90, slices=40)),
        ("philips", replace(coarse(T1W_3D), columns=90, slices=40)),
        ("siemens", coarse(T2W)),
        ("ge", replace(coarse(T2W), plane="sag", columns=96)),
        ("philips", replace(coarse(T2W), plane="cor", rows=110)),
        ("siemens", replace(coarse(T2W), tilt_deg=(-38.0, 6.0, 0.0))),
        ("ge", Acquisition("SWI", "swi", "axi", 60, 70, 20, 3, 8, 20, 28, 15, volumetric=True)),
    ],
    ids=["3D", "3D-wide", "3D-tall", "axial", "sagittal", "coronal", "oblique", "slab"],
)
def test_dcm2niix_makes_one_volume_that_lies_where_the_truth_says(vendor, acquisition, tmp_path):
    truth = scan(acquisition)
    write_series(tmp_path / "in", [(acquisition, truth)], VENDORS[vendor], IDENTITY, LABEL)
    (image,) = [nib.as_closest_canonical(im) for im in converted(tmp_path / "in", tmp_path / "out")]
    expected = nib.as_closest_canonical(nib.Nifti1Image(truth.voxels, truth.affine))
    np.testing.assert_allclose(corners(image), corners(expected), atol=0.01)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(expected.dataobj))


def test_the_pose_says_where_the_eyes_are():
    eyeballs = scan(replace(coarse(T2W), rows=140, centre_mm=(0, 0, -20)), voxel_mm=2.0)
    bright = np.argwhere(eyeballs.voxels > 0.75 * eyeballs.voxels.max())
    position = nib.affines.apply_affine(eyeballs.affine, bright)
    for side in (-1, 1):
        expected = POSE[:3, :3] @ (32 * side, 62.5, -42) + POSE[:3, 3]
        near = position[np.linalg.norm(position - expected, axis=1) < 14]
        np.testing.assert_allclose(near.mean(axis=0), expected, atol=2.5)


def test_a_thick_slice_averages_over_its_thickness():
    thick = replace(coarse(T2W), slices=21, thickness_mm=9.0)
    thin = replace(thick, slices=189, thickness_mm=1.0, volumetric=True)
    averaged, points = (scan(kind, noise=0).voxels.astype(float) for kind in (thick, thin))
    over_slice = points.reshape(*averaged.shape[:2], 21, 9)
    error_of_average = np.abs(averaged - over_slice.mean(axis=-1)).mean()
    error_of_centre = np.abs(averaged - over_slice[..., 4]).mean()
    assert error_of_average < 0.3 * error_of_centre


def test_the_nose_is_the_foremost_point_and_stands_between_two_eyes():
    head = standard_head(2.0)
    solid = head.paint(CONTRASTS["T1w"]) > 100
    x, y, z = nib.affines.apply_affine(head.affine, np.argwhere(solid)).T
    tip = y > y.max() - 2
    assert np.abs(x[tip]).max() < 8
    assert -90 < z[tip].mean() < -70
    nasion, chin = (y[(np.abs(x) < 2) & (np.abs(z - level) < 2)].max() for level in (-40, -145))
    assert min(y.max() - nasion, y.max() - chin) > 15


def test_brain_and_face_have_human_size_and_do_not_touch():
    from scipy.ndimage import distance_transform_edt

    truth = scan(coarse(T1W_3D))
    assert 1200 < truth.brain.sum() * 8e-3 < 2000  # mL; MNI152 is a large brain
    assert 300 < truth.face.sum() * 8e-3 < 1500
    gap_mm = distance_transform_edt(truth.brain == 0, sampling=2.0)[truth.face > 0].min()
    assert gap_mm > 8
    to_head = np.linalg.inv(POSE) @ truth.affine
    face = nib.affines.apply_affine(to_head, np.argwhere(truth.face))
    brain = nib.affines.apply_affine(to_head, np.argwhere(truth.brain))
    assert face[:, 1].max() > brain[:, 1].max() + 20
    assert face[:, 2].max() < 0


@pytest.mark.parametrize(
    ("modality", "brighter", "darker"),
    [
        ("T1w", "white", "grey"),
        ("T2w", "csf", "white"),
        ("FLAIR", "grey", "csf"),
        ("SWI", "grey", "vein"),
        ("MRA", "artery", "grey"),
    ],
)
def test_contrasts_order_the_tissues_as_scanners_do(modality, brighter, darker):
    assert CONTRASTS[modality][brighter] > 1.15 * CONTRASTS[modality][darker]


def test_one_patient_keeps_one_head_and_another_has_another(monkeypatch):
    first, second, other = (
        replace(study, series=study.series[:1]) for study in (*TINY.studies[:2], TINY.studies[3])
    )
    study_of = [first, replace(second, series=first.series), replace(other, series=first.series)]
    monkeypatch.setitem(PRESETS, "three", Preset(4.0, tuple(study_of)))
    volume_ml = [series.scans[0].brain.sum() * 8e-3 for series in scan_preset("three", seed=0)]
    assert abs(volume_ml[0] - volume_ml[1]) < 0.005 * volume_ml[0]
    assert abs(volume_ml[0] - volume_ml[2]) > 0.01 * volume_ml[0]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    mini_exports, tmp_path, monkeypatch
):
    root, _ = mini_exports
    monkeypatch.setitem(PRESETS, "mini", MINI)
    for kind in ("dicom", "nifti"):
        make_export(tmp_path / kind, preset="mini", kind=kind, seed=3)
        for name in (kind, f"{kind}-truth"):
            assert bytes_of(tmp_path / name) == bytes_of(root / name)
    make_export(tmp_path / "other", preset="mini", seed=4)
    assert not set(bytes_of(tmp_path / "other-truth")) & set(bytes_of(root / "dicom-truth"))


def bytes_of(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_dicom_uids_are_valid_and_no_two_files_share_one(mini_exports):
    root, records = mini_exports
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in root.rglob("*.dcm")]
    instances = {header.SOPInstanceUID for header in headers}
    assert len(instances) == len(headers) > 0
    assert all(uid.is_valid for uid in instances)
    assert {header.SeriesInstanceUID for header in headers} == {
        record["series_uid"] for record in records["dicom"]
    }
    assert len({header.StudyInstanceUID for header in headers}) == 2
    assert {header.PatientID for header in headers} == {"CANARYID0001"}


def test_age_follows_from_the_birth_date_and_names_are_canaries(mini_exports):
    root, _ = mini_exports
    for path in root.rglob("IM00001.dcm"):
        header = pydicom.dcmread(path)
        birth, study = (
            date(int(text[:4]), int(text[4:6]), int(text[6:]))
            for text in (header.PatientBirthDate, header.StudyDate)
        )
        years = study.year - birth.year - ((study.month, study.day) < (birth.month, birth.day))
        assert header.PatientAge == f"{years:03d}Y"
        assert study.year > 2090
        for element in header:
            if element.VR in ("PN", "ST", "LT") and element.value:
                assert "CANARY" in str(element.value)
        assert "CANARY" in header.private_block(0x0051, "CANARY PRIVATE")[0x01].value


def test_nifti_and_dicom_exports_hold_the_same_volumes(mini_exports, tmp_path):
    root, records = mini_exports
    pairs = zip(records["dicom"], records["nifti"], strict=True)
    for number, (as_dicom, as_nifti) in enumerate(pairs):
        (path,) = as_dicom["paths"]
        (image,) = converted(root / "dicom" / path, tmp_path / str(number))
        (path,) = as_nifti["paths"]
        expected = nib.load(root / "nifti" / path)
        mask = nib.load(root / "dicom-truth" / as_dicom["brain-mask"])
        for other in (expected, mask):
            assert other.shape == image.shape
            np.testing.assert_allclose(other.affine, image.affine, atol=1e-3)
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(expected.dataobj))


def test_sidecars_are_in_seconds_and_the_series_table_lists_every_image(mini_exports):
    root, records = mini_exports
    with (root / "nifti" / "series.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [r["paths"][0] for r in records["nifti"]]
    assert {row["PatientAge"] for row in rows} == {"045Y", "046Y"}
    for row, record in zip(rows, records["nifti"], strict=True):
        path = root / "nifti" / row["path"]
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        (acquisition,) = record["acquisitions"]
        assert sidecar["EchoTime"] == pytest.approx(acquisition["te_ms"] / 1000)
        assert sidecar["SeriesNumber"] == int(row["SeriesNumber"]) == record["series_number"]


def test_the_demo_has_what_a_hospital_export_has():
    reasons = yaml.safe_load((CONFIG / "reasons.yaml").read_text())
    studies_of = {}
    for study in DEMO.studies:
        studies_of.setdefault(study.patient, []).append(study)
    assert len(studies_of) >= 3
    assert sorted(map(len, studies_of.values()))[-1] == 2
    outcomes = {series.outcome for study in DEMO.studies for series in study.series}
    assert outcomes - {"accepted"} <= set(reasons)
    assert outcomes == {
        "accepted", "localizer", "derived", "modality_not_accepted", "fov_out_of_range",
        "age_below_minimum",
    }  # fmt: skip
    assert {study.vendor for study in DEMO.studies} == set(VENDORS)
    for study in DEMO.studies:
        accepted = [s.stacks[0].modality for s in study.series if s.outcome == "accepted"]
        assert ("T1w" in accepted and 4 <= len(accepted) <= 6) or study.age_years < 13


@pytest.mark.parametrize("preset", PRESETS)
def test_accepted_series_meet_the_acceptance_criteria_and_short_ones_do_not(preset):
    planned = [series for study in PRESETS[preset].studies for series in study.series]
    for series in planned:
        (stack, *_) = series.stacks
        extent_mm = np.multiply(stack.shape, stack.spacing_mm)
        inside = bool(((extent_mm >= 140) & (extent_mm <= 350)).all() and min(stack.shape) >= 16)
        if series.outcome in ("accepted", "fov_out_of_range"):
            assert inside == (series.outcome == "accepted"), stack


def test_strays_lie_among_the_dicom_files(mini_exports):
    root, _ = mini_exports
    for name in ("README.txt", "DICOMDIR"):
        with pytest.raises(pydicom.errors.InvalidDicomError):
            pydicom.dcmread(root / "dicom" / name)


def test_an_export_never_mixes_with_what_is_there(tmp_path):
    (tmp_path / "note.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="not empty"):
        make_export(tmp_path, preset="tiny")


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="demo, tiny"):
        make_export(tmp_path / "out", preset="large")


def test_a_rendered_ball_is_a_disk_lit_from_the_upper_left():
    index = np.indices((60, 60, 60)) - 29.5
    ball = 100.0 * (np.linalg.norm(index, axis=0) < 25)
    picture = shade_surface(ball, np.diag([2, 2, 2, 1.0]), view_deg=20, step_mm=2.0)
    assert (picture > 0).sum() == pytest.approx(np.pi * 25**2, rel=0.1)
    rows, columns = (axis - 69.5 for axis in np.nonzero(picture > 0.9))
    assert rows.mean() < -5
    assert columns.mean() < -5


def test_a_face_is_drawn_and_its_loss_is_seen(tmp_path):
    truth = scan(coarse(T1W_3D), voxel_mm=2.0)
    render_face(truth.voxels, truth.affine, tmp_path / "face.png", views_deg=(0.0,), step_mm=3.0)
    assert (tmp_path / "face.png").read_bytes().startswith(b"\x89PNG")
    whole, defaced = (
        shade_surface(voxels, truth.affine, 0.0, step_mm=2.0)
        for voxels in (truth.voxels, truth.voxels * (truth.face == 0))
    )
    assert np.abs(whole - defaced).mean() > 0.01
