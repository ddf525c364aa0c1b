"""Every name and path of the work tree and of the release, written once.

The names inside a release are those of the MR-RATE dataset guide; nothing else in the project
puts a path together by hand.
"""

from dataclasses import dataclass
from pathlib import Path

SPACES = ("native", "coreg", "atlas")

#: Where a shard job's manifest stands, relative to the work tree (a Snakemake template as well).
MANIFEST = "{batch}/{stage}/{shard}.json"
JOURNAL = "{batch}/{stage}/{shard}.jsonl"

#: A batch's parts of the tables of the whole release.
CATALOG_PARTS = ("ledger.csv", "splits.csv", "checksums.json", "flow.json")

#: Tail of a repository's name and of its zips, by space.
SUFFIX = {"native": "", "coreg": "-coreg", "atlas": "-atlas"}
ZIP_SUFFIX = {"native": "", "coreg": "_coreg", "atlas": "_atlas"}


@dataclass(frozen=True)
class WorkTree:
    """Paths of the identified, never published side."""

    root: Path

    def create(self) -> None:
        """Make the work tree, or an existing one, private to its owner."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)

    @property
    def run_lease(self) -> Path:
        """Lease of whoever plans, runs or re-opens."""
        return self.root / "run.lease"

    @property
    def plan(self) -> Path:
        """Folder of everything `mrmill plan` writes."""
        return self.root / "plan"

    @property
    def shards(self) -> Path:
        """Summary of all batches and shards, the only part of the plan the Snakefile reads."""
        return self.plan / "shards.json"

    @property
    def studies(self) -> Path:
        """Who and what each study_uid is: the key to everyone."""
        return self.plan / "studies.parquet"

    @property
    def skipped(self) -> Path:
        """Every file of the export that is part of no study, and why."""
        return self.plan / "skipped.csv"

    @property
    def ledger(self) -> Path:
        """The identified twin of the release's ledger."""
        return self.root / "ledger.csv"

    @property
    def failures(self) -> Path:
        """What failed and where its log is: studies and series, by public ids."""
        return self.root / "failures.csv"

    @property
    def seals(self) -> Path:
        """Digests of the shards that were found whole (`mrmill.whole`)."""
        return self.root / "seals.json"

    def shard_plan(self, batch: str, shard: str) -> Path:
        """Studies and input files of one shard."""
        return self.plan / "shards" / batch / f"{shard}.json"

    def manifest(self, batch: str, stage: str, shard: str) -> Path:
        """Return the one output of a shard job."""
        return self.root / MANIFEST.format(batch=batch, stage=stage, shard=shard)

    def journal(self, batch: str, stage: str, shard: str) -> Path:
        """Append-only records of a shard's studies in one stage."""
        return self.root / JOURNAL.format(batch=batch, stage=stage, shard=shard)

    def lease(self, batch: str, stage: str, shard: str) -> Path:
        """Return the file that says who is at work on a shard's stage."""
        return self.journal(batch, stage, shard).with_suffix(".lease")

    def catalog(self, batch: str) -> Path:
        """Manifest of a batch's tables."""
        return self.root / batch / "catalog.json"

    def part(self, batch: str, name: str) -> Path:
        """Return a batch's part of a table of the whole release."""
        return self.root / batch / "catalog" / name

    @property
    def usage(self) -> Path:
        """Folder of what every attempt of every shard job took."""
        return self.root / "usage"

    def attempts(self, batch: str, stage: str, shard: str) -> Path:
        """Attempts of a shard job, one line each (`mrmill.profile`)."""
        return self.usage / batch / stage / f"{shard}.jsonl"

    @property
    def profile(self) -> Path:
        """Folder of what all attempts together took: table, pictures, page."""
        return self.root / "profile"

    def log(self, batch: str, stage: str, shard: str) -> Path:
        """Log of a shard job: tracebacks are here and only here."""
        return self.root / "logs" / batch / stage / f"{shard}.log"

    def drop_manifest(self, batch: str, stage: str, shard: str) -> None:
        """Have Snakemake work on a shard again: drop its manifest and those of the tables.

        Snakemake does not miss a file between others; with the last ones gone it looks at all.
        """
        for path in (
            self.manifest(batch, stage, shard),
            self.catalog(batch),
            self.root / "catalog.json",
        ):
            path.unlink(missing_ok=True)

    def study(self, batch: str, stage: str, study_uid: str) -> Path:
        """Folder of the files a stage made for one study."""
        return self.root / batch / stage / study_uid


@dataclass(frozen=True)
class ReleaseTree:
    """Paths of the public side: one repository per space."""

    root: Path
    name: str

    def repository(self, space: str) -> Path:
        """Root of the repository of one space."""
        return self.root / f"{self.name}{SUFFIX[space]}"

    def zips(self, space: str, batch: str) -> Path:
        """Folder of the zips of one batch in one space."""
        return self.repository(space) / "mri" / batch

    def zip(self, space: str, batch: str, study_uid: str) -> Path:
        """Zip of one study in one space."""
        return self.zips(space, batch) / f"{study_uid}{ZIP_SUFFIX[space]}.zip"

    def metadata(self, batch: str) -> Path:
        """Series table of one batch."""
        return self.repository("native") / "metadata" / f"{batch}_metadata.csv"

    @property
    def splits(self) -> Path:
        """Study table with the patient-level split."""
        return self.repository("native") / "splits.csv"

    @property
    def ledger(self) -> Path:
        """What became of every series ever seen, by public ids."""
        return self.repository("native") / "ledger.csv"

    @property
    def card(self) -> Path:
        """Dataset card."""
        return self.repository("native") / "README.md"

    @property
    def atlas(self) -> Path:
        """Which template atlas space is: name, digests, grid."""
        return self.repository("atlas") / "atlas.json"

    def checksums(self, space: str) -> Path:
        """SHA-256 of every other file of a repository."""
        return self.repository(space) / "SHA256SUMS"


def place_in_zip(study_uid: str, name: str) -> tuple[str, str]:
    """Return the space and the member of a study's zip that a file of the work tree goes into.

    Files of register begin with their space; those of deface are native.
    """
    space, _, inner = name.partition("/")
    return (space, f"{study_uid}/{inner}") if space in SPACES else ("native", f"{study_uid}/{name}")


def native_image(study_uid: str, series_id: str) -> str:
    """Member of the native study folder: the defaced image."""
    return f"img/{study_uid}_{series_id}.nii.gz"


def native_mask(study_uid: str, series_id: str, kind: str) -> str:
    """Member of the native study folder: a mask; `kind` is `brain` or `defacing`."""
    return f"seg/{study_uid}_{series_id}_{kind}-mask.nii.gz"


def coreg_center_image(study_uid: str, center_id: str) -> str:
    """Member of the coreg study folder: the unchanged copy of the center."""
    return f"coreg_img/{study_uid}_{center_id}.nii.gz"


def coreg_image(study_uid: str, series_id: str) -> str:
    """Member of the coreg study folder: a moving series on the center's grid."""
    return f"coreg_img/{study_uid}_coreg_{series_id}.nii.gz"


def coreg_mask(study_uid: str, center_id: str, kind: str) -> str:
    """Member of the coreg study folder: the unchanged copy of a mask of the center."""
    return f"coreg_seg/{study_uid}_{center_id}_{kind}-mask.nii.gz"


def coreg_transform(series_id: str) -> str:
    """Member of the coreg study folder: the moving-to-center transform."""
    return f"transform/M_coreg_{series_id}.mat"


def atlas_image(study_uid: str, series_id: str) -> str:
    """Member of the atlas study folder: a series on the atlas grid."""
    return f"atlas_img/{study_uid}_atlas_{series_id}.nii.gz"


def atlas_mask(study_uid: str, center_id: str, kind: str) -> str:
    """Member of the atlas study folder: a mask of the center on the atlas grid."""
    return f"atlas_seg/{study_uid}_atlas_{center_id}_{kind}-mask.nii.gz"


def atlas_transform(center_id: str) -> str:
    """Member of the atlas study folder: the center-to-atlas transform."""
    return f"transform/M_atlas_{center_id}.mat"


def transform_json(transform: str) -> str:
    """Name of the description beside a transform."""
    return f"{transform.removesuffix('.mat')}.json"
