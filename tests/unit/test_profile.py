"""The profile: figures of jobs and studies that are known beforehand."""

import csv
import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib import pyplot as plt
from typer.testing import CliRunner

from mrmill.cli import app
from mrmill.config import ROOT, load_config
from mrmill.layout import WorkTree
from mrmill.profile import read_attempts
from mrmill.profile.page import write_profile
from mrmill.profile.pictures import MAX_LANES, Clock, at_work, draw_course, lanes_of
from mrmill.profile.suggest import fragment, two_digits
from mrmill.profile.table import COLUMNS, read_profile
from mrmill.profile.usage import read_usage
from mrmill.records import Journal, Outcome, Record
from mrmill.stages import table_job

START = 1_790_000_000.0

ATTEMPT = {
    "rule": "register",
    "stage": "register",
    "batch": "batch00",
    "attempt": 1,
    "host": "node1",
    "job_id": "17",
    "state": "done",
    "threads": 4,
    "mem_mb": 8000,
    "runtime_min": 60,
    "read_mb": 10.0,
    "written_mb": 5.0,
    "cgroup_peak_mb": None,
    "gpu": None,
    "studies": 10,
    "series": 50,
}


@pytest.fixture
def work(tmp_path):
    return WorkTree(tmp_path / "work")


def attempt(work, number, wall_s=600.0, cpu_s=1200.0, peak_mb=1000.0, **facts):
    """Append an attempt of shard `number`, begun a minute after that of the shard before."""
    started = START + 60 * number
    row = {**ATTEMPT, "shard": f"shard{number:04d}", "wall_s": wall_s, "cpu_s": cpu_s, **facts}
    row |= {"peak_mb": peak_mb, "started": started, "ended": started + wall_s}
    path = work.attempts(row["batch"], row["stage"], row["shard"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def study(work, uid, n_series=3, stage="register", shard="shard0000", **usage):
    """Write a study's record; each series has two entries, one for each space."""
    entries = [{"series_key": f"k{n}", "space": s} for n in range(n_series) for s in "ca"]
    journal = Journal(work.journal("batch00", stage, shard))
    journal.append("start", uid)
    journal.write(Record(uid, "key", Outcome(series=entries), {}, usage))


def hundred_jobs(work):
    """Jobs whose peaks are 10, 20, ... 1000 MB and whose studies take 1, 2, ... 100 minutes."""
    numbers = np.random.default_rng(0).permutation(np.arange(1, 101))
    for number in map(int, numbers):
        wall_s = 10 * 60.0 * number
        attempt(work, number, wall_s=wall_s, cpu_s=0.5 * 4 * wall_s, peak_mb=10.0 * number)


def row_of(profile, stage, step=""):
    table = profile.table
    (row,) = table[(table["stage"] == stage) & (table["step"] == step)].to_dict("records")
    return row


def test_percentiles_are_those_of_the_jobs(work):
    hundred_jobs(work)
    row = row_of(read_profile(work), "register")
    assert (row["peak_mb_p50"], row["peak_mb_p95"], row["peak_mb_max"]) == (500, 950, 1000)
    assert row["cpu_efficiency"] == 0.5
    assert (row["jobs"], row["attempts"], row["done"]) == (100, 100, 100)
    assert row["wall_s"] == 600 * sum(range(1, 101))
    assert row["wall_s_per_study"] == row["wall_s"] / 1000
    assert row["cpu_s_per_series"] == row["cpu_s"] / 5000


def test_what_is_suggested_is_the_95th_percentile_and_a_fifth_more(work):
    hundred_jobs(work)
    (found,) = read_profile(work).suggestions
    assert found.mem_mb == 1200  # 1.2 x 950, rounded up
    assert found.runtime_min_per_study == 120  # 1.2 x 95, rounded up to two digits
    assert found.threads == 3  # half of 4 were busy: 1.2 x 2, rounded up
    assert found.above == 0


def test_threads_are_never_raised_and_memory_fits_the_threads_suggested_for(work):
    attempt(work, 1, threads=4, cpu_s=4 * 600, peak_mb=4000)
    attempt(work, 2, threads=1, cpu_s=600, peak_mb=900)
    (found,) = read_profile(work).suggestions
    assert (found.threads, found.mem_mb, found.jobs) == (4, 4800, 1)


def test_jobs_with_fewer_studies_than_threads_count_only_while_there_are_no_others(work):
    attempt(work, 1, threads=8, studies=3, cpu_s=600, peak_mb=500)
    (found,) = read_profile(work).suggestions
    assert (found.threads, found.mem_mb) == (8, 600)
    assert "too few studies" in fragment([found])
    attempt(work, 2, threads=8, studies=20, cpu_s=3.2 * 600, peak_mb=1000)
    (found,) = read_profile(work).suggestions
    assert (found.threads, found.mem_mb, found.runtime_min_per_study) == (4, 1200, 0.6)
    assert "too few studies" not in fragment([found])


def test_memory_measured_outside_a_cluster_job_leaves_room_for_snakemake_in_one(work):
    attempt(work, 1, peak_mb=1000, job_id="")
    (found,) = read_profile(work).suggestions
    assert found.mem_mb == 1700  # 1.2 x (1000 + 350), rounded up


def test_jobs_without_work_and_jobs_that_died_suggest_nothing(work):
    attempt(work, 1, state="killed", peak_mb=7900)
    attempt(work, 2, studies=0, series=0, peak_mb=50, wall_s=3, cpu_s=3)
    profile = read_profile(work)
    assert profile.suggestions == []
    assert row_of(profile, "register")["peak_mb_max"] == 7900
    attempt(work, 1, attempt=2, peak_mb=2000)
    assert [it.mem_mb for it in read_profile(work).suggestions] == [2400]


def test_what_failed_attempts_took_is_counted(work):
    attempt(work, 1, state="failed", studies=4, series=20)
    attempt(work, 1, attempt=2, studies=6, series=30)
    attempt(work, 2, state="killed", studies=1, series=5)
    row = row_of(read_profile(work), "register")
    facts = ("jobs", "attempts", "done", "failed", "killed", "studies", "series")
    assert [row[name] for name in facts] == [2, 3, 1, 1, 1, 11, 55]
    assert row["cpu_s"] == 3600
    assert (row["read_mb"], row["written_mb"]) == (30, 15)


def test_a_gpu_is_counted_while_it_is_held_and_while_it_computes(work):
    gpu = {"held_s": 100.0, "busy_share": 0.9, "peak_mb": 6000.0}
    attempt(work, 1, rule="deface", stage="deface", gpu=gpu)
    attempt(work, 2, rule="deface", stage="deface", gpu={**gpu, "held_s": 300, "busy_share": 0.5})
    attempt(work, 3, rule="deface", stage="deface", gpu={**gpu, "busy_share": None})
    attempt(work, 4)
    row = row_of(read_profile(work), "deface")
    assert row["gpu_s"] == 500
    assert row["gpu_busy_share"] == pytest.approx((0.9 * 100 + 0.5 * 300) / 400)
    assert row["gpu_s_per_series"] == pytest.approx(500 / 150, abs=1e-3)
    assert row["gpu_peak_mb"] == 6000
    assert np.isnan(row_of(read_profile(work), "register")["gpu_s"])


def test_steps_add_up_to_the_time_of_the_studies(work):
    attempt(work, 0)
    step = {"wall_s": 2.0, "cpu_s": 1.0, "n": 3}
    study(work, "STUDYA", 3, wall_s=10, cpu_s=6, steps={"search": step})
    study(work, "STUDYB", 1, wall_s=5, cpu_s=4, steps={"search": step, "write": step})
    profile = read_profile(work)
    seconds = {s: row_of(profile, "register", s)["wall_s"] for s in ("search", "write", "other")}
    assert seconds == {"search": 4, "write": 2, "other": 9}
    search = row_of(profile, "register", "search")
    assert (search["studies"], search["series"], search["times"]) == (2, 4, 6)
    assert (search["wall_s_per_study"], search["cpu_s_per_series"]) == (2, 0.5)


def test_a_study_that_was_done_again_counts_as_it_was_done_last(work):
    study(work, "STUDYA", wall_s=10, cpu_s=6)
    study(work, "STUDYA", wall_s=3, cpu_s=2)
    assert [s.usage["wall_s"] for s in read_usage(work, "register")] == [3]


def test_journals_from_before_there_were_steps_are_read(work):
    attempt(work, 0)
    study(work, "STUDYA", wall_s=10, cpu_s=6, peak_rss_mb=300)
    assert [(s.study_uid, s.series) for s in read_usage(work, "register")] == [("STUDYA", 3)]
    profile = read_profile(work)
    assert list(profile.table["step"]) == [""]
    assert profile.stages[0].wall_s == 10


def test_a_torn_line_of_a_journal_costs_its_study_only(work):
    study(work, "STUDYA", wall_s=10, cpu_s=6, series=3)
    study(work, "STUDYB", wall_s=10, cpu_s=6, series=3)
    journal = work.journal("batch00", "register", "shard0000")
    journal.write_bytes(journal.read_bytes()[:-30])
    assert [s.study_uid for s in read_usage(work, "register")] == ["STUDYA"]


def test_the_slowest_studies_come_first_with_the_seconds_of_their_stages(work):
    for stage in ("deface", "register"):
        attempt(work, 0, stage=stage, rule=stage)
    for uid, seconds in (("FAST", 1), ("SLOW", 50), ("MIDDLE", 20)):
        study(work, uid, stage="deface", wall_s=seconds, cpu_s=1)
        study(work, uid, stage="register", wall_s=2 * seconds, cpu_s=1)
    slowest = read_profile(work).slowest
    assert [(s["study_uid"], s["wall_s"]) for s in slowest] == [
        ("SLOW", 150),
        ("MIDDLE", 60),
        ("FAST", 3),
    ]
    assert slowest[0]["stages"] == {"deface": 50, "register": 100}


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.0001, 0.01), (0.123, 0.13), (0.12, 0.12), (7.01, 7.1), (114, 120)]
)
def test_rounding_up_keeps_two_digits(value, rounded):
    assert two_digits(value) == pytest.approx(rounded)


def config_for(folder, more=""):
    (folder / "export").mkdir()
    path = folder / "config.yaml"
    path.write_text(
        "dataset: {name: TINY}\ninput: {path: export}\n"
        "deface: {backend: deepbet, device: cpu}\n" + more
    )
    return path


def test_the_command_writes_all_of_it_and_what_it_suggests_can_be_pasted(work, tmp_path):
    """Every rule that asks for resources is measured, and the config accepts what comes out."""
    stages = ["convert", "curate", "deface", "register", "package-native", "package-atlas"]
    gpu = {"held_s": 600.0, "busy_share": 0.8, "peak_mb": 5000.0}
    for number, stage in enumerate(stages):
        on_gpu = gpu if stage == "deface" else None
        attempt(work, number, stage=stage, rule=stage.partition("-")[0], gpu=on_gpu)
        study(work, f"STUDY{number}", stage=stage, wall_s=10, cpu_s=6)
    config = config_for(tmp_path)
    result = CliRunner().invoke(app, ["profile", "-c", str(config)])
    assert result.exit_code == 0, result.output
    pasted = (work.profile / "resources.yaml").read_text()
    assert pasted in result.output
    config.write_text(config.read_text() + pasted)
    resources = load_config(config).resources
    for rule in ("convert", "curate", "deface", "package"):
        assert getattr(resources, rule).mem_mb == 1200
    assert resources.register_.runtime_min_per_study == pytest.approx(1.2)
    assert set(yaml.safe_load(pasted)["resources"]) == {s.partition("-")[0] for s in stages}

    with (work.profile / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["stage"] for row in rows] == stages
    page = (work.profile / "profile.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("data:image/png;base64,") == 3
    assert "STUDY3" in page
    assert str(tmp_path) not in page


def test_the_jobs_that_write_tables_are_measured_too(work, tmp_path):
    config = load_config(config_for(tmp_path))
    with table_job(config, "catalog_batch", "batch00", {"_cores": 1, "mem_mb": 4000}):
        held = bytearray(300 * 2**20)
        assert [row["state"] for row in read_attempts(work)] in ([], ["running"])
        del held
    attempt(work, 0)
    profile = read_profile(work)
    row = row_of(profile, "catalog")
    assert (row["rule"], row["done"], row["mem_mb"]) == ("catalog_batch", 1, 4000)
    assert row["peak_mb_max"] >= 300
    assert [it.rule for it in profile.suggestions] == ["register"]


def test_the_page_in_the_docs_tells_every_column():
    page = (ROOT / "docs" / "profiling.md").read_text()
    rows = [f"| `{name}` | {meaning} |" for name, meaning in COLUMNS.items()]
    assert "\n".join(rows) in page


def test_nothing_measured_is_said_and_how_to_change_it(tmp_path):
    from mrmill.profile.table import NothingMeasured

    with pytest.raises(NothingMeasured, match="mrmill run"):
        read_profile(WorkTree(tmp_path / "work"))


def test_pictures_and_page_are_made_of_a_run_with_failures_only(work, tmp_path):
    attempt(work, 0, state="failed", studies=0, series=0, mem_mb=None, runtime_min=None)
    page = write_profile(read_profile(work), "TINY", tmp_path / "out")
    assert "No job with work to do has ended well yet" in page.read_text()
    assert fragment([]).strip().endswith("resources:")


def test_no_two_jobs_in_a_lane_overlap_and_there_are_as_many_lanes_as_jobs_at_once():
    generator = np.random.default_rng(3)
    started = np.sort(generator.uniform(0, 100, 60))
    ended = started + generator.uniform(1, 20, 60)
    lanes = lanes_of(pd.DataFrame({"started": started, "ended": ended}))
    for lane in set(lanes):
        mine = lanes == lane
        assert (started[mine][1:] >= ended[mine][:-1]).all()
    at_once = max(((started <= t) & (ended > t)).sum() for t in started)
    assert len(set(lanes)) == at_once


def test_how_many_jobs_are_at_work_is_their_number_at_each_moment():
    generator = np.random.default_rng(3)
    started = np.sort(generator.uniform(0, 100, 60))
    jobs = pd.DataFrame({"started": started, "ended": started + generator.uniform(1, 20, 60)})
    clock = Clock(jobs["started"].to_numpy(), jobs["ended"].to_numpy())
    edges = np.linspace(0, clock.length, 40)
    moments = np.linspace(0, clock.length, 39 * 500 + 1)[:-1] + clock.first
    counted = [((jobs["started"] <= t) & (t < jobs["ended"])).sum() for t in moments]
    expected = np.reshape(counted, (39, 500)).mean(axis=1)
    np.testing.assert_allclose(at_work(jobs, clock, edges), expected, atol=0.2)


def test_many_jobs_at_once_are_drawn_as_their_number(work, tmp_path):
    for number in range(MAX_LANES + 6):
        attempt(work, number, wall_s=6000.0)
    profile = read_profile(work)
    figure = draw_course(profile)
    (axes,) = figure.axes
    assert axes.get_ylim()[1] > MAX_LANES
    plt.close(figure)


def test_a_night_without_jobs_is_cut_out_of_the_axis():
    started, ended = np.array([0.0, 50.0, 36_000.0]), np.array([100.0, 80.0, 36_100.0])
    clock = Clock(started, ended)
    ((_, idle_s),) = clock.cuts
    assert idle_s == 36_000 - 100
    assert clock.length < 250
    places = clock(np.array([0.0, 50.0, 100.0, 36_000.0, 36_100.0]))
    assert list(np.diff(places)[[0, 1, 3]]) == [50, 50, 100]
    assert "10:00:30" in clock.marks()[1]


def test_reading_a_large_run_parses_only_the_ends_of_records(work, monkeypatch):
    """98,334 studies have some 7 GB of journals, most of it rows of tables."""
    study(work, "STUDYA", wall_s=10, cpu_s=6, series=3)
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(len(text)) or loads(text))
    assert next(read_usage(work, "register")).series == 3
    assert max(parsed) < 100 < work.journal("batch00", "register", "shard0000").stat().st_size


def test_attempts_of_all_shards_are_read_in_order(work):
    attempt(work, 2)
    attempt(work, 1, state="failed")
    attempt(work, 1, attempt=2)
    attempt(work, 1, stage="curate", rule="curate")
    found = [(r["stage"], r["shard"], r["attempt"]) for r in read_attempts(work)]
    assert found == [
        ("curate", "shard0001", 1),
        ("register", "shard0001", 1),
        ("register", "shard0001", 2),
        ("register", "shard0002", 1),
    ]
