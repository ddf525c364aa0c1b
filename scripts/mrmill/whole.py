"""Before a run: no manifest may promise what is no longer there.

To hold every record against every file takes minutes for a hundred thousand studies. So what was
found whole is sealed: a digest of the names and sizes of all files of a shard, and of the stamps of
its journals and manifests. A shard that still has its seal is not looked at again.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrmill import __version__
from mrmill.config import Config
from mrmill.layout import CATALOG_PARTS, SPACES, ReleaseTree, WorkTree
from mrmill.records import sha256_of, write_json
from mrmill.stages import all_needs, shard_files, stages_in
from mrmill.workflow_files import read_plan

#: Batches that are listed at a time: a file server answers many as fast as one.
LISTED_AT_ONCE = 8


def drop_hollow_manifests(config: Config) -> None:
    """Remove every manifest whose studies, records or files are no longer all there as written.

    Snakemake looks at manifests alone, and misses none that stands between others: without the
    last ones, those of the tables, whatever is gone is made again.
    """
    plan = read_plan(config)
    _drop_hollow_shards(config, plan)
    _drop_hollow_tables(config, plan)


def _drop_hollow_shards(config: Config, plan: Mapping[str, Mapping[str, Any]]) -> None:
    work, release = WorkTree(config.work), ReleaseTree(config.release, config.dataset.name)
    first = stages_in(config)[0]
    rules = _digest([__version__, str(release.root), release.name, all_needs(config)])
    before = _sealed(work.seals, rules)
    seals: dict[str, str] = {}
    with ThreadPoolExecutor(LISTED_AT_ONCE) as pool:
        listings = pool.map(lambda batch: _Listing(work, release, batch, first), plan)
        for listing, (batch, shards) in zip(listings, plan.items(), strict=True):
            for shard, facts in shards.items():
                place, seal = f"{batch}/{shard}", listing.seal(shard, facts["n_studies"])
                known = seal and seal == before.get(place)
                if known or (_is_whole(config, batch, shard, facts) and seal):
                    seals[place] = seal
    if seals != before:
        write_json(work.seals, {"rules": rules, "seals": seals})


def _sealed(path: Path, rules: str) -> dict[str, str]:
    """Return the seals of the last look; none if it went by other rules."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["seals"] if found["rules"] == rules else {}


def _is_whole(config: Config, batch: str, shard: str, facts: Mapping[str, Any]) -> bool:
    """Hold the records of a shard against its files; drop the manifests that promise too much."""
    work, files = WorkTree(config.work), shard_files(config, batch, shard)
    first, whole = stages_in(config)[0], True
    for path in sorted((work.root / batch).glob(f"*/{shard}.json")):
        stage = path.parent.name
        manifest = json.loads(path.read_text(encoding="utf-8"))
        records = files.records(stage)
        n_least = facts["n_studies"] if stage == first else 0
        if len(manifest["studies"]) < n_least or not all(
            (record := records.get(uid)) is not None
            and record.content == decided["content"]
            and files.is_whole(stage, record)
            for uid, decided in manifest["studies"].items()
        ):
            work.drop_manifest(batch, stage, shard)
            whole = False
    return whole


class _Listing:
    """What stands on the disks of a batch, looked at folder by folder.

    Parameters
    ----------
    first : str
        Stage whose manifest names every study of a shard.
    """

    def __init__(self, work: WorkTree, release: ReleaseTree, batch: str, first: str) -> None:
        self.work, self.release, self.batch, self.first = work, release, batch, first
        folders = [e.path for e in _entries(work.root / batch) if e.is_dir()]
        self.stages = {
            Path(folder).name: {entry.name: entry for entry in _entries(folder)}
            for folder in sorted(folders)
        }
        self.zips = {
            space: {e.name: e.stat().st_size for e in _entries(release.zips(space, batch))}
            for space in SPACES
        }

    def seal(self, shard: str, n_studies: int) -> str:
        """Return the seal of a shard as it is now; empty while its first stage is not done."""
        if f"{shard}.json" not in self.stages.get(self.first, {}):
            return ""
        path = self.work.manifest(self.batch, self.first, shard)
        uids = json.loads(path.read_bytes())["studies"]
        return _digest([n_studies, self._stamps(shard), [self._files(uid) for uid in uids]])

    def _stamps(self, shard: str) -> list[Any]:
        """Return size and time of manifests and journals."""
        names = (f"{shard}.json", f"{shard}.jsonl")
        return [
            (stage, name, entries[name].stat().st_size, entries[name].stat().st_mtime_ns)
            for stage, entries in self.stages.items()
            for name in names
            if name in entries
        ]

    def _files(self, uid: str) -> list[Any]:
        """Return names and sizes of a study's files and zips."""
        found: list[Any] = [uid]
        for stage, entries in self.stages.items():
            if uid in entries:
                found.append((stage, sorted(_sizes(entries[uid].path, ""))))
        for space, zips in self.zips.items():
            name = self.release.zip(space, self.batch, uid).name
            found.append(zips.get(name))
        return found


def _entries(folder: Path | str) -> Iterator[os.DirEntry]:
    """Yield what a folder holds; nothing where there is none."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        yield from entries


def _sizes(folder: str, below: str) -> Iterator[tuple[str, int]]:
    """Yield name and size of every file below a folder."""
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _sizes(entry.path, f"{below}{entry.name}/")
        else:
            yield f"{below}{entry.name}", entry.stat().st_size


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _drop_hollow_tables(config: Config, plan: Mapping[str, Mapping[str, Any]]) -> None:
    work, release = WorkTree(config.work), ReleaseTree(config.release, config.dataset.name)
    stages = stages_in(config)
    for batch, shards in plan.items():
        needed = [work.manifest(batch, stage, shard) for stage in stages for shard in shards]
        needed += [work.part(batch, name) for name in CATALOG_PARTS]
        tables = {"metadata": release.metadata(batch), "splits": work.part(batch, "splits.csv")}
        if not (_all_exist(needed) and _agree(work.catalog(batch), tables)):
            work.catalog(batch).unlink(missing_ok=True)
    last = work.root / "catalog.json"
    needed = [work.ledger, *(work.catalog(batch) for batch in plan)]
    native = (release.splits, release.ledger, release.card, release.checksums("native"))
    tables = {str(path.relative_to(release.root)): path for path in native}
    if not (_all_exist(needed) and _agree(last, tables)):
        last.unlink(missing_ok=True)


def _all_exist(paths: Iterable[Path]) -> bool:
    return all(path.exists() for path in paths)


def _agree(manifest: Path, tables: Mapping[str, Path]) -> bool:
    """Say whether tables are as the manifest that was written behind them says."""
    if not manifest.exists():
        return False
    digests = json.loads(manifest.read_text(encoding="utf-8"))["digests"]
    return all(p.exists() and sha256_of(p) == digests[name] for name, p in tables.items())
