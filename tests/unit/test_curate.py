"""Curate: criteria and their order, planes, names, the center, the cells of the release."""

import json

import nibabel as nib
import numpy as np
import pytest

from mrmill.columns import load_columns, release_columns
from mrmill.config import Convert, Curate
from mrmill.curate import acquisition_plane, curate_study, load_tables
from mrmill.curate.acceptance import AcceptanceError
from mrmill.records import Outcome, Record
from mrmill.shards import Study

COLUMNS = load_columns()
AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
T1W = {"ScanningSequence": "SE", "TE_ms": 12.0, "TR_ms": 500.0}
T2W = {"ScanningSequence": "SE", "TE_ms": 98.0, "TR_ms": 4500.0}
FLAIR = {"ScanningSequence": "SE\\IR", "TE_ms": 90.0, "TR_ms": 9000.0, "TI_ms": 2500.0}


def series(key="A", number=1, shape=(256, 256, 30), spacing_mm=(0.9, 0.9, 5.5), **header):
    """An entry as convert leaves it: a T1w of a 45-year-old unless the header says otherwise."""
    common = {"Patient'sAge": "045Y", "ImageOrientation(Patient)": AXIAL, "SeriesNumber": number}
    return {
        "series_key": key,
        "source": key,
        "file": f"{key}.nii.gz",
        "state": "accepted",
        "reason": "",
        "header": {**common, **(header if "TE_ms" in header else T1W | header)},
        "shape": list(shape),
        "spacing_mm": list(spacing_mm),
        "affine": np.diag([*spacing_mm, 1.0]).tolist(),
    }


def curated(*entries, tables=None, plan=None, **settings):
    tables = tables or {}
    planned = [{"series_key": e["source"], "table": tables.get(e["source"], {})} for e in entries]
    study = Study(
        "STUDY00001",
        "PATIENT001",
        "batch00",
        plan={"StudyDate": "20240131", "date_shift_days": -31, "series": planned, **(plan or {})},
        upstream={"convert": Record("STUDY00001", "key", Outcome(series=list(entries)))},
    )
    settings = Curate(**settings)
    return curate_study(study, None, settings, load_tables(settings, Convert().header_columns))


def only(outcome):
    (entry,) = outcome.series
    return entry


def test_an_ordinary_study_is_named_in_the_order_of_its_series_numbers():
    outcome = curated(
        series("A", 9, **T1W),
        series("B", 2, **T2W),
        series("C", 4, **T1W),
        series("D", 3, **FLAIR),
        series("E", 4, **T1W),
        series("F", None, **T1W),
    )
    assert outcome.state == "accepted"
    assert {e["series_key"]: e["series_id"] for e in outcome.series} == {
        "B": "t2w-raw-axi",
        "D": "flair-raw-axi",
        "C": "t1w-raw-axi",
        "E": "t1w-raw-axi-2",  # same number: by key
        "A": "t1w-raw-axi-3",
        "F": "t1w-raw-axi-4",  # no number: last
    }
    assert [e["series_key"] for e in outcome.series if e["is_center_modality"]] == ["C"]
    assert all(e["row"]["series_id"] == e["series_id"] for e in outcome.series)
    json.dumps(outcome.series, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "reason", "found", "limit"),
    [
        ({"Modality": "SR"}, "not_mr", None, "MR images"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "not_mr", None, "MR images"),
        ({"BurnedInAnnotation": "YES"}, "burned_in_annotation", "YES", "NO"),
        ({"ImageType": "DERIVED\\SECONDARY"}, "derived", "", "no"),
        ({"SeriesDescription": "localizer"}, "localizer", "", "no"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\SUB"}, "subtraction", "", "no"),
        (
            {"ImageType": "ORIGINAL\\PRIMARY\\DIFFUSION"},
            "modality_not_accepted",
            "DWI",
            "T1w, T2w, FLAIR, SWI, MRA",
        ),
        ({"TE_ms": None}, "modality_unknown", "UNKNOWN", "a known one"),
        ({"Patient'sAge": "009Y"}, "age_below_minimum", "9 years", ">= 13 years"),
        ({"Patient'sAge": None}, "age_unknown", "", "known"),
        ({"shape": (256, 12, 30)}, "too_few_voxels", "256 x 12 x 30 voxels", ">= 16 voxels"),
        (
            {"shape": (88, 240, 240), "spacing_mm": (1, 1, 1)},
            "fov_out_of_range",
            "88 x 240 x 240 mm",
            "140 to 350 mm",
        ),
        (
            {"shape": (256, 256, 40), "spacing_mm": (1, 1, 9)},
            "fov_out_of_range",
            "256 x 256 x 360 mm",
            "140 to 350 mm",
        ),
    ],
)
def test_every_criterion_rejects_with_its_reason(change, reason, found, limit):
    entry = only(curated(series(**change)))
    assert (entry["state"], entry["reason"], entry["limit"]) == ("rejected", reason, limit)
    assert found is None or entry["found"] == found
    assert entry["row"]["study_uid"] == "STUDY00001"  # what is known stays in the row


def test_the_first_criterion_that_fails_gives_the_reason():
    """Each series fails the criteria from its own on; mending one shows the next."""
    flaws = [
        ("not_mr", {"Modality": "SR"}),
        ("burned_in_annotation", {"BurnedInAnnotation": "YES"}),
        ("derived", {"ImageType": "DERIVED"}),
        ("localizer", {"SeriesDescription": "scout subtraction"}),
        ("subtraction", {"SeriesDescription": "subtraction"}),
        ("modality_not_accepted", {"TE_ms": 12.0, "TR_ms": 3000.0}),
        ("age_below_minimum", {"Patient'sAge": "009Y"}),
        ("plane_not_accepted", {"ImageOrientation(Patient)": [0, 1, 0, 0, 0, -1]}),
        ("too_few_voxels", {"shape": (10, 256, 30)}),
        ("fov_out_of_range", {"spacing_mm": (0.1, 0.9, 5.5)}),
    ]
    for first in range(len(flaws)):
        change = {"ScanningSequence": "SE", "TE_ms": 12.0, "TR_ms": 500.0}
        for _, flaw in reversed(flaws[first:]):
            change |= flaw
        entry = only(
            curated(series(**change), limits={"plane_not_accepted": {"accepted": ["AXIAL"]}})
        )
        assert entry["reason"] == flaws[first][0]


def test_a_field_of_view_on_the_limit_is_accepted_in_spite_of_float32():
    spacing = float(np.float32(140 / 320 - 1e-9))
    entry = series(shape=(320, 320, 32), spacing_mm=(spacing, spacing, 5))
    assert only(curated(entry))["state"] == "accepted"


@pytest.mark.parametrize(
    ("header", "table", "age"),
    [
        ({"Patient'sAge": "045Y"}, {}, 45),
        ({"Patient'sAge": "200M"}, {}, 16),
        ({"Patient'sAge": "089Y"}, {}, 89),
        ({"Patient'sAge": "090Y"}, {}, 90),
        ({"Patient'sAge": "101Y"}, {}, 90),
        ({"Patient'sAge": "009Y"}, {"PatientAge": "30"}, 30),
        (
            {"Patient'sAge": "", "Patient'sBirthDate": "1980-02-01", "StudyDate": "2024-01-31"},
            {},
            43,
        ),
    ],
)
def test_the_age_is_written_in_years_and_the_oldest_as_one(header, table, age):
    entry = only(curated(series(**header), tables={"A": table}))
    assert entry["row"]["Patient'sAge"] == age


def test_the_series_table_overrules_header_and_rules():
    row = {"modality": "FLAIR", "SeriesNumber": "4", "is_derived": "false"}
    derived = series("A", None, ImageType="DERIVED\\SECONDARY")
    first, _ = curated(derived, series("B"), tables={"A": row}).series
    assert (first["series_id"], first["SeriesNumber"]) == ("flair-raw-axi", 4)
    assert first["row"]["classification_rule"] == "series_table"


def test_a_spine_is_never_the_center():
    spine = series("A", 1, SeriesDescription="T1 TSE sag lumbar spine")
    first, second = curated(spine, series("B", 2)).series
    assert (first["row"]["body_part"], first["state"]) == ("spine", "accepted")
    assert [first["is_center_modality"], second["is_center_modality"]] == [False, True]


def test_a_study_of_spines_has_no_center():
    outcome = curated(series("A", 1, SeriesDescription="T1 TSE sag lumbar spine"))
    assert (outcome.state, outcome.reason) == ("rejected", "no_center")


def test_a_t1w_repeated_with_contrast_agent_tells_both():
    after = series("B", 9, SeriesDescription="T1 SE post gadolinium")
    rows = [entry["row"] for entry in curated(series("A", 2), after).series]
    assert [row["contrast_agent"] for row in rows] == ["no", "yes"]
    assert rows[1]["contrast_agent_evidence"] == "word:SeriesDescription"
    assert "gadolinium" not in str(rows)


def test_a_date_that_the_site_gave_is_written_as_it_is():
    entry = only(curated(series(), plan={"anon_study_date": "2001-02-03"}))
    assert entry["row"]["anon_study_date"] == "2001-02-03"


def test_a_date_that_the_site_gave_and_that_is_the_true_one_is_not_written():
    entry = only(curated(series(StudyDate="2001-02-03"), plan={"anon_study_date": "2001-02-03"}))
    assert entry["row"]["anon_study_date"] == ""


@pytest.mark.parametrize(
    ("reason", "word", "hint"),
    [
        ("modality_not_accepted", "FLARE", "FLAIR"),
        ("plane_not_accepted", "axial", "AXIAL"),
        ("body_part_not_accepted", "brian", "brain"),
    ],
)
def test_a_limit_that_nothing_can_meet_is_refused_with_the_nearest(reason, word, hint):
    with pytest.raises(AcceptanceError, match=f"{word} is no .*{hint}"):
        curated(series(), limits={reason: {"accepted": [word]}})


def test_a_child_is_old_enough_on_the_thirteenth_birthday():
    born = {"Patient'sAge": None, "Patient'sBirthDate": "2011-01-31"}
    assert only(curated(series(**born, StudyDate="2024-01-31")))["state"] == "accepted"
    entry = only(curated(series(**born, StudyDate="2024-01-30")))
    assert (entry["reason"], entry["found"]) == ("age_below_minimum", "12 years")


def test_a_study_without_a_t1w_is_rejected_as_a_whole():
    outcome = curated(series("A", **T2W), series("B", **FLAIR), series("C", Modality="SR"))
    assert (outcome.state, outcome.reason) == ("rejected", "no_center")
    assert [e["reason"] for e in outcome.series] == ["study_rejected", "study_rejected", "not_mr"]
    assert all(e["state"] == "rejected" for e in outcome.series)


def test_a_study_without_accepted_series_says_so():
    outcome = curated(series(Modality="SR"))
    assert (outcome.state, outcome.reason) == ("rejected", "no_accepted_series")


def test_an_unexpected_error_stays_in_its_series():
    broken = series("A", 1) | {"affine": "nonsense"}
    outcome = curated(broken, series("B", 2))
    assert outcome.state == "accepted"
    assert [e["state"] for e in outcome.series] == ["failed", "accepted"]


def test_a_study_whose_center_failed_is_failed_and_can_be_retried():
    broken = series("A", 1) | {"affine": "nonsense"}
    outcome = curated(broken, series("B", 2, **T2W))
    assert (outcome.state, outcome.reason) == ("failed", "error")
    assert outcome.error


def turned(axis, degrees):
    """Rows and columns of axial slices after a rotation about x or y (LPS+)."""
    turn = nib.eulerangles.euler2mat(**{axis: np.radians(degrees)})
    return [*turn[:, 0], *turn[:, 1]]


@pytest.mark.parametrize(
    ("axis", "degrees", "plane"),
    [
        *[("x", 0, "AXIAL"), ("x", 29, "AXIAL"), ("x", 31, "OBLIQUE"), ("x", 59, "OBLIQUE")],
        *[("x", 61, "CORONAL"), ("x", 90, "CORONAL"), ("x", -90, "CORONAL")],
        *[("y", 29, "AXIAL"), ("y", 45, "OBLIQUE"), ("y", 61, "SAGITTAL"), ("y", 180, "AXIAL")],
    ],
)
def test_the_plane_follows_the_slice_normal(axis, degrees, plane):
    found, obliquity = acquisition_plane(turned(axis, degrees), np.eye(4), 30)
    assert found == plane
    assert obliquity == pytest.approx(abs((degrees + 45) % 90 - 45), abs=0.05)


@pytest.mark.parametrize(
    ("spacing_mm", "plane"),
    [
        ((5.5, 0.9, 0.9), "SAGITTAL"),
        ((0.9, 5.5, 0.9), "CORONAL"),
        ((0.9, 0.9, 5.5), "AXIAL"),
        ((1.1, 1, 1), "AXIAL"),  # nearly isotropic: the third axis
    ],
)
def test_without_an_orientation_the_thick_axis_tells_the_plane(spacing_mm, plane):
    affine = np.diag([*spacing_mm, 1])
    assert acquisition_plane(None, affine, 30) == (plane, 0)
    assert acquisition_plane([0] * 6, affine, 30) == (plane, 0)


def test_no_direction_at_all_is_no_plane():
    assert acquisition_plane(None, np.zeros((4, 4)), 30) == ("", None)


def test_arrays_are_described_along_the_patient_s_axes():
    entry = series(shape=(176, 240, 256), spacing_mm=(1.0, 0.9375, 0.9375))
    # sagittal slices stored as (P, I, R): i runs to posterior, j to inferior, k to right
    entry["affine"] = [[0, 0, 0.9375, 0], [-1.0, 0, 0, 0], [0, -0.9375, 0, 0], [0, 0, 0, 1]]
    row = only(curated(entry))["row"]
    assert json.loads(row["array_shape"]) == [256, 176, 240]
    assert json.loads(row["array_spacing_mm"]) == [0.9375, 1.0, 0.9375]
    assert json.loads(row["array_fov_mm"]) == [240.0, 176.0, 225.0]


def test_a_row_holds_every_column_of_the_release_and_no_other():
    entry = only(
        curated(
            series(
                **T1W,
                StudyDate="2024-01-31",
                ProtocolName="Dr Smith",
                FlipAngle=90.0,
                Manufacturer="SIEMENS",
                **{"Patient'sSex": "f"},
            )
        )
    )
    row = entry["row"]
    assert [*row] == [n for n in release_columns(COLUMNS) if n != "is_center_modality"]
    expected = {
        "patient_uid": "PATIENT001",
        "study_uid": "STUDY00001",
        "series_id": "t1w-raw-axi",
        "classified_modality": "T1w",
        "is_derived": False,
        "acquisition_plane": "AXIAL",
        "SeriesNumber": 1,
        "anon_study_date": "2023-12-31",
        "classification_rule": "physics:t1_spin_echo",
        "sequence_family": "SE",
        "dwi_sub_type": "",
        "Patient'sSex": "F",
        "FlipAngle": 90,
        "TE_ms": 12,
        "TI_ms": "",
        "Manufacturer": "Siemens",
    }
    assert {name: row[name] for name in expected} == expected
    assert "Smith" not in str(row)
    assert "2024" not in str(row)


@pytest.mark.parametrize("day", ["", "2024.01.31", "00000000", "00010101", "ANON", "20240199"])
def test_a_study_without_a_usable_date_has_an_empty_one(day):
    entry = only(curated(series(), plan={"StudyDate": day}))
    assert (entry["state"], entry["row"]["anon_study_date"]) == ("accepted", "")
