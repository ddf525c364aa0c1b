"""dcm2niix: run it on one series, and say what it made and what it complained about."""

import errno
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrmill.convert.instances import MAGNITUDE, Instance, kind_of, to_ras

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Every choice is spelled out, so that neither a user's defaults file nor a new default changes it.
OPTIONS = (
    *("-g", "i"),  # no defaults file
    *("-f", "v"),  # outputs are v, v_e2, v_ph, ...: nothing of the header in a name
    *("-w", "2"),  # outputs of the same name get a letter
    *("-b", "y"),  # a sidecar for every image, to tell them apart
    *("-m", "2"),  # the plan says what a series is, even with one series UID per slice (Canon)
    *("-i", "n"),  # derived images and localizers too: curate rejects them with their reason
    *("-x", "n"),  # nothing cropped
    *("-l", "o"),  # integers as they are
    *("-p", "y"),  # Philips: precise values, not those of the display (docs/conversion.md)
    *("-z", "n"),  # the image is compressed once, when it is written for good
)

#: What dcm2niix reads, and the code of files that are compressed in another way.
ENCODINGS = "uncompressed, RLE, JPEG lossless, JPEG-LS, JPEG 2000"
UNSUPPORTED_ENCODING = "unsupported_encoding"

#: What dcm2niix says -> the code that is recorded; its own text holds paths and descriptions.
WARNINGS = {
    "interslice distance varies": "uneven_slices",
    "missing images": "missing_images",
    "images may be missing": "missing_images",
    "missing dicoms": "missing_images",
    "duplicates removed": "duplicates_removed",
    "gantry tilt": "gantry_tilt",
    "slices not stacked": "split",
    "slice orientation varies": "orientation_varies",
    "unable to determine slice direction": "slice_direction_unknown",
    "unable to determine spatial orientation": "orientation_unknown",
    "bogus spatial matrix": "orientation_unknown",
    "partial volume": "partial_volume",
    "only complete volumes": "partial_volume",
    "not large enough to store image data": "truncated_file",
    "slope, intercept or bits allocated varies": "intensity_scale_varies",
    "exported as classic not enhanced": "enhanced_saved_as_classic",
    "unable to determine manufacturer": "manufacturer_unknown",
    "unsupported transfer syntax": UNSUPPORTED_ENCODING,
    "decompress with": UNSUPPORTED_ENCODING,
}

#: Exit codes that say something about the data (dcm2niix, ERRORS.md); others are the machine's.
DATA_EXIT_CODES = {0, 1, 2, 4, 8}

#: Suffixes of images that dcm2niix makes from another output: resampled, or a part of it.
COPIES = re.compile(r"(Eq|Tilt|ADC|ROI)")


@dataclass(frozen=True, eq=False)
class Output:
    """One image that dcm2niix made.

    Attributes
    ----------
    sidecar : dict
        Its JSON; empty when dcm2niix gave up before writing it.
    shape : tuple of int
        Voxels along i, j, k, and volumes where there are several.
    affine : (4, 4) ndarray
        Voxel index to scanner position, RAS+, in mm.
    instances : sequence of Instance
        The files that dcm2niix was given.
    """

    path: Path
    sidecar: dict[str, Any]
    shape: tuple[int, ...]
    affine: "NDArray[np.float64]"
    instances: Sequence[Instance]

    @property
    def suffix(self) -> str:
        """What dcm2niix added to the name."""
        return self.path.stem.removeprefix("v").removeprefix("_")

    @property
    def is_copy(self) -> bool:
        """Whether it was made from another output of the series."""
        return COPIES.match(self.suffix) is not None

    @property
    def image_type(self) -> list[str]:
        """ImageType, with the words dcm2niix adds for the part of the complex signal."""
        return self.sidecar.get("ImageType", [])

    @property
    def kind(self) -> str:
        """What the files say, and of the pictures of multi-frame files, what dcm2niix says."""
        kind = self.instances[0].kind
        return kind_of(self.image_type) if kind == MAGNITUDE else kind

    @property
    def echo_time_ms(self) -> float:
        """Echo time; 0 where unknown."""
        return 1000 * self.sidecar.get("EchoTime", 0)

    @cached_property
    def slice_axis(self) -> int:
        """Voxel axis across the slices (3D acquisitions are stored along the patient's axes)."""
        orientation = self.sidecar.get("ImageOrientationPatientDICOM")
        if orientation is None:
            return 2
        normal = to_ras(np.cross(orientation[:3], orientation[3:]))
        axes = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return int(np.abs(normal @ axes).argmax())

    @property
    def n_volumes(self) -> int:
        """Volumes along the fourth and further axes."""
        return int(np.prod(self.shape[3:]))

    @property
    def n_slices(self) -> int:
        """Slices times volumes."""
        return self.shape[self.slice_axis] * self.n_volumes

    @property
    def n_instances(self) -> int:
        """Pictures it was made from: one per slice, or (mosaic) one per volume."""
        return self.n_volumes if self.instances[0].is_mosaic else self.n_slices

    def shares_grid_with(self, other: "Output") -> bool:
        """Whether both have the same voxels in the same places."""
        same_shape = self.shape[:3] == other.shape[:3]
        return same_shape and np.allclose(self.affine, other.affine, atol=1e-3)

    def sources(self) -> list[Instance]:
        """Return the instances that went into this output."""
        normal = self.affine[:3, self.slice_axis]
        beside = [instance for instance in self.instances if instance.lies_across(normal)]
        same_echo = [
            instance
            for instance in beside
            if np.isclose(instance.echo_time_ms, self.echo_time_ms, atol=1e-3)
        ]
        return same_echo or beside or list(self.instances)


@dataclass(frozen=True)
class Conversion:
    """What became of one run of dcm2niix.

    Attributes
    ----------
    outputs : list of Output
        In the order of their suffixes.
    instances : sequence of Instance
        What it was given.
    facts : dict
        For the record: `converter` with its version, `exit_code`, `warnings` (codes, sorted).
    """

    outputs: list[Output]
    instances: Sequence[Instance]
    facts: dict[str, Any]

    @property
    def n_given(self) -> int:
        """Pictures that went in."""
        return sum(len(instance.planes) for instance in self.instances)

    @property
    def n_made(self) -> int:
        """Pictures that came out, once each."""
        return sum(output.n_instances for output in self.outputs if not output.is_copy)


def run_dcm2niix(instances: Sequence[Instance], folder: Path, timeout_s: float) -> Conversion:
    """Run dcm2niix on files of one series.

    Parameters
    ----------
    folder : Path
        New; gets links to the files, under neutral names, and what dcm2niix writes.

    Raises
    ------
    TimeoutError, ChildProcessError, OSError
        When it does not end in time, dies or finds the disk full.
    """
    links, made = folder / "in", folder / "out"
    for place in (folder, links, made):
        place.mkdir()
    for number, instance in enumerate(instances, start=1):
        (links / f"{number:06d}.dcm").symlink_to(instance.path.absolute())
    command = [dcm2niix(), *OPTIONS, "-o", str(made), str(links)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"dcm2niix took longer than {timeout_s:g} s") from None
    said = done.stdout.decode(errors="replace").lower()
    if "disk full" in said:
        raise OSError(errno.ENOSPC, "No space left on device: dcm2niix could not write")
    if done.returncode not in DATA_EXIT_CODES:
        raise ChildProcessError(f"dcm2niix ended with {done.returncode}")
    version = re.search(r"version (v[\w.]+)", said)
    facts = {
        "converter": f"dcm2niix {version[1] if version else 'of unknown version'}",
        "exit_code": done.returncode,
        "warnings": sorted({code for text, code in WARNINGS.items() if text in said}),
    }
    outputs = [_output(path, instances) for path in sorted(made.glob("*.nii"))]
    return Conversion(outputs, instances, facts)


def dcm2niix() -> str:
    """Return the path of dcm2niix: of the PyPI wheel, else the one on the PATH."""
    try:
        from dcm2niix import bin
    except ImportError:
        bin = shutil.which("dcm2niix")
    if bin is None:
        raise FileNotFoundError("dcm2niix is not installed: `pip install dcm2niix`")
    return str(bin)


def _output(path: Path, instances: Sequence[Instance]) -> Output:
    import nibabel as nib

    image = nib.load(path)
    json_path = path.with_suffix(".json")
    sidecar = json.loads(json_path.read_text("utf-8", "replace")) if json_path.exists() else {}
    return Output(path, sidecar, image.shape, image.affine, instances)
