"""Engine `auto`: `mattes`, and the published recipe from several starts where that is in doubt."""

import logging
from typing import TYPE_CHECKING

from mrmill.reasons import Rejected
from mrmill.register.engines import Found, ants, mattes
from mrmill.register.quality import measured, problems
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform

if TYPE_CHECKING:
    from mrmill.config import Register

log = logging.getLogger(__name__)


def find(fixed: Scan, moving: Scan, settings: "Register", same_head: bool = True) -> Found:
    """Find a pose by `mattes`; if its measures are outside the limits, try the recipe as well.

    The recipe starts between the centers of mass, as published, from the headers and from the
    pose in doubt. Of all that was found the one with the least problems is returned, and of equal
    ones that with the greatest metric of the recipe itself.
    """
    found = measured(mattes.find(fixed, moving, settings, same_head), fixed, moving)
    limits = settings.coreg_limits if same_head else settings.atlas_limits
    if not (doubts := problems(found.quality, limits)):
        return found
    log.info("%s: trying the published recipe from several starts", doubts[0])
    rivals = [found]
    for start in (None, RigidTransform(), found.transform):
        try:
            rival = ants.find(fixed, moving, settings, same_head, start)
        except Rejected:
            continue
        rivals.append(measured(rival, fixed, moving))

    def worth(rival: Found) -> tuple[int, int, float]:
        seen = problems(rival.quality, limits)
        return -sum(p.fails for p in seen), -len(seen), rival.quality["metric"]

    return max(rivals, key=worth)
