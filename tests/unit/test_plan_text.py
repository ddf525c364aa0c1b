import re

import pytest

from mrmill.config import ROOT
from mrmill.plan import PlanSummary
from mrmill.plan.text import WARNINGS, plan_text


def summary(**more):
    values = {
        "files": 9, "read": 4, "skipped": {}, "duplicates": 0, "patients": 2, "studies": 4,
        "series": 8, "batches": 1, "shards": 1, "new_studies": 3, "vanished_studies": 0,
    }  # fmt: skip
    return PlanSummary(**{**values, **more})


def test_a_plan_without_anything_unusual_is_one_line():
    assert plan_text(summary()) == (
        "plan: 9 files (4 read now), 2 patients, 4 studies (3 new), 8 series, 1 batches, 1 shards"
    )


def test_what_was_left_out_is_counted_by_reason():
    text = plan_text(summary(skipped={"not_dicom": 2, "no_pixels": 0}, duplicates=5))
    assert "files left out: 2 not_dicom, 5 duplicates" in text.splitlines()


@pytest.mark.parametrize("code", WARNINGS)
def test_each_warning_is_a_line_with_its_number_and_meaning(code):
    line = plan_text(summary(warnings={code: 2})).splitlines()[1]
    assert line.startswith(f"note: {code} (2): ")
    assert len(line) > len(f"note: {code} (2): ") + 30


def test_every_warning_of_the_code_has_a_sentence():
    source = "".join(path.read_text() for path in (ROOT / "scripts" / "mrmill").rglob("*.py"))
    codes = set(re.findall(r'\bwarnings\["(\w+)"\]', source))
    assert len(codes) > 10
    assert codes - WARNINGS.keys() == set()


@pytest.mark.parametrize(("quarantined", "is_loud"), [(2, False), (3, True)])
def test_most_studies_in_quarantine_are_said_aloud(quarantined, is_loud):
    text = plan_text(summary(warnings={"quarantined": quarantined}))
    assert (f"ATTENTION: {quarantined} of 4 studies" in text) is is_loud
    assert text.count("input.mixed_folders: accept") == 1 + is_loud
