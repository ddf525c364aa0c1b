"""Stage convert: the series of a study become clean volumes, every one of them accounted for.

A DICOM series goes through dcm2niix, and what comes out is held against the instances that went
in: as many slices as instances, every slice where its own header says it is. A series may come
out as several images; the plain magnitude of the first echo goes on, once for every grid (a
localizer in three planes goes on three times), and the others are recorded as `extra_output`.
Where that rule does not single one out, none does.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mrmill.config import Convert
from mrmill.converter import Output, run_dcm2niix
from mrmill.reasons import ACCEPTED, REJECTED, Rejected
from mrmill.records import Outcome
from mrmill.shards import Study, guarded
from mrmill.slices import Instance, check_stack, read_instance
from mrmill.volumes import Volume, as_released, read_volume, write_volume

log = logging.getLogger(__name__)

Entry = dict[str, Any]


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
    return study_outcome(
        [entry for series in plan["series"] for entry in convert_series(series, scratch, settings)]
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
        if series["kind"] == "dicom":
            return _from_dicom(series, entry, scratch, settings)
        _from_nifti(series, entry, scratch, settings)
    return [entry]


def _not_touched(series: dict[str, Any], reason: str) -> Entry:
    key = series["series_key"]
    return {"series_key": key, "source": key, "state": REJECTED, "reason": reason}


def _from_nifti(series: dict[str, Any], entry: Entry, scratch: Path, settings: Convert) -> None:
    """Rewrite a NIfTI image without anything but voxels and geometry."""
    from mrmill.headers import load_columns, sidecar_header

    columns = load_columns(settings.header_columns)
    sidecar, warnings = _sidecar(Path(series["sidecar"])) if series.get("sidecar") else ({}, [])
    entry.update(warnings=warnings, header=sidecar_header(sidecar, series["table"], columns))
    (name,) = series["files"]
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
    from mrmill.headers import dicom_header, load_columns, with_series_table

    columns = load_columns(settings.header_columns)

    def header_of(path: Path) -> dict[str, Any]:
        return with_series_table(dicom_header(path, columns), series["table"], columns)

    files = [Path(series["folder"], name) for name in sorted(series["files"])]
    entry["n_sop"] = series["n_sop"]
    with TemporaryDirectory(dir=scratch, prefix=".dcm2niix-") as folder:
        conversion = run_dcm2niix(files, Path(folder), settings.timeout_s)
        entry.update(conversion.facts)
        log.info("series %s: %s", entry["series_key"], conversion.facts)
        if not conversion.outputs:
            raise Rejected("not_converted", f"exit code {entry['exit_code']}", "an image")
        instances = [read_instance(file) for file in files]
        return _entries(conversion.outputs, instances, entry, scratch, header_of)


def _entries(
    outputs: list[Output],
    instances: list[Instance],
    common: Entry,
    scratch: Path,
    header_of: Callable[[Path], dict[str, Any]],
) -> list[Entry]:
    """Account for every output of a series; write those that go on.

    Parameters
    ----------
    common : dict
        What holds for the series as a whole.
    header_of : callable
        Reads the header record from a file of the series.
    """
    kept = going_on(outputs)
    n_found = sum(output.n_instances for output in outputs if not output.is_copy)
    n_expected = common["n_sop"] + sum(len(instance.planes) - 1 for instance in instances)
    entries = []
    for number, output in enumerate([*kept, *(o for o in outputs if o not in kept)], start=1):
        key = common["source"] if number == 1 else f"{common['source']}-{number}"
        entry = {**common, "series_key": key, "suffix": output.suffix, "n_slices": output.n_slices}
        entries.append(entry)
        with guarded(entry):
            if n_found != n_expected:
                raise Rejected("incomplete", f"{n_found} slices", f"{n_expected} instances")
            if output not in kept:
                raise Rejected("extra_output", f"{len(outputs)} images", "the plain magnitude")
            volume = read_volume(output.path)
            if not output.is_mosaic:
                check_stack(volume, output.slice_axis, instances)
            entry["header"] = header_of(output.first_of(instances).path)
            _write(volume, entry, scratch)
    return entries


def _write(volume: Volume, entry: Entry, scratch: Path) -> None:
    """Write a volume under the entry's key and record its grid."""
    entry["file"] = f"{entry['series_key']}.nii.gz"
    entry["shape"] = list(volume.data.shape)
    entry["spacing_mm"] = volume.spacing_mm.round(6).tolist()
    entry["affine"] = volume.affine.tolist()
    write_volume(scratch / entry["file"], as_released(volume.data), volume.affine)


def going_on(outputs: Sequence[Output]) -> list[Output]:
    """Choose the outputs of a series that go on: on every grid, the one plain image.

    Plain is the magnitude before phase, real and imaginary parts, then the shortest echo time.
    Two that are equally plain make the grid's choice ambiguous: none of them goes on.
    """
    grids: list[list[Output]] = []
    for output in outputs:
        if not output.is_copy:
            home = next((grid for grid in grids if grid[0].shares_grid_with(output)), None)
            grids.append([output]) if home is None else home.append(output)
    kept = []
    for grid in grids:
        ranks = [(output.part != "M", output.echo_time_ms) for output in grid]
        if ranks.count(min(ranks)) == 1:
            kept.append(grid[ranks.index(min(ranks))])
    return kept
