"""Engines: ways to find the rigid transform that lays a moving scan over a fixed one.

Each is one module here with a function `find(fixed, moving, settings, same_head)`; its name is the
word in the configuration. What comes after (measures, resampling, files) knows nothing of engines.
"""

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from mrmill.reasons import Rejected
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform

if TYPE_CHECKING:
    from mrmill.config import Register

#: Larger values are no scanner's, and sums of them more than float32 holds.
MOST_VALUE = 1e35


@dataclass(frozen=True)
class Found:
    """What an engine found.

    Attributes
    ----------
    transform : RigidTransform
        From points of the fixed to points of the moving scan.
    engine : str
        The engine whose transform this is: `auto` hands on another's.
    start : RigidTransform
        The pose from which the last descent began.
    spread_mm : float
        How far apart, over the brain, the optima from different starts lie that are nearly as
        good as this one; 0 for an engine with one start.
    quality : dict
        `mrmill.register.quality.measure`, once it is known.
    """

    transform: RigidTransform
    engine: str
    start: RigidTransform
    spread_mm: float = 0.0
    quality: dict[str, float] = field(default_factory=dict)


def find(fixed: Scan, moving: Scan, settings: "Register", same_head: bool = True) -> Found:
    """Find the rigid transform that lays a moving scan over a fixed one, and measure it.

    Whatever the scans hold, this ends with a transform and its measures, or with `Rejected`.

    Parameters
    ----------
    same_head : bool
        False: the two are of different people, as onto an atlas.

    Raises
    ------
    Rejected
        `reg_failed` for an image of one value, for values that cannot be reckoned with, and when
        the engine gives up.
    """
    from threadpoolctl import threadpool_limits

    from mrmill.register.quality import measured

    for scan in (fixed, moving):
        _refuse_unusable(scan)
    engine = import_module(f"mrmill.register.engines.{settings.engine}")
    # more threads would take other workers' cores, and add up sums in another order
    with threadpool_limits(1, user_api="blas"):
        return measured(engine.find(fixed, moving, settings, same_head), fixed, moving)


def _refuse_unusable(scan: Scan) -> None:
    from mrmill.register.metric import LEAST_RANGE

    low, high = scan.value_range
    if not (high - low > LEAST_RANGE and max(-low, high) < MOST_VALUE):  # NaN is neither
        found = f"values {low:.3g} to {high:.3g}"
        raise Rejected("reg_failed", found, f"two at least, below {MOST_VALUE:.0e}")


def warm_up() -> None:
    """Compile what registration needs, or load what was compiled: forked workers then have it."""
    from mrmill.config import Register
    from mrmill.register.engines import mattes
    from mrmill.register.quality import measure
    from mrmill.register.resampling import resample
    from mrmill.volumes import Volume

    shape = (16, 16, 16)
    values = np.random.default_rng(0).uniform(1, 1000, shape)
    head = [Volume(np.asfortranarray(values, dtype), np.diag((9, 9, 9, 1.0)))
            for dtype in (np.uint16, np.float32)]  # fmt: skip
    scans = [Scan(volume, np.ones(shape, bool)) for volume in head]
    for fixed, moving in (scans, reversed(scans)):
        for same_head in (True, False):
            found = mattes.find(fixed, moving, Register(), same_head)
        measure(found, fixed, moving)
        resample(moving.volume, fixed.volume, found.transform)
    mask = Volume(np.ones(shape, np.uint8, order="F"), head[0].affine)
    resample(mask, mask, found.transform, order=0)
