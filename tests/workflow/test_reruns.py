"""What a change starts again, and what it leaves alone: dry runs of a finished small project.

The stages do nothing (`benchmarks.scale`), all else is real: plan, records, Snakemake's own notes.
"""

import os
import re
import shutil
import time

import pytest
import yaml
from benchmarks.scale.export import write_export
from benchmarks.scale.project import Project, without_work

STUDIES, SERIES, FILES = 5, 2, 2

STAGES = ["convert", "curate", "deface", "register", "package"]
TABLES = {"catalog_batch": 1, "catalog": 1}


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """A finished project of three shards; its export lies beside it."""
    folder = tmp_path_factory.mktemp("reruns")
    write_export(folder / "export", range(STUDIES), SERIES, FILES)
    project = Project(folder / "project", without_work(folder / "checkout"))
    export = {"path": str(folder / "export")}
    project.create(input=export, plan={"studies_per_shard": 2}, spaces=["native", "coreg"])
    run(project, "--new-key")
    return project


@pytest.fixture
def project(done, tmp_path):
    """A copy of it and of its checkout that may be spoiled; the export is the same."""
    for name in ("project", "checkout"):
        shutil.copytree(done.folder.parent / name, tmp_path / name, symlinks=True)
    return Project(tmp_path / "project", tmp_path / "checkout")


def run(project, *arguments):
    command = project.mrmill("run", "--configfile", project.config_file, "--cores", 2, *arguments)
    return project.call(command)


def jobs(project):
    """Rule -> jobs that a run would start, and the places they are about, in order."""
    told = run(project, "-n")
    if "Nothing to be done" in told:
        return {}, []
    counts = dict(re.findall(r"^(\w+) +(\d+)$", told, re.MULTILINE))
    places = re.findall(r"^Job \d+: (\w+ .*|\w+ and \w+ .*)$", told, re.MULTILINE)
    return {rule: int(n) for rule, n in counts.items() if rule not in ("all", "total")}, places


def of_every_shard(*rules, shards=3, spaces=2):
    per_rule = {rule: shards * (spaces if rule == "package" else 1) for rule in rules}
    return {**per_rule, **TABLES}


def test_nothing_is_to_be_done_again(project):
    assert jobs(project) == ({}, [])


def test_comments_and_a_fresh_checkout_start_nothing(project):
    for path in project.checkout.rglob("*"):
        if path.suffix in (".py", ".smk", ".yaml") or path.name == "Snakefile":
            path.write_text(path.read_text() + "\n# a remark\n")
    project.config_file.write_text("# a remark\n" + project.config_file.read_text())
    assert jobs(project) == ({}, [])


def touch_all(*folders):
    """Give every file a new time, and what was made first the latest."""
    for folder in folders:
        for number, path in enumerate(sorted(folder.rglob("*"))):
            then = time.time() + 1000 - number / 10
            os.utime(path, (then, then))


def test_touched_files_start_nothing(project):
    touch_all(project.folder, project.checkout)
    assert jobs(project) == ({}, [])


def test_a_touched_export_starts_nothing_and_what_comes_later_still_works(project):
    export = project.config.input.path
    touch_all(export)
    assert jobs(project) == ({}, [])
    assert jobs(project) == ({}, [])  # nor does the next look
    changed = next(export.glob("000000/00/*.dcm"))
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + b"\x01")  # a pixel, and no other size
    found, places = jobs(project)
    changed.write_bytes(content)
    assert found == of_every_shard(*STAGES, shards=1)
    assert len({place.split()[-1] for place in places if "shard" in place}) == 1


def test_a_changed_threshold_starts_its_stage_and_what_follows_and_says_so(project):
    settings = yaml.safe_load(project.config_file.read_text())
    settings["deface"]["buffer_mm"] = 12
    project.config_file.write_text(yaml.safe_dump(settings))
    found, places = jobs(project)
    assert found == of_every_shard("deface", "register", "package")
    assert all("defacing" in place for place in places[:3])


def test_one_study_more_starts_its_shard_and_the_tables(project):
    export = project.config.input.path
    write_export(export, range(STUDIES, STUDIES + 1), SERIES, FILES)
    found, places = jobs(project)
    shutil.rmtree(export / f"{STUDIES:06d}")
    assert found == of_every_shard(*STAGES, shards=1)
    assert {place.split()[-1] for place in places if "shard" in place} == {"batch00/shard0002"}
