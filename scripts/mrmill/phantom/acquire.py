"""Scanning the phantom: contrasts, slice geometry, pose, noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrmill.phantom.head import Head, Warp

# Signal of each tissue by sequence type, in thousandths of the brightest that the type shows.
# Set by eye to look like 1.5-3 T clinical images; only their order and contrast matter.
TISSUES = (
    "skin", "fat", "muscle", "bone", "marrow", "tooth", "csf", "grey", "white", "vitreous", "lens",
    "artery", "vein", "air",
)  # fmt: skip
SIGNAL = {
    "T1w": (380, 950, 370, 60, 620, 20, 150, 500, 730, 170, 330, 240, 260, 0),
    "T2w": (260, 560, 180, 50, 350, 20, 980, 560, 410, 940, 150, 70, 120, 0),
    "FLAIR": (300, 560, 260, 50, 330, 20, 110, 640, 480, 140, 220, 80, 140, 0),
    "SWI": (330, 420, 400, 50, 230, 20, 560, 570, 520, 540, 380, 700, 110, 0),
    "MRA": (180, 230, 230, 30, 130, 20, 90, 260, 230, 90, 150, 950, 200, 0),
    "DWI": (60, 30, 90, 20, 30, 10, 110, 520, 480, 100, 120, 40, 60, 0),
}
CONTRASTS = {name: dict(zip(TISSUES, values, strict=True)) for name, values in SIGNAL.items()}

# Directions of voxel indices i (along a row), j (down), k (slice) in each plane, LPS+ as in DICOM.
AXES_LPS = {
    "axi": np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1)], dtype=float).T,
    "cor": np.array([(1, 0, 0), (0, 0, -1), (0, 1, 0)], dtype=float).T,
    "sag": np.array([(0, 1, 0), (0, 0, -1), (-1, 0, 0)], dtype=float).T,
}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
LATTICE_STEP = 8  # voxels between the points at which the patient's warp is evaluated


@dataclass(frozen=True)
class Acquisition:
    """How one series is acquired.

    Attributes
    ----------
    modality : str
        Sequence type: T1w, T2w, FLAIR, SWI, MRA or DWI.
    sequence : str
        Row of the vendor's sequence table (`mrmill.phantom.vendors`).
    plane : str
        axi, sag or cor, before `tilt_deg` is applied.
    columns, rows, slices : int
        Matrix.
    pixel_mm, thickness_mm, gap_mm : float
        In-plane voxel size, slice thickness, empty space between slices.
    te_ms, tr_ms, ti_ms, flip_deg, echo_train : float or int
        Sequence parameters; `ti_ms` 0 means none.
    tilt_deg : tuple of 3 float
        Turn of the slices about x, y, z; 30 degrees or more make an oblique series.
    centre_mm : tuple of 3 float
        Centre of the field of view in head space, RAS+.
    role : str
        raw, derived or localizer.
    volumetric : bool
        3D encoding: thin partitions without a slice profile.
    """

    modality: str
    sequence: str
    plane: str
    columns: int
    rows: int
    slices: int
    pixel_mm: float
    thickness_mm: float
    te_ms: float
    tr_ms: float
    flip_deg: float
    gap_mm: float = 0.0
    ti_ms: float = 0.0
    echo_train: int = 1
    tilt_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    centre_mm: tuple[float, float, float] = (0.0, -17.0, 4.0)
    role: str = "raw"
    volumetric: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along columns' index i, rows' index j, slices' index k."""
        return (self.columns, self.rows, self.slices)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along i, j, k."""
        return (self.pixel_mm, self.pixel_mm, self.thickness_mm + self.gap_mm)


@dataclass(frozen=True)
class Scan:
    """One acquired volume and its truth.

    Attributes
    ----------
    voxels : (columns, rows, slices) ndarray of uint16
        Magnitude image, at most 4095.
    affine : (4, 4) ndarray
        Voxel index to scanner position, RAS+, mm.
    brain, face : (columns, rows, slices) ndarray of uint8
        Truth masks: voxels that the brain, the face fill by half or more.
    pose : (4, 4) ndarray
        Head space to scanner, RAS+, mm.
    """

    voxels: NDArray[np.uint16]
    affine: NDArray[np.float64]
    brain: NDArray[np.uint8]
    face: NDArray[np.uint8]
    pose: NDArray[np.float64]


def rigid(turn_deg: ArrayLike, shift_mm: ArrayLike) -> NDArray[np.float64]:
    """Rigid (4, 4) transform: turn about x, then y, then z, then shift."""
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


def grid_affine(acquisition: Acquisition, centre_mm: ArrayLike) -> NDArray[np.float64]:
    """Affine, voxel index to scanner RAS+ mm, of a grid centred on a scanner position."""
    axes = LPS_TO_RAS @ AXES_LPS[acquisition.plane]
    affine = rigid(acquisition.tilt_deg, (0, 0, 0))
    affine[:3, :3] = affine[:3, :3] @ axes @ np.diag(acquisition.spacing_mm)
    middle = (np.array(acquisition.shape) - 1) / 2
    affine[:3, 3] = np.asarray(centre_mm, dtype=float) - affine[:3, :3] @ middle
    return affine


def acquire(
    head: Head,
    painted: NDArray[np.float32],
    warp: Warp,
    acquisition: Acquisition,
    prescription: NDArray[np.float64],
    pose: NDArray[np.float64],
    rng: np.random.Generator,
    gain: float = 1.0,
    noise: float = 14.0,
) -> Scan:
    """Scan the head.

    Parameters
    ----------
    head : Head
        Standard head.
    painted : ndarray
        `head` in the contrast to acquire (`Head.paint`).
    warp : Warp
        The patient's shape.
    acquisition : Acquisition
        Geometry and sequence.
    prescription, pose : (4, 4) ndarray
        Where the head lay when the slices were planned, and where it lies now: head space to
        scanner, RAS+, mm.
    rng : Generator
        Source of noise and coil shading.
    gain : float
        Stored value per thousandth of signal.
    noise : float
        Standard deviation in each of the two channels, in thousandths of signal.

    Returns
    -------
    scan : Scan
    """
    centre_mm = prescription[:3, :3] @ acquisition.centre_mm + prescription[:3, 3]
    affine = grid_affine(acquisition, np.round(centre_mm, 1))
    to_head = np.linalg.inv(pose) @ affine
    signal, truth = _sample([painted, head.brain_minus_face], head, warp, to_head, acquisition)
    signal *= _coil_shading(acquisition.shape, rng)
    signal = _rician(signal, noise, rng)
    return Scan(
        voxels=np.clip(np.rint(gain * signal), 0, 4095).astype(np.uint16),
        affine=affine,
        brain=(truth >= 0.5).astype(np.uint8),
        face=(truth <= -0.5).astype(np.uint8),
        pose=pose,
    )


def _sample(
    volumes: Sequence[NDArray[np.float32]],
    head: Head,
    warp: Warp,
    to_head: NDArray[np.float64],
    acquisition: Acquisition,
) -> list[NDArray[np.float32]]:
    """Average of each volume over each voxel's slice profile."""
    from scipy.ndimage import map_coordinates

    columns, rows, slices = acquisition.shape
    fine_i, lattice_i = _interpolation(columns)
    fine_j, lattice_j = _interpolation(rows)
    to_volume = np.linalg.inv(head.affine)
    order = _memory_order(to_volume @ to_head)
    near, *volumes = [np.ascontiguousarray(v.transpose(order)) for v in (head.near, *volumes)]
    samples = [np.zeros(acquisition.shape, np.float32) for _ in volumes]
    for k in range(slices):
        for offset, weight in _slice_profile(acquisition):
            grid = np.meshgrid(lattice_i, lattice_j, k + offset, indexing="ij")
            points = np.stack(grid, axis=-1)[:, :, 0] @ to_head[:3, :3].T + to_head[:3, 3]
            points = warp.to_standard(points) @ to_volume[:3, :3].T + to_volume[:3, 3]
            points = points[..., order]
            part = _part_in_head(points, near)
            fine = fine_i[part[0]], fine_j[part[1]].T
            where = np.stack([fine[0] @ points[..., axis] @ fine[1] for axis in range(3)])
            where = where.astype(np.float32)
            for sample, volume in zip(samples, volumes, strict=True):
                values = map_coordinates(volume, where, np.float32, order=1, prefilter=False)
                sample[*part, k] += weight * values
    return samples


def _memory_order(to_volume: NDArray[np.float64]) -> list[int]:
    """Order of the volume's axes along slices, columns, rows: three times faster for the cache."""
    from scipy.optimize import linear_sum_assignment

    nearest = linear_sum_assignment(-np.abs(to_volume[:3, :3].T))[1]
    return [int(nearest[axis]) for axis in (2, 0, 1)]


def _part_in_head(points: NDArray[np.float64], near: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Columns and rows of a slice that can hold the head: around the lattice points near it."""
    from scipy.ndimage import map_coordinates

    inside = map_coordinates(near, np.moveaxis(points, -1, 0), order=0, prefilter=False)
    part = []
    for hits in (inside.any(axis=1), inside.any(axis=0)):
        at = np.flatnonzero(hits) if hits.any() else np.array([0])
        part.append(slice(max(at[0] - 1, 0) * LATTICE_STEP, (at[-1] + 1) * LATTICE_STEP))
    return tuple(part)


def _slice_profile(acquisition: Acquisition) -> list[tuple[float, float]]:
    """Offsets within a slice, in units of the slice spacing, and their weights (sum 1)."""
    if acquisition.volumetric:
        return [(0.0, 1.0)]
    n = max(3, round(acquisition.thickness_mm / 1.5))
    offsets_mm = (np.arange(n) + 0.5) / n * acquisition.thickness_mm - acquisition.thickness_mm / 2
    weights = np.exp(
        -2 * (offsets_mm / acquisition.thickness_mm) ** 2
    )  # soft edges of a real pulse
    return list(zip(offsets_mm / acquisition.spacing_mm[2], weights / weights.sum(), strict=True))


def _interpolation(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix (n, m) that interpolates linearly from a coarse lattice to n points; the lattice."""
    m = -(-(n - 1) // LATTICE_STEP) + 1
    place = np.arange(n) / LATTICE_STEP
    matrix = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(m)))
    return matrix, LATTICE_STEP * np.arange(m, dtype=float)


def _coil_shading(shape: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth field around 1: a slope up to 10 % and a bend up to 15 % along each axis."""
    field = np.ones((1, 1, 1))
    for axis, n in enumerate(shape):
        place = np.linspace(-1, 1, n)
        slope, bend = rng.uniform(-0.1, 0.1), rng.uniform(-0.05, 0.15)
        field = field * np.expand_dims(1 + slope * place + bend * (place**2 - 0.3), _others(axis))
    return field.astype(np.float32)


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)


def _rician(
    signal: NDArray[np.float32], noise: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Magnitude of the signal with equal Gaussian noise in its two channels."""
    real = signal + noise * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.hypot(real, noise * rng.standard_normal(signal.shape, dtype=np.float32))
