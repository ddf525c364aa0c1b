import os

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmill.register.engines import ants
from mrmill.register.resampling import resample
from mrmill.register.transforms import RigidTransform, write_transform
from mrmill.volumes import Volume


def rigid(degrees=(0, 0, 0), shift_mm=(0, 0, 0)):
    turn = nib.eulerangles.euler2mat(*np.radians(degrees))
    return RigidTransform(nib.affines.from_matvec(turn, shift_mm))


def grid(shape, spacing, degrees=(0, 0, 0), center_mm=(0, 0, 0), flip=(1, 1, 1)):
    """An oblique affine whose field has a given middle."""
    turn = rigid(degrees).matrix[:3, :3] @ np.diag(np.multiply(spacing, flip))
    origin = np.array(center_mm) - turn @ ((np.array(shape) - 1) / 2)
    return nib.affines.from_matvec(turn, origin)


def positions(moving, fixed, transform):
    """Where the voxels of a grid lie in an image, in voxels, (I, J, K, 3)."""
    voxels = np.moveaxis(np.indices(fixed.data.shape), 0, -1)
    points = transform(nib.affines.apply_affine(fixed.affine, voxels))
    return nib.affines.apply_affine(np.linalg.inv(moving.affine), points)


def noise(shape, affine, dtype=np.float32):
    values = np.random.default_rng(1).uniform(50, 100, shape)
    return Volume(np.asfortranarray(values.astype(dtype)), affine)


def empty(shape, affine):
    return Volume(np.zeros(shape, np.uint8), affine)


OBLIQUE = rigid((10, -20, 30), (12.5, -7, 40))
FIXED = empty((44, 50, 40), grid((44, 50, 40), (4, 4, 4)))
THICK = noise((40, 30, 11), grid((40, 30, 11), (4, 4, 12), (5, 10, 0), (10, 0, 30), (-1, 1, 1)))
ITK_NAMES = [(1, "linear"), (0, "nearestNeighbor")]


# Against ITK, in both of its packages


@pytest.mark.parametrize(("order", "interpolator"), ITK_NAMES)
def test_resampling_gives_what_antsapplytransforms_gives(tmp_path, order, interpolator):
    itk = ants.import_ants()
    write_transform(tmp_path / "M.mat", OBLIQUE)
    expected = itk.apply_transforms(
        ants.to_ants(FIXED),
        ants.to_ants(THICK),
        [str(tmp_path / "M.mat")],
        interpolator=interpolator,
    ).numpy()
    ours = resample(THICK, FIXED, OBLIQUE, order)
    # float32 transforms may decide otherwise on the very face of a voxel
    assert (np.abs(ours - expected) > 0.01).mean() < 2e-4
    assert 0.02 < (ours == 0).mean() < 0.95


def in_simpleitk(sitk, volume):
    image = sitk.GetImageFromArray(volume.data.T)
    affine = np.diag([-1, -1, 1, 1]) @ volume.affine
    image.SetSpacing(volume.spacing_mm)
    image.SetDirection((affine[:3, :3] / volume.spacing_mm).ravel())
    image.SetOrigin(affine[:3, 3])
    return image


def three(low, high):
    """Three numbers in hundredths: ITK's own matrices break down near the least float."""
    return st.tuples(*[st.integers(int(low * 100), int(high * 100)).map(lambda n: n / 100)] * 3)


@settings(max_examples=40, deadline=None)
@given(
    order=st.sampled_from([0, 1]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int16, np.float32]),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=three(0.4, 8),
    degrees=three(-180, 180),
    shift_mm=three(-9, 9),
)
def test_resampling_gives_what_simpleitk_gives(order, dtype, shape, spacing, degrees, shift_mm):
    sitk = pytest.importorskip("SimpleITK")
    moving = noise(shape, grid(shape, spacing, degrees, flip=(1, -1, 1)), dtype)
    fixed = empty((12, 11, 10), grid((12, 11, 10), (1.5, 1, 2)))
    transform = rigid((7, 3, -12), shift_mm)
    matrix = np.diag([-1, -1, 1, 1]) @ transform.matrix @ np.diag([-1, -1, 1, 1])
    itk = sitk.AffineTransform(matrix[:3, :3].ravel(), matrix[:3, 3])
    expected = sitk.Resample(
        in_simpleitk(sitk, moving),
        in_simpleitk(sitk, fixed),
        itk,
        sitk.sitkLinear if order else sitk.sitkNearestNeighbor,
        0,
        sitk.sitkFloat32,
    )
    ours = resample(moving, fixed, transform, order)
    where = positions(moving, fixed, transform)
    on_a_face = (np.abs(where % 1 - 0.5) < 1e-6).any(axis=-1)  # there rounding decides
    apart = np.abs(ours - sitk.GetArrayFromImage(expected).T.astype(float))
    assert apart[~on_a_face].max(initial=0) < 1e-3 * 50


@pytest.mark.parametrize(("order", "interpolator"), ITK_NAMES)
def test_on_the_faces_of_voxels_itk_decides(order, interpolator):
    itk = ants.import_ants()
    values = np.arange(1, 6, dtype=np.float32)[:, None, None] * np.ones((1, 5, 5), np.float32)
    fine = nib.affines.from_matvec(np.diag([0.5, 1, 1]), (-0.5, 0, 0))
    moving, fixed = Volume(values, np.eye(4)), empty((13, 5, 5), fine)
    expected = itk.apply_transforms(
        ants.to_ants(fixed), ants.to_ants(moving), [], interpolator=interpolator
    )
    np.testing.assert_array_equal(
        resample(moving, fixed, RigidTransform(), order), expected.numpy()
    )


# Against what is known


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_a_ramp_stays_the_ramp_to_the_end_of_a_long_row(flip):
    slope_mm = np.array([0.3, -1.1, 0.7])
    shape = (700, 6, 9)
    affine = grid(shape, (0.31, 40, 50), (1, 2, 3), flip=flip)
    voxels = np.moveaxis(np.indices(shape), 0, -1)
    moving = Volume(nib.affines.apply_affine(affine, voxels) @ slope_mm, affine)
    fixed = empty((3000, 3, 3), grid((3000, 3, 3), (0.05, 7, 7), (-1, 3, 2)))
    where = positions(moving, fixed, OBLIQUE)
    inside = ((where > 0) & (where < np.array(shape) - 1)).all(axis=-1)
    ours = resample(moving, fixed, OBLIQUE)
    assert inside.sum() > 5000
    expected = nib.affines.apply_affine(affine, where) @ slope_mm
    np.testing.assert_allclose(ours[inside], expected[inside], rtol=2e-7, atol=1e-6)


def test_on_its_own_grid_an_image_is_itself():
    for order in (0, 1):
        np.testing.assert_array_equal(resample(THICK, THICK, RigidTransform(), order), THICK.data)
    turned = Volume(THICK.data, OBLIQUE.matrix @ THICK.affine)
    back = RigidTransform(turned.affine @ np.linalg.inv(THICK.affine))  # rounding and all
    np.testing.assert_allclose(resample(turned, THICK, back), THICK.data, rtol=1e-7)


def test_a_mask_is_0_outside_its_field_and_keeps_its_type():
    kept = Volume(np.ones((10, 10, 10), np.uint8), grid((10, 10, 10), (5, 5, 5)))
    sampled = resample(kept, FIXED, RigidTransform(), order=0)
    assert sampled.dtype == np.uint8
    points = nib.affines.apply_affine(FIXED.affine, np.moveaxis(np.indices(sampled.shape), 0, -1))
    np.testing.assert_array_equal(sampled == 1, (np.abs(points) <= 25).all(axis=-1))


@pytest.mark.parametrize("shift_mm", [500, 1e6, 1e30, np.nan])
def test_an_image_that_is_missed_leaves_nothing(shift_mm):
    sampled = resample(THICK, FIXED, rigid(shift_mm=(0, shift_mm, 0)))
    assert sampled.shape == FIXED.data.shape
    assert not sampled.any()


# However the voxels lie in memory


@pytest.mark.parametrize("order", [0, 1])
def test_the_order_of_voxels_and_bytes_in_memory_does_not_matter(order):
    expected = resample(THICK, FIXED, OBLIQUE, order)
    assert expected.flags.f_contiguous  # as it is written to a file
    assert expected.dtype == np.float32
    read_only = np.array(THICK.data, order="F")
    read_only.flags.writeable = False
    for data in (
        np.ascontiguousarray(THICK.data),
        np.repeat(THICK.data, 2, axis=1)[:, ::2],
        THICK.data.astype(">f4"),
        THICK.data.astype(np.float64),
        read_only,
    ):
        sampled = resample(Volume(data, THICK.affine), FIXED, OBLIQUE, order)
        np.testing.assert_array_equal(sampled, expected)


def test_every_bit_is_that_of_the_formula_in_double_precision():
    """No processor may fuse or reorder operations: another one would give other bits."""
    from mrmill.register.interpolation import VOXEL, linear

    rng = np.random.default_rng(0)
    source = rng.normal(100, 30, (9, 8, 7))
    steps = np.array([[3e-2, 0.2, 0.1, 1.3], [-1e-2, 0.3, 0.2, 1.1], [2e-2, 0.01, 0.3, 0.6]])
    steps = np.rint(steps * VOXEL).astype(np.int64)
    sampled = np.zeros((10, 11, 60))
    linear(source, steps, sampled)
    k, j, i = np.indices(sampled.shape)
    position = np.tensordot(steps, np.array([i, j, k, np.ones_like(i)]), 1)
    (a, b, c), (u, v, w) = position // VOXEL, (position % VOXEL) / VOXEL

    def blend(one, other, share):
        return one + share * (other - one)

    def plane(a):
        rows = [blend(source[a, b + n, c], source[a, b + n, c + 1], w) for n in (0, 1)]
        return blend(*rows, v)

    np.testing.assert_array_equal(sampled, blend(plane(a), plane(a + 1), u))


def test_importing_it_does_not_import_numba():
    code = "import sys, mrmill.register.resampling; sys.exit('numba' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
