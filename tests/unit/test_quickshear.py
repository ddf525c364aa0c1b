"""The defacing plane: the same in space however the voxels lie, and never through the brain."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.eulerangles import euler2mat
from scipy.spatial.transform import Rotation

from mrmill.masks.quality import largest_component
from mrmill.quickshear import Plane, face_plane

BUFFER_MM = 10.0
BRAIN_CENTRE_MM, BRAIN_RADII_MM = np.array([0, 0, 10.0]), np.array([68, 85, 62.0])
NOSE_AND_MOUTH_MM = ((-20, 20), (80, 115), (-95, -40))  # R, A, S
FIELD_CENTRE_MM = np.array([0, 10, -20.0])

GRIDS = {
    "1 mm iso": ((220, 240, 256), (1, 1, 1)),
    "thick axial": ((512, 512, 26), (0.45, 0.45, 5.5)),
    "thick sagittal": ((26, 512, 512), (5.5, 0.45, 0.45)),
    "thick coronal": ((256, 44, 256), (0.9, 5.5, 0.9)),
}
ORDERS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
PROBES_MM = np.array([(0, 110, -60), (0, 90, -110), (0, 40, -60.0)])  # nose, chin, skull base


class Phantom:
    """An ellipsoid brain and a box over nose and mouth on a grid; `head_turn` moves the head."""

    def __init__(self, grid, grid_turn=None, head_turn=None):
        self.shape, spacing = GRIDS[grid]
        turn = np.eye(3) if grid_turn is None else grid_turn
        self.affine = np.eye(4)
        self.affine[:3, :3] = turn @ np.diag(spacing)
        half = (np.array(self.shape) - 1) / 2
        self.affine[:3, 3] = FIELD_CENTRE_MM - self.affine[:3, :3] @ half
        # squared distances, summed up axis by axis: positions of all voxels would take seconds
        to_head = np.eye(3) if head_turn is None else head_turn.T
        x, y, z = (self._coordinate(to_head, axis) for axis in range(3))
        position = (x, y, z)
        self.brain = (
            sum(
                ((p - c) / r) ** 2
                for p, c, r in zip(position, BRAIN_CENTRE_MM, BRAIN_RADII_MM, strict=True)
            )
            < 1
        )
        self.nose = np.logical_and.reduce(
            [
                (low < p) & (p < high)
                for p, (low, high) in zip(position, NOSE_AND_MOUTH_MM, strict=True)
            ]
        )

    def _coordinate(self, to_head, axis):
        row = to_head[axis] @ self.affine[:3]
        i, j, k = np.ogrid[tuple(slice(0, n) for n in self.shape)]
        return (row[0] * i + row[1] * j + row[2] * k + row[3]).astype(np.float32)


def reordered(mask, affine, order, signs):
    """The same mask in space with its voxel axes permuted and flipped."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        change[old, new] = sign
        change[old, 3] = 0 if sign == 1 else mask.shape[old] - 1
    turned = mask.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    return turned, affine @ change


def distances_mm(plane):
    return PROBES_MM @ plane.normal - plane.offset_mm


@pytest.fixture(scope="module")
def phantoms():
    return {grid: Phantom(grid) for grid in GRIDS}


@pytest.mark.parametrize("grid", GRIDS)
def test_nose_and_mouth_are_removed_and_no_brain_voxel_is(phantoms, grid):
    phantom = phantoms[grid]
    kept = face_plane(phantom.brain, phantom.affine, BUFFER_MM).kept(phantom.shape, phantom.affine)
    assert (phantom.nose & ~kept).sum() >= 0.95 * phantom.nose.sum()
    assert not (phantom.brain & ~kept).any()


@pytest.mark.parametrize("grid", GRIDS)
def test_the_order_and_direction_of_voxel_axes_change_nothing(phantoms, grid):
    brain, affine = phantoms[grid].brain, phantoms[grid].affine
    step = tuple(max(1, n // 60) for n in brain.shape)  # every n-th voxel: 48 orders in seconds
    brain = brain[:: step[0], :: step[1], :: step[2]]
    affine = affine @ np.diag([*step, 1])
    plane = face_plane(brain, affine, BUFFER_MM)
    kept = plane.kept(brain.shape, affine)
    assert len(ORDERS) == 48
    for order, signs in ORDERS:
        turned, turned_affine = reordered(brain, affine, order, signs)
        other = face_plane(turned, turned_affine, BUFFER_MM)
        np.testing.assert_allclose(distances_mm(other), distances_mm(plane), atol=1e-6)
        turned_kept, _ = reordered(kept, affine, order, signs)
        assert (other.kept(turned.shape, turned_affine) != turned_kept).mean() < 1e-4


def test_every_grid_gives_the_same_plane_within_a_small_voxel(phantoms):
    planes = [face_plane(p.brain, p.affine, BUFFER_MM) for p in phantoms.values()]
    spread = np.ptp([distances_mm(plane) for plane in planes], axis=0)
    assert (spread < 1.0).all()


@pytest.mark.parametrize("grid", ["1 mm iso", "thick axial"])
def test_an_oblique_grid_gives_the_plane_of_a_straight_one(phantoms, grid):
    straight = face_plane(phantoms[grid].brain, phantoms[grid].affine, BUFFER_MM)
    turn = Rotation.from_euler("xyz", [10, 7, -12], degrees=True).as_matrix()
    oblique = Phantom(grid, grid_turn=turn)
    plane = face_plane(oblique.brain, oblique.affine, BUFFER_MM)
    np.testing.assert_allclose(distances_mm(plane), distances_mm(straight), atol=1.5)


@pytest.mark.parametrize("pitch_deg", [-15, 15])
def test_a_nodding_head_loses_its_nose_too(pitch_deg):
    turn = Rotation.from_euler("x", pitch_deg, degrees=True).as_matrix()
    phantom = Phantom("thick coronal", head_turn=turn)
    kept = face_plane(phantom.brain, phantom.affine, BUFFER_MM).kept(phantom.shape, phantom.affine)
    assert (phantom.nose & ~kept).sum() >= 0.95 * phantom.nose.sum()


def test_cropping_the_field_does_not_move_the_plane(phantoms):
    phantom = phantoms["1 mm iso"]
    whole = face_plane(phantom.brain, phantom.affine, BUFFER_MM)
    inside = tuple(
        slice(low, high) for low, high in zip((30, 20, 85), (190, 230, 230), strict=True)
    )
    assert phantom.brain[inside].sum() == phantom.brain.sum()
    shifted = phantom.affine.copy()
    shifted[:3, 3] += phantom.affine[:3, :3] @ [part.start for part in inside]
    cropped = face_plane(phantom.brain[inside], shifted, BUFFER_MM)
    np.testing.assert_allclose(distances_mm(cropped), distances_mm(whole), atol=1e-9)


@pytest.mark.parametrize("buffer_mm", [0.0, 10.0, 25.0])
def test_the_buffer_is_the_distance_in_mm_to_the_nearest_brain_voxel(phantoms, buffer_mm):
    for phantom in phantoms.values():
        plane = face_plane(phantom.brain, phantom.affine, buffer_mm)
        centres = np.argwhere(phantom.brain) @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]
        nearest = (plane.offset_mm - centres @ plane.normal).min()
        assert nearest == pytest.approx(buffer_mm, abs=1e-6)


def test_a_slightly_larger_mask_moves_the_plane_by_no_more_than_it_grew(phantoms):
    from scipy.ndimage import binary_dilation

    phantom = phantoms["thick coronal"]
    grown = binary_dilation(phantom.brain, structure=np.ones((3, 1, 3)), iterations=3)  # 2.7 mm
    before = distances_mm(face_plane(phantom.brain, phantom.affine, BUFFER_MM))
    after = distances_mm(face_plane(grown, phantom.affine, BUFFER_MM))
    assert (np.abs(after - before) < 2.7 * np.sqrt(2) + 1).all()


def odd_masks(shape=(40, 50, 44)):
    empty = np.zeros(shape, bool)
    for axis in range(3):
        one_slice = empty.copy()
        one_slice[tuple(shape[axis] // 2 if a == axis else slice(8, -8) for a in range(3))] = True
        yield f"one slice across axis {axis}", one_slice
        for end in (0, -1):
            touching = empty.copy()
            touching[8:-8, 8:-8, 8:-8] = True
            touching[tuple(end if a == axis else slice(8, -8) for a in range(3))] = True
            yield f"touching face {axis} {end}", touching
    neck = empty.copy()
    neck[15:25, 15:25, :10] = True
    yield "neck only", neck
    one_voxel = empty.copy()
    one_voxel[3, 4, 5] = True
    yield "one voxel", one_voxel
    yield "whole field", ~empty


@pytest.mark.parametrize(("what", "mask"), list(odd_masks()), ids=lambda value: str(value)[:24])
def test_an_odd_mask_raises_nothing_and_is_kept_whole(what, mask):
    affine = np.diag([4.0, 4, 4, 1])
    plane = face_plane(largest_component(mask), affine, BUFFER_MM)
    assert np.linalg.norm(plane.normal) == pytest.approx(1)
    kept = plane.kept(mask.shape, affine)
    assert (kept & largest_component(mask)).sum() == largest_component(mask).sum(), what


@pytest.mark.parametrize("degrees", [0, 20, -35])
def test_the_distance_from_the_brain_moves_with_the_head_and_tells_of_the_plane(degrees):
    brain = np.zeros((40, 50, 30), bool)
    brain[10:31, 15:36, 5:26] = True  # its centroid is voxel (20, 25, 15)
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(x=np.radians(degrees)) @ np.diag([-2.0, 2.0, 3.0])
    affine[:3, 3] = (7, -50, 31)
    centroid = nib.affines.apply_affine(affine, (20, 25, 15))
    normal = np.array([0, 0.6, -0.8])
    for distance_mm in (75.0, -3.0):
        point = centroid + distance_mm * normal + 40 * np.array([1, 0.8, 0.6])  # on the plane
        plane = Plane(normal, float(normal @ (point - 40 * np.array([1, 0, 0]))))
        assert plane.distance_mm(brain, affine) == pytest.approx(distance_mm)
