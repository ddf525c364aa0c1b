"""Stage functions that decide at once and write a line per file: what is left is the engine.

Records are as large as real ones: every series says what one of the phantom's said.
"""

import json
from pathlib import Path
from typing import Any

from mrmill import layout
from mrmill.curate import OF_CONVERT
from mrmill.records import Outcome
from mrmill.shards import Study
from mrmill.stamps import digest_of_content

#: What each stage says about a series, from a run on the phantom.
SAID = json.loads((Path(__file__).parent / "series.json").read_text(encoding="utf-8"))

ACCEPTED = {"state": "accepted", "reason": ""}


def do_nothing(study: Study, scratch: Path, stage: str) -> Outcome:
    """Decide about a study as a stage would, without a look at it."""
    return {"convert": convert, "curate": curate, "deface": deface, "register": register}[stage](
        study, scratch
    )


def convert(study: Study, scratch: Path) -> Outcome:
    """Accept every planned series."""
    entries = []
    for series in study.plan["series"]:
        key = series["series_key"]
        write(scratch, f"{key}.nii.gz")
        named = {"series_key": key, "source": key, "file": f"{key}.nii.gz"}
        read = {"source_sha256": digest_of_content(series)} if "files" in series else {}
        entries.append({**named, **read, **SAID["convert"], **ACCEPTED})
    return Outcome(series=entries)


def curate(study: Study, scratch: Path) -> Outcome:
    """Name every series; the first is the center."""
    entries = []
    for number, entry in enumerate(study.upstream["convert"].outcome.series):
        known = {name: value for name, value in entry.items() if name not in OF_CONVERT}
        series_id = "t1w-raw-axi" + f"-{number + 1}" * bool(number)
        uids = {"patient_uid": study.patient_uid, "study_uid": study.study_uid}
        row = {**SAID["curate"]["row"], **uids, "series_id": series_id}
        named = {"series_id": series_id, "is_center_modality": number == 0, "row": row}
        entries.append({**known, **SAID["curate"], **named, **ACCEPTED})
    return Outcome(series=entries)


def deface(study: Study, scratch: Path) -> Outcome:
    """Give every series an image and two masks."""
    entries = []
    for entry in study.upstream["curate"].outcome.series:
        where = study.study_uid, entry["series_id"]
        files = {
            "img": layout.native_image(*where),
            "brain": layout.native_mask(*where, "brain"),
            "defacing": layout.native_mask(*where, "defacing"),
        }
        for name in files.values():
            write(scratch, name)
        known = {name: value for name, value in entry.items() if name != "row"}
        entries.append({**known, **SAID["deface"], "files": files})
    return Outcome(series=entries)


def register(study: Study, scratch: Path) -> Outcome:
    """Give every moving series an image and a transform in coreg space, all in atlas space."""
    return Outcome(
        series=[
            entry
            for series in study.upstream["deface"].outcome.series
            for entry in (in_coreg(study, series, scratch), in_atlas(study, series, scratch))
        ]
    )


def in_coreg(study: Study, series: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Register to the center; the center itself is copied when it is packaged."""
    if series["is_center_modality"]:
        return registered(series, "coreg", {}, scratch)
    files = {
        "img": layout.coreg_image(study.study_uid, series["series_id"]),
        "transform": layout.coreg_transform(series["series_id"]),
    }
    return registered(series, "coreg", files, scratch)


def in_atlas(study: Study, series: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Register to the atlas; the center brings masks and the transform."""
    uid, series_id = study.study_uid, series["series_id"]
    files = {"img": layout.atlas_image(uid, series_id)}
    if series["is_center_modality"]:
        files |= {kind: layout.atlas_mask(uid, series_id, kind) for kind in ("brain", "defacing")}
        files["transform"] = layout.atlas_transform(series_id)
    return registered(series, "atlas", files, scratch)


def registered(
    series: dict[str, Any], space: str, files: dict[str, str], scratch: Path
) -> dict[str, Any]:
    """Write a series' files in one space, and say so."""
    files = {kind: f"{space}/{name}" for kind, name in files.items()}
    for name in files.values():
        write(scratch, name)
    told = {name: series[name] for name in ("series_key", "series_id", "is_center_modality")}
    return {**SAID["register"], **told, "space": space, "files": files, **ACCEPTED}


def write(scratch: Path, name: str) -> None:
    """Write a file of one line."""
    path = scratch / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name}\n", encoding="utf-8")
