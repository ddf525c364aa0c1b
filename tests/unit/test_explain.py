"""A story tells what was read and decided, and by default nothing that identifies anyone."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded import both, no, ok
from tiny_dicom import write_dicom

from mrmill.config import Config, checked
from mrmill.curate import curate_study, load_tables
from mrmill.curate.classify import classify
from mrmill.explain import HIDDEN, explain
from mrmill.explain.targets import TargetError
from mrmill.explain.text import LAST_RULES, text_of
from mrmill.layout import WorkTree
from mrmill.records import Journal, Outcome, Record, signed, write_json
from mrmill.shards import Study

CANARY = "CANARY"
T1 = {
    **{"Modality": "MR", "Manufacturer": "SIEMENS", "ScanningSequence": "GR\\IR"},
    **{"TE_ms": 2.9, "TR_ms": 2300.0, "TI_ms": 900.0, "FlipAngle": 9.0, "FieldStrength_T": 3.0},
    **{"ImageType": f"ORIGINAL\\PRIMARY\\{CANARY}", "MRAcquisitionType": "3D"},
    **{"Patient'sAge": "093Y", "SeriesNumber": 2, "StudyDate": "2099-01-02"},
    **{"SeriesDescription": f"mprage {CANARY}", "ProtocolName": CANARY, "SequenceName": "*tfl3d1"},
    **{"ImageOrientation(Patient)": [0.0, 1.0, 0.0, 0.0, 0.0, -1.0], "BurnedInAnnotation": CANARY},
}
DWI = {**T1, "ScanningSequence": "EP", "Diffusionb-value": 1000.0, "TI_ms": None, "SeriesNumber": 3}


class Project:
    """A work tree with one shard, whose records are written by hand."""

    def __init__(self, folder, tables):
        self.tables = tables
        self.config = checked({"deface": {"backend": "deepbet", "device": "cpu"}}, folder)
        self.work = WorkTree(self.config.work)
        self.plans = {}

    def plan(self, uid, *keys, **more):
        """Plan a study."""
        who = {"patient_uid": f"P{uid}", "split": "train", "reject": ""}
        series = [
            {"series_key": key, "kind": "nifti", "folder": f"/in/{CANARY}", "files": ["a"]}
            | {"table": {}}
            for key in keys
        ]
        dates = {"StudyDate": "20990102", "date_shift_days": -5}
        self.plans[uid] = {"study_uid": uid, **who, **dates, "series": series, **more}
        write_json(self.work.shard_plan("batch00", "s0"), {"studies": list(self.plans.values())})
        rows = [
            {
                **{name: plan[name] for name in ("study_uid", *who)},
                **{"batch": "batch00", "shard": "s0", "PatientID": f"{CANARY}ID"},
                **{"AccessionNumber": f"{CANARY}ACC", "StudyInstanceUID": f"1.2.{CANARY}"},
            }
            for plan in self.plans.values()
        ]
        pq.write_table(pa.Table.from_pylist(rows), self.work.studies)
        return self

    def record(self, uid, stage, outcome):
        """Write what a stage said of a study."""
        if not isinstance(outcome, Outcome):
            outcome = Outcome(series=outcome)
        Journal(self.work.journal("batch00", stage, "s0")).write(Record(uid, "key", outcome))
        return self

    def curate(self, uid, **headers):
        """Convert series with these headers, and curate them as a run would."""
        grid = {"shape": [160, 240, 240], "spacing_mm": [1.0, 1.0, 1.0]}
        affine = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]
        made = [
            ok(key, source=key, header=header, affine=affine, warnings=[], **grid)
            for key, header in headers.items()
        ]
        converted = Record(uid, "key", Outcome(series=made))
        plan = self.plans[uid]
        study = Study(uid, plan["patient_uid"], "batch00", plan, {"convert": converted})
        self.record(uid, "convert", converted.outcome)
        curated = curate_study(study, None, self.config.curate, self.tables)
        return self.record(uid, "curate", curated)

    def tell(self, target, identified=False):
        return explain(self.config, target, identified)

    def text(self, target, identified=False, every_rule=False):
        return text_of(self.tell(target, identified), every_rule)


@pytest.fixture(scope="module")
def tables():
    """The tables as they come, read once: they are large."""
    settings = Config.model_validate({"deface": {"backend": "deepbet"}})
    return load_tables(settings.curate, settings.convert.header_columns)


@pytest.fixture
def project(tmp_path, tables, monkeypatch):
    monkeypatch.setattr("mrmill.explain.load_tables", lambda *_: tables)
    return Project(tmp_path, tables)


@pytest.fixture
def finished(project):
    """A study whose T1w went all the way but for atlas space, and whose DWI did not."""
    project.plan("S1", "AAAA", "BBBB").curate("S1", AAAA=T1, BBBB=DWI)
    curated = Journal(project.work.journal("batch00", "curate", "s0")).records()["S1"].outcome
    (entry,) = curated.accepted_series()
    quality = {"brain_ml": 1400.5}
    project.record("S1", "deface", [{**entry, "quality": quality, "state": "accepted"}])
    project.record("S1", "register", both("AAAA", atlas="center_reg_failed"))
    for space in ("native", "coreg"):
        project.record("S1", f"package-{space}", [ok("AAAA")])
    project.record("S1", "package-atlas", Outcome("rejected", "center_reg_failed"))
    return project


def stages(series):
    return [(stage.stage, stage.space, stage.state, stage.reason) for stage in series.stages]


@pytest.mark.parametrize(
    "name",
    [
        *("S1/AAAA", "S1/t1w-raw-sag", "AAAA", "S1_t1w-raw-sag", "S1_t1w-raw-sag.nii.gz"),
        *("S1_coreg_t1w-raw-sag.nii.gz", "S1_atlas_t1w-raw-sag_brain-mask.nii.gz"),
    ],
)
def test_a_series_is_found_by_every_name_it_has(finished, name):
    assert finished.tell(name).asked == "AAAA"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("S9", "no study or series is called S9; near: S1"),
        ("S1/t1w-raw-axi", "study S1 has no series t1w-raw-axi; near: t1w-raw-sag"),
        ("ZZZZ", "no study or series is called ZZZZ; there are: S1"),
    ],
)
def test_an_unknown_name_gets_near_ones(finished, target, said):
    with pytest.raises(TargetError, match=said):
        finished.tell(target)


def test_a_series_of_two_studies_has_to_be_named_with_its_study(project):
    project.plan("S1", "t1w-raw-axi").plan("S2", "t1w-raw-axi")
    with pytest.raises(TargetError, match="say which: S1/t1w-raw-axi, S2/t1w-raw-axi"):
        project.tell("t1w-raw-axi")


def test_nothing_can_be_told_before_the_first_plan(project):
    with pytest.raises(TargetError, match="nothing is planned"):
        project.tell("S1")


@pytest.mark.parametrize("target", ["S1", "S1/AAAA", "S1/BBBB"])
def test_by_default_nothing_identifies_anyone(finished, target):
    for told in (finished.text(target, every_rule=True), finished.tell(target).as_json()):
        assert CANARY not in told.upper()
        assert "2099" not in told
        assert "093Y" not in told
        assert "93 years" not in told


def test_what_is_hidden_is_said_to_be_there_and_can_be_seen_inside(finished):
    hidden, seen = finished.tell("S1/AAAA"), finished.tell("S1/AAAA", identified=True)
    assert hidden.series[0].read["SeriesDescription"] == HIDDEN
    assert seen.series[0].read["SeriesDescription"] == f"mprage {CANARY}"
    assert seen.identity["PatientID"] == f"{CANARY}ID"
    assert seen.series[0].source["folder"] == f"/in/{CANARY}"
    assert hidden.identity == hidden.series[0].source == {}
    text = finished.text("S1/AAAA", identified=True)
    assert f"/in/{CANARY}" in text
    assert "093Y" in text


def test_a_rewritten_value_is_shown_as_it_is_released(finished):
    read = finished.tell("S1/AAAA").series[0].read
    assert (read["Manufacturer"], read["TE_ms"], read["Patient'sAge"]) == ("Siemens", 2.9, 90)
    assert read["ImageType"] == "ORIGINAL\\PRIMARY"


def test_the_rule_that_fired_is_the_one_that_classification_took(finished):
    for series, header in zip(finished.tell("S1").series, (T1, DWI), strict=True):
        *missed, fired = series.rules
        assert fired["rule"] == classify(header, finished.tables.rules).classification_rule
        assert fired["fired"]
        assert all(condition["held"] for condition in fired["conditions"])
        assert not any(rule["fired"] or rule["conditions"][0]["held"] for rule in missed)


def test_rules_are_folded_to_the_last_ones_unless_all_are_asked_for(finished):
    n_missed = len(finished.tell("S1").series[0].rules) - 1
    few, many = finished.text("S1/AAAA"), finished.text("S1/AAAA", every_rule=True)
    assert few.count("\n  no   ") == LAST_RULES < n_missed == many.count("\n  no   ")
    assert f"... and {n_missed - LAST_RULES} more: --all" in few


def test_the_criteria_end_with_the_one_that_a_series_does_not_meet(finished):
    accepted, rejected = (series.stages[1].criteria for series in finished.tell("S1").series)
    assert all(criterion["held"] for criterion in accepted)
    assert [criterion["held"] for criterion in rejected] == [True] * (len(rejected) - 1) + [False]
    assert rejected[-1]["reason"] == "modality_not_accepted"
    assert (rejected[-1]["found"], rejected[-1]["value"]) == ("DWI", "classified_modality")


def test_a_rejected_series_says_why_and_what_to_do(finished):
    told = finished.text("S1/BBBB")
    assert "series BBBB: rejected in curate: modality_not_accepted" in told
    assert "found DWI, accepted T1w, T2w, FLAIR, SWI, MRA" in told
    assert "\n  nothing to do" in told
    assert "deface" not in told


def test_every_stage_is_told_with_its_space_and_figures(finished):
    series = finished.tell("S1").series[0]
    assert stages(series) == [
        ("convert", "", "accepted", ""),
        ("curate", "", "accepted", ""),
        ("deface", "", "accepted", ""),
        ("package-native", "native", "accepted", ""),
        ("register", "coreg", "accepted", ""),
        ("package-coreg", "coreg", "accepted", ""),
        ("register", "atlas", "rejected", "center_reg_failed"),
    ]
    assert series.fate.state == "accepted"
    assert series.stages[2].facts["quality"] == {"brain_ml": 1400.5}
    assert "brain_ml 1400.5" in finished.text("S1/AAAA")


def test_a_study_is_told_with_a_few_lines_for_each_series(finished):
    told = finished.text("S1")
    assert "study S1 of patient PS1, 2 series, batch00/s0, split train" in told
    assert "series AAAA = t1w-raw-sag: accepted" in told
    assert "atlas space: rejected in register: center_reg_failed" in told
    assert "mrmill explain S1/AAAA" in told
    assert "what was read" not in told


def test_json_has_the_same_for_scripts(finished):
    whole, one = (json.loads(finished.tell(t).as_json()) for t in ("S1", "S1/BBBB"))
    assert [series["series_key"] for series in whole["series"]] == ["AAAA", "BBBB"]
    assert one["series"] == whole["series"][1:]


def test_a_study_that_waits_is_told_from_its_files(project, tmp_path):
    file = write_dicom(tmp_path / "in" / "1.dcm", SeriesDescription=CANARY)
    project.plan("S1", "AAAA")
    place = {"kind": "dicom", "folder": str(file.parent), "files": [file.name]}
    project.plans["S1"]["series"][0] |= place
    write_json(project.work.shard_plan("batch00", "s0"), {"studies": [project.plans["S1"]]})
    (series,) = project.tell("S1").series
    assert stages(series) == [("convert", "", "open", "")]
    assert series.read["SeriesDescription"] == HIDDEN
    assert series.rules[-1]["fired"]
    assert "series AAAA: waits for convert" in project.text("S1")
    assert "the header is read from the export now" in project.text("S1/AAAA")
    file.unlink()
    assert "the header cannot be read from the export" in project.text("S1/AAAA")


def test_a_study_that_the_plan_rejected_ends_there(project):
    project.plan("S1", "AAAA", reject="excluded")
    told = project.text("S1/AAAA")
    assert "series AAAA: rejected in plan with its study: excluded" in told
    assert "the patient or the study stands in identity.opt_out" in told
    assert len(project.tell("S1").series[0].stages) == 1


def test_a_study_without_series_is_told_as_such(project):
    told = project.plan("S1", reject="excluded").text("S1")
    assert "0 series" in told


def test_a_failure_is_told_with_the_place_of_its_trace(project):
    entry = no("AAAA", "error", state="failed", error="EOFError volumes.py:7", source="AAAA")
    project.plan("S1", "AAAA").record("S1", "convert", [entry])
    told = project.text("S1/AAAA")
    assert "failed in convert: error" in told
    assert "found EOFError volumes.py:7" in told
    assert "its trace: logs/batch00/convert/s0.log in the work tree" in told
    assert str(project.work.root) not in told  # its name may be a hospital's


def test_several_images_of_a_series_have_a_story_each(project):
    made = [ok("AAAA", source="AAAA"), no("AAAA-2", "extra_output", source="AAAA")]
    project.plan("S1", "AAAA").record("S1", "convert", made)
    assert project.tell("AAAA-2").asked == "AAAA-2"
    assert "AAAA-2: rejected in convert: extra_output" in project.text("S1")


def test_series_of_an_adopted_release_have_a_row_and_no_rules(project):
    row = {"classified_modality": "T1w", "acquisition_plane": "AXIAL", "TE_ms": "2.5"}
    project.plan("S1", "t1w-raw-axi", rows=[row])
    project.record("S1", "deface", [ok("t1w-raw-axi", series_id="t1w-raw-axi", row=row)])
    (series,) = project.tell("S1/t1w-raw-axi").series
    assert (series.read, series.rules) == (row, [])
    assert series.stages[0].stage == "deface"


def test_rules_that_changed_since_are_said_to_have(finished):
    path = finished.work.journal("batch00", "curate", "s0")
    rule = finished.tell("S1").series[0].rules[-1]["rule"]
    lines = path.read_text().replace(rule, "site:former_rule").splitlines()
    path.write_bytes(b"".join(signed_anew(line) + b"\n" for line in lines))
    assert "the rules have changed since the series was curated" in finished.text("S1/AAAA")


def signed_anew(text):
    line = json.loads(text)
    del line["crc32"]
    return signed(line)


def test_a_modality_that_a_person_gave_needs_no_rule(project):
    project.plan("S1", "AAAA").curate("S1", AAAA={**T1, "modality": "T1w"})
    (series,) = project.tell("S1").series
    assert series.rules == []
    assert "no rule was tried" in project.text("S1/AAAA")
