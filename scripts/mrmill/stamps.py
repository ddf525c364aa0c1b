"""Stamps of files: what tells, without reading them, that they are still what was planned."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


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


def digest_of_content(series: Mapping[str, Any]) -> str:
    """Return one digest of the bytes of a planned series, whatever the times of its files.

    Raises
    ------
    OSError
        When one of them is gone or out of reach.
    """
    paths = [Path(series["folder"], name) for name in series["files"]]
    paths += [Path(series["sidecar"])] if series.get("sidecar") else []
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def without_stamps(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's entry of the plan without what its files look like: it redoes nothing."""
    return {name: value for name, value in study.items() if name != "stamps"}
