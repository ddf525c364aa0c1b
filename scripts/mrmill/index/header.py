"""The header of a DICOM file, as far as grouping needs it: what the file is and whose."""

import struct
from functools import cache
from typing import Any, BinaryIO
from warnings import catch_warnings, simplefilter

from mrmill.index.scan import MEDIA_DIRECTORY, Unusual, scan

#: What is read of a header, in the order of the file.
TAGS = {
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "StudyDate": 0x00080020,
    "AccessionNumber": 0x00080050,
    "Modality": 0x00080060,
    "PatientID": 0x00100020,
    "IssuerOfPatientID": 0x00100021,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SeriesNumber": 0x00200011,
    "NumberOfFrames": 0x00280008,
}
WANTED = frozenset(TAGS.values())

#: Status of a file; all but `OK` are reasons to pass it over.
OK, NOT_DICOM, UNREADABLE, DICOMDIR, NO_UID = "ok", "not_dicom", "unreadable", "dicomdir", "no_uid"

#: Bytes of a first look at a file, enough for most scanners, and of a second.
LOOK_BYTES = (8 * 1024, 256 * 1024)

#: Places in a header of what no file may lack.
UIDS = [place for place, name in enumerate(TAGS) if name.endswith("InstanceUID")]

Header = tuple[str | None, ...]


def read_header(path: str) -> Header:
    """Tell what a file is and whose.

    Returns
    -------
    status : str
    *values : str or None
        As in `TAGS`, stripped; None where absent or empty.

    Raises
    ------
    OSError
        If the file cannot be opened, which says nothing about what it is.
    """
    with open(path, "rb", buffering=LOOK_BYTES[0]) as file:  # noqa: PTH123 (a Path costs as much)
        start = b""
        for n_bytes in LOOK_BYTES:
            start += file.read(n_bytes - len(start))
            if start[128:132] != b"DICM":
                break
            try:
                found = scan(start, WANTED)
            except struct.error:  # the header is longer
                continue
            except (Unusual, RecursionError):
                break
            return _header([_text(found.get(tag)) for tag in TAGS.values()])
        return read_with_pydicom(file)


def read_with_pydicom(file: BinaryIO) -> Header:
    """Tell of an open file what `read_header` tells, whatever way it is made in."""
    from pydicom.filereader import read_partial

    tags = _tags()
    complete = False

    def after_last(tag: int, vr: str | None, length: int) -> bool:
        nonlocal complete
        complete = tag > tags[-1]
        return complete

    file.seek(0)
    start = file.read(132)
    with_preamble = start[128:] == b"DICM"
    if not start:  # a copy that failed
        return nothing(UNREADABLE)
    if not with_preamble and start[:2] not in (b"\2\0", b"\x08\0"):
        return nothing(NOT_DICOM)
    file.seek(0)
    try:
        with catch_warnings():
            simplefilter("ignore")  # pydicom quotes the values it warns about
            header = read_partial(file, after_last, force=True, specific_tags=tags)
            media = header.file_meta.get("MediaStorageSOPClassUID")
            raw = (header.get_item(tag) if tag in header else None for tag in tags)
            values = [_text(None if element is None else element.value) for element in raw]
    except Exception:  # broken files raise whatever the parser stumbles over
        return nothing(UNREADABLE if with_preamble else NOT_DICOM)
    if media == MEDIA_DIRECTORY.decode():
        return nothing(DICOMDIR)
    if not with_preamble and not any(values[place] for place in UIDS):
        return nothing(NOT_DICOM)
    return _header(values) if complete else nothing(UNREADABLE)


def _header(values: list[str | None]) -> Header:
    """Return the header of a file that was read to its last wanted element."""
    if not any(values):  # every stored object has some of them
        return nothing(UNREADABLE)
    return (OK if all(values[place] for place in UIDS) else NO_UID, *values)


def nothing(status: str) -> Header:
    """Return the header of a file of which only the status is known."""
    return (status, *[None] * len(TAGS))


@cache
def _tags() -> list[Any]:
    """Return the tags in pydicom's own type, which spares it a conversion per comparison."""
    from pydicom.tag import Tag

    return [Tag(tag) for tag in TAGS.values()]


def _text(value: Any) -> str | None:
    """Text of a raw element; bytes of unknown encoding stay different if they are."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            value = value.decode("latin-1")
    return str(value or "").strip("\0 ") or None
