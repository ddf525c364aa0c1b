"""Stage adopt: a study of a native release takes the place of a defaced one.

Nothing is computed anew: the images and masks of the release are put where the deface stage
would have put them, byte for byte. Before that, each is read to its end; masks must lie on their
image's grid, the image must be 0 wherever its defacing mask is, and no header may carry text.
"""

import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from mrmill.layout import native_image, native_mask
from mrmill.profile.steps import step
from mrmill.reasons import ACCEPTED, Rejected
from mrmill.records import Outcome
from mrmill.shards import Study, guarded
from mrmill.verify.zips import header_text
from mrmill.volumes import Volume, read_volume

Entry = dict[str, Any]

#: Opens a member of the study folder by its name.
Opener = Callable[[str], IO[bytes]]

#: A series id of the layout; it becomes a file name, so nothing else may be in it.
SERIES_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

#: Largest difference of two affines on one grid: the rounding of a float32 header, in mm.
GRID_TOLERANCE_MM = 1e-3


def adopt_study(study: Study, scratch: Path) -> Outcome:
    """Take over every series of a released study.

    Parameters
    ----------
    study : Study
        `plan["source"]` is its zip or unpacked folder, `plan["rows"]` its metadata rows.
    scratch : Path
        Gets `img/` and `seg/` with three files per accepted series. Only these names are asked
        for, so no name inside an archive is ever used as a path.

    Returns
    -------
    Outcome
        One entry per row, like those of deface; rejected `no_center` unless exactly one accepted
        series is marked as the center.
    """
    try:
        with members(Path(study.plan["source"]), study.study_uid) as opener:
            entries = [
                _adopt_series(row, study.study_uid, opener, scratch) for row in study.plan["rows"]
            ]
    except BadZipFile:
        raise Rejected("unreadable_image", "a damaged archive", "a zip") from None
    accepted = [entry for entry in entries if entry["state"] == ACCEPTED]
    n_centers = sum(entry["is_center_modality"] for entry in accepted)
    if n_centers == 1:
        return Outcome(series=entries)
    return Outcome.stopped("no_center", entries, f"{n_centers} centers", "one")


def _adopt_series(row: dict[str, Any], study_uid: str, opener: Opener, scratch: Path) -> Entry:
    """Take over the three files of one series; a rejected one leaves no file behind."""
    series_id = row["series_id"]
    entry: Entry = {
        "series_key": series_id,
        "series_id": series_id,
        "is_center_modality": str(row["is_center_modality"]).lower() == "true",
        "SeriesNumber": row.get("SeriesNumber"),
        "row": {name: value for name, value in row.items() if name != "is_center_modality"},
    }
    with guarded(entry):
        if not SERIES_ID.fullmatch(series_id):
            raise Rejected("unreadable_image", "a series id that is no file name", "t1w-raw-axi")
        files = {
            "img": native_image(study_uid, series_id),
            "brain": native_mask(study_uid, series_id, "brain"),
            "defacing": native_mask(study_uid, series_id, "defacing"),
        }
        with _kept_if_accepted([scratch / name for name in files.values()]):
            with step("copy"):
                volumes = {kind: _take(name, kind, opener, scratch) for kind, name in files.items()}
            for kind in ("brain", "defacing"):
                _check_mask(volumes[kind], kind, volumes["img"])
            _check_defaced(volumes["img"], volumes["defacing"])
        entry["files"] = files
    return entry


def _take(name: str, kind: str, opener: Opener, scratch: Path) -> Volume:
    """Copy a member into scratch, read it to its end and see that its header says nothing."""
    import nibabel as nib

    path = scratch / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with opener(name) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (KeyError, FileNotFoundError):
        raise Rejected("unreadable_image", f"{kind} file missing", "three files") from None
    except (BadZipFile, EOFError, zlib.error):
        raise Rejected("unreadable_image", f"{kind} file damaged", "three files") from None
    volume = read_volume(path)
    if places := header_text(nib.load(path)):
        raise Rejected("header_text", f"{kind} file: {', '.join(places)}", "no text")
    return volume


def _check_mask(mask: Volume, kind: str, image: Volume) -> None:
    """Check that a mask lies on the image's grid and holds 0 and 1.

    Raises
    ------
    Rejected
        `bad_geometry`, `empty_mask` or `unreadable_image`.
    """
    same_grid = mask.data.shape == image.data.shape and np.allclose(
        mask.affine, image.affine, rtol=0, atol=GRID_TOLERANCE_MM
    )
    if not same_grid:
        raise Rejected("bad_geometry", f"{kind} mask on another grid", "the image's grid")
    if not mask.data.any():
        raise Rejected("empty_mask", f"{kind} mask without a voxel", "at least one")
    if not np.isin(mask.data, (0, 1)).all():
        raise Rejected("unreadable_image", f"{kind} mask with other values", "0 and 1")


def _check_defaced(image: Volume, defacing: Volume) -> None:
    """Check that what the mask says was removed is gone.

    Raises
    ------
    Rejected
        `not_defaced`.
    """
    n_left = int(np.count_nonzero(image.data[defacing.data == 0]))
    if n_left:
        raise Rejected("not_defaced", f"{n_left} removed voxels are not 0", "all 0")


@contextmanager
def _kept_if_accepted(paths: list[Path]) -> Iterator[None]:
    """Remove files again when the block does not end well."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


@contextmanager
def members(source: Path, study_uid: str) -> Iterator[Opener]:
    """Open a study's zip or unpacked folder, in which a folder named after the study may stand.

    Yields
    ------
    opener : callable
        Name below the study folder -> binary file.

    Raises
    ------
    zipfile.BadZipFile
        When the archive as a whole cannot be read.
    """
    if source.is_dir():
        root = source / study_uid if (source / study_uid).is_dir() else source
        yield lambda name: (root / name).open("rb")
        return
    with ZipFile(source) as archive:
        prefix = f"{study_uid}/"
        nested = any(name.startswith(prefix) for name in archive.namelist())
        yield lambda name: archive.open(prefix * nested + name)
