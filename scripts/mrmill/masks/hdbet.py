"""Brain masks from HD-BET v2 (Isensee et al. 2019), predicted as its own command does."""

import os
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrmill.config import digest_of
from mrmill.masks import MaskerError
from mrmill.volumes import Volume

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

MODEL_FILES = ("plans.json", "dataset.json", "fold_all/checkpoint_final.pth")

#: nnU-Net readers that hand over voxels in the order of the file; the others turn them first.
PLAIN_READERS = ("SimpleITKIO", "NibabelIO")


def require_model(weights: Path) -> None:
    """Refuse a model folder that is not whole.

    Raises
    ------
    MaskerError
        Naming what is missing.
    """
    missing = [name for name in MODEL_FILES if not (weights / name).is_file()]
    if missing:
        raise MaskerError(f"deface.weights: no {', '.join(missing)} in {weights}")


class HdBet:
    """The HD-BET v2 network in nnU-Net's predictor.

    Tile step, Gaussian weights and test-time mirroring are those of the `hd-bet` command;
    HD-BET v2 does nothing to the mask after the network.

    Parameters
    ----------
    weights : Path
        The model folder as published: `plans.json`, `dataset.json`, `fold_all/`.
    device : torch.device
    threads : int
        CPU threads for resampling and, on a CPU, for the network.

    Raises
    ------
    MaskerError
        If the folder is incomplete or made for another way of reading images.
    """

    name = "hdbet"

    def __init__(self, weights: Path, device: "torch.device", threads: int) -> None:
        require_model(weights)
        # nnU-Net reads its thread count when it is imported
        os.environ["nnUNet_def_n_proc"] = str(threads)  # noqa: SIM112 its own spelling
        with redirect_stdout(None):  # nnU-Net prints hints about training
            self._predictor = load_predictor(weights, device)
        reader = self._predictor.plans_manager.image_reader_writer_class.__name__
        if reader not in PLAIN_READERS:
            raise MaskerError(f"deface.weights: images read by {reader} are not supported")
        self.version = f"{version('nnunetv2')}+weights.{digest_of(weights)[:12]}"

    def __call__(self, volume: Volume) -> "NDArray[np.uint8]":
        """Return the brain mask of a volume, on its grid."""
        # nnU-Net counts axes k, j, i, as SimpleITK does
        voxels = volume.data.T[None].astype(np.float32)
        spacing = {"spacing": volume.spacing_mm[::-1].tolist()}
        labels = self._predictor.predict_single_npy_array(voxels, spacing)
        return (labels.T > 0).astype(np.uint8)


def load_predictor(weights: Path, device: "torch.device"):
    """Return nnU-Net's predictor with HD-BET's settings and the weights of `fold_all`."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=True,
        perform_everything_on_device=device.type == "cuda",
        device=device,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(weights), "all")
    return predictor
