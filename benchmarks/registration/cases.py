"""Pairs of phantom scans whose rigid transform is known.

A row of `ROWS` says in words what is registered to what and how far apart the two lie; the rest
(pose, shape of the head, slice thickness, lesion, shading, noise, errors of the masks) is drawn
from the name of the row and a seed. Another seed gives a set of the same kind, not seen before.

    for case in cases(Path("cache"), seed=0):
        found = find(case.fixed, case.moving, settings)
        print(case.name, case.errors_mm(found.transform).mean())
"""

import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from mrmill.config import Deface, Register
from mrmill.masks.quality import largest_component
from mrmill.phantom import (
    CONTRASTS,
    Acquisition,
    Head,
    Warp,
    acquire,
    presets,
    rigid,
    standard_head,
)
from mrmill.phantom import Scan as PhantomScan
from mrmill.phantom.presets import T1W_3D, T2W
from mrmill.quickshear import face_plane
from mrmill.register.atlas import EMBEDDED_FILE, load_atlas
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume, read_volume, write_volume

#: Goes up when the same row and seed no longer give the same pair: a cache is then made anew.
VERSION = 1

HEAD_VOXEL_MM = 1.25
N_POINTS = 3000

NOISE, STRONG_NOISE = 14.0, 70.0  # thousandths of the brightest tissue, in each channel
POOR_MASKS = 0.25  # share of masks with large errors
SAME_SHAPE = Warp(np.ones(3), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))

#: Word, height of its middle in the head, least and greatest extent along the slices' normal.
SLABS = (("vertex", 42, (60, 70)), ("base", -34, (60, 70)), ("short", 4, (112, 122)))


@dataclass(frozen=True)
class Row:
    """What is registered to what, in words.

    Attributes
    ----------
    name : str
        Its first letter is the group: C series of a patient who moved, P the same with one
        prescription and little motion, A onto the embedded template, T onto a template with a
        skull.
    fixed, moving : str
        Contrast, plane (axi, sag, cor; `3d` for 1 mm), and any of `oblique`, `vertex`, `base`
        (a slab there), `short` (top and bottom of the brain cut), `lesion`, `bias`, `noise`,
        `face` (not defaced), `odd` (a head of unusual shape). `template` for A and T.
    turn_deg, shift_mm : float
        How far the head turned, and the largest shift along any axis, at most; at least four
        fifths of it.
    axis : str
        Turn exactly that far about x, y or z; without it, about an axis drawn at random.
    same_shape : bool
        The head has the template's shape, so that its pose is the truth. Others have a shape of
        their own, and the best rigid fit over the brain stands for the truth.
    """

    name: str
    fixed: str
    moving: str
    turn_deg: float
    shift_mm: float
    axis: str = ""
    same_shape: bool = True

    @property
    def group(self) -> str:
        """The first letter of the name."""
        return self.name[0]


ROWS = (
    Row("C01", "T1w axi", "T2w axi", 10, 15),
    Row("C02", "T1w 3d", "FLAIR axi", 10, 15),
    Row("C03", "T1w 3d", "T2w cor", 15, 20),
    Row("C04", "T1w axi", "FLAIR sag", 10, 10),
    Row("C05", "T1w 3d", "T1w axi", 20, 20),
    Row("C06", "T1w 3d", "FLAIR 3d", 15, 20),
    Row("C07", "T1w sag", "T2w axi", 15, 20),
    Row("C08", "T1w cor", "FLAIR axi", 10, 20),
    Row("C09", "T1w axi", "SWI axi", 15, 15),
    Row("C10", "T1w 3d", "MRA axi", 10, 15),
    Row("C11", "T1w axi", "T2w axi", 30, 0, "x"),
    Row("C12", "T1w 3d", "T2w axi", 30, 0, "y"),
    Row("C13", "T1w axi", "FLAIR axi", 30, 0, "z"),
    Row("C14", "T1w axi", "T2w sag", 0, 40),
    Row("C15", "T1w 3d", "FLAIR axi", 30, 40),
    Row("C16", "T1w axi", "T2w cor", 30, 40),
    Row("C17", "T1w axi oblique", "T2w axi", 15, 15),
    Row("C18", "T1w 3d", "T2w axi oblique", 20, 20),
    Row("C19", "T1w axi", "FLAIR cor oblique", 15, 20),
    Row("C20", "T1w 3d", "T2w axi vertex", 15, 20),
    Row("C21", "T1w axi", "FLAIR axi base", 10, 15),
    Row("C22", "T1w axi base", "T2w axi", 15, 15),
    Row("C23", "T1w axi vertex", "T2w 3d", 15, 20),
    Row("C24", "T1w 3d", "FLAIR axi lesion", 15, 20),
    Row("C25", "T1w axi lesion", "T2w sag", 15, 20),
    Row("C26", "T1w 3d bias", "FLAIR axi bias", 15, 20),
    Row("C27", "T1w axi bias lesion", "T2w axi bias", 20, 20),
    Row("C28", "T1w axi noise", "FLAIR axi noise", 15, 20),
    Row("C29", "T1w 3d", "T2w axi noise bias lesion", 30, 40),
    Row("C30", "T1w axi face", "T2w axi face", 20, 20),
    Row("C31", "T1w 3d face", "FLAIR sag", 20, 20),
    Row("C32", "T1w axi", "SWI axi face", 20, 20),
    Row("C33", "T1w 3d", "MRA axi base", 15, 20),
    Row("P01", "T1w axi", "T2w axi", 3, 4),
    Row("P02", "T1w axi", "FLAIR axi", 2, 3),
    Row("P03", "T1w sag", "FLAIR sag", 3, 4),
    Row("P04", "T1w cor", "T2w cor", 2, 2),
    Row("P05", "T1w axi", "T1w axi lesion", 3, 4),
    Row("P06", "T1w axi lesion", "FLAIR axi lesion", 2, 3),
    Row("P07", "T1w axi", "T2w sag", 2, 2),
    Row("P08", "T1w axi", "SWI axi", 3, 4),
    Row("P09", "T1w axi oblique", "FLAIR axi oblique", 2, 3),
    Row("P10", "T1w 3d", "T2w axi", 3, 4),
    Row("P11", "T1w axi", "T2w axi", 0, 0),
    Row("A01", "template", "T1w 3d", 10, 15),
    Row("A02", "template", "T1w axi", 15, 20),
    Row("A03", "template", "T1w sag", 20, 20),
    Row("A04", "template", "T1w cor", 15, 20),
    Row("A05", "template", "T1w axi oblique", 20, 20),
    Row("A06", "template", "T1w 3d", 30, 40),
    Row("A07", "template", "T1w axi bias", 30, 40),
    Row("A08", "template", "T1w 3d", 10, 15, same_shape=False),
    Row("A09", "template", "T1w axi", 15, 20, same_shape=False),
    Row("A10", "template", "T1w sag", 15, 20, same_shape=False),
    Row("A11", "template", "T1w cor bias", 15, 20, same_shape=False),
    Row("A12", "template", "T1w axi oblique", 20, 20, same_shape=False),
    Row("A13", "template", "T1w axi lesion noise", 30, 40, same_shape=False),
    Row("A14", "template", "T1w 3d odd", 15, 20, same_shape=False),
    Row("A15", "template", "T1w axi odd", 15, 20, same_shape=False),
    Row("A16", "template", "T1w axi odd short", 20, 20, same_shape=False),
    Row("A17", "template", "T1w sag odd", 20, 30, same_shape=False),
    Row("T01", "template", "T1w 3d", 15, 20),
    Row("T02", "template", "T1w axi", 30, 40),
    Row("T03", "template", "T1w axi", 15, 20, same_shape=False),
    Row("T04", "template", "T1w 3d", 20, 20, same_shape=False),
)

#: Some of each kind, those that take the reference least time.
QUICK = ("C21", "C22", "C25", "C33", "P07", "A07")


@dataclass(frozen=True)
class Case:
    """A pair of scans and the truth about them.

    Attributes
    ----------
    name, group : str
        As in `Row`.
    rigid : bool
        Whether a rigid transform can be right everywhere.
    onto_template : bool
        Whether the fixed scan is a template.
    fixed_file, moving_file, fixed_brain_file, moving_brain_file : Path
        Images as after defacing, and their brain masks. The embedded template is its own mask.
    fixed, moving : Scan
        The same, read.
    truth : RigidTransform
        From points of the fixed to points of the moving scan.
    brain_points_mm : (n, 3) ndarray
        Points of the true brain in the fixed scan.
    """

    name: str
    rigid: bool
    onto_template: bool
    fixed_file: Path
    moving_file: Path
    fixed_brain_file: Path
    moving_brain_file: Path
    fixed: Scan
    moving: Scan
    truth: RigidTransform
    brain_points_mm: NDArray[np.float64]

    @property
    def group(self) -> str:
        """The first letter of the name."""
        return self.name[0]

    @property
    def kind(self) -> str:
        """`template`, `1mm` (its fixed scan has thin slices) or `thick`."""
        thick = self.fixed.volume.spacing_mm.max() > 2
        return "template" if self.onto_template else "thick" if thick else "1mm"

    def errors_mm(self, transform: RigidTransform) -> NDArray[np.float64]:
        """How far from the truth a transform puts each point of the brain."""
        points = self.brain_points_mm
        return np.linalg.norm(transform(points) - self.truth(points), axis=1)


def cases(folder: Path, names: Sequence[str] = (), seed: int = 0) -> Iterator[Case]:
    """Give the named cases, or all of them, one after the other; see `get_case`."""
    for row in ROWS:
        if not names or row.name in names:
            yield get_case(row.name, folder, seed)


def get_case(name: str, folder: Path, seed: int = 0) -> Case:
    """Read a case from a folder, in which it is made at first.

    Parameters
    ----------
    folder : Path
        Keeps the pairs: about 10 MB each.
    seed : int
        Which set: 0 is the one to look at, any other an unseen one.
    """
    row = next(row for row in ROWS if row.name == name)
    digest = hashlib.sha256(repr((row, seed, VERSION, HEAD_VOXEL_MM)).encode()).hexdigest()[:8]
    pair = folder / f"{name}-seed{seed}-{digest}"
    if not (pair / "truth.npz").is_file():  # written last
        pair.mkdir(parents=True, exist_ok=True)
        _Maker(row, seed).write(pair)
    fixed_file, brain_file = pair / "fixed.nii.gz", pair / "fixed_brain.nii.gz"
    if row.group == "A":
        fixed_file, fixed = embedded_template()
        brain_file = fixed_file
    else:
        fixed = _read_scan(pair, "fixed")
    with np.load(pair / "truth.npz") as known:
        truth, points = RigidTransform(known["truth"]), known["points"]
    return Case(
        name,
        row.same_shape,
        row.fixed == "template",
        fixed_file,
        pair / "moving.nii.gz",
        brain_file,
        pair / "moving_brain.nii.gz",
        fixed,
        _read_scan(pair, "moving"),
        truth,
        points,
    )


def _read_scan(folder: Path, name: str) -> Scan:
    brain = read_volume(folder / f"{name}_brain.nii.gz").data > 0
    return Scan(read_volume(folder / f"{name}.nii.gz"), brain)


@lru_cache(maxsize=1)
def embedded_template() -> tuple[Path, Scan]:
    """Return the embedded template's file, and the template."""
    file = importlib.metadata.distribution("nilearn").locate_file(EMBEDDED_FILE)
    return Path(file), load_atlas(Register())


class _Maker:
    """Draws and makes one pair."""

    def __init__(self, row: Row, seed: int) -> None:
        self.row = row
        self.rng = np.random.default_rng([seed, crc32(row.name.encode())])
        own_shape = row.group in "CP" or not row.same_shape
        draw_shape = odd_shape if "odd" in row.moving else Warp.random
        self.warp = draw_shape(self.rng) if own_shape else SAME_SHAPE

    def write(self, folder: Path) -> None:
        """Make the pair and write it."""
        if self.row.fixed == "template":
            truth, points = self._onto_template(folder)
        else:
            truth, points = self._same_patient(folder)
        np.savez(folder / "truth.npz", truth=truth, points=points)

    def _same_patient(self, folder: Path) -> tuple[NDArray, NDArray]:
        """Take two series of one head that moves in between."""
        planned = rigid(self.rng.uniform(-5, 5, 3), self.rng.uniform(-8, 8, 3))
        pose = planned @ self._motion()
        fixed = self._acquisition(self.row.fixed)
        moving = self._acquisition(self.row.moving)
        if self.row.group == "P":
            if fixed.plane == moving.plane and not (fixed.volumetric or moving.volumetric):
                moving = replace(fixed, modality=moving.modality)
            prescription = planned
        else:
            prescription = pose
            if self.rng.random() < 0.5:  # planned anew on the turned head, not on the scanner
                moving = _turned(moving, pose @ np.linalg.inv(planned))
        truth_mask = self._scan(folder, "fixed", self.row.fixed, fixed, planned, planned)
        self._scan(folder, "moving", self.row.moving, moving, prescription, pose)
        points = points_within(truth_mask, self.rng)
        return pose @ np.linalg.inv(planned), points

    def _onto_template(self, folder: Path) -> tuple[NDArray, NDArray]:
        """Take a head, of the template's shape or not; skulled templates are phantoms too."""
        pose = self._motion()
        moving = self._acquisition(self.row.moving)
        if self.rng.random() < 0.5:
            moving = _turned(moving, pose)
        self._scan(folder, "moving", self.row.moving, moving, pose, pose)
        if self.row.group == "A":
            _, atlas = embedded_template()
            brain = Volume(atlas.brain, atlas.volume.affine)
        else:
            brain = _write_skulled_template(folder)
        points = points_within(brain, self.rng)
        if self.row.same_shape:
            return pose, points
        everywhere = points_within(brain, self.rng)
        in_scanner = RigidTransform(pose)(from_standard(self.warp, everywhere))
        return best_rigid(everywhere, in_scanner), points

    def _motion(self) -> NDArray[np.float64]:
        """Draw how the head moves, about the middle of the anterior commissure."""
        from scipy.spatial.transform import Rotation

        row, rng = self.row, self.rng
        if row.axis:
            turn = np.eye(3)["xyz".index(row.axis)] * row.turn_deg * rng.choice([-1, 1])
        else:
            direction = rng.normal(size=3)
            turn = direction / np.linalg.norm(direction) * row.turn_deg * rng.uniform(0.8, 1)
        shift = rng.uniform(-1, 1, size=3)
        shift *= row.shift_mm * rng.uniform(0.8, 1) / np.abs(shift).max()
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix()
        matrix[:3, 3] = shift
        return matrix

    def _acquisition(self, words: str) -> Acquisition:
        """Draw the geometry that the words leave open."""
        contrast, plane, *features = words.split()
        rng = self.rng
        center = np.array((0.0, -17.0, 4.0)) + rng.uniform(-3, 3, 3)
        if plane == "3d":
            center += (0, 9, -36)
            taken = replace(T1W_3D, modality=contrast, columns=240, rows=256, slices=176,
                            pixel_mm=1.0, thickness_mm=1.0)  # fmt: skip
        elif contrast in ("SWI", "MRA"):
            taken = getattr(presets, contrast)
            if contrast == "MRA":
                center += (0, 0, -16)
        else:
            spacing_mm, pixel_mm = rng.uniform(3, 7), rng.uniform(0.7, 1.0)
            extent_mm = {"axi": 158, "sag": 152, "cor": 196}[plane]
            center += {"axi": (0, 0, 0), "sag": (0, 0, -20), "cor": (0, 0, -16)}[plane]
            taken = replace(
                T2W,
                modality=contrast,
                plane=plane,
                columns=round(232 / pixel_mm),
                rows=round(232 / pixel_mm),
                slices=round(extent_mm / spacing_mm),
                pixel_mm=round(pixel_mm, 3),
                thickness_mm=round(0.9 * spacing_mm, 2),
                gap_mm=round(0.1 * spacing_mm, 2),
            )
        if "oblique" in features:
            tilt = rng.uniform(25, 38) * rng.choice([-1, 1])
            taken = replace(taken, tilt_deg=(tilt, *rng.uniform(-10, 10, 2)))
        for slab, height_mm, extent_mm in SLABS:
            if slab in features:
                slices = round(rng.uniform(*extent_mm) / taken.spacing_mm[2])
                center[2] = height_mm + rng.uniform(-3, 3)
                taken = replace(taken, slices=slices)
        return replace(taken, centre_mm=tuple(center))

    def _scan(
        self,
        folder: Path,
        name: str,
        words: str,
        acquisition: Acquisition,
        prescription: NDArray,
        pose: NDArray,
    ) -> Volume:
        """Take one series as it is after defacing, write it, and return its true brain."""
        head = standard_head(HEAD_VOXEL_MM)
        painted = _painted(acquisition.modality)
        if "lesion" in words:
            painted = with_lesion(head, painted, self.rng)
        noise = STRONG_NOISE if "noise" in words else NOISE
        taken = acquire(
            head, painted, self.warp, acquisition, prescription, pose, self.rng, noise=noise
        )
        voxels = taken.voxels
        if "bias" in words:
            shaded = voxels * shading(voxels.shape, self.rng)
            voxels = np.clip(np.rint(shaded), 0, 4095).astype(np.uint16)
        to_head = np.linalg.inv(pose) @ taken.affine
        truth = Volume(taken.brain > 0, taken.affine)
        brain = production_mask(truth, to_head, self.rng)
        if "face" not in words:
            voxels = defaced(Volume(voxels, taken.affine), brain)
        write_volume(folder / f"{name}.nii.gz", voxels, taken.affine)
        write_volume(folder / f"{name}_brain.nii.gz", brain.astype(np.uint8), taken.affine)
        return truth


def defaced(volume: Volume, brain: NDArray[np.bool_]) -> NDArray:
    """Return the voxels that production keeps; the others are 0."""
    plane = face_plane(largest_component(brain), volume.affine, Deface().buffer_mm)
    return np.where(plane.kept(brain.shape, volume.affine) | brain, volume.data, 0).astype(
        volume.data.dtype
    )


def points_within(brain: Volume, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw points (n, 3) in mm within a brain, between voxel centers too."""
    voxels = np.argwhere(brain.data)
    chosen = voxels[rng.integers(len(voxels), size=N_POINTS)]
    return RigidTransform(brain.affine)(chosen + rng.uniform(-0.5, 0.5, chosen.shape))


def _turned(acquisition: Acquisition, turn: NDArray) -> Acquisition:
    """Turn the slices as the head has turned."""
    from scipy.spatial.transform import Rotation

    tilt = turn[:3, :3] @ rigid(acquisition.tilt_deg, (0, 0, 0))[:3, :3]
    angles = Rotation.from_matrix(tilt).as_euler("xyz", degrees=True)
    return replace(acquisition, tilt_deg=tuple(angles))


@lru_cache(maxsize=6)
def _painted(contrast: str) -> NDArray[np.float32]:
    return standard_head(HEAD_VOXEL_MM).paint(CONTRASTS[contrast])


def taken_head(acquisition: Acquisition, turn_deg: float = 0) -> PhantomScan:
    """Take a whole head of the standard shape, with little noise, turned about its long axis."""
    pose = rigid((0, 0, turn_deg), (0, 0, 0))
    rng = np.random.default_rng(0)
    painted = _painted(acquisition.modality)
    head = standard_head(HEAD_VOXEL_MM)
    return acquire(head, painted, SAME_SHAPE, acquisition, pose, pose, rng, noise=3.0)


def _write_skulled_template(folder: Path) -> Volume:
    """Write a head as a template; return its brain."""
    acquisition = replace(T1W_3D, plane="axi", columns=200, rows=240, slices=240, pixel_mm=1.0,
                          thickness_mm=1.0, centre_mm=(0.0, -10.0, -20.0))  # fmt: skip
    taken = taken_head(acquisition)
    write_volume(folder / "fixed.nii.gz", taken.voxels, taken.affine)
    write_volume(folder / "fixed_brain.nii.gz", taken.brain, taken.affine)
    return Volume(taken.brain > 0, taken.affine)


def with_lesion(
    head: Head, painted: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return the painted head with a bright or dark lump of 1 to 3 cm in its brain."""
    painted = painted.copy()
    center = np.array((rng.choice([-1, 1]) * rng.uniform(15, 45), *rng.uniform((-60, 0), (35, 45))))
    signal = rng.choice([rng.uniform(20, 120), rng.uniform(800, 1000)])
    radii = rng.uniform(5, 12, size=3)
    centers = center + rng.normal(size=(3, 3)) * 5
    low, high = centers.min(axis=0) - 16, centers.max(axis=0) + 16
    to_voxel = np.linalg.inv(head.affine)
    first, last = (np.rint(RigidTransform(to_voxel)(p)).astype(int) for p in (low, high))
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    voxels = np.moveaxis(np.mgrid[box], 0, -1)
    points = voxels @ head.affine[:3, :3].T + head.affine[:3, 3]
    depth = np.max(
        [r - np.linalg.norm(points - c, axis=-1) for r, c in zip(radii, centers, strict=True)],
        axis=0,
    )
    share = np.clip(0.5 + depth / 3, 0, 1) * np.clip(head.brain_minus_face[box], 0, 1)
    painted[box] += (share * (signal - painted[box])).astype(np.float32)
    return painted


def shading(shape: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a smooth field around 1 that changes by a factor of two to four over the image."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    slope, bend = rng.uniform(-0.45, 0.45, 3), rng.uniform(-0.3, 0.3, 3)
    field = slope[0] * i + slope[1] * j + slope[2] * k
    field = field + bend[0] * i * j + bend[1] * j * k + bend[2] * (i**2 - j**2)
    return np.exp(field).astype(np.float32)


def production_mask(truth: Volume, to_head: NDArray, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return a brain mask with the errors of a network's: Dice about 0.96, sometimes 0.9.

    The surface moves in and out by 1-2 mm. A poor mask moves by twice as much and runs over into
    an orbit or the neck.

    Parameters
    ----------
    truth : Volume
        The true mask.
    to_head : (4, 4) ndarray
        Voxel index to head space, mm.
    """
    from scipy.ndimage import gaussian_filter
    from scipy.special import ndtr

    poor = rng.random() < POOR_MASKS
    reach_mm, blur_mm = (5.0, 5.0) if poor else (1.9, 2.5)
    sigma = 1 / truth.spacing_mm
    soft = gaussian_filter(truth.data.astype(np.float32), blur_mm * sigma)
    wander = gaussian_filter(rng.standard_normal(soft.shape, dtype=np.float32), 7 * sigma)
    wander = reach_mm * (wander / wander.std() + rng.uniform(-0.5, 0.5))
    mask = soft > ndtr(wander / blur_mm)  # a flat edge, blurred, passes this level `wander` away
    if poor:
        center, radius_mm = _leak(rng)
        i, j, k = np.ogrid[tuple(slice(n) for n in mask.shape)]
        off = [row[0] * i + row[1] * j + row[2] * k + row[3] - c
               for row, c in zip(to_head[:3], center, strict=True)]  # fmt: skip
        mask |= off[0] ** 2 + off[1] ** 2 + off[2] ** 2 < radius_mm**2
    return largest_component(mask)


def _leak(rng: np.random.Generator) -> tuple[NDArray, float]:
    """Draw a ball next to the brain, in head space: behind an eye, or in the neck."""
    if rng.random() < 0.5:
        return np.array((rng.choice([-1, 1]) * 28.0, 40.0, -40.0)), rng.uniform(11, 15)
    return np.array((0.0, -32.0, -72.0)), rng.uniform(13, 18)


def odd_shape(rng: np.random.Generator) -> Warp:
    """Draw a head further from the standard one than `Warp.random` does: long, flat, uneven."""
    usual = Warp.random(rng, n_waves=10)
    return replace(usual, scale=rng.uniform(0.82, 1.0, 3), amplitude_mm=1.3 * usual.amplitude_mm)


def from_standard(warp: Warp, points_mm: NDArray) -> NDArray[np.float64]:
    """Where points of the standard head lie in the patient's: `Warp.to_standard` undone."""
    found = points_mm * warp.scale
    for _ in range(30):  # the waves are gentle: each round leaves a fifth of the error
        found += (points_mm - warp.to_standard(found)) * warp.scale
    return found


def best_rigid(points_mm: NDArray, targets_mm: NDArray) -> NDArray[np.float64]:
    """Return the rigid (4, 4) matrix that brings points nearest to their targets (Kabsch)."""
    from scipy.spatial.transform import Rotation

    center, target = points_mm.mean(axis=0), targets_mm.mean(axis=0)
    turn = Rotation.align_vectors(targets_mm - target, points_mm - center)[0].as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, target - turn @ center
    return matrix
