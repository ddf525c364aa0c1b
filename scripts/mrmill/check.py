"""Look before a run: what is missing, and what to do about it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mrmill.config import Config
from mrmill.errors import UserError
from mrmill.identity import IdentityError, load_key

#: Work and release together hold at most about this many times the bytes of the export:
#: converted and defaced images, three spaces, two of them float32 (measured on MR-RATE's sizes:
#: 8.2 TB native, 17.6 TB co-registered, 12.3 TB atlas).
BYTES_PER_INPUT_BYTE = 6

#: Larger exports are sized by this many files: a look before a run must stay a look.
MAX_COUNTED_FILES = 100_000

#: Less free space than this stops even a small run.
MIN_FREE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes
    ----------
    level : {'ok', 'warning', 'problem'}
        A problem stops a run.
    """

    level: str
    what: str
    advice: str = ""


def check(config: Config) -> list[Finding]:
    """Return what was found about input, tools, models, key and disks, problems first."""
    findings = [
        *_input(config),
        *_tools(config),
        *_masks(config),
        *_atlas(config),
        *_key(config),
        *_disks(config),
    ]
    return sorted(findings, key=lambda f: ("problem", "warning", "ok").index(f.level))


def _input(config: Config) -> Iterator[Finding]:
    path = config.input.path
    if path.exists():
        yield Finding("ok", f"input {path}")
    else:
        yield Finding("problem", f"input.path {path} does not exist", "mend input.path")
    table = config.input.series_table
    if table and not table.is_file():
        yield Finding("problem", f"input.series_table {table} does not exist", "mend the path")


def _tools(config: Config) -> Iterator[Finding]:
    if config.input.kind != "dicom":
        return
    try:
        import dcm2niix

        yield Finding("ok", f"dcm2niix {dcm2niix.__version__}")
    except ImportError:
        yield Finding("problem", "dcm2niix is not installed", "pip install dcm2niix")


def _masks(config: Config) -> Iterator[Finding]:
    if config.input.kind == "release":
        return
    from mrmill.deface import read_decisions
    from mrmill.masks import MaskerError, require_device
    from mrmill.masks.hdbet import require_model

    backend, device = config.deface.backend, config.deface.device
    try:
        if backend == "hdbet":
            require_model(config.deface.weights)
        yield Finding("ok", f"brain masks by {backend}")
    except MaskerError as error:
        yield Finding(
            "problem", str(error), "`deface.weights` is the folder of the HD-BET v2 model"
        )
    try:
        require_device(device, threads=1)
        yield Finding("ok", f"device {device}")
    except MaskerError as error:  # a login node has none, and needs none
        yield Finding("warning", str(error), "jobs on a machine without it fail at once")
    try:
        read_decisions(config.deface.decisions)
    except (UserError, OSError, KeyError) as error:
        yield Finding("problem", f"deface.decisions: {error}", "mend the table")


def _atlas(config: Config) -> Iterator[Finding]:
    if not {"coreg", "atlas"} & set(config.spaces):
        return
    from mrmill.registration import AtlasError, load_atlas

    try:
        atlas = load_atlas(config.register_)
        yield Finding("ok", f"atlas {atlas.name}, sha256 {atlas.sha256[:12]}")
    except AtlasError as error:
        yield Finding("problem", str(error), "`embedded` needs no file")


def _key(config: Config) -> Iterator[Finding]:
    if config.input.kind == "release":
        return
    try:
        load_key(config.identity.key_file)
        yield Finding("ok", f"pseudonym key {config.identity.key_file}")
    except IdentityError as error:
        yield Finding("problem", str(error), "`mrmill plan --new-key` makes one")


def _disks(config: Config) -> Iterator[Finding]:
    needed = max(MIN_FREE_BYTES, BYTES_PER_INPUT_BYTE * _size(config.input.path))
    for name in ("work", "release"):
        path = getattr(config, name)
        there = next(p for p in (path, *path.parents) if p.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding("problem", f"{name} {path} cannot be written", "choose another folder")
            continue
        free = shutil.disk_usage(there).free
        text = f"{name} {path}: {free / 1e9:.0f} GB free, at least {needed / 1e9:.0f} GB needed"
        if free < MIN_FREE_BYTES:
            yield Finding("problem", text, "make room, or choose another disk")
        else:
            yield Finding("ok" if free > needed else "warning", text)


def _size(path: Path) -> int:
    """Bytes of a file tree, or of its first `MAX_COUNTED_FILES` files."""
    files = (p for p in path.rglob("*") if p.is_file())
    return sum(p.stat().st_size for p in islice(files, MAX_COUNTED_FILES))
