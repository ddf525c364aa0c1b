"""What registration works on: an image, and where its brain is."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mrmill.volumes import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrmill.register.levels import Sight


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

    @cached_property
    def value_range(self) -> tuple[float, float]:
        """Least and greatest value; NaN where there is one; looked up once."""
        return float(self.volume.data.min()), float(self.volume.data.max())

    @cached_property
    def sight(self) -> "Sight":
        """What the `mattes` engine and the measures of quality look at; made once."""
        from mrmill.register.levels import Sight

        return Sight.of(self)

    @cached_property
    def brain_only(self) -> "Scan":
        """The scan with everything outside the brain set to 0; made once."""
        return Scan(Volume(self.volume.data * self.brain, self.volume.affine), self.brain)
