"""Contrast agent: studies of five vendors in five languages, and what must not be guessed."""

import json
import os
import random
import time
from pathlib import Path

import pytest
from evidence_cases import CASES, assert_all_right, header
from tiny_dicom import write_dicom

from mrmill.columns import load_columns
from mrmill.curate.contrast import contrast_agents
from mrmill.curate.evidence import load_evidence
from mrmill.headers import dicom_header, sidecar_header

EVIDENCE = load_evidence()
COLUMNS = {column.name: column for column in load_columns()}
STUDIES = CASES["contrast_agent"]
DATA = Path(os.environ.get("MRMILL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
HEADERS = DATA / "series_headers" / "dev.jsonl"


def series(number=1, modality="T1w", header=(), **more):
    """Return a series as curate hands it over."""
    common = {"acquisition_plane": "AXIAL", "shape": [256, 256, 30], "spacing_mm": [0.9, 0.9, 5]}
    parameters = {"TE_ms": 10.0, "TR_ms": 500.0, "SeriesDescription": "t1"}
    return {
        "SeriesNumber": number,
        "classified_modality": modality,
        "header": parameters | dict(header),
        **common,
        **more,
    }


def of_case(study):
    """Return the series of a labelled study; a protocol is an echo time of its own."""
    exam = header(study.get("study", {}))
    return [
        series(
            row["n"],
            row["modality"],
            exam | header(row, "protocol") | {"TE_ms": float(ord(row.get("protocol", "0")))},
        )
        for row in study["series"]
    ]


def told(*study):
    return [said.value for said in contrast_agents(study, EVIDENCE)]


@pytest.mark.parametrize(("held_back", "fewest"), [(True, 29), (False, 95)])
def test_labelled_studies_are_told_right_or_not_at_all(held_back, fewest):
    studies = [study for study in STUDIES if study.get("held_back", False) == held_back]
    pairs = [
        pair
        for study in studies
        for pair in zip(study["series"], contrast_agents(of_case(study), EVIDENCE), strict=True)
    ]
    assert_all_right(pairs, ("yes", "no", "unknown"), fewest)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.get("note", study["vendor"]))
def test_answers_do_not_depend_on_the_order_of_the_list(study):
    cases = of_case(study)
    expected = contrast_agents(cases, EVIDENCE)
    order = random.Random(7).sample(range(len(cases)), len(cases))
    shuffled = contrast_agents([cases[place] for place in order], EVIDENCE)
    assert [said.value for said in shuffled] == [expected[place].value for place in order]


def test_evidence_fits_the_released_column_and_repeats_nothing_of_the_header():
    for study in STUDIES:
        cases = of_case(study)
        for each in cases:
            each["header"]["SeriesDescription"] += " CANARY"
        for said in contrast_agents(cases, EVIDENCE):
            assert COLUMNS["contrast_agent_evidence"].accepts(said.evidence), said
            assert COLUMNS["contrast_agent"].accepts(said.value)
            assert "canary" not in said.evidence.lower()


@pytest.mark.parametrize(
    "agent",
    ["NONE", "None", "NO", "N", "0", "0 ml", "-", "no contrast", "without gadolinium", "YOK", "?"],
)
def test_a_placeholder_is_no_agent_and_no_proof_of_none(agent):
    assert told(series(header={"ContrastBolusAgent": agent})) == ["unknown"]


@pytest.mark.parametrize("agent", ["Gadovist", "DOTAREM 15ML", "Gd-DTPA", "7.5 ml", "GADOLINIUM"])
def test_a_named_agent_counts_in_a_study_of_one_series(agent):
    assert told(series(header={"ContrastBolusAgent": agent})) == ["yes"]


def test_an_agent_named_in_every_series_is_that_of_the_exam():
    tagged = {"ContrastBolusAgent": "Gadovist"}
    said = contrast_agents(
        [series(1, "T2w", tagged), series(2, header=tagged), series(3, "T2w", tagged)], EVIDENCE
    )
    assert {(one.value, one.evidence) for one in said} == {("unknown", "exam:ContrastBolusAgent")}


def test_a_t1w_with_other_parameters_is_not_the_native_one():
    after = series(5, header={"SeriesDescription": "t1 KM"})
    for other in (
        series(3, header={"TE_ms": 11.0}),
        series(3, header={"ScanOptions": "FS"}),
        series(3, spacing_mm=[0.9, 0.9, 4]),
        series(3, acquisition_plane="CORONAL"),
        series(3, "T2w"),
        series(3, header={"TR_ms": None}),
    ):
        assert told(other, after) == ["unknown", "yes"]
    assert told(series(3), after) == ["no", "yes"]


def test_number_and_clock_must_agree():
    after = series(5, header={"SeriesDescription": "t1 KM", "AcquisitionTime": "10:30:00.25"})
    earlier, later = {"AcquisitionTime": "10:00:00"}, {"AcquisitionTime": "11:00:00"}
    assert told(series(3, header=earlier), after)[0] == "no"
    assert told(series(3, header=later), after)[0] == "unknown"
    assert told(series(7, header=later), after)[0] == "yes"
    assert told(series(7, header=earlier), after)[0] == "unknown"
    assert told(series(7, "T2w", later), after)[0] == "yes"
    assert told(series(7, "T2w"), after)[0] == "unknown"


def test_a_person_wins_and_proves_what_comes_later():
    given, later = series(3, header={"contrast_agent": "yes"}), series(4)
    said = contrast_agents([given, later], EVIDENCE)
    assert [(one.value, one.evidence) for one in said] == [
        ("yes", "series_table"),
        ("yes", "order:SeriesNumber"),
    ]
    with pytest.raises(ValueError, match="yes, no, unknown"):
        told(series(header={"contrast_agent": "maybe"}))


def test_agent_of_a_frame_and_of_an_image_are_read_from_dicom(tmp_path):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    usage, groups = Dataset(), Dataset()
    usage.ContrastBolusAgentAdministered = "YES"
    groups.ContrastBolusUsageSequence = Sequence([usage])
    path = write_dicom(
        tmp_path / "enhanced.dcm",
        PerFrameFunctionalGroupsSequence=Sequence([groups]),
        FrameAcquisitionDateTime="20240131103000.5",
    )
    enhanced = dicom_header(path)
    path = write_dicom(
        tmp_path / "classic.dcm", ContrastBolusAgent="Gadovist", ContrastBolusVolume="7.5"
    )
    classic = dicom_header(path)
    assert enhanced["AcquisitionTime"] == "20240131103000.5"
    assert told(series(header=enhanced)) == told(series(header=classic)) == ["yes"]


@pytest.mark.skipif(not HEADERS.exists(), reason=f"no labelled headers at {DATA}")
def test_real_headers_without_an_agent_are_not_told_to_have_one():
    records = [json.loads(line) for line in HEADERS.read_text().splitlines()]
    for record in records:
        read = sidecar_header(record["sidecar"], {})
        assert told(series(1, record["label"], read)) == ["unknown"], record["id"]


def test_a_series_takes_a_fraction_of_a_millisecond():
    studies = [of_case(study) for study in STUDIES] * 20
    start = time.perf_counter()
    for study in studies:
        contrast_agents(study, EVIDENCE)
    assert (time.perf_counter() - start) / sum(map(len, studies)) < 0.5e-3
