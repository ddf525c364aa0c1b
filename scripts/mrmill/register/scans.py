"""What registration works on: an image, and where its brain is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrmill.volumes import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Scan:
    """A volume and where its brain is.

    Attributes
    ----------
    volume : Volume
        The image.
    brain : (I, J, K) ndarray of bool
        Brain mask on the grid of the image.
    """

    volume: Volume
    brain: "NDArray[np.bool_]"

    def brain_only(self) -> "Scan":
        """Return the scan with everything outside the brain set to 0."""
        return Scan(Volume(self.volume.data * self.brain, self.volume.affine), self.brain)
