"""The series of a DICOM study: which files are one, which is the best copy, what the plan says."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from mrmill.stamps import digest_of_stamps

#: No image, though its name has the word: Siemens CSA Non-Image Storage (phoenix reports).
CSA_NON_IMAGE = "1.3.12.2.1107.5.9.1"

#: Fewer series of one slice are more likely what they seem: a scout, a saved screen.
MIN_SLICES = 3


class File(NamedTuple):
    """What grouping needs to know of a file; the names are those of the index.

    Attributes
    ----------
    study : str
        Key of its study, which may have several StudyInstanceUIDs.
    """

    study: str
    SeriesInstanceUID: str
    folder: bytes
    name: bytes
    size: int
    mtime_ns: int
    StudyInstanceUID: str
    SOPClassUID: str | None
    SOPInstanceUID: str
    Modality: str | None
    SeriesNumber: str | None
    NumberOfFrames: str | None


def slices_of_one(series: Mapping[str, Sequence[File]]) -> list[list[str]]:
    """Find series that are slices of one: some scanners give each its own SeriesInstanceUID.

    They have one StudyInstanceUID, SeriesNumber and SOP class, hold one single-frame MR instance
    each, and are at least `MIN_SLICES`. A number that also stands for a larger series is left
    alone: it does not tell series apart.

    Parameters
    ----------
    series : mapping
        SeriesInstanceUID -> its files, copies included, for one study.

    Returns
    -------
    groups : list of list of str
        SeriesInstanceUIDs that belong together, the smallest first.
    """
    same_number: dict[tuple, list[str]] = defaultdict(list)
    for uid, files in series.items():
        first = files[0]
        if first.SeriesNumber is not None:
            number = first.StudyInstanceUID, first.SeriesNumber, first.SOPClassUID
            same_number[number].append(uid)
    return [
        sorted(uids)
        for uids in same_number.values()
        if len(uids) >= MIN_SLICES and all(_is_slice(series[uid]) for uid in uids)
    ]


def _is_slice(files: Sequence[File]) -> bool:
    first = files[0]
    one_frame = first.Modality == "MR" and first.NumberOfFrames in (None, "0", "1")
    return one_frame and all(file.SOPInstanceUID == first.SOPInstanceUID for file in files)


def without_copies(files: Sequence[File]) -> list[File]:
    """Keep one file per instance: the largest, as a broken copy is smaller; sort by place.

    The files are those of one series: some software gives two series the same instance UIDs.
    """
    best: dict[str, File] = {}
    for file in files:
        known = best.setdefault(file.SOPInstanceUID, file)
        if file.size > known.size:
            best[file.SOPInstanceUID] = file
    return sorted(best.values(), key=lambda file: (file.folder, file.name))


def series_entry(files: Sequence[File], table: Mapping[str, str]) -> dict[str, Any]:
    """Return what the plan says about a series; paths are relative to its folder."""
    base = files[0].folder
    if all(file.folder == base for file in files):
        names = [os.fsdecode(file.name) for file in files]
    else:
        base = os.path.commonpath([file.folder for file in files])
        paths = (os.path.join(file.folder, file.name) for file in files)  # noqa: PTH118 (bytes)
        names = [os.fsdecode(os.path.relpath(path, base)) for path in paths]
    stamps = ((name, f.size, f.mtime_ns) for name, f in zip(names, files, strict=True))
    return {
        "kind": "dicom",
        "SeriesInstanceUID": " ".join(sorted({file.SeriesInstanceUID for file in files})),
        "folder": os.fsdecode(base),
        "files": names,
        "n_sop": len(files),
        "sop_class": files[0].SOPClassUID or "",
        "sidecar": "",
        "table": dict(table),
        "digest": digest_of_stamps(stamps),
    }


@cache
def holds_image(sop_class: str) -> bool:
    """Tell whether instances of a SOP class may hold an image; unknown classes may.

    Examples
    --------
    >>> holds_image("1.2.840.10008.5.1.4.1.1.4")  # MR Image Storage
    True
    >>> holds_image("1.2.840.10008.5.1.4.1.1.88.22")  # Enhanced SR Storage
    False
    """
    from pydicom.uid import UID

    name = UID(sop_class).name
    return sop_class != CSA_NON_IMAGE and (name == sop_class or "Image" in name)
