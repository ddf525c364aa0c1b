"""Brain masks behind one small interface: a volume goes in, a mask on its grid comes out."""

from typing import TYPE_CHECKING, Protocol

from mrmill.config import Deface
from mrmill.errors import UserError
from mrmill.volumes import Volume

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class MaskerError(UserError):
    """A mask network that cannot run here; nothing else is tried in its place."""


class Masker(Protocol):
    """A loaded network.

    Attributes
    ----------
    name, version : str
        Of the backend, as records and the dataset card state them.
    """

    name: str
    version: str

    def __call__(self, volume: Volume) -> "NDArray[np.uint8]":
        """Return the brain mask of a volume: (I, J, K), 1 in the brain, all 0 if none is seen."""
        ...


def make_masker(settings: Deface, threads: int) -> Masker:
    """Load the configured network, once per job.

    Parameters
    ----------
    settings : Deface
        Says which backend, on which device, with which weights.
    threads : int
        CPU threads the network may use.

    Raises
    ------
    MaskerError
        If the device is absent or the weights are incomplete.
    """
    device = require_device(settings.device, threads)
    if settings.backend == "hdbet":
        from mrmill.masks.hdbet import HdBet

        return HdBet(settings.weights, device, threads)
    from mrmill.masks.deepbet import DeepBet

    return DeepBet(device)


def require_device(name: str, threads: int) -> "torch.device":
    """Return the torch device of this name, or say that the machine has none.

    Raises
    ------
    MaskerError
        Instead of a silent run on the CPU, which would take days unnoticed.
    """
    import torch

    present = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if not present[name]():
        raise MaskerError(
            f"deface.device is {name} and PyTorch {torch.__version__} finds no such device here: "
            "run on a machine that has one, or set `device: cpu`"
        )
    torch.set_num_threads(threads)
    return torch.device(name)
