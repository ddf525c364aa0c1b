"""What a run takes on disk: bytes and inodes by stage, and at most at a time.

Before the run has finished a shard, sizes follow from the images of the export and a table of what
other runs took. From then on they are the run's own, per planned series. Only what is left to do
counts, by the manifests there are.
"""

import json
import math
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from pathlib import Path, PurePosixPath
from typing import TypeVar

from mrmill.config import Config
from mrmill.index.dicom import folders_of_table
from mrmill.index.header import OK
from mrmill.index.series import holds_image
from mrmill.layout import SPACES, WorkTree
from mrmill.records import Journal, Record
from mrmill.spent import PACKAGE

T = TypeVar("T")

#: Converted bytes per byte of uncompressed 16-bit image: 0.25 to 0.55 in ten real series, 0.61 in
#: the phantoms, whose noise is uniform.
CONVERTED = 0.5
#: Defaced bytes per converted one; the rest is rejected series and faces. The phantom demo: 0.74.
DEFACED = 0.75
#: Bytes on the center's grid per native one, as float32. MR-RATE: 17.6 TB of 8.2 TB; the phantom
#: demo: 2.3.
COREG = 17.6 / 8.2
#: Bytes of a series on an atlas grid of 1 mm. MR-RATE: 12.3 TB of 705,254 series; the demo: 22 MB.
ATLAS_BYTES = 12.3e12 / 705_254
#: Share of planned series that are accepted: 0.59 in the demo; MR-RATE does not say.
ACCEPTED_SERIES = 0.6
#: Series of a study: MR-RATE, 705,254 of 98,334; where only the export is known.
SERIES_PER_STUDY = 705_254 / 98_334
#: Bytes of an uncompressed series that is no small one; where folders do not tell series apart.
LARGE_SERIES_BYTES = 40e6

#: How far off the needs may be: from the export or the plan, and from the run's own studies.
USUAL_TOLERANCE, OWN_TOLERANCE = 0.5, 0.25

#: Shards that are worked on at a time at least, one at registering and one at packaging.
SHARDS_AT_ONCE = 2

#: With so many finished studies a stage's own sizes are taken.
OWN_STUDIES = 20
#: Shards whose records are read for the sizes of a run's own studies, of all that are finished.
OWN_SHARDS = 10
#: Parts of the index (50,000 files each) that are read for the size of a file.
INDEX_PARTS = 16
#: Files of an export that are looked at, and folders among which these are drawn.
LOOK_FILES, LOOK_FOLDERS = 20_000, 400
#: Files of one folder whose size is asked for.
LOOK_FILES_PER_FOLDER = 1_000


@dataclass(frozen=True)
class Amount:
    """Space on a disk; folders count as inodes, as files do."""

    n_bytes: float = 0
    inodes: float = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.n_bytes + other.n_bytes, self.inodes + other.inodes)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.n_bytes - other.n_bytes, self.inodes - other.inodes)

    def __mul__(self, factor: float) -> "Amount":
        return Amount(self.n_bytes * factor, self.inodes * factor)

    def fits(self, free: "Amount") -> bool:
        """Whether there is room for it."""
        return self.n_bytes <= free.n_bytes and self.inodes <= free.inodes


NOTHING = Amount()

#: Journals, logs, measurements and plan, in bytes per planned series: 21 and 35 kB in phantom runs.
BOOKKEEPING_BYTES = 30e3
#: A shard job's manifest, journal, log, measurements and what Snakemake notes.
FILES_PER_JOB = 5
#: Tables, pages and folders of both trees.
OTHER_FILES = 100


def drawn(items: Sequence[T], most: int) -> Sequence[T]:
    """Return so many of some items at most, spread evenly over them."""
    return items[:: max(1, -(-len(items) // most))]


def total(amounts: Iterable[Amount]) -> Amount:
    """Add amounts up."""
    return sum(amounts, NOTHING)


@dataclass(frozen=True)
class Images:
    """What is known of the images that go into a run.

    Attributes
    ----------
    n_bytes : float
        Of the images, as uncompressed DICOM would have them; of a release: of its zips.
    studies, series : float
        How many, of those that are planned or look like such.
    """

    n_bytes: float
    studies: float
    series: float


@dataclass(frozen=True)
class Needs:
    """What is left to be written, and by how much the trees grow at most.

    Attributes
    ----------
    stages : dict
        Stage -> what it has still to write, and `bookkeeping`.
    work, release, together : Amount
        How much each tree, and both together, grow at most at a time, all batches at once.
    work_of_a_batch : Amount
        The same for the work tree when one batch is worked on after the other.
    basis : str
        What the numbers rest on, for people.
    tolerance : float
        How far off they may be, as a share.
    """

    stages: Mapping[str, Amount]
    work: Amount
    release: Amount
    together: Amount
    work_of_a_batch: Amount
    basis: str
    tolerance: float


#: Where a shard stands on its way; what lies on the disks differs between these.
NEW, WAS_CONVERTED, WAS_DEFACED, WAS_REGISTERED, WAS_PACKAGED = range(5)


@dataclass(frozen=True)
class Trees:
    """What one series takes in both trees, by how far its shard is.

    Attributes
    ----------
    work, release : tuple of Amount
        At rest, at `NEW` to `WAS_PACKAGED`.
    work_passing, release_passing : tuple of Amount
        At most, from there to the next place of rest: what is read stands beside what is made.
    """

    work: tuple[Amount, ...]
    release: tuple[Amount, ...]
    work_passing: tuple[Amount, ...]
    release_passing: tuple[Amount, ...]

    @classmethod
    def of(cls, stages: Mapping[str, Amount], keep: bool) -> "Trees":
        """Lay the stages' sizes out in time; `keep`: nothing is removed once it was used."""
        raw, native, derived = (
            stages.get(stage, NOTHING) for stage in ("convert", "deface", "register")
        )
        zips = total(amount for stage, amount in stages.items() if stage.startswith(PACKAGE))
        kept = raw if keep else NOTHING
        images = kept + native + derived
        left = images if keep else _in_no_zip(stages)
        return cls(
            work=(NOTHING, raw, kept + native, images, left),
            release=(NOTHING, NOTHING, NOTHING, NOTHING, zips),
            work_passing=(raw, raw + native, images, images, left),
            release_passing=(NOTHING, NOTHING, zips, zips, zips),
        )

    def growth(self, tree: str, series_at: Sequence[float], passing: float) -> Amount:
        """Return by how much a tree, `work`, `release` or `together`, grows at most.

        Parameters
        ----------
        series_at : (5,) sequence of float
            Series whose shards are at `NEW` to `WAS_PACKAGED`.
        passing : float
            Series that are being worked on at a time.
        """
        trees = ("work", "release") if tree == "together" else (tree,)
        at_rest = [total(each) for each in zip(*(getattr(self, t) for t in trees), strict=True)]
        moving = (getattr(self, f"{t}_passing") for t in trees)
        on_the_way = [total(each) for each in zip(*moving, strict=True)]
        return Amount(
            *(
                _growth(
                    [getattr(amount, unit) for amount in at_rest],
                    [getattr(amount, unit) for amount in on_the_way],
                    series_at,
                    passing,
                )
                for unit in ("n_bytes", "inodes")
            )
        )


def _growth(
    at_rest: Sequence[float],
    on_the_way: Sequence[float],
    series_at: Sequence[float],
    passing: float,
) -> float:
    """Return by how much the sum over all series exceeds what it is now, at most.

    Converted or defaced shards may wait in any number, for GPUs or cores; packaging goes before
    everything else, so registered ones do not. Any mixture of waiting shards takes no more than if
    all of them waited at one place. Those being worked on take most at the dearest step ahead.
    """
    now = sum(map(mul, at_rest, series_at))
    most = now
    for wait in (NEW, WAS_CONVERTED, WAS_DEFACED, WAS_PACKAGED):
        rest = [at_rest[max(place, wait)] for place in range(len(at_rest))]
        gains = ((max(on_the_way[p:]) - rest[p], series_at[p]) for p in range(len(rest)))
        peak, left = sum(map(mul, rest, series_at)), passing
        for gain, n in sorted(gains, reverse=True):
            peak += max(0, gain) * min(left, n)
            left -= min(left, n)
        most = max(most, peak)
    return most - now


def _in_no_zip(stages: Mapping[str, Amount]) -> Amount:
    """Return what is left of defaced images that nothing can bring back, so they stay."""
    if "convert" not in stages:  # taken from a release
        return NOTHING
    native, zipped = stages.get("deface", NOTHING), stages.get(f"{PACKAGE}native")
    return native if zipped is None else Amount(max(0, native.n_bytes - zipped.n_bytes))


@dataclass(frozen=True)
class Shard:
    """A planned shard and which of its stages are done."""

    batch: str
    name: str
    studies: int
    series: int
    done: frozenset[str] = frozenset()

    def point(self, stages: Sequence[str]) -> int:
        """Return where on the way it stands."""
        packages = [stage for stage in stages if stage.startswith(PACKAGE)]
        if packages and self.done.issuperset(packages):
            return WAS_PACKAGED
        points = {"register": WAS_REGISTERED, "deface": WAS_DEFACED, "convert": WAS_CONVERTED}
        return next((point for stage, point in points.items() if stage in self.done), NEW)


def disk_needs(config: Config) -> Needs:
    """Return what is left to do takes on the disks of the work tree and of the release."""
    from mrmill.stages import stages_in

    stages = stages_in(config)
    shards = planned_shards(WorkTree(config.work), stages)
    images = images_of(config)
    own: dict[str, Amount] = {}
    if shards:
        basis = f"by the plan: {images.studies:,} studies with {images.series:,} series"
        own = own_sizes(WorkTree(config.work), shards, stages)
    else:
        basis = f"by a look at the export: some {images.series:,.0f} series"
        shards = [Shard("", "", round(images.studies), round(images.series))]
    is_own = own.keys() >= set(stages)
    if own:
        basis += f", sizes as in {'finished studies' if is_own else 'the first stages so far'}"
    per_series = sizes_per_series(images, config, stages, own)
    tolerance = OWN_TOLERANCE if is_own else USUAL_TOLERANCE
    at_once = shards_at_once(os.cpu_count() or 1, config.resources.register_.threads)
    return _needs(shards, per_series, config.keep_intermediates, at_once, basis, tolerance)


def shards_at_once(cores: int, threads: int) -> int:
    """Return how many shards are between defacing and zips at a time; `threads`: of register."""
    return max(SHARDS_AT_ONCE, cores // threads)


def _needs(
    shards: Sequence[Shard],
    per_series: Mapping[str, Amount],
    keep: bool,
    at_once: int,
    basis: str,
    tolerance: float,
) -> Needs:
    stages = list(per_series)
    left = {
        stage: amount * sum(shard.series for shard in shards if stage not in shard.done)
        for stage, amount in per_series.items()
    }
    zips_left = total(left[stage] for stage in stages if stage.startswith(PACKAGE))
    undone = [shard for shard in shards if not shard.done.issuperset(stages)]
    jobs = sum(len(per_series) - len(shard.done) for shard in undone)
    notes = Amount(
        BOOKKEEPING_BYTES * sum(shard.series for shard in undone),
        FILES_PER_JOB * jobs + OTHER_FILES * bool(undone),
    )
    trees = Trees.of(per_series, keep)
    passing = at_once * sum(shard.series for shard in undone) / max(1, len(undone))

    def growth(tree: str, some: Iterable[Shard]) -> Amount:
        series_at = [0.0] * (WAS_PACKAGED + 1)
        for shard in some:
            series_at[shard.point(stages)] += shard.series
        return trees.growth(tree, series_at, passing)

    batches = defaultdict(list)
    for shard in undone:
        batches[shard.batch].append(shard)
    of_batches = [growth("work", some) for some in batches.values()] or [NOTHING]
    there = growth("release", undone) - zips_left  # zips of shards that are not all packaged
    return Needs(
        stages={**left, "bookkeeping": notes},
        work=growth("work", undone) + notes,
        release=zips_left,
        together=growth("together", undone) - there + notes,
        work_of_a_batch=max(of_batches, key=lambda amount: amount.n_bytes) + notes,
        basis=basis,
        tolerance=tolerance,
    )


def planned_shards(work: WorkTree, stages: Sequence[str]) -> list[Shard]:
    """Return every planned shard with the stages that have a manifest for it."""
    if not work.shards.exists():
        return []
    shards = []
    for batch, planned in json.loads(work.shards.read_text(encoding="utf-8"))["batches"].items():
        done = {stage: _names(work.manifest(batch, stage, "x").parent) for stage in stages}
        for name, facts in planned.items():
            stages_done = frozenset(s for s in stages if f"{name}.json" in done[s])
            shards.append(Shard(batch, name, facts["n_studies"], facts["n_series"], stages_done))
    return shards


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()  # noqa: PTH208 (names are enough)


def sizes_per_series(
    images: Images, config: Config, stages: Sequence[str], own: Mapping[str, Amount]
) -> dict[str, Amount]:
    """Return stage -> what it writes per planned series; own sizes go before usual ones."""
    adopted = config.input.kind == "release"
    studies = images.studies / max(1, images.series)
    per_series = images.n_bytes / max(1, images.series)
    accepted = 1 if adopted else ACCEPTED_SERIES
    convert = own.get("convert", Amount(CONVERTED * per_series, 1 + studies))
    native_bytes = per_series if adopted else DEFACED * convert.n_bytes
    # image and two masks; the study's folder, img and seg
    native = own.get("deface", Amount(native_bytes, 3 * accepted + 3 * studies))
    # image and transform, but of the center; coreg, its two folders and the study's
    coreg = Amount(COREG * native.n_bytes, 2 * accepted + 2 * studies)
    # image; transform and two masks of the center; atlas and its three folders
    atlas = Amount(ATLAS_BYTES * accepted, accepted + 7 * studies)
    spaces = dict(zip(SPACES, (native, coreg, atlas), strict=True))
    usual = {"convert": convert, "deface": native}
    usual["register"] = total(spaces[s] for s in config.spaces if s != "native")
    usual |= {f"{PACKAGE}{s}": Amount(spaces[s].n_bytes, studies) for s in config.spaces}
    return {stage: own.get(stage, usual.get(stage, NOTHING)) for stage in stages}


def own_sizes(work: WorkTree, shards: Sequence[Shard], stages: Sequence[str]) -> dict[str, Amount]:
    """Return what the studies of finished shards took, per planned series.

    Some shards stand for all: they are drawn over the whole run.
    """
    sizes = {}
    for stage in stages:
        done = [shard for shard in shards if stage in shard.done and shard.series]
        records = [
            (shard, Journal(work.journal(shard.batch, stage, shard.name)).records().values())
            for shard in drawn(done, OWN_SHARDS)
        ]
        if sum(shard.studies for shard, _ in records) >= OWN_STUDIES:
            n_series = sum(shard.series for shard, _ in records)
            sizes[stage] = total(size_of(r) for _, some in records for r in some) * (1 / n_series)
    return sizes


def size_of(record: Record) -> Amount:
    """Return what a stage wrote of a study: its files with their folders, and its zip."""
    folders = {
        str(p) for name in record.files for p in PurePosixPath(record.study_uid, name).parents
    }
    size = Amount(sum(facts["bytes"] for facts in record.files.values()), len(record.files))
    archive = record.outcome.zip
    zipped = Amount(archive["bytes"], 1) if archive else NOTHING
    return size + Amount(0, len(folders - {"."})) + zipped


def images_of(config: Config) -> Images:
    """Return what is known of a run's images: from plan and index, else from the export itself."""
    work = WorkTree(config.work)
    planned = None
    if work.shards.exists():
        batches = json.loads(work.shards.read_text(encoding="utf-8"))["batches"].values()
        shards = [facts for batch in batches for facts in batch.values()]
        planned = [sum(facts[name] for facts in shards) for name in ("n_studies", "n_series")]
        if n_bytes := _planned_bytes(work):
            return Images(n_bytes, *planned)
    found = look_at_export(config)
    return Images(found.n_bytes, *planned) if planned else found


def _planned_bytes(work: WorkTree) -> float:
    """Return the bytes of all planned DICOM images: mean of some parts of the index, times files.

    Zero where there is no index.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parts = sorted((work.plan / "index").glob("part-*.parquet"))
    n_bytes = n_files = 0
    for part in drawn(parts, INDEX_PARTS):
        files = pq.read_table(part, columns=["size", "status", "SOPClassUID"])
        files = files.filter(pc.equal(files["status"], OK))
        classes = files["SOPClassUID"].unique().to_pylist()
        images = pa.array([c for c in classes if holds_image(c or "")])
        n_bytes += pc.sum(files.filter(pc.is_in(files["SOPClassUID"], images))["size"]).as_py() or 0
        n_files += len(files)
    if not n_files:
        return 0
    planned = pq.read_table(work.studies, columns=["n_files"])["n_files"]
    return n_bytes / n_files * pc.sum(planned).as_py()


@dataclass(frozen=True)
class _Look:
    """What was seen below a folder."""

    n_bytes: float = 0  # of images, as if they were uncompressed
    images: float = 0
    folders: float = 0  # with images

    def __add__(self, other: "_Look") -> "_Look":
        return _Look(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def __mul__(self, factor: float) -> "_Look":
        return _Look(*(value * factor for value in vars(self).values()))


def look_at_export(config: Config) -> Images:
    """Estimate the images of an export by some of its folders, drawn at random."""
    kind = config.input.kind
    found = _look(_roots(config), kind)
    if kind == "release":
        return Images(found.n_bytes, found.images, SERIES_PER_STUDY * found.images)
    series = found.images
    if kind == "dicom":
        series = max(found.folders, found.n_bytes / LARGE_SERIES_BYTES)
    return Images(found.n_bytes, series / SERIES_PER_STUDY, series)


def _roots(config: Config) -> list[str]:
    path = config.input.path
    if config.input.kind == "release":
        return [str(path / "mri")]
    if path.is_file():
        return [str(folder) for folder in folders_of_table(path, [])]
    return [str(path)]


def _look(roots: list[str], kind: str) -> _Look:
    """Look from the top until there are folders enough to draw from, and at some of these."""
    waiting, found = list(roots), _Look()
    while waiting and len(waiting) < LOOK_FOLDERS:
        below, here = _look_into(waiting.pop(0), kind)
        waiting += below
        found += here
    random.Random(0).shuffle(waiting)
    some, n_seen = _Look(), 0
    for folder in waiting:
        if some.images > LOOK_FILES:
            break
        n_seen += 1
        inside = [folder]
        while inside:
            below, here = _look_into(inside.pop(), kind)
            inside += below
            some += here
    return found + some * (len(waiting) / max(1, n_seen))


def _look_into(folder: str, kind: str) -> tuple[list[str], _Look]:
    """Return the folders in a folder and its images; of many only some are asked for their size."""
    try:
        with os.scandir(folder) as listing:
            entries = list(listing)
    except OSError:  # planning lists these
        return [], _Look()
    below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    images = [e for e in entries if _is_image(e.name, kind) and e.is_file()]
    asked = drawn(images, LOOK_FILES_PER_FOLDER)
    n_bytes = sum(e.stat().st_size * (2 if e.name.endswith(".nii.gz") else 1) for e in asked)
    scale = len(images) / max(1, len(asked))
    return below, _Look(n_bytes * scale, len(images), bool(images))


def _is_image(name: str, kind: str) -> bool:
    endings = {"dicom": "", "nifti": (".nii", ".nii.gz"), "release": ".zip"}
    return name.lower().endswith(endings[kind])


def disk_of(folder: Path) -> int:
    """Return what tells a folder's disk from others."""
    return folder.stat().st_dev


def free_space(folder: Path) -> Amount:
    """Return what an ordinary user may still write to a folder's disk, as far as it tells.

    Some file systems have no fixed number of inodes and give none; quotas do not show.
    """
    disk = os.statvfs(folder)
    return Amount(disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else math.inf)


def text_of_bytes(n_bytes: float) -> str:
    """Return bytes as people read them.

    Examples
    --------
    >>> text_of_bytes(38.1e12)
    '38.1 TB'
    >>> text_of_bytes(5.8e8)
    '0.58 GB'
    """
    if n_bytes >= 1e12:
        return f"{n_bytes / 1e12:,.1f} TB"
    return f"{n_bytes / 1e9:,.{0 if n_bytes >= 1e11 else 1 if n_bytes >= 1e10 else 2}f} GB"
