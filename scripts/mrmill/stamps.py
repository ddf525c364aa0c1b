"""Stamps of files: what tells, without reading them, that they are still what was planned."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def digest_of_stamps(stamps: Iterable[tuple[str, int, int]]) -> str:
    """Return one digest of the name, size and modification time (ns) of every file."""
    lines = "".join(f"{name} {size} {mtime_ns}\n" for name, size, mtime_ns in stamps)
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def digest_of_files(folder: Path, names: Iterable[str]) -> str:
    """Return the digest of files as they are now.

    Raises
    ------
    OSError
        When one of them is gone or out of reach.
    """
    found = ((name, (folder / name).stat()) for name in names)
    return digest_of_stamps((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
