"""The register stage: moving series to the study's center, and all series to the atlas."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrmill import layout
from mrmill.decisions import ADMIT, REJECT, Decisions
from mrmill.profile.steps import step
from mrmill.provenance import engine_versions
from mrmill.reasons import ACCEPTED, REJECTED, Rejected
from mrmill.records import Outcome
from mrmill.register.atlas import Atlas
from mrmill.register.engines import find
from mrmill.register.quality import NEEDS_REVIEW, REG_FAILED, Problem, problems, state
from mrmill.register.resampling import resample
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform, description, write_transform
from mrmill.shards import Study, guarded
from mrmill.volumes import read_volume, write_volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrmill.config import Register

Entry = dict[str, Any]

#: What a series that is held back in coreg space hands on to its entry in atlas space.
WHY = ("state", "reason", "found", "limit", "error")

#: Reason to hold back a series whose transform is in that state; the same for a center.
REASONS = {NEEDS_REVIEW: "reg_needs_review", REG_FAILED: "reg_failed"}
OF_CENTER = {reason: f"center_{reason}" for reason in REASONS.values()}


def register_study(
    study: Study,
    scratch: Path,
    settings: "Register",
    atlas: Atlas | None,
    decisions: Decisions,
) -> Outcome:
    """Register one study's defaced series; a failure stays with its series and space.

    Parameters
    ----------
    scratch : Path
        Gets `coreg/...` and `atlas/...`, below them the members of the two study folders. The
        center's own copies in coreg space are not made here.
    atlas : Atlas or None
        None leaves atlas space out.
    decisions : dict
        What a person decided (`mrmill.decisions`): about a moving series' transform to the center,
        about the center's to the atlas.

    Returns
    -------
    outcome : Outcome
        Accepted; per series one entry for each space. An entry has `files` (kind -> name below
        `scratch`); where a transform was found also `engine` (the one that found it), `quality`
        (`quality.measure`), `fit` (`quality.state`), `matrix` (RAS+ 4x4, takes points of the
        center or atlas to points of the series) and `about`, what else its description says
        (`describe_fit`); `review`, what a person decided, if one did.
        Files of a series that does not fit are there too, for the person who looks.
    """
    series = study.upstream["deface"].outcome.accepted_series()
    center = next(entry for entry in series if entry["is_center_modality"])
    work = _Work(
        study.study_uid,
        study.folders["deface"],
        scratch,
        settings,
        atlas,
        decisions.get(study.study_uid, {}),
        center,
        _read(study.folders["deface"], center),
    )
    entries = work.center_series()
    for moving in series:
        if moving is not center:
            entries += work.moving_series(moving)
    return Outcome(series=entries)


@dataclass
class _Work:
    """One study under registration.

    Attributes
    ----------
    decided : dict
        series_id -> `admit` or `reject`.
    scan : Scan
        The center.
    to_center : RigidTransform or None
        From the atlas to the center, once it is found and good.
    off_atlas : tuple of str
        Why there is none: reason, value found, limit.
    """

    study_uid: str
    deface: Path
    scratch: Path
    settings: "Register"
    atlas: Atlas | None
    decided: dict[str, str]
    center: Entry
    scan: Scan
    to_center: RigidTransform | None = None
    off_atlas: tuple[str, str, str] = ("center_reg_failed", "", "")

    def center_series(self) -> list[Entry]:
        """Register the center's brain to the atlas's and write the center and its masks there.

        Brain to brain, because the template may have no skull and the center has no face: on a
        glioma patient this came nearer to the template (Dice of the brains 0.910 against 0.906
        with the whole head) and took a quarter less time.
        """
        coreg, in_atlas = _entry(self.center, "coreg"), _entry(self.center, "atlas")
        coreg |= {"state": ACCEPTED, "reason": ""}
        if self.atlas is None:
            return [coreg]
        uid, center_id = self.study_uid, self.center["series_id"]
        with guarded(in_atlas):
            found = self._fit(in_atlas, self.atlas.brain_only, self.scan.brain_only)
            self._save_transform(in_atlas, layout.atlas_transform(center_id), found)
            with step("resample"):
                image = resample(self.scan.volume, self.atlas.volume, found)
            self._save_image(in_atlas, "img", layout.atlas_image(uid, center_id), image)
            for kind in ("brain", "defacing"):
                with step("read"):
                    mask = read_volume(self.deface / self.center["files"][kind])
                with step("resample"):
                    mask = resample(mask, self.atlas.volume, found, order=0)
                self._save_image(in_atlas, kind, layout.atlas_mask(uid, center_id, kind), mask)
            self._refuse(in_atlas)
            self.to_center = found
        if in_atlas["state"] == REJECTED:
            in_atlas["reason"] = OF_CENTER.get(in_atlas["reason"], in_atlas["reason"])
            self.off_atlas = tuple(in_atlas[name] for name in ("reason", "found", "limit"))
        return [coreg, in_atlas]

    def moving_series(self, series: Entry) -> list[Entry]:
        """Register a series to the center and sample it, from its own grid, in each space."""
        coreg, in_atlas = _entry(series, "coreg"), _entry(series, "atlas")
        uid, series_id = self.study_uid, series["series_id"]
        with guarded(coreg):
            moving = _read(self.deface, series)
            found = self._fit(coreg, self.scan, moving)
            self._save_transform(coreg, layout.coreg_transform(series_id), found)
            with step("resample"):
                image = resample(moving.volume, self.scan.volume, found)
            self._save_image(coreg, "img", layout.coreg_image(uid, series_id), image)
            self._refuse(coreg)
        if self.atlas is None:
            return [coreg]
        if coreg["state"] != ACCEPTED:
            return [coreg, in_atlas | {name: coreg[name] for name in WHY if name in coreg}]
        with guarded(in_atlas):
            if self.to_center is None:
                raise Rejected(*self.off_atlas)
            with step("resample"):
                image = resample(moving.volume, self.atlas.volume, self.to_center.then(found))
            self._save_image(in_atlas, "img", layout.atlas_image(uid, series_id), image)
        return [coreg, in_atlas]

    def _fit(self, entry: Entry, fixed: Scan, moving: Scan) -> RigidTransform:
        """Register two scans, unless a person ruled that out, and note how well they fit then."""
        if decision := self.decided.get(entry["series_id"]):
            entry["review"] = decision
        if decision == REJECT:
            raise Rejected("review_rejected")
        with step("search"):
            found = find(fixed, moving, self.settings, same_head=entry["space"] == "coreg")
        entry["engine"], entry["quality"] = found.engine, found.quality
        entry["fit"] = state(self._problems(entry))
        entry["matrix"] = found.transform.matrix.tolist()
        return found.transform

    def _problems(self, entry: Entry) -> list[Problem]:
        limits = {"coreg": self.settings.coreg_limits, "atlas": self.settings.atlas_limits}
        return problems(entry["quality"], limits[entry["space"]])

    def _refuse(self, entry: Entry) -> None:
        """Refuse a transform whose measures are outside their limits, unless a person admits it.

        Comes after the files are written, because a person decides by looking at them.
        """
        seen = self._problems(entry)
        if seen and entry.get("review") != ADMIT:
            found, limit = ("; ".join(getattr(p, n) for p in seen) for n in ("found", "limit"))
            raise Rejected(REASONS[entry["fit"]], found, limit)

    def _save_transform(self, entry: Entry, member: str, transform: RigidTransform) -> None:
        """Write a transform, and note what else its description says."""
        entry["files"]["transform"] = name = f"{entry['space']}/{member}"
        write_transform(self.scratch / name, transform)
        in_atlas = entry["space"] == "atlas"
        entry["about"] = {
            "fixed": self.atlas.described()
            if in_atlas
            else {"series_id": self.center["series_id"]},
            "moving": {"series_id": entry["series_id"]},
            "study_uid": self.study_uid,
            "engine": {"asked": self.settings.engine, "found_by": entry["engine"]},
            "seed": self.settings.seed,
            "versions": engine_versions(self.settings.engine),
        }

    def _save_image(self, entry: Entry, kind: str, member: str, data: "NDArray") -> None:
        entry["files"][kind] = name = f"{entry['space']}/{member}"
        grid = self.scan.volume if entry["space"] == "coreg" else self.atlas.volume
        with step("write"):
            write_volume(self.scratch / name, data, grid.affine)


def describe_fit(entry: Entry) -> bytes:
    """Return the JSON that tells what the transform of an entry is and how well it fits."""
    told = {"quality": entry["quality"], "state": entry["fit"]}
    reviewed = {"review": entry["review"]} if "review" in entry else {}
    transform = RigidTransform(np.array(entry["matrix"]))
    return description(transform, **entry["about"], **told, **reviewed)


def _read(folder: Path, series: Entry) -> Scan:
    with step("read"):
        brain = read_volume(folder / series["files"]["brain"])
        return Scan(read_volume(folder / series["files"]["img"]), brain.data > 0)


def _entry(series: Entry, space: str) -> Entry:
    kept = {name: series[name] for name in ("series_key", "series_id", "is_center_modality")}
    return {**kept, "space": space, "files": {}}
