"""The settings of a run: one typed model with defaults, units and bounds.

`config/config.yaml`, the JSON schema and the table in the docs are all written from these
models (`mrmill docs`), so they cannot drift apart.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mrmill.errors import UserError
from mrmill.layout import SPACES
from mrmill.yaml_tables import parse_yaml

ROOT = Path(__file__).parents[2]

#: Files above this size are told apart by size and both ends instead of every byte.
WHOLE_DIGEST_BYTES = 64 * 2**20


class ConfigError(UserError):
    """Something in the configuration has to be changed before anything can run."""


def _resolved(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path.cwd())
    return folder / Path(os.path.expandvars(path)).expanduser()


#: A path; a relative one starts at the folder of the config file.
ConfigPath = Annotated[Path, AfterValidator(_resolved)]


#: A block made of its own defaults, validated where the config is (paths need its folder).
DEFAULTS: Any = Field({}, validate_default=True)


class Block(BaseModel):
    """A block of settings that knows which of its values change what is computed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    #: Settings that change how fast or where, but never a voxel or a table cell.
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset()

    def key_settings(self) -> dict[str, Any]:
        """Return what a study's record depends on: plain values, paths as file digests."""
        values = self.model_dump(mode="python", exclude=set(self.NOT_IN_KEY))
        return {
            name: digest_of(value) if isinstance(value, Path) else value
            for name, value in values.items()
        }


class Input(Block):
    """What is to be processed."""

    kind: Literal["dicom", "nifti", "release"] = Field(
        "dicom",
        description="dicom: folders of DICOM files; nifti: NIfTI with JSON sidecars; "
        "release: a native release in the MR-RATE layout, to be registered",
    )
    path: ConfigPath = Field(
        Path("export"),
        description="folder of the export, or (dicom) a CSV with a `FolderPath` column",
    )
    series_table: ConfigPath | None = Field(
        None,
        description="CSV that replaces what headers say, in the columns SeriesNumber, modality, "
        "PatientAge, PatientSex, StudyDate, is_derived, is_localizer, is_subtraction, body_part, "
        "contrast_agent. Its rows are found by SeriesInstanceUID (dicom), or by path, patient_id "
        "and study_id (nifti: then the rows are all the series there are)",
    )
    mixed_folders: Literal["quarantine", "accept"] = Field(
        "quarantine",
        description="(dicom) studies whose files share a folder with those of another patient: "
        "left out as `quarantined`, or accepted, as in a flat export; UIDs tell them apart",
    )
    one_study_per_accession: bool = Field(
        True,
        description="(dicom) studies of one patient and day with one AccessionNumber are one: a "
        "scanner that is restarted goes on under a new StudyInstanceUID",
    )


class Dataset(Block):
    """How the release is named and described."""

    name: str = Field(
        "MY-MRI", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the repositories"
    )
    title: str = Field("A de-identified brain MRI dataset", description="title of the card")
    licence: str = Field("other", description="licence of the dataset, as the Hub spells it")
    extra_columns: bool = Field(
        True,
        description="write mrmill's own columns (body part, contrast agent) after MR-RATE's",
    )
    transform_json: bool = Field(
        False,
        description="put beside each .mat in the zips a JSON with its RAS+ matrix, direction, "
        "engine and quality figures; MR-RATE has none",
    )


class Identity(Block):
    """Pseudonyms and dates."""

    key_file: ConfigPath = Field(
        Path("pseudonym.key"),
        description="secret key (mode 0600), made by `mrmill plan --new-key`; keep it outside "
        "work and release, and keep it safe: without it nobody can add studies",
    )
    max_date_shift_days: int = Field(
        3650,
        ge=1,
        le=36500,
        description="dates move 1 to this many days into the past, per patient",
    )
    mapping: ConfigPath | None = Field(
        None,
        description="CSV or XLSX with the columns Accession, Anon Patient ID and Anonymized Study "
        "Date, whose patients and dates are used instead of keyed ones",
    )
    unmapped: Literal["stop", "reject"] = Field(
        "stop",
        description="studies that are missing from the mapping: stop the plan and list them, or "
        "leave them out as `not_in_mapping`",
    )
    opt_out: ConfigPath | None = Field(
        None,
        description="CSV or XLSX with the columns PatientID or AccessionNumber, or both: their "
        "studies are left out as `excluded`, also those planned before",
    )


class Plan(Block):
    """How studies are put into shards and batches; fixed once a study is planned."""

    studies_per_batch: int = Field(3500, ge=1, description="MR-RATE: about 3,500")
    studies_per_shard: int = Field(48, ge=1, description="studies one job works on")
    val_fraction: float = Field(3425 / 83425, ge=0, lt=1, description="MR-RATE: 3,425 of 83,425")
    test_fraction: float = Field(5000 / 83425, ge=0, lt=1, description="MR-RATE: 5,000 of 83,425")


class Convert(Block):
    """DICOM to NIfTI."""

    # of the table only what is read matters here; what is released is curate's affair
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"timeout_s", "header_columns"})

    header_columns: ConfigPath = Field(
        ROOT / "config" / "header_columns.yaml",
        description="table of header values: where each is read, and which may be released",
    )
    timeout_s: float = Field(600, gt=0, description="longest time for one series, in s")


class Limits(Block):
    """Limits of one criterion of acceptance; what is not given stays as the table has it."""

    minimum: float | None = Field(None, description="least accepted value")
    maximum: float | None = Field(None, description="largest accepted value")
    accepted: tuple[str, ...] | None = Field(None, description="accepted values")


class Curate(Block):
    """What each series is and which series are accepted."""

    classification: ConfigPath = Field(
        ROOT / "config" / "classification.yaml", description="table of classification rules"
    )
    site_rules: ConfigPath | None = Field(
        None, description="table of a site's own classification rules, tried before all others"
    )
    evidence: ConfigPath = Field(
        ROOT / "config" / "evidence.yaml",
        description="table of words and tags that tell body part and contrast agent",
    )
    acceptance: ConfigPath = Field(
        ROOT / "config" / "acceptance.yaml", description="table of the criteria of acceptance"
    )
    limits: dict[str, Limits] = Field(
        {},
        description="limits other than those of the table, by its reason codes, such as "
        "`age_below_minimum: {minimum: 18}`",
    )
    oblique_from_degrees: float = Field(
        30,
        gt=0,
        le=55,
        description="slice normals further than this from every patient axis are OBLIQUE",
    )
    max_age_written_years: int | None = Field(
        90, description="ages above 89 are written as this (HIPAA safe harbor); null: as they are"
    )


class MaskQuality(Block):
    """Limits outside which a mask waits for a person (`needs_review`)."""

    volume_ml: tuple[float, float] = Field((600, 2200), description="brain volume, in mL")
    min_largest_component: float = Field(
        0.95, ge=0, le=1, description="share of the mask in its largest component"
    )
    max_border_share: float = Field(
        0.35, ge=0, le=1, description="share of the field's border voxels that the mask covers"
    )
    max_centroid_offset: float = Field(
        0.3, ge=0, le=1, description="mask centroid to field center, as a share of the field"
    )
    max_plane_shift_mm: float = Field(
        4,
        description="how much further from the brain's centroid the plane may lie than the "
        "center's, in mm: a mask that runs into the orbits pushes it out (true masks of phantoms "
        "and of a real study: -3.5 to 2.5; masks that leak: 4.6 and more)",
    )
    max_beyond_plane_ml: float = Field(
        0.1, ge=0, description="mask islands in front of the defacing plane, kept, in mL"
    )


class Deface(Block):
    """Brain masks and removal of the face."""

    # decisions are part of the key of their own study alone
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"device", "decisions"})

    backend: Literal["hdbet", "deepbet"] = Field(
        "hdbet", description="brain mask: HD-BET v2, or deepbet (any CPU, weights in its wheel)"
    )
    device: Literal["cuda", "cpu", "mps"] = Field(
        "cuda", description="never changed silently: no CUDA in a cuda run is an error"
    )
    weights: ConfigPath | None = Field(
        None, description="folder of the HD-BET v2 model (nnU-Net v2 layout); hdbet only"
    )
    buffer_mm: float = Field(10, ge=0, description="distance of the plane from the brain, in mm")
    quality: MaskQuality = DEFAULTS
    decisions: ConfigPath | None = Field(
        None,
        description="CSV with study_uid, series_id, decision (admit or reject) for series that "
        "wait for a person",
    )


#: Beyond the first a series waits for a person, beyond the second its transform is refused.
Bounds = tuple[FiniteFloat | None, FiniteFloat | None]


class CoregLimits(Block):
    """Limits of a series' transform to its center: [waits for a person, is refused]; null: none."""

    #: Measures of which less is better; of the others it is more.
    LESS_IS_BETTER: ClassVar[frozenset[str]] = frozenset({"spread_mm", "stretch"})

    prominence: Bounds = Field(
        (12, 4),
        description="least: standard deviations of similarity above wrong poses around it (right "
        "ones have 21 and more, poses 8 mm away 15 and less, mostly 6, noise 2)",
    )
    similarity: Bounds = Field(
        (0.05, 0.02),
        description="least: share of information in common, 0 to 1 (right ones have 0.07 and more)",
    )
    metric_gain: Bounds = Field(
        (-0.03, -0.1),
        description="least: gain in the published metric over the headers alone, in nats; below 0 "
        "because headers may be right already",
    )
    brain_dice: Bounds = Field(
        (0.75, 0.5), description="least: Dice of the two brain masks in the common field"
    )
    spread_mm: Bounds = Field(
        (4, None), description="most: distance of other poses that fit nearly as well"
    )
    stretch: Bounds = Field(
        (0.022, 0.04),
        description="most: share by which the head would have to be stretched to fit best (one "
        "head has 0.016 and less, heads of two people 0.024 and more)",
    )

    @field_validator("*")
    @classmethod
    def _review_comes_first(cls, bounds: Bounds, info: ValidationInfo) -> Bounds:
        review, refusal = bounds
        if None not in bounds and not cls.as_good(info.field_name, review, refusal):
            word = "at most" if info.field_name in cls.LESS_IS_BETTER else "at least"
            raise ValueError(
                "the first limit (waits for a person) lies beyond the second (is refused): it "
                f"must be {word} {refusal:g}, or null"
            )
        return bounds

    @classmethod
    def as_good(cls, measure: str, value: float, bound: float) -> bool:
        """Whether a measure is as good as a bound or better; no number is not."""
        return value <= bound if measure in cls.LESS_IS_BETTER else value >= bound


class AtlasLimits(CoregLimits):
    """Limits of a center's transform to the atlas: [waits for a person, is refused]; null: none."""

    prominence: Bounds = Field(
        (4.5, 3),
        description="as in `coreg_limits` (right ones have 9 and more, poses 15 mm away 3)",
    )
    similarity: Bounds = Field((0.05, 0.02), description="as in `coreg_limits`")
    metric_gain: Bounds = Field((-0.03, -0.1), description="as in `coreg_limits`")
    brain_dice: Bounds = Field((0.7, 0.5), description="as in `coreg_limits`")
    spread_mm: Bounds = Field((4, None), description="as in `coreg_limits`")
    stretch: Bounds = Field((None, None), description="people's brains differ in size")


class Register(Block):
    """Rigid registration to the study's center and to the atlas."""

    # decisions are part of the key of their own study alone
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"decisions"})

    engine: Literal["ants", "mattes", "auto"] = Field(
        "auto",
        description="`ants`: the published recipe; `mattes`: the same model, found much faster; "
        "`auto`: `mattes`, and the published recipe from several starts where that is in doubt",
    )
    atlas: Literal["embedded"] | ConfigPath = Field(
        "embedded",
        description="MNI152 T1w template: `embedded` (2009a symmetric, 1 mm, brain only) or the "
        "path of ICBM 2009c Nonlinear Symmetric (mni_icbm152_t1_tal_nlin_sym_09c.nii)",
    )
    atlas_mask: ConfigPath | None = Field(
        None,
        description="brain mask on the template's grid, for a template with a skull "
        "(mni_icbm152_t1_tal_nlin_sym_09c_mask.nii)",
    )
    sampling_fraction: float = Field(
        0.2, gt=0, le=1, description="share of voxels the metric looks at (antspyx default)"
    )
    seed: int = Field(42, ge=0, description="seed of the metric's sampling")
    coreg_limits: CoregLimits = DEFAULTS
    atlas_limits: AtlasLimits = DEFAULTS
    decisions: ConfigPath | None = Field(
        None,
        description="CSV with study_uid, series_id, decision (admit or reject) for series that "
        "wait for a person",
    )


class Resources(Block):
    """What each rule asks the scheduler for; changes no result."""

    threads: int = Field(1, ge=1, description="worker processes (deface: threads)")
    mem_mb: int = Field(4000, ge=100, description="memory of the first attempt, in MB")
    runtime_min_per_study: float = Field(2, gt=0, description="minutes a study may take")


class RuleResources(Block):
    """Resources by rule."""

    convert: Resources = Resources(threads=4, mem_mb=4000, runtime_min_per_study=2)
    curate: Resources = Resources(threads=1, mem_mb=2000, runtime_min_per_study=0.5)
    deface: Resources = Resources(threads=8, mem_mb=24000, runtime_min_per_study=5)
    register_: Resources = Field(
        Resources(threads=8, mem_mb=12000, runtime_min_per_study=2), alias="register"
    )
    package: Resources = Resources(threads=1, mem_mb=2000, runtime_min_per_study=0.5)
    adopt: Resources = Resources(threads=4, mem_mb=4000, runtime_min_per_study=1)


class Config(Block):
    """All settings of a run."""

    input: Input = DEFAULTS
    work: ConfigPath = Field(
        Path("work"), description="work tree: identified data, never published"
    )
    release: ConfigPath = Field(Path("release"), description="release tree: de-identified")
    dataset: Dataset = DEFAULTS
    spaces: tuple[Literal["native", "coreg", "atlas"], ...] = Field(
        SPACES, description="what `all` makes"
    )
    identity: Identity = DEFAULTS
    plan: Plan = DEFAULTS
    convert: Convert = DEFAULTS
    curate: Curate = DEFAULTS
    deface: Deface = DEFAULTS
    register_: Register = Field({}, alias="register", validate_default=True)
    max_failed_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="a shard with a larger share of failed (not rejected) studies, and more "
        "than one, fails its job",
    )
    keep_intermediates: bool = Field(
        False,
        description="keep converted, defaced and registered images in the work tree; otherwise "
        "those that can be made again or stand in a zip are removed once they have been used",
    )
    resources: RuleResources = DEFAULTS

    @model_validator(mode="after")
    def _check_across(self) -> "Config":
        masks = self.input.kind != "release"
        if masks and self.deface.backend == "hdbet" and self.deface.weights is None:
            raise ValueError(
                "deface.backend is hdbet and deface.weights is not set: give the folder of "
                "the HD-BET v2 model, or choose `backend: deepbet` with `device: cpu`"
            )
        if self.plan.val_fraction + self.plan.test_fraction >= 1:
            raise ValueError("plan.val_fraction + plan.test_fraction must stay below 1")
        work, release = self.work.resolve(), self.release.resolve()
        if release.is_relative_to(work) or work.is_relative_to(release):
            raise ValueError("work and release must not lie inside each other")
        for name, tree in {"work": work, "release": release}.items():
            if tree.is_relative_to(self.input.path.resolve()):
                raise ValueError(f"{name} lies inside input.path: keep the export untouched")
            if self.identity.key_file.resolve().is_relative_to(tree):
                raise ValueError(f"identity.key_file must lie outside {name}")
        return self


def digest_of(path: Path) -> str:
    """Return a digest of a file's or folder's content; `missing` where there is none."""
    if path.is_dir():
        parts = [
            f"{p.relative_to(path)} {digest_of(p)}" for p in sorted(path.rglob("*")) if p.is_file()
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not path.is_file():
        return "missing"
    if path.suffix in (".yaml", ".yml"):  # a comment changes no result
        values = parse_yaml(path.read_text(encoding="utf-8"))
        return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_DIGEST_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        ends = file.read(2**20)
        file.seek(-(2**20), os.SEEK_END)
        return hashlib.sha256(f"{size}".encode() + ends + file.read()).hexdigest()


def load_config(*files: Path) -> Config:
    """Read config files, later ones over earlier ones, and check everything.

    Raises
    ------
    ConfigError
        With one line per problem: where, what was found, what is accepted.
    """
    merged: dict[str, Any] = {}
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError(f"config file {file}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"config file {file} is not YAML: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"config file {file}: expected `key: value` lines")
        merged = merge(merged, content)
    return checked(merged, Path(files[-1]).resolve().parent)


def checked(values: dict[str, Any], folder: Path) -> Config:
    """Turn plain values into settings; relative paths start at `folder`."""
    try:
        return Config.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        lines = [_problem(e, values) for e in error.errors()]
        raise ConfigError("the configuration cannot be used:\n" + "\n".join(lines)) from None


def merge(under: dict, over: dict) -> dict:
    """Lay one nested mapping over another."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def _problem(error: Any, values: dict[str, Any]) -> str:
    """One line: where, what is wrong, what is nearest."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        found = "" if isinstance(error["input"], dict) else f" (found {error['input']!r})"
        return f"  {where or 'config'}: {error['msg'].removeprefix('Value error, ')}{found}"
    known = known_keys(error["loc"][:-1])
    near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
    return f"  {where}: unknown key; {hint}"


def known_keys(where: Sequence[str | int]) -> list[str]:
    """Return the keys a block accepts; `where` is the path of keys down to it."""
    model: Any = Config
    for part in where:
        if not isinstance(model, type):  # a mapping of blocks: any key, then the block
            model = get_args(model)[1]
            continue
        field = next(f for n, f in model.model_fields.items() if part in (n, f.alias))
        model = field.annotation
    return [field.alias or name for name, field in model.model_fields.items()]
