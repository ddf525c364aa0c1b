"""The register stage: moving series to the study's center, and all series to the atlas."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrmill import layout
from mrmill.reasons import ACCEPTED, Rejected
from mrmill.records import Outcome
from mrmill.registration import (
    Atlas,
    RigidTransform,
    Scan,
    measure,
    register,
    resample,
    write_transform,
)
from mrmill.shards import Study, guarded
from mrmill.volumes import Volume, read_volume, write_volume

if TYPE_CHECKING:
    from mrmill.config import Register

log = logging.getLogger(__name__)

WHY = ("state", "reason", "found", "limit", "error")


def register_study(
    study: Study,
    scratch: Path,
    settings: "Register",
    atlas: Atlas | None,
    spaces: Collection[str] = ("coreg", "atlas"),
) -> Outcome:
    """Register one study's defaced series; every failure stays with its series and space.

    Parameters
    ----------
    scratch : Path
        Gets `coreg/...` and `atlas/...`, below them the members of the two study folders. The
        center's own copies in coreg space are not made here.
    atlas : Atlas or None
        None only where `spaces` leaves the atlas out.
    spaces : collection of str
        Without "atlas" its work is left out; co-registration is always done, because the way
        of a moving series to the atlas leads through the center.

    Returns
    -------
    outcome : Outcome
        Accepted; per series one entry for each space, with `files`, and for each transform
        found `quality` (see `registration.measure`) and `matrix` (RAS+ 4x4, from points of the
        center or atlas to points of the series).
    """
    series = study.upstream["deface"].outcome.accepted_series()
    center = next(entry for entry in series if entry["is_center_modality"])
    work = _Work(study.study_uid, study.folders["deface"], scratch, settings, center)
    entries = [{**_entry(center, "coreg"), "state": ACCEPTED, "reason": ""}]
    if "atlas" in spaces:
        entries.append(work.center_to_atlas(atlas))
    for moving in series:
        if moving is not center:
            entries += work.moving(moving, atlas, entries[1] if "atlas" in spaces else None)
    return Outcome(series=entries)


def _entry(series: dict[str, Any], space: str) -> dict[str, Any]:
    kept = {name: series[name] for name in ("series_key", "series_id", "is_center_modality")}
    return {**kept, "space": space, "files": {}}
