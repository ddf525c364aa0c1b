"""The anatomy of the phantom: a full head as a stack of painted tissue layers.

All coordinates are millimetres in the phantom's own head space, RAS+ with the origin of MNI152.
The brain is the tissue maps that nilearn carries; skull, scalp, face, neck and vessels are implicit
surfaces around it, placed by hand at the landmarks of an adult head in MNI space (nasion near
y = 84, z = -40).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrmill.phantom.surface import (
    capsule_mm,
    ellipsoid_mm,
    outer_surface_mm,
)

Volume = NDArray[np.float32]
Box = tuple[slice, slice, slice]

HEAD_BOX_MM = ((-100.0, 100.0), (-130.0, 122.0), (-190.0, 104.0))
NEAR_MM = 13.0  # over half the diagonal of the widest sampling lattice, 8 pixels of 2.2 mm
SCALP_MM = 14.0  # brain to skin, adult vertex: CSF 3-4, skull 6-7, scalp 4-5


@dataclass(frozen=True)
class Layer:
    """One tissue painted over what lies below it.

    Attributes
    ----------
    tissue : str
        A row of the contrast table (`mrmill.phantom.acquire.CONTRASTS`).
    box : tuple of 3 slices
        Where in the head grid `coverage` lies.
    coverage : ndarray of uint8
        Share of each voxel that the tissue covers, 0 to 255.
    """

    tissue: str
    box: Box
    coverage: NDArray[np.uint8]


@dataclass(frozen=True)
class Head:
    """The head before any patient's variation.

    Attributes
    ----------
    affine : (4, 4) ndarray
        Grid index to head space, RAS+, mm.
    layers : tuple of Layer
        From the skin inwards, in painting order.
    brain_minus_face : ndarray of float32
        +1 in the brain mask, -1 in the face region, 0 elsewhere. The two are more than a centimetre
        apart, so one volume can carry both through linear sampling.
    near : ndarray of uint8
        1 within `NEAR_MM` of the head along every axis: elsewhere there is nothing to sample.
    """

    affine: NDArray[np.float64]
    layers: tuple[Layer, ...]
    brain_minus_face: Volume
    near: NDArray[np.uint8]

    def paint(self, intensity: Mapping[str, float]) -> Volume:
        """Volume in which every tissue has the intensity given for it; air is 0."""
        volume = np.zeros(self.brain_minus_face.shape, np.float32)
        for layer in self.layers:
            part = volume[layer.box]
            share = layer.coverage.astype(np.float32) / 255
            part += share * (np.float32(intensity[layer.tissue]) - part)
        return volume


@dataclass(frozen=True)
class Warp:
    """A patient's own shape: scaling and a sum of long waves, both small.

    Attributes
    ----------
    scale : (3,) ndarray
        Size relative to the standard head along x, y, z.
    amplitude_mm, wave_vector_per_mm : (n, 3) ndarray
        Displacement and wave vector of each wave.
    phase : (n,) ndarray
        Phase of each wave, in radians.
    """

    scale: NDArray[np.float64]
    amplitude_mm: NDArray[np.float64]
    wave_vector_per_mm: NDArray[np.float64]
    phase: NDArray[np.float64]

    @classmethod
    def random(cls, rng: np.random.Generator, n_waves: int = 6) -> "Warp":
        """Draw a shape: smaller than MNI152, as most heads are, with waves of about 1 mm."""
        direction = rng.normal(size=(n_waves, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        wavelength_mm = rng.uniform(90, 200, size=(n_waves, 1))
        return cls(
            scale=rng.uniform(0.88, 0.96, size=3),
            amplitude_mm=rng.normal(scale=1.2, size=(n_waves, 3)),
            wave_vector_per_mm=2 * np.pi * direction / wavelength_mm,
            phase=rng.uniform(0, 2 * np.pi, size=n_waves),
        )

    def to_standard(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Where points of the patient's head, (..., 3) in mm, lie in the standard head."""
        points = np.asarray(points_mm, dtype=float)
        waves = np.sin(points @ self.wave_vector_per_mm.T + self.phase)
        return points / self.scale + waves @ self.amplitude_mm


@lru_cache(maxsize=2)
def standard_head(voxel_mm: float) -> Head:
    """Build the head on a cubic grid.

    Parameters
    ----------
    voxel_mm : float
        Edge of a grid voxel; 1.25 for pictures that look real, 2 where speed counts.

    Returns
    -------
    head : Head
        Cached: treat as read-only.
    """
    builder = _Builder(voxel_mm)
    for step in (_scalp_and_skull, _facial_bones, _airways, _orbits, _neck, _brain, _vessels):
        step(builder)
    layers = tuple(builder.layers)
    return Head(builder.affine, layers, _brain_minus_face(builder), _near(builder))


class _Builder:
    """Grid, distance maps and brain maps that the anatomical steps share."""

    def __init__(self, voxel_mm: float) -> None:
        self.voxel_mm = voxel_mm
        self.layers: list[Layer] = []
        low, high = np.array(HEAD_BOX_MM).T
        self.shape = tuple(int(n) for n in np.ceil((high - low) / voxel_mm))
        self.affine = np.diag([voxel_mm] * 3 + [1.0])
        self.affine[:3, 3] = low
        axes = [
            (start + voxel_mm * np.arange(n)).astype(np.float32)
            for start, n in zip(low, self.shape, strict=True)
        ]
        self.x, self.y, self.z = np.ix_(*axes)
        self.grey, self.white, self.brain = self._brain_maps()
        self.from_brain_mm = self._distance_from_brain()
        self.skin_mm = outer_surface_mm(self.x, self.y, self.z, self._vault())
        self.depth_mm = self._depth_below_skin()

    def _brain_maps(self) -> list[Volume]:
        """Grey, white and whole brain of the MNI152 2009a maps on the head grid."""
        from nilearn import datasets

        volumes = []
        for load in (
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        ):
            image = load(resolution=1)
            to_map = np.linalg.inv(image.affine) @ self.affine
            data = np.asarray(image.dataobj, dtype=np.float32)
            volumes.append(_resampled(data, np.diag(to_map)[:3], to_map[:3, 3], self.shape))
        return volumes

    def _distance_from_brain(self, closing_mm: float = 14.0) -> Volume:
        """Signed distance to the brain with its clefts closed; negative inside, in mm."""
        from scipy.ndimage import distance_transform_edt, gaussian_filter

        step = max(1, round(2.5 / self.voxel_mm))
        coarse_mm = step * self.voxel_mm
        outside = self.brain[::step, ::step, ::step] < 0.5
        wide = distance_transform_edt(outside, sampling=coarse_mm) < closing_mm
        distance = distance_transform_edt(~wide, sampling=coarse_mm)
        distance -= distance_transform_edt(wide, sampling=coarse_mm)
        smooth = gaussian_filter((distance + closing_mm).astype(np.float32), 3.0 / coarse_mm)
        wide_grid = np.pad(smooth, ((0, 1),) * 3, mode="edge")
        return _resampled(wide_grid, np.full(3, 1 / step), np.zeros(3), self.shape)

    def _vault(self) -> Volume:
        """Distance to the skin over the skull, which shows no folds of the brain, in mm."""
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(self.from_brain_mm, 6.0 / self.voxel_mm) - np.float32(SCALP_MM)

    def _depth_below_skin(self) -> Volume:
        """Distance to the nearest air outside the head, 0 outside, in mm."""
        from scipy.ndimage import distance_transform_edt, gaussian_filter

        depth = distance_transform_edt(self.skin_mm < 0).astype(np.float32)
        return gaussian_filter(depth * np.float32(self.voxel_mm), 0.6)

    def box(self, *bounds_mm: tuple[float, float]) -> Box:
        """Slices of the grid that cover the given x, y and z ranges."""
        slices = []
        for (low, high), start, n in zip(bounds_mm, self.affine[:3, 3], self.shape, strict=True):
            first = int(np.clip((low - start) // self.voxel_mm - 1, 0, n))
            last = int(np.clip((high - start) // self.voxel_mm + 3, 0, n))
            slices.append(slice(first, last))
        return tuple(slices)

    def axes(self, box: Box) -> tuple[Volume, Volume, Volume]:
        """Coordinates x, y, z of a box, broadcastable."""
        return self.x[box[0]], self.y[:, box[1]], self.z[:, :, box[2]]

    def paint(self, tissue: str, distance_mm: Volume, box: Box | None = None) -> None:
        """Add a layer from a distance (negative inside), its edge blurred over one voxel."""
        self.cover(tissue, 0.5 - distance_mm / np.float32(self.voxel_mm), box)

    def cover(self, tissue: str, share: Volume, box: Box | None = None) -> None:
        """Add a layer from the share of each voxel that it covers."""
        coverage = np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
        self.layers.append(Layer(tissue, box or (slice(None),) * 3, coverage))

    def shape_in_box(
        self, tissue: str, centre_mm: ArrayLike, reach_mm: ArrayLike, solid: Callable[..., Volume]
    ) -> None:
        """Paint `solid(x, y, z)` within `reach_mm` of `centre_mm`."""
        reach = np.broadcast_to(reach_mm, 3)
        box = self.box(*[(c - r, c + r) for c, r in zip(centre_mm, reach, strict=True)])
        self.paint(tissue, solid(*self.axes(box)), box)

    def ellipsoid(self, tissue: str, centre_mm: ArrayLike, radii_mm: ArrayLike) -> None:
        """Paint an ellipsoid with its axes along x, y, z."""
        self.shape_in_box(
            tissue, centre_mm, radii_mm, lambda x, y, z: ellipsoid_mm(x, y, z, centre_mm, radii_mm)
        )

    def tube(self, tissue: str, path_mm: ArrayLike, radius_mm: float) -> None:
        """Paint a tube along a smooth line through points."""
        from scipy.interpolate import CubicSpline

        turns = np.arange(len(path_mm))
        steps = np.linspace(0, turns[-1], 4 * turns[-1] + 1)
        path = CubicSpline(turns, path_mm)(steps).astype(np.float32)
        for start, end in pairwise(path):
            low, high = np.minimum(start, end) - radius_mm, np.maximum(start, end) + radius_mm
            box = self.box(*zip(low, high, strict=True))
            self.paint(tissue, capsule_mm(*self.axes(box), start, end, radius_mm), box)


def _resampled(
    data: Volume, step: NDArray[np.float64], start: NDArray[np.float64], shape: tuple[int, ...]
) -> Volume:
    """Values at `start + step * index` along every axis, linear between voxels, 0 outside."""
    for axis, n in enumerate(shape):
        place = start[axis] + step[axis] * np.arange(n)
        weight = np.maximum(0, 1 - np.abs(place - np.arange(data.shape[axis])[:, None]))
        data = np.moveaxis(np.tensordot(data, weight.astype(np.float32), (axis, 0)), -1, axis)
    return np.ascontiguousarray(data)


def _scalp_and_skull(head: _Builder) -> None:
    """Skin, fat, muscle below the vault; then cranial bone with marrow, and the fluid inside it."""
    vault_mm = head.from_brain_mm
    head.paint("skin", head.skin_mm)
    head.paint("fat", 2.0 - head.depth_mm)
    head.paint("muscle", np.maximum(5.5 - head.depth_mm, 13.0 - vault_mm))
    inside_skin_mm = 3.0 - head.depth_mm
    head.paint("bone", np.maximum(vault_mm - 9.5, inside_skin_mm))
    head.paint("marrow", np.maximum(np.abs(vault_mm - 6.8) - 1.0, inside_skin_mm))
    head.paint("csf", np.maximum(vault_mm - 3.2, inside_skin_mm))


def _facial_bones(head: _Builder) -> None:
    """Mandible, upper jaw with teeth and cheek bones: bands at a depth below the face."""
    face = head.box((-75, 75), (-5, 100), (-160, -30))
    x, y, z = head.axes(face)
    depth = head.depth_mm[face]
    jaw_edge_mm = z - (-150.0 + 0.47 * (80.0 - y))  # height above the lower edge of the mandible
    arch = np.abs(depth - 13.0)
    mandible = np.maximum(np.maximum(arch - 4.5, np.abs(jaw_edge_mm - 12.0) - 13.0), z + 112.0)
    upper_jaw = np.maximum(np.maximum(arch - 4.0, np.abs(z + 92.0) - 12.0), 30.0 - y)
    cheek_bone = np.maximum(np.abs(depth - 11.0) - 3.5, np.abs(z + 64.0) - 8.0)
    cheek_bone = np.maximum(cheek_bone, 24.0 - np.abs(x))
    for bone in (mandible, upper_jaw, cheek_bone):
        head.paint("bone", bone, face)
        head.paint("marrow", bone + 2.2, face)
    head.paint(
        "tooth", np.maximum(np.maximum(np.abs(depth - 10.5) - 3, np.abs(z + 111) - 9), 48 - y), face
    )


def _airways(head: _Builder) -> None:
    """Nasal cavity with its septum, nostrils, sinuses, mouth, tongue and throat."""
    for side in (-1, 1):
        head.ellipsoid("air", (5.5 * side, 60, -72), (3.5, 28, 17))
        head.tube("air", [(6.0 * side, 99, -93), (5.5 * side, 97, -84), (5 * side, 88, -78)], 3.2)
        head.ellipsoid("air", (28.0 * side, 58, -74), (11, 15, 14))
        head.ellipsoid("muscle", (9.5 * side, 62, -80), (2.5, 20, 4))
        head.ellipsoid("air", (9.0 * side, 77, -17), (8, 3.5, 8))
    head.ellipsoid("air", (0, 27, -42), (13, 10, 8))
    head.ellipsoid("air", (0, 44, -102), (27, 36, 3))
    head.ellipsoid("muscle", (0, 44, -120), (25, 37, 17))
    head.tube("air", [(0, 26, -72), (0, 15, -92), (0, 12, -130), (0, 16, -190)], 7.0)


def _orbits(head: _Builder) -> None:
    """Eye sockets filled with fat, the globes, lenses and optic nerves."""
    for side in (-1, 1):
        eye = np.array([32.0 * side, 62.5, -42.0])
        apex = np.array([14.0 * side, 22.0, -36.0])
        middle = 0.6 * eye + 0.4 * apex
        head.tube("fat", [eye + np.array((0, -6, 0)), middle], 13.0)
        head.tube("fat", [middle, apex], 8.0)
        for lift in (9.0, -9.0):
            origin = apex + np.array((0, 4, 0.3 * lift))
            head.tube("muscle", [eye + np.array((0, -4, lift)), origin], 1.8)
        head.tube("white", [eye + np.array((0, -11, 0)), apex], 2.0)
        head.ellipsoid("skin", eye, (12.6, 12.6, 12.6))
        head.ellipsoid("vitreous", eye, (11.4, 11.4, 11.4))
        head.ellipsoid("lens", eye + np.array((0, 7.5, 0)), (4.8, 2.2, 4.8))


def _neck(head: _Builder) -> None:
    """Vertebral column with the spinal canal and cord."""
    column = [(0, -16, -92), (0, -14, -130), (0, -20, -195)]
    canal = np.array([(0, -40, -66), (0, -41, -92), (0, -38, -130), (0, -44, -195)])
    head.tube("bone", column, 13.0)
    head.tube("marrow", column, 11.0)
    head.tube("bone", canal[1:], 13.0)
    head.tube("csf", canal, 9.0)
    head.tube("white", canal, 4.8)


def _brain(head: _Builder) -> None:
    """Brain from the tissue maps; an average of 152 brains, so its blurred edges are sharpened."""
    box = head.box((-76, 76), (-111, 77), (-75, 86))
    brain, grey, white = head.brain[box], head.grey[box], head.white[box]
    white = np.clip(1.5 * white - 0.25, 0, 1)
    grey = np.clip(1.5 * grey - 0.15, 0, 1)
    head.cover("csf", brain, box)
    head.cover("grey", grey / np.maximum(1 - white, 1e-3), box)
    head.cover("white", white, box)


def _vessels(head: _Builder) -> None:
    """Large arteries of the head and the sagittal sinus."""
    for side in (-1, 1):
        carotid = [
            (28, 8, -190),
            (27, 0, -120),
            (24, -2, -70),
            (22, 6, -44),
            (15, 2, -36),
            (14, 1, -18),
        ]
        middle = [
            (14, 1, -18),
            (26, 4, -19),
            (39, 3, -14),
            (46, -12, 0),
            (52, -26, 14),
            (54, -42, 26),
        ]
        anterior = [(14, 1, -18), (3, 10, -15), (3, 32, -8), (3, 40, 12), (3, 22, 32), (3, -8, 42)]
        posterior = [(0, -24, -18), (13, -26, -16), (24, -40, -8), (20, -62, 0), (14, -84, 6)]
        vertebral = [(18, -24, -190), (18, -26, -100), (12, -38, -76), (0, -30, -54)]
        temporal = [(76, -8, -60), (78, -6, -25), (73, 8, 10), (64, -2, 45)]
        for path, radius_mm in (
            (carotid, 2.4), (middle, 1.4), (anterior, 1.2), (posterior, 1.2), (vertebral, 1.8),
            (temporal, 1.0),
        ):  # fmt: skip
            head.tube("artery", np.multiply(path, (side, 1, 1)), radius_mm)
    head.tube("artery", [(0, -30, -54), (0, -26, -36), (0, -24, -18)], 1.7)
    top = head.box((-6, 6), (-130, 60), (-10, 104))
    x, y, z = head.axes(top)
    sinus = np.maximum(np.abs(head.from_brain_mm[top] - 1.0) - 2.5, np.abs(x) - 3.2)
    head.paint("vein", np.maximum(sinus, -5.0 - z - 0 * y), top)


def _brain_minus_face(head: _Builder) -> Volume:
    """Truth: brain mask; flesh and bone of the face below the brow and before the ears."""
    solid = np.clip(0.5 - head.skin_mm / head.voxel_mm, 0, 1)
    front = (head.y > 25) & (head.z < -25) & (head.from_brain_mm > 12)
    above_jaw = head.z > -160 + 0.47 * (80 - head.y)
    return (head.brain - solid * (front & above_jaw)).astype(np.float32)


def _near(head: _Builder) -> NDArray[np.uint8]:
    """Box-shaped surroundings of the head."""
    from scipy.ndimage import maximum_filter

    solid = (head.skin_mm < head.voxel_mm).astype(np.uint8)
    return maximum_filter(solid, 2 * int(np.ceil(NEAR_MM / head.voxel_mm)) + 1)
