"""Stage convert: the series of a study become clean volumes, every one of them accounted for.

A DICOM series is sorted by kind (magnitude, Dixon parts, phase, ...) and goes kind by kind through
dcm2niix. What comes out is held against the instances that went in: as many slices as instances,
every slice where its own header says it is. Of the images the plainest kind goes on, of that the
first echo, once for every grid (a localizer in three planes goes on three times); the others are
recorded as `extra_output`. Where that rule does not single one out, none does.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mrmill.config import Convert
from mrmill.convert.completeness import check_counts
from mrmill.convert.dcm2niix import (
    ENCODINGS,
    UNSUPPORTED_ENCODING,
    Conversion,
    Output,
    run_dcm2niix,
)
from mrmill.convert.instances import PLAINEST_FIRST, Instance, by_kind, read_instance
from mrmill.convert.slices import check_stack
from mrmill.profile.steps import step
from mrmill.reasons import ACCEPTED, REJECTED, Rejected
from mrmill.records import Outcome
from mrmill.shards import Study, guarded
from mrmill.stamps import digest_of_content, digest_of_files
from mrmill.volumes import Volume, as_released, read_volume, write_volume

log = logging.getLogger(__name__)

Entry = dict[str, Any]

#: Pixels that went through a lossy compression somewhere on their way.
LOSSY = "lossy_compression"


class ChangedSincePlan(Exception):
    """Files are not those that were planned: whose they are has to be looked up again."""


def convert_study(study: Study, scratch: Path, settings: Convert) -> Outcome:
    """Convert every planned series of a study.

    Parameters
    ----------
    study : Study
        `plan["series"]` names the files of every series.
    scratch : Path
        Gets one `<series_key>.nii.gz` for every accepted entry.

    Returns
    -------
    Outcome
        One entry for every image that came out and for every series without any.

    Raises
    ------
    OSError
        When the disk is full.
    """
    plan = study.plan
    if plan.get("reject"):
        entries = [_not_touched(series, "study_rejected") for series in plan["series"]]
        return Outcome(REJECTED, plan["reject"], series=entries)
    stamps = plan.get("stamps", {})
    planned = [{**series, "stamps": stamps.get(series["series_key"])} for series in plan["series"]]
    return study_outcome(
        [entry for series in planned for entry in convert_series(series, scratch, settings)]
    )


def study_outcome(entries: list[Entry]) -> Outcome:
    """Return the state of a study that lives as long as one of its series does."""
    if any(entry["state"] == ACCEPTED for entry in entries):
        return Outcome(series=entries)
    return Outcome.stopped("no_accepted_series", entries)


def convert_series(series: dict[str, Any], scratch: Path, settings: Convert) -> list[Entry]:
    """Convert one planned series; whatever goes wrong ends in its entries."""
    if series.get("reject"):
        return [_not_touched(series, series["reject"])]
    entry: Entry = {"series_key": series["series_key"], "source": series["series_key"]}
    with guarded(entry):
        with step("digest"):
            entry["source_sha256"] = digest_of_content(series)
        if series["kind"] == "dicom":
            return _from_dicom(series, entry, scratch, settings)
        _from_nifti(series, entry, scratch, settings)
    return [entry]


def _not_touched(series: dict[str, Any], reason: str) -> Entry:
    key = series["series_key"]
    return {"series_key": key, "source": key, "state": REJECTED, "reason": reason}


def _from_nifti(series: dict[str, Any], entry: Entry, scratch: Path, settings: Convert) -> None:
    """Rewrite a NIfTI image without anything but voxels and geometry."""
    from mrmill.columns import load_columns
    from mrmill.headers import sidecar_header

    columns = load_columns(settings.header_columns)
    sidecar, warnings = _sidecar(Path(series["sidecar"])) if series.get("sidecar") else ({}, [])
    entry.update(warnings=warnings, header=sidecar_header(sidecar, series["table"], columns))
    (name,) = series["files"]
    with step("read"):
        volume = read_volume(Path(series["folder"], name))
    entry["n_slices"] = volume.data.shape[2]
    _write(volume, entry, scratch)


def _sidecar(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a sidecar; one that cannot be read is a warning, for the table may say enough."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError):
        content = None
    return (content, []) if isinstance(content, dict) else ({}, ["bad_sidecar"])


def _from_dicom(
    series: dict[str, Any], entry: Entry, scratch: Path, settings: Convert
) -> list[Entry]:
    """Run dcm2niix on a series and return an entry for every image it made."""
    from mrmill.columns import load_columns
    from mrmill.headers import dicom_header, with_series_table

    columns = load_columns(settings.header_columns)

    def header_of(path: Path) -> dict[str, Any]:
        return with_series_table(dicom_header(path, columns), series["table"], columns)

    entry.update(n_sop=series["n_sop"], warnings=series.get("warnings", []))
    with step("headers"):
        instances = _read_instances(series)
    found = check_counts(instances)
    lossy = [LOSSY] if any(instance.is_lossy for instance in instances) else []
    entry["warnings"] = [*entry["warnings"], *found, *lossy]
    with TemporaryDirectory(dir=scratch, prefix=".dcm2niix-") as folder:
        with step("dcm2niix"):
            conversions = [
                run_dcm2niix(files, Path(folder, kind), settings.timeout_s)
                for kind, files in by_kind(instances).items()
            ]
        return _entries(conversions, entry, scratch, header_of)


def _read_instances(series: dict[str, Any]) -> list[Instance]:
    """Read the headers of a series, if its files are all there and those that were planned."""
    if n_unreadable := series.get("n_unreadable", 0):
        raise Rejected("incomplete", f"{n_unreadable} files cannot be read", "all files readable")
    folder = Path(series["folder"])
    if digest_of_files(folder, series["files"]) != (series.get("stamps") or series["digest"]):
        raise ChangedSincePlan
    return [read_instance(folder / name) for name in sorted(series["files"])]


def _entries(
    conversions: Sequence[Conversion],
    common: Entry,
    scratch: Path,
    header_of: Callable[[Path], dict[str, Any]],
) -> list[Entry]:
    """Account for every output of a series; write those that go on.

    Parameters
    ----------
    conversions : sequence of Conversion
        One per kind of picture, plainest first.
    common : dict
        What holds for the series as a whole.
    header_of : callable
        Reads the header record from a file of the series.
    """
    kept = going_on(conversions[0].outputs)
    made = [(run, output) for run in conversions for output in run.outputs or [None]]
    made.sort(key=lambda run_and_output: run_and_output[1] not in kept)
    entries = []
    for number, (conversion, output) in enumerate(made, start=1):
        key = common["source"] if number == 1 else f"{common['source']}-{number}"
        warnings = sorted({*common["warnings"], *conversion.facts["warnings"]})
        entry = {**common, **conversion.facts, "series_key": key, "warnings": warnings}
        log.info("series %s: %s %s", key, conversion.facts, output and output.suffix)
        entries.append(entry)
        with guarded(entry):
            if output is None:
                raise _without_image(conversion)
            entry |= {"suffix": output.suffix, "kind": output.kind, "n_slices": output.n_slices}
            if conversion.n_made != conversion.n_given:
                found, limit = f"{conversion.n_made} slices", f"{conversion.n_given} instances"
                raise Rejected("incomplete", found, limit)
            if output not in kept:
                raise Rejected("extra_output", f"{len(made)} images", "the plainest")
            with step("read"):
                volume = read_volume(output.path)
            _check_scale(output, warnings)
            if not output.instances[0].is_mosaic:
                check_stack(volume, output.slice_axis, output.instances)
            with step("headers"):
                entry["header"] = header_of(output.sources()[0].path)
            _write(volume, entry, scratch)
    return entries


def _without_image(conversion: Conversion) -> Rejected:
    """Return why dcm2niix made no image of some files, as far as it says."""
    if UNSUPPORTED_ENCODING in conversion.facts["warnings"]:
        return Rejected(UNSUPPORTED_ENCODING, conversion.instances[0].encoding, ENCODINGS)
    return Rejected("not_converted", f"exit code {conversion.facts['exit_code']}", "an image")


def _check_scale(output: Output, warnings: Sequence[str]) -> None:
    """Refuse Philips images with a scale of their own for each slice: dcm2niix applies it twice."""
    if "PhilipsScaleSlope" not in output.sidecar:
        return
    n_scales = len({instance.scale for instance in output.sources()})
    if n_scales > 1 or "intensity_scale_varies" in warnings:
        raise Rejected("scale_varies", f"{max(n_scales, 2)} intensity scales", "one for all slices")


def _write(volume: Volume, entry: Entry, scratch: Path) -> None:
    """Write a volume under the entry's key and record its grid."""
    data = as_released(volume.data)
    entry["file"] = f"{entry['series_key']}.nii.gz"
    entry["shape"] = list(volume.data.shape)
    entry["spacing_mm"] = volume.spacing_mm.round(6).tolist()
    entry["affine"] = volume.affine.tolist()
    with step("write"):
        write_volume(scratch / entry["file"], data, volume.affine)


def going_on(outputs: Sequence[Output]) -> list[Output]:
    """Choose the outputs of the plainest files that go on: on every grid, the one plain image.

    Plain is what comes first in `PLAINEST_FIRST` (a multi-frame file may hold several kinds), then
    the shortest echo time. Two that are equally plain make the grid's choice ambiguous: none of
    them goes on.
    """
    ranks = {output: PLAINEST_FIRST.index(output.kind) for output in outputs if not output.is_copy}
    grids: list[list[Output]] = []
    for output in (output for output in ranks if ranks[output] == min(ranks.values())):
        home = next((grid for grid in grids if grid[0].shares_grid_with(output)), None)
        grids.append([output]) if home is None else home.append(output)
    kept = []
    for grid in grids:
        times = [output.echo_time_ms for output in grid]
        if times.count(min(times)) == 1:
            kept.append(grid[times.index(min(times))])
    return kept
