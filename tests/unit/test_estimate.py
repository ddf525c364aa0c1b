"""What a pilot foretells: held against whole runs, drawn and real, and against sums by hand."""

import csv
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from handmade_run import journal, plan, written
from typer.testing import CliRunner

from mrmill.cli import app
from mrmill.config import checked
from mrmill.estimate import PilotError, estimate, text_of, total_of
from mrmill.layout import WorkTree
from mrmill.records import write_json
from mrmill.stages import STAGES

#: What a real run took: 24 studies of the phantom on one core, by stage.
PHANTOM_RUN = Path(__file__).parent / "phantom_run.csv"

STAGES_MADE = [stage for stage in STAGES if stage != "adopt"]


def near(value, rel=1e-6):
    return pytest.approx(value, rel=rel)


# -- the interval ----------------------------------------------------------------------------------


def test_the_interval_of_a_sum_is_students():
    # mean 3, s = sqrt(2), t(1 degree of freedom, 95 %) = 6.3138: 10 more studies, from two
    half = 6.3138 * math.sqrt(2) * math.sqrt(10 + 10 * 10 / 2)
    found = total_of([2.0, 4.0], 10)
    assert (found.value, found.low, found.high) == (30, 0, near(30 + half, 1e-4))
    # t(19 degrees of freedom, 95 %) = 1.7291
    costs = [0.0, 10.0] * 10
    half = 1.7291 * np.std(costs, ddof=1) * math.sqrt(1000 + 1000**2 / 20)
    found = total_of(costs, 1000)
    assert (found.low, found.high) == (near(5000 - half, 1e-4), near(5000 + half, 1e-4))


def test_nine_intervals_of_ten_hold_the_truth():
    """Studies cost what a lognormal gives, a fifth of them nothing: as in a hospital's export."""
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(500):
        costs = rng.lognormal(3, 0.5, 1048) * (rng.random(1048) > 0.2)
        found = total_of(costs[:48].tolist(), 1000)
        held += found.low <= costs[48:].sum() <= found.high
    assert 0.86 <= held / 500 <= 0.94


# -- whole runs ------------------------------------------------------------------------------------


def pilot_of(folder, shards, planned=None, finished=True):
    """Write a run down: shard -> study -> stage -> record."""
    work = WorkTree(folder)
    plan(work, planned or {name: [3] * len(studies) for name, studies in shards.items()})
    for name, studies in shards.items():
        for stage in STAGES_MADE:
            records = [stages[stage] for stages in studies.values() if stage in stages]
            journal(work, stage, name, records, finished=finished)
    return work


def phantom_run():
    """Study -> stage -> record, and what all of them took: stage -> seconds, bytes, inodes."""
    studies, truth = defaultdict(dict), defaultdict(lambda: np.zeros(3))
    with PHANTOM_RUN.open(newline="") as file:
        for row in csv.DictReader(file):
            n_bytes, n_files, zipped = (int(row[n]) for n in ("bytes", "files", "zip_bytes"))
            names = [f"{number}.nii.gz" for number in range(n_files)]
            sizes = {"n_bytes": n_bytes, "names": names, "zipped": zipped}
            record = written(row["study"], wall_s=float(row["wall_s"]), state=row["state"], **sizes)
            studies[row["study"]][row["stage"]] = record
            inodes = n_files + bool(n_files) + bool(zipped)
            truth[row["stage"]] += (float(row["wall_s"]), n_bytes + zipped, inodes)
    return studies, truth


@pytest.mark.parametrize("first", [0, 8, 16])
def test_a_shard_foretells_a_whole_phantom_run(tmp_path, first):
    studies, truth = phantom_run()
    names = list(studies)
    pilot_of(tmp_path, {"shard0000": {uid: studies[uid] for uid in names[first : first + 8]}})
    found = estimate(tmp_path, len(studies))
    for stage, (wall_s, n_bytes, inodes) in truth.items():
        foretold = found.stages[stage]
        for true, told in (
            (wall_s / 3600, foretold.core_hours),
            (n_bytes, foretold.n_bytes),
            (inodes, foretold.inodes),
        ):
            assert told.low <= true <= told.high
    released = sum(n_bytes for stage, (_, n_bytes, _) in truth.items() if "package" in stage)
    hours = sum(wall_s for wall_s, _, _ in truth.values()) / 3600
    assert found.core_hours.value == near(hours, 0.3)
    assert found.trees["release"].n_bytes.value == near(released, 0.3)


# -- what a stage takes of a study -----------------------------------------------------------------


def through(uid, until=STAGES_MADE[-1], state="accepted", wall_s=10.0, n_bytes=100):
    """Records of a study on its way to a stage, and what became of it there."""
    stages = STAGES_MADE[: STAGES_MADE.index(until) + 1]
    states = dict.fromkeys(stages, "accepted") | {until: state}
    return {s: written(uid, n_bytes, wall_s=wall_s, state=states[s]) for s in stages}


def test_studies_turned_down_early_count_with_what_they_cost(tmp_path):
    studies = {"A": through("A"), "B": through("B"), "C": through("C", "curate", "rejected")}
    pilot_of(tmp_path, {"shard0000": studies | {"D": through("D", "deface", "failed")}})
    found = estimate(tmp_path, 400)
    assert found.stages["curate"].core_hours.value == near(400 * 10 / 3600)
    assert found.stages["deface"].core_hours.value == near(300 * 10 / 3600)
    assert found.stages["register"].n_bytes.value == near(200 * 100)
    assert found.stages["package-native"].n_bytes.value == near(200 * 100)
    assert found.notes[0].startswith("the pilot is small: 4 studies")


def test_studies_on_their_way_count_where_they_have_been(tmp_path):
    studies = {"A": through("A"), "B": through("B"), "C": through("C", "curate")}
    pilot_of(tmp_path, {"shard0000": studies}, finished=False)
    found = estimate(tmp_path, 300)
    assert found.stages["convert"].core_hours.value == near(300 * 10 / 3600)
    assert found.stages["deface"].core_hours.value == near(300 * 10 / 3600)
    assert "1 of the pilot's studies are still on their way" in found.notes


def test_a_stage_that_the_pilot_lacks_is_named(tmp_path):
    studies = {uid: through(uid, "deface") for uid in "AB"}
    pilot_of(tmp_path, {"shard0000": studies})
    found = estimate(tmp_path, 100)
    assert "register" not in found.stages
    assert any("lacks register, package-native" in note for note in found.notes)


def test_a_pilot_that_has_only_begun_tells_of_its_first_stages(tmp_path):
    pilot_of(tmp_path, {"shard0000": {uid: through(uid, "convert") for uid in "AB"}})
    found = estimate(tmp_path, 100)
    assert found.stages.keys() == {"convert"}
    assert found.stages["convert"].n_bytes.value == near(100 * 100)


def test_one_study_is_no_pilot(tmp_path):
    pilot_of(tmp_path / "one", {"shard0000": {"A": through("A")}})
    with pytest.raises(PilotError, match="has seen 1 studies"):
        estimate(tmp_path / "one", 100)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PilotError, match="has seen 0 studies"):
        estimate(tmp_path / "empty", 100)


# -- what jobs held --------------------------------------------------------------------------------


def attempt(work, stage, shard="shard0000", **values):
    """Write down one attempt of a job, as the engine does."""
    row = {"batch": "batch00", "stage": stage, "shard": shard, "state": "done", "gpu": None}
    path = work.attempts("batch00", stage, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**row, "attempt": 1, **values}) + "\n")


def two_studies(folder):
    """A pilot of two studies that took ten seconds in every stage."""
    return pilot_of(folder, {"shard0000": {uid: through(uid) for uid in "AB"}})


def core_s(folder, stage, **more):
    """Core-seconds a study."""
    return estimate(folder, 100, **more).stages[stage].core_hours.value * 3600 / 100


def test_cores_that_wait_and_attempts_in_vain_are_paid_for(tmp_path):
    work = two_studies(tmp_path)
    attempt(work, "register", wall_s=15, threads=4, studies=1, state="killed")
    attempt(work, "register", wall_s=25, threads=4, studies=1, attempt=2)
    assert core_s(tmp_path, "register") == near((15 + 25) * 4 / 2)
    assert core_s(tmp_path, "convert") == near(10)  # nothing known of its jobs


def test_what_was_done_again_is_not_paid_for_twice(tmp_path):
    work = two_studies(tmp_path)
    for number in (1, 2):
        attempt(work, "register", wall_s=30, threads=2, studies=2, attempt=number)
    assert core_s(tmp_path, "register") == near(30 * 2 / 2)


def test_gpu_hours_are_those_that_jobs_held_one(tmp_path):
    work = two_studies(tmp_path)
    gpu = {"held_s": 36, "busy_share": 0.5, "peak_mb": 100}
    attempt(work, "deface", wall_s=36, threads=8, studies=2, gpu=gpu)
    found = estimate(tmp_path, 1000, cores=4, gpus=5)
    assert found.gpu_hours.value == near(1000 * 18 / 3600)
    assert found.core_hours.value == near(1000 * (18 * 8 + 6 * 10) / 3600)
    # the cores of six other stages, 60 s a study, weigh more than the GPUs
    assert found.wall_hours.value == near(1000 * 60 / 3600 / 4)
    assert estimate(tmp_path, 1000, cores=400, gpus=1).wall_hours.value == near(5)
    assert not any("no GPU" in note for note in found.notes)


def test_no_run_is_faster_than_one_shard(tmp_path):
    two_studies(tmp_path)
    # seven stages, 20 s for a shard of two; the CPU's lanes are all empty but one
    assert estimate(tmp_path, 2, cores=1000).wall_hours.value == near(7 * 20 / 3600)


# -- trees -----------------------------------------------------------------------------------------


def sized(uid):
    """Records of a study: 50 bytes raw, 40 defaced, 200 registered, 38 + 80 + 130 zipped."""
    sizes = {"convert": 50, "deface": 40, "register": 200}
    zips = {"package-native": 38, "package-coreg": 80, "package-atlas": 130}
    return {s: written(uid, sizes.get(s, 0), zipped=zips.get(s, 0)) for s in STAGES_MADE}


def test_trees_are_foretold_at_their_largest_and_in_the_end(tmp_path):
    pilot_of(tmp_path, {"shard0000": {uid: sized(uid) for uid in "AB"}})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    beside = sum(path.stat().st_size for path in files) / 2  # bookkeeping, per study
    trees = estimate(tmp_path, 1000).trees
    assert trees["release"].n_bytes.value == near(248_000)
    # 40 of defaced files, 38 of them in the zip; the rest waits for a person
    assert trees["work_end"].n_bytes.value == near(1000 * (2 + beside))
    # all wait converted, two shards of two on their way to the zips
    assert trees["work_peak"].n_bytes.value == near(996 * 50 + 4 * 240 + 1000 * beside)
    # all zipped but these
    together = 996 * (248 + 2) + 4 * (240 + 248) + 1000 * beside
    assert trees["both_peak"].n_bytes.value == near(together)


def test_bookkeeping_grows_with_shards_and_not_with_studies(tmp_path):
    work = pilot_of(tmp_path, {"shard0000": {uid: sized(uid) for uid in "AB"}})
    write_json(work.root / "batch00" / "catalog.json", {})
    found = estimate(tmp_path, 7000).trees["work_end"].inodes.value
    # shards of two: 3,500, with a journal and a manifest for each of seven stages; two batches of
    # 3,500 studies, each with its folder, those of its stages and catalog.json; the root, plan/
    # and shards.json
    assert found == 3500 * 14 + 2 * (1 + 7 + 1) + 3


# -- the command -----------------------------------------------------------------------------------


def test_a_config_file_names_a_pilot_with_its_release(tmp_path):
    deface = {"backend": "deepbet", "device": "cpu"}
    config = {"deface": deface, "plan": {"studies_per_shard": 2}, "spaces": ["native", "coreg"]}
    write_json(tmp_path / "config.yaml", config)  # JSON is YAML
    found = checked(config, tmp_path)
    pilot_of(found.work, {"shard0000": {uid: sized(uid) for uid in "AB"}})
    repository = found.release / found.dataset.name
    repository.mkdir(parents=True)
    (repository / "ledger.csv").write_bytes(bytes(60))
    (repository / "A.zip").write_bytes(bytes(1000))
    arguments = ["estimate", "--from", tmp_path / "config.yaml", "--studies", 10]
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    told = json.loads(result.output)
    assert "package-atlas" not in told["stages"]
    assert told["trees"]["release"]["n_bytes"]["value"] == near(10 * (38 + 80 + 60 / 2))
    # deface holds all its threads, eight by default
    assert told["stages"]["deface"]["core_hours"]["value"] == near(10 * 8 / 3600)
    assert told["pilot_studies"] == 2
    assert {"studies", "core_hours", "gpu_hours", "wall_hours", "notes"} <= told.keys()


def test_people_get_a_table(tmp_path):
    studies, _ = phantom_run()
    pilot_of(tmp_path, {"shard0000": studies})
    found = estimate(tmp_path, 98_334, cores=64)
    rows = {line.split("  ")[0]: line for line in text_of(found).splitlines()}
    atlas = sum(
        row["package-atlas"].outcome.zip["bytes"] for row in studies.values() if len(row) > 6
    )
    assert f"{atlas / 24 * 98_334 / 1e12:.2f} TB (" in rows["package-atlas"]
    assert rows["curate"].split()[-1] == "-"  # no files
    assert "wall time with 64 cores: " in text_of(found)
    assert "note: the pilot used no GPU" in text_of(found)
