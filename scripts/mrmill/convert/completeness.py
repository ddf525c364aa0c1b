"""How many pictures a series should have, as far as its headers tell.

A gap shows in the positions (`mrmill.convert.slices`); a first or last slice that is missing
shows only where a header counts. No count can be trusted alone: series are split in an archive,
slabs overlap, an acquisition fills two series. So two have to agree before a series is refused.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mrmill.convert.instances import Instance, value_of, whole
from mrmill.reasons import Rejected

#: A count says that pictures are missing, but none of the others says the same.
WARNING = "maybe_incomplete"

#: Slices of a volume: Philips NumberOfSlicesMR, GE LocationsInAcquisition.
COUNTS = (0x20011018, 0x0021104F)

#: Siemens' protocol, before and since XA; inside it slices (2D) or slabs, and slices of a slab.
PROTOCOLS = (0x00291020, 0x00211019)
SLICES = rb"sSliceArray\.lSize\s*=\s*(0x[0-9a-f]+|\d+)"
SLAB = rb"sKSpace\.lImagesPerSlab\s*=\s*(0x[0-9a-f]+|\d+)"
DIMENSION = rb"sKSpace\.ucDimension\s*=\s*(0x[0-9a-f]+|\d+)"
SIEMENS_3D = 4


def check_counts(instances: Sequence[Instance]) -> list[str]:
    """Hold the number of pictures against the counts in the headers.

    Parameters
    ----------
    instances : sequence of Instance
        All files of a series. Multi-frame files count their pictures themselves.

    Returns
    -------
    warnings : list of str
        `maybe_incomplete` where a single count asks for more pictures than there are.

    Raises
    ------
    Rejected
        `incomplete` when two counts agree on the same larger number.
    """
    n_here = len(instances)
    if any(len(instance.planes) > 1 for instance in instances):
        return []
    counts = [_last_number(instances), _n_acquired(instances), _n_prescribed(instances)]
    larger = Counter(count for count in counts if count > n_here)
    agreed = [count for count, n_times in larger.items() if n_times > 1]
    if agreed:
        raise Rejected("incomplete", f"{n_here} pictures", f"{agreed[0]} pictures in the header")
    return [WARNING] if larger else []


def _last_number(instances: Sequence[Instance]) -> int:
    """Return the last InstanceNumber; 0 where they do not count the pictures of the series."""
    numbers = {instance.number for instance in instances}
    return max(numbers) if len(numbers) == len(instances) else 0


def _n_acquired(instances: Sequence[Instance]) -> int:
    """Return ImagesInAcquisition; 0 where the files disagree or belong to several."""
    counts = {instance.n_acquired for instance in instances}
    return counts.pop() if len(counts) == 1 else 0


def _n_prescribed(instances: Sequence[Instance]) -> int:
    """Return the slices of a volume, times the pictures of each slice; 0 where unknown."""
    if instances[0].is_mosaic:
        return 0
    n_slices = prescribed_slices(instances[0].path)
    planes = [plane for instance in instances for plane in instance.planes]
    if not n_slices or None in planes:
        return 0
    places = Counter(tuple(plane.corners.round(1).ravel()) for plane in planes)
    return n_slices * max(places.values())


def prescribed_slices(path: Path) -> int:
    """Return how many slices the vendor's own elements say a volume has; 0 where they do not."""
    from pydicom import dcmread

    tags = [*COUNTS, *PROTOCOLS]
    header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
    for tag in COUNTS:
        if count := whole(value_of(header, tag)):
            return count
    for tag in PROTOCOLS:
        if isinstance(protocol := value_of(header, tag), bytes):
            return _of_protocol(protocol)
    return 0


def _of_protocol(text: bytes) -> int:
    """Return the slices that a Siemens protocol asks for; 0 where it does not say."""
    found = [re.search(pattern, text) for pattern in (SLICES, SLAB, DIMENSION)]
    if None in found:
        return 0
    slices, of_slab, dimension = (int(match[1], 0) for match in found if match)
    return slices * of_slab if dimension == SIEMENS_3D else slices
