"""A head that is a formula: scans of it on any grid, in any pose, with the truth known."""

import nibabel as nib
import numpy as np

from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume

BRAIN_MM = np.array([55.0, 65.0, 50.0])
BLOBS = np.random.default_rng(3).uniform(-1, 1, size=(40, 3)) * BRAIN_MM * 0.7

#: Voxels and edge of the usual grids, of the head as it is and of a turned one in another contrast.
FIXED_SHAPE, FIXED_MM = (44, 50, 40), (4, 4, 4)
MOVING_SHAPE, MOVING_MM = (40, 44, 36), (4, 4, 5)


def rigid(degrees=(0, 0, 0), shift_mm=(0, 0, 0)):
    turn = nib.eulerangles.euler2mat(*np.radians(degrees))
    return RigidTransform(nib.affines.from_matvec(turn, shift_mm))


TURNED = rigid((5, -8, 10), (6, -4, 8))


def grid(shape, spacing, degrees=(0, 0, 0), center_mm=(0, 0, 0), flip=(1, 1, 1)):
    """An oblique affine whose field has a given middle."""
    turn = rigid(degrees).matrix[:3, :3] @ np.diag(np.multiply(spacing, flip))
    origin = np.array(center_mm) - turn @ ((np.array(shape) - 1) / 2)
    return nib.affines.from_matvec(turn, origin)


def head(points_mm):
    """The anatomy itself: an ellipsoid of brain with blobs in it, no left-right symmetry."""
    radius = np.linalg.norm(points_mm / BRAIN_MM, axis=-1)
    brain = radius < 1
    value = np.where(brain, 100.0, np.where(radius < 1.25, 40.0, 0.0))
    for number, blob in enumerate(BLOBS):
        distance = ((points_mm[brain] - blob) ** 2).sum(axis=-1)
        value[brain] += (30 + number) * np.exp(-distance / 2 / 6**2)
    return value, brain


def centers_mm(shape, affine):
    """Where the voxels of a grid are, (I, J, K, 3)."""
    return nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def t2w(value):
    """Another contrast of the same head."""
    return 250 * np.sqrt(value) - 1.2 * value


def scan(shape, affine, pose=None, contrast=lambda value: value, size=(1, 1, 1), field=None):
    """Acquire the head on a grid.

    `pose` takes points of the standard head to this scan; `size` makes it another person's;
    `field` gives a shading at points of the scan, in mm.
    """
    points = centers_mm(shape, affine).reshape(-1, 3)
    value, brain = head((pose or RigidTransform()).inverse()(points) / np.array(size))
    image = contrast(value) * (1 if field is None else field(points))
    return Scan(Volume(image.reshape(shape).astype(np.float32), affine), brain.reshape(shape))


def fixed_scan():
    """The head as it is."""
    return scan(FIXED_SHAPE, grid(FIXED_SHAPE, FIXED_MM))


def moving_scan(shape=MOVING_SHAPE, spacing=MOVING_MM, pose=TURNED, size=(1, 1, 1)):
    """The head in another pose and contrast, the field around it."""
    affine = grid(shape, spacing, (3, 0, 8), pose.matrix[:3, 3])
    return scan(shape, affine, pose, t2w, size)


def apart_mm(found, truth):
    """Largest distance between two transforms at the six poles of the brain."""
    poles = np.vstack([np.diag(BRAIN_MM), -np.diag(BRAIN_MM)])
    return np.linalg.norm(found(poles) - truth(poles), axis=1).max()
