"""Tables of a release: what stands in them, what never does, and when they are refused."""

import csv
import hashlib
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mrmill import ledger
from mrmill.catalog import CatalogError, catalog_batch, catalog_release
from mrmill.columns import load_columns
from mrmill.config import Dataset
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.ledger import LedgerError
from mrmill.ledger.flow import FlowError, read_flows
from mrmill.records import Journal, Outcome, Record, manifest_of, sha256_of, write_json
from mrmill.tables import CellError, cell

SPACES = ("native", "coreg")
COLUMNS = [
    *("patient_uid", "study_uid", "series_id", "classified_modality", "acquisition_plane"),
    *("SeriesNumber", "is_center_modality", "array_shape", "TE_ms", "Manufacturer"),
    *("FieldStrength_T", "is_derived"),
]
SCHEMA = [column for name in COLUMNS for column in load_columns() if column.name == name]
FACTS = {"mrmill": "0.1.0", "atlas_sha256": "ab" * 32}
CANARY = "CANARY^NAME"


class Run:
    """A finished run in small: a work tree whose records say that all went well."""

    def __init__(self, root):
        self.work = WorkTree(root / "work")
        self.release = ReleaseTree(root / "release", "TINY")
        self.planned = []

    def plan(self, batch, shard, studies):
        """Write a shard's plan, and who its studies are."""
        write_json(self.work.shard_plan(batch, shard), {"studies": studies})
        who = dict.fromkeys(ledger.IDENTITIES, CANARY)
        self.planned += [
            {"study_uid": s["study_uid"], "batch": batch, "shard": shard, **who} for s in studies
        ]
        names = ("study_uid", "batch", "shard", *ledger.IDENTITIES)
        table = pa.table({n: pa.array([r[n] for r in self.planned], pa.string()) for n in names})
        pq.write_table(table, self.work.studies)

    def add(self, batch, shard, **patient_of):
        """Put studies (study_uid=patient_uid), two series each, through all stages as one shard."""
        studies = [
            {
                "study_uid": uid,
                "patient_uid": patient,
                "split": "test" if patient.startswith("X") else "train",
                "StudyDate": CANARY,
                "series": [{"series_key": f"{uid}1"}, {"series_key": f"{uid}2"}],
            }
            for uid, patient in patient_of.items()
        ]
        self.plan(batch, shard, studies)
        stages = ("convert", "curate", "deface", "register", "package-native", "package-coreg")
        for stage in stages:
            outcomes = {s["study_uid"]: self.outcome(batch, stage, s) for s in studies}
            self.record(batch, stage, shard, outcomes)
        return self

    def outcome(self, batch, stage, study):
        uid, (first, second) = study["study_uid"], study["series"]
        # the series acquired first has the larger key: order must come from SeriesNumber
        entries = [
            {**second, "state": "accepted", "reason": "", "series_id": "t1w-raw-sag"},
            {**first, "state": "accepted", "reason": "", "series_id": "flair-raw-axi"},
        ]
        for entry, number in zip(entries, (2, 10), strict=True):
            is_center = number == 2
            if stage == "curate":
                entry["row"] = self.row(study, entry["series_id"], number)
                entry["is_center_modality"] = not is_center  # deface has the last word
            if stage == "deface":
                entry["is_center_modality"] = is_center
            if stage == "register":
                entry["space"] = "coreg"
        outcome = Outcome(series=entries)
        if stage.startswith("package-"):
            space = stage.removeprefix("package-")
            path = self.release.zip(space, batch, uid)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{space} {uid}".encode())
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            name = str(path.relative_to(self.release.repository(space)))
            outcome.zip = {"path": name, "sha256": sha256, "bytes": path.stat().st_size}
        return outcome

    @staticmethod
    def row(study, series_id, number):
        return {
            "patient_uid": study["patient_uid"],
            "study_uid": study["study_uid"],
            "series_id": series_id,
            "classified_modality": "T1w" if series_id.startswith("t1w") else "FLAIR",
            "acquisition_plane": "SAGITTAL" if series_id.endswith("sag") else "AXIAL",
            "SeriesNumber": number,
            "array_shape": [256, 256, 24],
            "TE_ms": None if number == 2 else 3.5,
            "Manufacturer": "Philips",
            "FieldStrength_T": 2.89362,
            "is_derived": False,
            "PatientName": CANARY,
        }

    def record(self, batch, stage, shard, outcomes):
        records = [Record(uid, "key", outcome) for uid, outcome in outcomes.items()]
        for record in records:
            Journal(self.work.journal(batch, stage, shard)).write(record)
        write_json(self.work.manifest(batch, stage, shard), manifest_of(records))

    def catalog_batch(self, batch, *shards):
        return catalog_batch(self.work, self.release, batch, shards, SPACES, SCHEMA)

    def catalog(self, *batches, facts=FACTS, atlas=None, **settings):
        dataset = Dataset(name="TINY", title="A tiny dataset", licence="cc-by-4.0", **settings)
        told = dataset, SCHEMA, facts, atlas
        return catalog_release(self.work, self.release, batches, SPACES, *told)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def bytes_below(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_metadata_has_one_row_per_series_in_acquisition_order(run):
    run.add("batch00", "shard000", B="P1", A="P2").catalog_batch("batch00", "shard000")
    lines = run.release.metadata("batch00").read_text(encoding="utf-8").split("\n")
    assert lines[0] == ",".join(COLUMNS)
    shape, vendor = '"[256, 256, 24]"', "Philips"
    assert lines[1:3] == [
        f"P2,A,t1w-raw-sag,T1w,SAGITTAL,2,True,{shape},,{vendor},2.89362,False",
        f"P2,A,flair-raw-axi,FLAIR,AXIAL,10,False,{shape},3.5,{vendor},2.89362,False",
    ]
    assert [line.split(",")[1] for line in lines[3:5]] == ["B", "B"]
    assert lines[5:] == [""]


def test_a_series_that_is_not_in_the_zip_has_no_row(run):
    run.add("batch00", "s0", A="P1")
    journal = Journal(run.work.journal("batch00", "deface", "s0"))
    outcome = journal.records()["A"].outcome
    outcome.series[1] |= {"state": "rejected", "reason": "needs_review"}
    run.record("batch00", "deface", "s0", {"A": outcome})
    counts = run.catalog_batch("batch00", "s0")["counts"]
    assert [row["series_id"] for row in rows_of(run.release.metadata("batch00"))] == ["t1w-raw-sag"]
    assert counts["reasons"]["rejected"] == {"needs_review": 1}


def test_nothing_outside_the_allow_list_reaches_the_release(run):
    run.add("batch00", "s0", A="P1", B="P1").catalog_batch("batch00", "s0")
    run.catalog("batch00")
    assert not [name for name, data in bytes_below(run.release.root).items() if b"CANARY" in data]
    # the search can find it: the plan and the records do hold it
    assert [name for name, data in bytes_below(run.work.root).items() if b"CANARY" in data]


@pytest.mark.parametrize("column", ["Manufacturer", "classified_modality"])
def test_a_cell_that_its_column_does_not_accept_stops_the_catalog(run, column):
    run.add("batch00", "s0", A="P1")
    outcome = Journal(run.work.journal("batch00", "curate", "s0")).records()["A"].outcome
    outcome.series[1]["row"][column] = CANARY
    run.record("batch00", "curate", "s0", {"A": outcome})
    with pytest.raises(CellError, match=f"study A flair-raw-axi: its {column} holds") as refused:
        run.catalog_batch("batch00", "s0")
    assert CANARY not in str(refused.value)
    assert not run.release.metadata("batch00").exists()


def test_batch_id_is_the_batch_in_which_a_patient_first_appears(run):
    run.add("batch00", "s0", C="P1", D="X2").add("batch01", "s0", A="P1", B="P3")
    for batch in ("batch00", "batch01"):
        run.catalog_batch(batch, "s0")
    run.catalog("batch01", "batch00")
    assert run.release.splits.read_text(encoding="utf-8") == (
        "batch_id,patient_uid,study_uid,split\n"
        "batch00,P1,A,train\n"
        "batch00,P1,C,train\n"
        "batch00,X2,D,test\n"
        "batch01,P3,B,train\n"
    )


def test_batch100_comes_after_batch99(run):
    run.add("batch99", "s0", A="P1").add("batch100", "s0", B="P1")
    for batch in ("batch99", "batch100"):
        run.catalog_batch(batch, "s0")
    run.catalog("batch100", "batch99")
    assert {row["batch_id"] for row in rows_of(run.release.splits)} == {"batch99"}


def test_a_study_without_an_accepted_series_is_in_the_ledger_and_not_in_the_splits(run):
    run.add("batch00", "s0", A="P1", B="P2")
    rejected = {"B": Outcome("rejected", "no_center")}
    kept = Journal(run.work.journal("batch00", "curate", "s0")).records()["A"].outcome
    run.record("batch00", "curate", "s0", {"A": kept, **rejected})
    for stage in ("deface", "register", "package-native", "package-coreg"):
        kept = Journal(run.work.journal("batch00", stage, "s0")).records()["A"].outcome
        run.record("batch00", stage, "s0", {"A": kept})
    run.catalog_batch("batch00", "s0")
    run.catalog("batch00")
    assert [row["study_uid"] for row in rows_of(run.release.splits)] == ["A"]
    told = {(row["study_uid"], row["found"]) for row in rows_of(run.release.ledger)}
    assert told == {("A", ""), ("B", "no_center")}
    # the zips of an earlier packaging of B went with its records
    assert not run.release.zip("native", "batch00", "B").exists()


def test_a_published_split_never_changes(run):
    run.add("batch00", "s0", A="P1").catalog_batch("batch00", "s0")
    run.catalog("batch00")
    published = run.release.splits.read_text(encoding="utf-8")
    run.release.splits.write_text(published.replace("train", "val"), encoding="utf-8")
    with pytest.raises(CatalogError, match="patient P1 is in split val and would be in train"):
        run.catalog("batch00")


def test_one_patient_cannot_be_in_two_splits(run):
    run.add("batch00", "s0", A="P1", B="P1")
    path = run.work.shard_plan("batch00", "s0")
    text = path.read_text(encoding="utf-8").replace('"split": "train"', '"split": "val"', 1)
    path.write_text(text, encoding="utf-8")
    run.catalog_batch("batch00", "s0")
    with pytest.raises(CatalogError, match="a split never changes"):
        run.catalog("batch00")


def test_zips_without_a_record_are_removed_and_nothing_else(run, caplog):
    run.add("batch00", "s0", A="P1")
    folder = run.release.zip("native", "batch00", "A").parent
    orphan, note, other = folder / "OLD.zip", folder / "notes.txt", folder.parent / "batch01"
    orphan.write_bytes(b"old")
    note.write_bytes(b"mine")
    other.mkdir()
    (other / "C.zip").write_bytes(b"of another batch")
    with caplog.at_level(logging.WARNING):
        run.catalog_batch("batch00", "s0")
    assert sorted(p.name for p in folder.iterdir()) == ["A.zip", "notes.txt"]
    assert (other / "C.zip").exists()
    assert "OLD.zip" in caplog.text


def test_a_batch_cataloged_in_part_keeps_the_zips_of_its_other_shards(run):
    run.add("batch00", "s0", A="P1").add("batch00", "s1", B="P2")
    run.catalog_batch("batch00", "s0")
    assert run.release.zip("native", "batch00", "B").exists()


@pytest.mark.parametrize("content", [None, b"cut"])
def test_a_zip_that_is_not_as_recorded_is_refused(run, content):
    run.add("batch00", "s0", A="P1")
    path = run.release.zip("coreg", "batch00", "A")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CatalogError, match=r"TINY-coreg/mri/batch00/A_coreg\.zip"):
        run.catalog_batch("batch00", "s0")
    assert not run.release.metadata("batch00").exists()


def test_an_unfinished_stage_is_refused(run):
    run.add("batch00", "s0", A="P1")
    run.work.manifest("batch00", "register", "s0").unlink()
    with pytest.raises(CatalogError, match="batch00/register/s0 is not finished"):
        run.catalog_batch("batch00", "s0")


def test_a_journal_that_went_on_after_its_manifest_is_refused(run):
    run.add("batch00", "s0", A="P1")
    Journal(run.work.journal("batch00", "deface", "s0")).write(
        Record("A", "new key", Outcome("rejected", "empty_mask"))
    )
    with pytest.raises(CatalogError, match="no longer says what its manifest says"):
        run.catalog_batch("batch00", "s0")


def test_a_planned_study_without_a_record_stops_the_catalog(run):
    run.add("batch00", "s0", A="P1")
    run.record("batch00", "convert", "s0", {})
    with pytest.raises(LedgerError, match=r"A \(convert\)"):
        run.catalog_batch("batch00", "s0")


def test_an_adopted_release_keeps_its_rows_and_has_no_native_zips(run):
    rows = [
        {
            **{"patient_uid": "P1", "study_uid": "A", "series_id": "t1w-raw-sag", "TE_ms": "2.5"},
            **{"classified_modality": "T1w", "acquisition_plane": "SAGITTAL"},
            **{"is_derived": "False", "array_shape": "[256, 256, 24]"},
            **{"Manufacturer": CANARY, "PatientName": CANARY},
        }
    ]
    series = [{"series_key": "t1w-raw-sag"}]
    study = {"study_uid": "A", "patient_uid": "P1", "split": "val", "rows": rows, "series": series}
    run.plan("batch03", "s0", [study])
    entry = {**series[0], "state": "accepted", "reason": "", "row": rows[0]}
    entry["is_center_modality"] = True
    coreg = {**entry, "space": "coreg"}
    for stage, told in {"deface": entry, "register": coreg, "package-coreg": entry}.items():
        run.record("batch03", stage, "s0", {"A": Outcome(series=[told])})
    native = run.release.zip("native", "batch03", "A")
    native.parent.mkdir(parents=True)
    native.write_bytes(b"not made here")
    catalog_batch(run.work, run.release, "batch03", ["s0"], ["coreg"], SCHEMA)
    (row,) = rows_of(run.release.metadata("batch03"))
    assert (row["TE_ms"], row["is_center_modality"], row["Manufacturer"]) == ("2.5", "True", "")
    assert native.exists()


def test_checksums_cover_every_file_of_every_repository(run):
    run.add("batch00", "s0", A="P1", B="P2").catalog_batch("batch00", "s0")
    run.catalog("batch00")
    for space in SPACES:
        repository = run.release.repository(space)
        lines = run.release.checksums(space).read_text(encoding="utf-8").splitlines()
        told = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
        found = {
            str(path): hashlib.sha256(data).hexdigest()
            for path, data in bytes_below(repository).items()
            if path.name != "SHA256SUMS"
        }
        assert told == found


def test_the_same_run_gives_the_same_bytes_and_manifests_twice(run):
    run.add("batch00", "s0", B="P1", A="P2")
    first = run.catalog_batch("batch00", "s0"), run.catalog("batch00")
    before = bytes_below(run.release.root)
    assert (run.catalog_batch("batch00", "s0"), run.catalog("batch00")) == first
    assert bytes_below(run.release.root) == before


def test_the_card_names_tables_numbers_and_versions(run):
    run.add("batch00", "s0", A="P1", B="P1", C="X2").catalog_batch("batch00", "s0")
    run.catalog("batch00")
    text = run.release.card.read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    assert (head["license"], head["pretty_name"]) == ("cc-by-4.0", "A tiny dataset")
    files = {config["config_name"]: config["data_files"] for config in head["configs"]}
    for name, number in {"metadata": 1, "splits": 1, "ledger": 1}.items():
        assert len(list(run.release.repository("native").glob(files[name]))) == number
    metadata = {f["name"]: f["dtype"] for f in head["configs"][0]["features"]}
    assert list(metadata) == COLUMNS
    kinds = [metadata[c] for c in ("SeriesNumber", "TE_ms", "is_center_modality", "array_shape")]
    assert kinds == ["int64", "float64", "bool", "string"]
    assert "| train | 1 | 2 | 4 |" in body
    assert "| test | 1 | 1 | 2 |" in body
    assert "| total | 2 | 3 | 6 |" in body
    assert "| FLAIR | 3 | 0 |" in body
    assert "| Philips | 6 |" in body
    for name in (*COLUMNS, "split", "reason"):
        assert f"| `{name}` |" in body
    assert "| 2.9 T | 6 |" in body
    assert "ab" * 32 in body
    assert "TINY-coreg" in body
    assert "TINY-atlas" not in body


def test_the_card_lists_descriptions_of_transforms_where_they_are_in_the_zips(run):
    run.add("batch00", "s0", A="P1").catalog_batch("batch00", "s0")
    for asked in (False, True):
        run.catalog("batch00", transform_json=asked)
        text = run.release.card.read_text(encoding="utf-8")
        assert ("transform/M_coreg_<series_id>.json" in text) == asked


def test_the_atlas_repository_says_which_template_it_is(run):
    atlas = {"atlas": "MNI", "sha256": "ab" * 32, "shape": [2, 3, 4], "affine": [[1.0]]}
    run.add("batch00", "s0", A="P1").catalog_batch("batch00", "s0")
    manifest = run.catalog("batch00", atlas=atlas)
    path = run.release.repository("atlas") / "atlas.json"
    assert json.loads(path.read_text(encoding="utf-8")) == atlas
    assert manifest["digests"]["TINY-atlas/atlas.json"] == sha256_of(path)


def test_an_empty_batch_gives_tables_with_heads_only(run):
    run.plan("batch00", "s0", [])
    for stage in ("convert", "curate", "deface", "register", "package-native", "package-coreg"):
        run.record("batch00", stage, "s0", {})
    assert run.catalog_batch("batch00", "s0")["counts"]["series"]["seen"] == 0
    run.catalog("batch00")
    assert run.release.metadata("batch00").read_text(encoding="utf-8") == ",".join(COLUMNS) + "\n"
    assert "| total | 0 | 0 | 0 |" in run.release.card.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (True, "True"),
        (0, "0"),
        (1.5, "1.5"),
        ([0.9, 0.9, 5.5], "[0.9, 0.9, 5.5]"),
        ("ORIGINAL\\PRIMARY", "ORIGINAL\\PRIMARY"),
    ],
)
def test_a_value_has_one_way_to_stand_in_a_table(value, text):
    assert cell(value) == text


def test_the_identified_twin_is_for_its_owner_and_only_in_the_work_tree(run):
    run.add("batch00", "s0", A="P1").add("batch01", "s0", B="P2")
    for batch in ("batch00", "batch01"):
        run.catalog_batch(batch, "s0")
    run.catalog("batch00", "batch01")
    twins = [run.work.ledger, *run.work.root.glob("batch*/catalog/ledger.csv")]
    assert [path.stat().st_mode & 0o777 for path in twins] == [0o600] * 3
    public, twin = rows_of(run.release.ledger), rows_of(run.work.ledger)
    assert [{name: row[name] for name in ledger.COLUMNS} for row in twin] == public
    assert {row["AccessionNumber"] for row in twin} == {CANARY}
    assert list(public[0]) == list(ledger.COLUMNS)


def test_the_flow_of_a_batch_is_that_of_its_ledger(run):
    run.add("batch00", "s0", A="P1", B="P2")
    write_json(run.work.shards, {"batches": {"batch00": {}}})
    write_json(run.work.catalog("batch00"), run.catalog_batch("batch00", "s0"))
    steps = read_flows(run.work).total.steps
    assert {(step.series, step.studies) for step in steps} == {(4, 2)}


def without_study(run):
    path = run.work.shard_plan("batch00", "s0")
    studies = json.loads(path.read_text())["studies"]
    write_json(path, {"studies": [s for s in studies if s["study_uid"] != "A"]})


def without_journal_line(run):
    path = run.work.journal("batch00", "curate", "s0")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"study_uid": "A"' not in line))


def without_study_in_manifest(run):
    path = run.work.manifest("batch00", "register", "s0")
    found = json.loads(path.read_text())
    del found["studies"]["A"]
    write_json(path, found)


def without_series_in_record(run):
    path = run.work.journal("batch00", "deface", "s0")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["study_uid"] == "A":
            line["outcome"]["series"].pop()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def without_series_in_record_and_manifest(run):
    outcomes = Journal(run.work.journal("batch00", "deface", "s0")).records()
    outcomes["A"].outcome.series.pop()
    run.record("batch00", "deface", "s0", {uid: r.outcome for uid, r in outcomes.items()})


def without_zip(run):
    run.release.zip("native", "batch00", "A").unlink()


@pytest.mark.parametrize(
    ("delete", "named"),
    [
        (without_study, r"only in one of studies.parquet and the shards' files: A\."),
        (without_journal_line, r"study A: the journal of batch00/curate/s0 no longer says"),
        (without_study_in_manifest, r"in 1 of 2 studies: A \(register\)"),
        (without_series_in_record, r"study A: the journal of batch00/deface/s0 no longer says"),
        (without_series_in_record_and_manifest, r"1 of 4 series, in 1 of 2 studies: A \(deface\)"),
        (without_zip, r"TINY/mri/batch00/A\.zip: missing"),
    ],
)
def test_what_is_deleted_behind_its_back_is_named_by_its_study(run, delete, named):
    run.add("batch00", "s0", A="P1", B="P2")
    delete(run)
    with pytest.raises((LedgerError, CatalogError), match=named):
        run.catalog_batch("batch00", "s0")
    assert not run.release.metadata("batch00").exists()


def test_a_row_that_is_gone_from_a_batchs_ledger_stops_the_release(run):
    run.add("batch00", "s0", A="P1", B="P2").catalog_batch("batch00", "s0")
    path = run.work.part("batch00", "ledger.csv")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(FlowError, match=r"batch00/catalog/ledger\.csv no longer adds up"):
        run.catalog("batch00")
    assert not run.release.ledger.exists()
