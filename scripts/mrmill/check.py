"""Look before a run: what is missing, and what to do about it."""

import difflib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mrmill.config import Config
from mrmill.disk import Amount, Needs, disk_needs, disk_of, free_space, text_of_bytes
from mrmill.errors import UserError
from mrmill.index.nifti import PLACE
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.plan.identity import IdentityError, Pseudonyms, load_key

if TYPE_CHECKING:
    from mrmill.plan.identity_tables import OptOut

#: Of many mistakes in a table this many are named.
MAX_NAMED = 20


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes
    ----------
    level : {'ok', 'warning', 'problem'}
        A problem stops a run.
    """

    level: str
    what: str
    advice: str = ""


def check(config: Config) -> list[Finding]:
    """Return what was found about input, tools, models, key, tables and disks, problems first."""
    findings = [
        *_input(config),
        *_tools(config),
        *_masks(config),
        *_atlas(config),
        *_key(config),
        *_site_table(config, "mapping"),
        *_site_table(config, "opt_out"),
        *_tables(config),
        *_series_table(config),
        *_decisions(config, "deface.decisions", config.deface.decisions),
        *_decisions(config, "register.decisions", config.register_.decisions),
        *disks(config),
    ]
    return sorted(findings, key=lambda f: ("problem", "warning", "ok").index(f.level))


def _input(config: Config) -> Iterator[Finding]:
    path = config.input.path
    if path.exists():
        yield Finding("ok", f"input {path}")
    else:
        yield Finding("problem", f"input.path {path} does not exist", "mend input.path")


def _tools(config: Config) -> Iterator[Finding]:
    if config.input.kind != "dicom":
        return
    try:
        import dcm2niix

        yield Finding("ok", f"dcm2niix {dcm2niix.__version__}")
    except ImportError:
        yield Finding("problem", "dcm2niix is not installed", "pip install dcm2niix")


def _masks(config: Config) -> Iterator[Finding]:
    if config.input.kind == "release":
        return
    from mrmill.masks import MaskerError, require_device
    from mrmill.masks.hdbet import require_model

    backend, device = config.deface.backend, config.deface.device
    try:
        if backend == "hdbet":
            require_model(config.deface.weights)
        yield Finding("ok", f"brain masks by {backend}")
    except MaskerError as error:
        yield Finding(
            "problem", str(error), "`deface.weights` is the folder of the HD-BET v2 model"
        )
    try:
        if device != "cpu":  # a CPU is everywhere, and PyTorch takes a second to load
            require_device(device, threads=1)
        yield Finding("ok", f"device {device}")
    except MaskerError as error:  # a login node has none, and needs none
        yield Finding("warning", str(error), "jobs on a machine without it fail at once")


def _atlas(config: Config) -> Iterator[Finding]:
    if "atlas" not in config.spaces:
        return
    from mrmill.register.atlas import AtlasError, load_atlas

    try:
        atlas = load_atlas(config.register_)
        yield Finding("ok", f"atlas {atlas.name}, sha256 {atlas.sha256[:12]}")
        if atlas.doubt:
            yield Finding("warning", f"register.atlas: {atlas.doubt}", "docs/registration.md")
    except AtlasError as error:
        yield Finding("problem", str(error), "`embedded` needs no file")


def _key(config: Config) -> Iterator[Finding]:
    if config.input.kind == "release":
        return
    plan = WorkTree(config.work).shards
    try:
        fingerprint = Pseudonyms(load_key(config.identity.key_file)).fingerprint
    except IdentityError as error:
        yield Finding("problem", str(error))
        return
    planned = json.loads(plan.read_text("utf-8")).get("key_fingerprint") if plan.exists() else None
    if planned in (None, fingerprint):
        yield Finding("ok", f"pseudonym key {config.identity.key_file}")
    else:
        text = f"{config.work} was planned with another key than {config.identity.key_file}"
        yield Finding("problem", text, "put back the key it was planned with")


def _site_table(config: Config, setting: str) -> Iterator[Finding]:
    """Look whether the site's table of names or of opt-outs can be used, and who sees it."""
    from mrmill.index import PlanError
    from mrmill.plan import identity_tables

    path = getattr(config.identity, setting)
    if path is None:
        return
    read = {"mapping": identity_tables.read_mapping, "opt_out": identity_tables.read_opt_out}
    try:
        table = read[setting](path, config.input.kind)
    except PlanError as error:
        yield Finding("problem", str(error), "mend the table")
        return
    name = f"identity.{setting} {path}"
    yield Finding("ok", f"{name}: {len(table.rows)} rows")
    if path.resolve().is_relative_to(config.release.resolve()):
        yield Finding("problem", f"{name} lies in the release and names patients", "move it")
    if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        advice = f"close it with `chmod 600 {path}`"
        yield Finding("warning", f"{name} names patients and can be read by others", advice)
    if setting == "opt_out":
        yield from _opt_out_of_nobody(config, table)


def _opt_out_of_nobody(config: Config, opt_out: "OptOut") -> Iterator[Finding]:
    """Hold the opt-outs against the plan, if there is one: a mistyped id keeps nobody out."""
    from mrmill.plan import read_studies
    from mrmill.plan.identity_tables import first_few
    from mrmill.plan.site_identities import as_found

    planned = as_found(read_studies(WorkTree(config.work).studies))
    unmatched = opt_out.unmatched(planned) if planned else {}
    if nearly := [line for line, is_near in unmatched.items() if is_near]:
        text = f"{len(nearly)} rows of identity.opt_out match a study but for leading zeros or case"
        advice = "they keep it out; mend them"
        yield Finding("warning", f"{text}: {', '.join(first_few(nearly))}", advice)
    if strangers := [line for line, is_near in unmatched.items() if not is_near]:
        text = f"{len(strangers)} rows of identity.opt_out match no planned study"
        advice = "mend mistyped ids: their patients are not kept out"
        yield Finding("warning", f"{text}: {', '.join(first_few(strangers))}", advice)


def _tables(config: Config) -> Iterator[Finding]:
    """Read the tables of curation: a mistake in one would stop the run hours later."""
    from mrmill.curate import load_tables

    if config.input.kind == "release":
        return
    try:
        load_tables(config.curate, config.convert.header_columns)
        yield Finding("ok", "tables of rules, evidence, criteria and columns")
    except UserError as error:
        yield Finding("problem", str(error), "mend the table, or the config that names it")


def _series_table(config: Config) -> Iterator[Finding]:
    """Look for what a person may have mistyped: columns, modalities, ages."""
    table = config.input.series_table
    if not table:
        return
    found = list(islice(table_problems(config, table), MAX_NAMED))
    yield from found
    if not found:
        yield Finding("ok", f"series table {table}")


def table_problems(config: Config, table: Path) -> Iterator[Finding]:
    """Yield what is wrong with a series table, by line; a cell in a wrong column may be a name."""
    from mrmill.columns import load_columns
    from mrmill.curate.classify import load_rules
    from mrmill.headers import age_years
    from mrmill.index import PlanError, read_rows

    needed = {"dicom": ["SeriesInstanceUID"]}.get(config.input.kind, list(PLACE))
    rules = load_rules(config.curate.classification)
    read = [column for column in load_columns(config.convert.header_columns) if column.table]
    known = {column.table for column in read} | {*needed}
    named = {column.table: column.values for column in read if column.values}
    written = ", ".join(rules.release_names.get(m, m) for m in rules.modalities)
    try:
        for number, (where, row) in enumerate(read_rows(table, "input.series_table", needed)):
            for column in (row.keys() - known) if number == 0 else ():
                near = difflib.get_close_matches(column, known, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
                yield Finding("warning", f"{table}: column {column} is not read; {hint}")
            modality, age = row.get("modality", "").strip(), row.get("PatientAge", "").strip()
            if modality:
                try:
                    rules.named(modality)
                except ValueError:
                    text = f"{where}: modality is none of those accepted: {written}"
                    yield Finding("problem", text, "mend the table")
            for column, values in named.items():
                cell = row.get(column, "").strip().lower()
                if cell and cell not in values:
                    text = f"{where}: {column} is none of those accepted: {', '.join(values)}"
                    yield Finding("problem", text, "mend the table")
            if age and age_years({"Patient'sAge": age}) is None:
                text = f"{where}: PatientAge is no age, as 45, 045Y, 018M, 006W or 010D"
                yield Finding("problem", text, "mend the table")
    except PlanError as error:
        yield Finding("problem", str(error), "mend the table")


def _decisions(config: Config, setting: str, table: Path | None) -> Iterator[Finding]:
    """Hold a person's decisions against the series there are: a mistyped reject is none."""
    from mrmill.catalog import read_table
    from mrmill.decisions import read_decisions

    if table is None:
        return
    ledger = ReleaseTree(config.release, config.dataset.name).ledger
    try:
        decisions = read_decisions(table, setting)
        decided = {(s, i) for s, series in decisions.items() for i in series}
    except UserError as error:
        yield Finding("problem", str(error), "mend the table")
        return
    except OSError as error:
        yield Finding("problem", f"{setting} {table}: {error.strerror}", "mend the path")
        return
    if ledger.exists():
        known = {(row["study_uid"], row["series_id"]) for row in read_table(ledger)}
        for study_uid, series_id in sorted(decided - known):
            text = f"{setting}: {study_uid} {series_id} is no series of {ledger}"
            yield Finding("problem", text, "mend or remove the row")


def disks(config: Config) -> Iterator[Finding]:
    """Hold what is left to write against what is free, where both trees share a disk in sum."""
    needs = disk_needs(config)
    title = "still to be written" if needs.together.inodes else "nothing is left to be written"
    yield Finding("ok", "\n".join([f"{title}, {needs.basis}", *_table(needs)]))
    by_disk: dict[int, dict[str, Path]] = {}
    for name in ("work", "release"):
        path = getattr(config, name)
        there = next(p for p in (path, *path.parents) if p.exists())
        if os.access(there, os.W_OK | os.X_OK):
            by_disk.setdefault(disk_of(there), {})[name] = there
        else:
            yield Finding("problem", f"{name} {path} cannot be written", "choose another folder")
    for trees in by_disk.values():
        yield _room(config, needs, trees)


def _table(needs: Needs) -> Iterator[str]:
    """Yield one line per stage that has something to write."""
    for stage, amount in needs.stages.items():
        if amount.inodes:
            size = text_of_bytes(amount.n_bytes)
            yield f"{'':9}{stage:15}{size:>10}{amount.inodes:14,.0f} inodes"


def _room(config: Config, needs: Needs, trees: dict[str, Path]) -> Finding:
    """Say whether what grows on a disk finds room there.

    Parameters
    ----------
    trees : dict
        `work`, `release` or both -> a folder on the disk.
    """
    most = needs.together if len(trees) == 2 else getattr(needs, *trees)
    least = needs.work_of_a_batch if trees.keys() == {"work"} else most
    free = free_space(next(iter(trees.values())))
    names = " and ".join(f"{name} {getattr(config, name)}" for name in trees)
    text = f"{names}: {_text(free)} free; {_text(most)} needed at most, +-{needs.tolerance:.0%}"
    if not (least * (1 - needs.tolerance)).fits(free):
        return Finding("problem", text, "make room, or choose another disk")
    if most.fits(free):
        return Finding("ok", text)
    batches = "one batch after the other needs less: docs/planning-a-run.md"
    return Finding("warning", text, "" if least == most else batches)


def _text(amount: Amount) -> str:
    return f"{text_of_bytes(amount.n_bytes)} and {amount.inodes:,.0f} inodes"
