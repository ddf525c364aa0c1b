"""One registration in either way: what it costs, and where it ends."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.registration import ours, reference
from benchmarks.registration.cases import Case, embedded_template
from benchmarks.registration.clock import Clock
from mrmill.config import Register
from mrmill.reasons import Rejected
from mrmill.register.engines import Found
from mrmill.register.transforms import RigidTransform, read_transform, write_transform

REFERENCE = "reference"
SEEDS = (42, 1, 2, 3)  # of ours; the reference runs with the first


class Bench:
    """Measures single registrations, with what a job has ready before its first."""

    def __init__(self) -> None:
        self.atlas_file, self.atlas = embedded_template()
        self._warm: set[tuple[Any, ...]] = set()

    def measured(self, case: Case, method: str, seed: int) -> dict[str, Any]:
        """Register once and return what it cost and how far from the truth it came."""
        row: dict[str, Any] = {"kind": case.kind, "rigid": case.rigid}
        try:
            if method == REFERENCE:
                found, clock = self._by_reference(case)
            else:
                settings = Register(engine=method, seed=seed)
                self._warm_up(case, settings)
                result, clock = self._by_us(case, settings)
                found = result.transform
                row |= {"found_by": result.engine, "quality": result.quality}
        except Rejected as rejected:
            return row | {"rejected": str(rejected)}
        errors = case.errors_mm(found)
        return row | {
            "cpu_s": {part: round(seconds, 4) for part, seconds in clock.cpu_s.items()},
            "tre_mm": {
                "mean": round(float(errors.mean()), 4),
                "max": round(float(errors.max()), 4),
            },
            "matrix": found.matrix.tolist(),
        }

    def _warm_up(self, case: Case, settings: Register) -> None:
        """Run compiled code once on the same types of voxels: loading it is done once per job."""
        types = case.fixed.volume.data.dtype, case.moving.volume.data.dtype
        key = (settings.engine, case.onto_template, *types)
        if settings.engine != "ants" and key not in self._warm:
            self._by_us(case, settings)
            self._warm.add(key)

    def _by_us(self, case: Case, settings: Register) -> tuple[Found, Clock]:
        moving = case.moving_file, case.moving_brain_file
        with tempfile.TemporaryDirectory(prefix="mrmill-") as folder:
            if case.onto_template:
                masks = [case.moving_brain_file] * 2
                return ours.register_center(moving, masks, case.fixed, settings, Path(folder))
            fixed = case.fixed_file, case.fixed_brain_file
            to_center = self._atlas_to_center(case)
            return ours.register_series(
                fixed, moving, self.atlas, to_center, settings, Path(folder)
            )

    def _by_reference(self, case: Case) -> tuple[RigidTransform, Clock]:
        with tempfile.TemporaryDirectory(prefix="mrmill-") as name:
            folder = Path(name)
            if case.onto_template:
                atlas = reference.ants.image_read(str(case.fixed_file))
                masks = [case.moving_brain_file] * 2
                clock = reference.register_center(case.moving_file, masks, atlas, folder)
            else:
                atlas = reference.ants.image_read(str(self.atlas_file))
                to_center = folder / "center.mat"
                write_transform(to_center, self._atlas_to_center(case))
                clock = reference.register_series(
                    case.fixed_file, case.moving_file, atlas, to_center, folder
                )
            return read_transform(folder / "transform.mat"), clock

    def _atlas_to_center(self, case: Case) -> RigidTransform:
        """Lay the middles of the brains over each other: any transform costs the same to apply."""
        return ours.between_brains(self.atlas, case.fixed)
