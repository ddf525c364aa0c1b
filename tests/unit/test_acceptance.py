"""Acceptance: the criteria of the table, a run's own limits, tables that cannot be used."""

import pytest
import yaml

from mrmill.config import Limits
from mrmill.curate.acceptance import (
    FIXED,
    TABLE,
    VALUES,
    AcceptanceError,
    accept,
    judged,
    load_criteria,
)
from mrmill.reasons import Rejected

GOOD = {
    "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4",
    "dicom_modality": "MR",
    "burned_in_annotation": "NO",
    "kind": "magnitude",
    "is_derived": False,
    "is_localizer": False,
    "is_subtraction": False,
    "classified_modality": "T1w",
    "acquisition_plane": "AXIAL",
    "obliquity_degrees": 0.0,
    "body_part": "brain",
    "age_years": 13,
    "field_strength_t": 3.0,
    "shape": [16, 16, 350],
    "spacing_mm": [10.0, 8.75, 1.0],
    "fov_mm": [160.0, 140.0, 350.0],
}


def reason(limits=None, **change):
    """Why a series is rejected that is good but for a change; None where it is not."""
    try:
        accept(GOOD | change, load_criteria(limits=limits))
    except Rejected as rejected:
        return rejected.reason, rejected.found, rejected.limit
    return None


def test_a_series_on_every_limit_is_accepted():
    assert {*GOOD} == {*VALUES}
    assert reason() is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"age_years": 12}, ("age_below_minimum", "12 years", ">= 13 years")),
        ({"age_years": None}, ("age_unknown", "", "known")),
        ({"shape": [15, 16, 350]}, ("too_few_voxels", "15 x 16 x 350 voxels", ">= 16 voxels")),
        (
            {"fov_mm": [139.99, 200, 200]},
            ("fov_out_of_range", "139.99 x 200 x 200 mm", "140 to 350 mm"),
        ),
        (
            {"fov_mm": [140, 200, 350.01]},
            ("fov_out_of_range", "140 x 200 x 350.01 mm", "140 to 350 mm"),
        ),
        ({"acquisition_plane": ""}, ("plane_unknown", "", "known")),
        (
            {"classified_modality": "DWI"},
            ("modality_not_accepted", "DWI", "T1w, T2w, FLAIR, SWI, MRA"),
        ),
        ({"kind": "phase"}, ("not_plain", "phase", "a plain picture")),
        # what a header says in its own words stays out of the ledger
        ({"dicom_modality": "Dr Smith"}, ("not_mr", "another one", "MR images")),
    ],
)
def test_what_is_beyond_a_limit_is_rejected_with_value_and_limit(change, expected):
    assert reason(**change) == expected


def test_what_an_image_without_dicom_header_cannot_say_is_not_held_against_it():
    unknown = dict.fromkeys(("sop_class_uid", "dicom_modality", "field_strength_t", "kind"))
    assert reason(**unknown, burned_in_annotation="") is None


def test_a_run_changes_one_limit_and_keeps_the_others():
    limits = {
        "age_below_minimum": Limits(minimum=18),
        "fov_out_of_range": Limits(maximum=400),
        "body_part_not_accepted": Limits(accepted=["brain"]),
    }
    assert reason(limits, age_years=17) == ("age_below_minimum", "17 years", ">= 18 years")
    assert reason(limits, age_years=18, fov_mm=[400, 200, 200]) is None
    assert reason(limits, age_years=18, fov_mm=[139, 200, 200])[0] == "fov_out_of_range"
    assert reason(limits, age_years=18, body_part="spine")[0] == "body_part_not_accepted"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"age_below_minimun": Limits(minimum=1)}, "did you mean `age_below_minimum`"),
        ({"burned_in_annotation": Limits(accepted=["YES"])}, "can be changed"),
        ({"not_mr": Limits(accepted=["CT"])}, "can be changed"),
        ({"age_below_minimum": Limits(maximum=90)}, "maximum does not apply; it has minimum"),
        ({"derived": Limits(accepted=["yes"])}, "nothing that can be changed"),
    ],
)
def test_limits_that_mean_nothing_or_let_names_in_are_refused(limits, message):
    with pytest.raises(AcceptanceError, match=message):
        load_criteria(limits=limits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "age_year"}, "age_year is not known; did you mean `age_years`"),
        ({"reason": "too_young"}, "too_young is not known"),
        ({"minimun": 3}, "minimun: Extra inputs"),
    ],
)
def test_a_table_with_a_mistake_is_refused_with_its_place(tmp_path, change, message):
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    table["criteria"][11] |= change
    path = tmp_path / "acceptance.yaml"
    path.write_text(yaml.safe_dump(table))
    with pytest.raises(AcceptanceError, match=message) as refused:
        load_criteria(path)
    assert "criteria.11" in str(refused.value)


@pytest.mark.parametrize("reason", FIXED)
def test_a_table_without_what_keeps_names_out_is_refused(tmp_path, reason):
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    table["criteria"] = [row for row in table["criteria"] if row["reason"] != reason]
    path = tmp_path / "acceptance.yaml"
    path.write_text(yaml.safe_dump(table))
    with pytest.raises(AcceptanceError, match=f"{reason} must stay"):
        load_criteria(path)


def test_criteria_are_looked_at_up_to_the_first_that_does_not_hold():
    looked_at = list(judged(GOOD | {"is_derived": True, "age_years": 1}, load_criteria()))
    assert [held for _, held in looked_at] == [True, True, True, False]
    assert looked_at[-1][0].reason == "derived"


def test_every_criterion_tells_its_source_and_numbers_their_unit():
    for criterion in load_criteria():
        assert criterion.source
        assert criterion.unit or (criterion.minimum, criterion.maximum) == (None, None)
