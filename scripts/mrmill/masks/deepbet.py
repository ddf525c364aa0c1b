"""Brain masks from deepbet (Fisch et al. 2024): weights in its wheel, any CPU."""

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from mrmill.volumes import Volume

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

log = logging.getLogger(__name__)


class DeepBet:
    """deepbet's two networks, trained on T1w and used here for every contrast.

    Parameters
    ----------
    device : torch.device
        deepbet itself only knows "no GPU" and "the one there is".
    """

    name = "deepbet"

    def __init__(self, device: "torch.device") -> None:
        from deepbet.bet import BrainExtraction

        self.version = version("deepbet")
        self._network = BrainExtraction(no_gpu=device.type == "cpu")

    def __call__(self, volume: Volume) -> "NDArray[np.uint8]":
        """Return the brain mask of a volume, on its grid.

        deepbet turns the voxel axes to RAS+ for its networks and the mask back again.
        """
        import nibabel as nib

        image = nib.Nifti1Image(volume.data, volume.affine)
        try:
            _, mask, _ = self._network.run(image)
        except (AssertionError, ValueError) as error:
            # deepbet has no other way to say that it sees no brain
            log.info("deepbet sees no brain (%s)", type(error).__name__)
            return np.zeros(volume.data.shape, np.uint8)
        return np.asarray(mask.dataobj).astype(np.uint8)
