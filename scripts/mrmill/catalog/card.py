"""The dataset card: README.md of a release, with the front matter the Hugging Face Hub reads."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from mrmill.columns import Columns
from mrmill.config import Dataset
from mrmill.layout import SPACES, SUFFIX, ZIP_SUFFIX
from mrmill.reasons import reasons
from mrmill.tables import described, load_table

#: Columns that are text whatever their values look like.
TEXT_COLUMNS = frozenset({"patient_uid", "study_uid", "series_id"})

SPLITS = ("train", "val", "test")
PLANES = ("AXIAL", "SAGITTAL", "CORONAL", "OBLIQUE")

#: What every voxel and header of a release is, for people and for loaders.
VALUE_CONTRACT = {
    "image_dtype": ["uint16", "float32"],
    "mask_dtype": "uint8",
    "scl_slope": 1,
    "scl_inter": 0,
    "qform_equals_sform": True,
    "brain_mask": {"brain": 1, "elsewhere": 0},
    "defacing_mask": {"kept": 1, "removed": 0},
    "defaced_voxels": 0,
    "axis_codes": "any",
}

CONTENTS = {
    "native": "defaced images as acquired, a brain mask and a defacing mask of each",
    "coreg": "every series of a study on the grid of its center series, with the transforms",
    "atlas": "every series in MNI152 space, with the transforms",
}

MEMBERS = {
    "native": """\
img/<study_uid>_<series_id>.nii.gz                    defaced image
seg/<study_uid>_<series_id>_brain-mask.nii.gz
seg/<study_uid>_<series_id>_defacing-mask.nii.gz""",
    "coreg": """\
coreg_img/<study_uid>_<center_id>.nii.gz              the center, unchanged
coreg_img/<study_uid>_coreg_<series_id>.nii.gz        the others, on its grid
coreg_seg/<study_uid>_<center_id>_{brain,defacing}-mask.nii.gz
transform/M_coreg_<series_id>.mat                     moves the series onto the center""",
    "atlas": """\
atlas_img/<study_uid>_atlas_<series_id>.nii.gz
atlas_seg/<study_uid>_atlas_<center_id>_{brain,defacing}-mask.nii.gz
transform/M_atlas_<center_id>.mat                     moves the center onto the atlas""",
}

#: What stands beside each .mat with `dataset.transform_json`.
BESIDE = {
    "coreg": "transform/M_coreg_<series_id>.json",
    "atlas": "transform/M_atlas_<center_id>.json",
}
TOLD = "                    the same as a RAS+ matrix, its quality"


NO_LABELS = """\
- There is no label of contrast enhancement. Within a study, a lower `SeriesNumber` was acquired
  earlier and is more likely without contrast."""

LABELS = """\
- Body part and contrast agent are told by headers; the column beside each says by what. Nothing is
  guessed: `unknown` is common."""


def count_release(
    series: Iterable[Mapping[str, str]],
    splits: Iterable[Mapping[str, str]],
    ledger: Mapping[str, Any],
) -> dict[str, Any]:
    """Count what the card tells.

    Parameters
    ----------
    series, splits : iterable of mapping
        Rows of all metadata CSVs, and of splits.csv.
    ledger : mapping
        What `ledger.summary` says.

    Returns
    -------
    counts : dict
        `splits`: split -> patients, studies, series. `modality_plane`: (modality, plane) -> series.
        `vendors`, `field_strengths`: value -> series. `columns`: metadata column -> its type, as
        the Hub spells it. `ledger`: as given.
    """
    split_of = {row["study_uid"]: row for row in splits}
    patients = Counter(
        split for split, _ in {(r["split"], r["patient_uid"]) for r in split_of.values()}
    )
    studies = Counter(row["split"] for row in split_of.values())
    volumes: Counter[str] = Counter()
    modality_plane: Counter[tuple[str, str]] = Counter()
    vendors: Counter[str] = Counter()
    strengths: Counter[str] = Counter()
    columns: dict[str, str] = {}
    for row in series:
        volumes[split_of[row["study_uid"]]["split"]] += 1
        modality_plane[row.get("classified_modality", ""), row.get("acquisition_plane", "")] += 1
        vendors[row.get("Manufacturer") or "unknown"] += 1
        strengths[_tesla(row.get("FieldStrength_T"))] += 1
        for name, value in row.items():
            columns[name] = _wider(columns.get(name), _type_of(value))
    return {
        "splits": {
            split: {
                "patients": patients[split],
                "studies": studies[split],
                "series": volumes[split],
            }
            for split in sorted(studies, key=_place_in(SPLITS))
        },
        "modality_plane": modality_plane,
        "vendors": vendors,
        "field_strengths": strengths,
        "columns": {
            name: "string" if name in TEXT_COLUMNS or kind == "empty" else kind
            for name, kind in columns.items()
        },
        "ledger": ledger,
    }


def _tesla(value: str | None) -> str:
    """Return the field strength to 0.1 T: 2.89 T and 2.9 T are one kind of scanner."""
    is_number = value and _type_of(value) in ("int64", "float64")
    return f"{float(value):.1f} T" if is_number else "unknown"


def _type_of(text: str) -> str:
    if text == "":
        return "empty"
    if text in ("True", "False"):
        return "bool"
    if re.fullmatch(r"-?\d{1,15}", text):
        return "int64"
    is_number = re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", text)
    return "float64" if is_number else "string"


def _wider(before: str | None, now: str) -> str:
    """Return the narrowest type that holds both; whole numbers and gaps together need float64."""
    if before in (None, now):
        return now
    both = {before, now}
    if both <= {"int64", "float64", "empty"}:
        return "float64"
    return "string"


def dataset_card(
    dataset: Dataset, counts: Mapping[str, Any], columns: Columns, facts: Mapping[str, str]
) -> str:
    """Return README.md of a release.

    Parameters
    ----------
    counts : mapping
        What `count_release` says.
    columns : Columns
        Columns of the metadata CSVs.
    facts : mapping
        Versions, atlas name and hash: what the release was made with. Nothing here may change
        from run to run, so no date.
    """
    made = [s for s in SPACES if s == "native" or counts["ledger"]["spaces"][s]["studies"]]
    sections = [
        _front_matter(dataset, counts["columns"]),
        _introduction(dataset),
        _layout(dataset, made),
        _numbers(counts, made),
        _left_out(counts["ledger"]),
        _contract(),
        _tables(columns),
        _provenance(facts),
        _verification(dataset),
        _limits(columns),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _front_matter(dataset: Dataset, columns: Mapping[str, str]) -> str:
    tables = {
        "metadata": ("metadata/*_metadata.csv", columns),
        "splits": ("splits.csv", {f.name: "string" for f in load_table("splits")}),
        "ledger": ("ledger.csv", {f.name: "string" for f in load_table("ledger")}),
    }
    configs = [
        {
            "config_name": name,
            "data_files": files,
            **({"default": True} if name == "metadata" else {}),
            # said here, because a column may be empty in one file and hold text in the next
            "features": [{"name": column, "dtype": kind} for column, kind in types.items()],
        }
        for name, (files, types) in tables.items()
        if types
    ]
    head = {
        "license": dataset.licence,
        "pretty_name": dataset.title,
        "tags": ["medical", "mri", "brain", "nifti"],
        "configs": configs,
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=100)}---"


def _introduction(dataset: Dataset) -> str:
    return f"""
# {dataset.title}

De-identified, defaced brain MRI volumes from clinical studies, with metadata and patient-level
splits, in the layout of MR-RATE. Made by mrmill.

A *patient* has one or more *studies*; a study has several *series*, each one NIfTI volume.
`patient_uid`, `study_uid` and `series_id` join all tables and files. `series_id` is
`{{modality}}-{{role}}-{{plane}}`, with `-2`, `-3`, ... for further acquisitions of a kind. One T1w
series of each study is its center (`is_center_modality`): the reference of registration.

```python
from datasets import load_dataset

metadata = load_dataset("<owner>/{dataset.name}", "metadata")  # or "splits", "ledger"
```
"""


def _layout(dataset: Dataset, made: Sequence[str]) -> str:
    repositories = _table(
        ("Repository", "Contents"),
        [(f"`{dataset.name}{SUFFIX[space]}`", CONTENTS[space]) for space in made],
    )
    members = "\n\n".join(
        f"`mri/<batch>/<study_uid>{ZIP_SUFFIX[space]}.zip` holds `<study_uid>/` with\n\n"
        f"```text\n{_members(space, dataset.transform_json)}\n```"
        for space in made
    )
    template = "`atlas.json` in the atlas repository names the template, its SHA-256 and its grid."
    return f"""
## Layout

{repositories}

This repository also holds `metadata/<batch>_metadata.csv` (one row per series), `splits.csv` (one
row per study), `ledger.csv` (one row per series ever seen: accepted, rejected or failed, and why)
and, as every repository, `SHA256SUMS`.

{members}

{template if "atlas" in made else ""}
"""


def _members(space: str, transform_json: bool) -> str:
    beside = transform_json and space in BESIDE
    return f"{MEMBERS[space]}\n{BESIDE[space]}{TOLD}" if beside else MEMBERS[space]


def _numbers(counts: Mapping[str, Any], made: Sequence[str]) -> str:
    kinds = ("patients", "studies", "series")
    splits = [(name, *(c[kind] for kind in kinds)) for name, c in counts["splits"].items()]
    total = ("total", *(sum(row[i] for row in splits) for i in range(1, 4)))
    crossed = counts["modality_plane"]
    modalities = sorted({modality for modality, _ in crossed})
    planes = sorted({plane for _, plane in crossed}, key=_place_in(PLANES))
    spaces = [
        (space, c["studies"], c["series"])
        for space in made
        for c in [counts["ledger"]["spaces"][space]]
    ]
    tables = [
        _table(("Split", "Patients", "Studies", "Series"), [*splits, total]),
        _table(("Space", "Studies", "Series"), spaces),
        _table(
            ("Modality", *(plane.lower() for plane in planes)),
            [(m, *(crossed[m, plane] for plane in planes)) for m in modalities],
        ),
        _table(("Manufacturer", "Series"), _by_number(counts["vendors"])),
        _table(("Field strength", "Series"), sorted(counts["field_strengths"].items())),
    ]
    return "## Numbers\n\n" + "\n\n".join(tables)


def _left_out(ledger: Mapping[str, Any]) -> str:
    seen = _table(
        ("", "Seen", "Accepted", "Rejected", "Failed"),
        [
            (kind, *(ledger[kind][s] for s in ("seen", "accepted", "rejected", "failed")))
            for kind in ("studies", "series")
        ],
    )
    why = [
        (f"`{code}`", reasons()[code]["meaning"], number)
        for state in ("rejected", "failed")
        for code, number in _by_number(ledger["reasons"][state])
    ]
    table = _table(("Reason", "Meaning", "Series"), why) if why else "Nothing was left out."
    return f"## What was left out\n\n{seen}\n\n{table}"


def _contract() -> str:
    return f"""
## Values and geometry

- Images are uint16 where that loses nothing, else float32; masks are uint8. Voxel values are final:
  `scl_slope` is 1 and `scl_inter` 0, so no rescaling is to be applied again.
- Voxel axes keep the order of the acquisition: orientation may differ between series. Read the
  affine (sform and qform are equal) before comparing arrays.
- Brain mask: 1 = brain. Defacing mask: 1 = kept, 0 = removed. Removed voxels of an image are 0.
- Transforms are rigid, ITK's `.mat` (LPS+, mm). As images move, they bring the series to the center
  and the center to the atlas; as points go, from the center to the series and from the atlas to the
  center.
- Ages are in years. Dates are shifted by one secret number of days per patient, so the intervals
  between a patient's studies are true and the dates are not.

```yaml
{yaml.safe_dump({"value_contract": VALUE_CONTRACT}, sort_keys=False).strip()}
```
"""


def _tables(columns: Columns) -> str:
    headings = ("column", "type", "unit", "accepted", "meaning")
    shown = ("column", "accepted", "meaning")
    return f"""
## Columns

`metadata/<batch>_metadata.csv`:

{described(columns, *headings)}

`splits.csv`:

{described(load_table("splits"), *shown)}

`ledger.csv`:

{described(load_table("ledger"), *shown)}
"""


def _provenance(facts: Mapping[str, str]) -> str:
    rows = [(name.replace("_", " "), f"`{value}`") for name, value in facts.items()]
    return f"## Made with\n\n{_table(('', ''), rows)}"


def _verification(dataset: Dataset) -> str:
    return f"""
## Verify

`mrmill verify <folder>` holds a copy, local or downloaded, against its checksums, tables and
layout. Without mrmill: `cd {dataset.name} && sha256sum --check SHA256SUMS`.
"""


def _limits(columns: Columns) -> str:
    return f"""
## Known limits

- Masks, defacing and registration are automatic. Outliers of measured quality were held back; not
  every image was looked at.
- Removing the face lowers the risk of recognition and does not end it: do not try to identify
  anyone.
- Modality and plane are derived from headers by rules; `classification_rule` names the rule.
{NO_LABELS if "contrast_agent" not in {c.name for c in columns} else LABELS}
- Registration is rigid: images in atlas space are aligned, not deformed, to the atlas.
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str | int]]) -> str:
    """Return a Markdown table; numbers stand at the right, with thousands apart."""
    rows = [[_cell(value) for value in row] for row in rows]
    numeric = [i > 0 and all(re.fullmatch(r"[\d,]+", r[i]) for r in rows) for i in range(len(head))]
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *rows])


def _cell(value: str | int) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return value.replace("|", "\\|")


def _by_number(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _place_in(order: Sequence[str]) -> Any:
    """Sort key: known words in their order, then the others by name."""
    return lambda word: (order.index(word) if word in order else len(order), word)
