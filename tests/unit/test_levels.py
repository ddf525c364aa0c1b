import nibabel as nib
import numpy as np
import pytest
from analytic_head import BRAIN_MM, centers_mm, grid, rigid, scan

from mrmill.register.levels import ACQUIRED, COARSE, FINE, REACH_MM, Image, image_of, region_of
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume

SHAPE = (26, 33, 14)
OBLIQUE = grid(SHAPE, (1.1, 0.9, 5.5), (10, -20, 30), (3, -7, 40), flip=(-1, 1, 1))

#: Grids on which a head of 110 x 130 x 100 mm may come: turned, of thick slices, mirrored.
GRIDS = {
    "cubic": ((64, 66, 60), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
    "thick": ((120, 130, 20), (1, 1, 6), (0, 0, 0), (1, 1, 1)),
    "sagittal": ((20, 120, 120), (6.6, 1.1, 1.1), (3, 0, -4), (-1, 1, 1)),
    "oblique": ((70, 75, 40), (2, 2, 3.3), (25, -15, 40), (1, -1, 1)),
    "mirrored": ((64, 66, 60), (2, 2, 2), (5, 5, 5), (-1, -1, -1)),
}


def ramp_mm(points_mm):
    """An image that is a linear function of the position."""
    return points_mm @ [0.7, -1.3, 2.1] + 300


@pytest.fixture
def ramp():
    values = ramp_mm(centers_mm(SHAPE, OBLIQUE))
    return image_of(Volume(np.asfortranarray(values, dtype=np.float32), OBLIQUE))


def positions_mm(image):
    """Where the voxels (k, j, i) of an image are."""
    return nib.affines.apply_affine(
        image.affine, np.moveaxis(np.indices(image.voxels.shape), 0, -1)
    )


# Images


def test_an_image_keeps_places_and_values(ramp):
    assert (ramp.voxels.shape, ramp.voxels.flags.c_contiguous) == (SHAPE[::-1], True)
    np.testing.assert_allclose(positions_mm(ramp), centers_mm(SHAPE, OBLIQUE).transpose(2, 1, 0, 3))
    np.testing.assert_allclose(ramp.spacing_mm, [5.5, 0.9, 1.1])
    back = positions_mm(ramp) @ ramp.to_voxel[:, :3].T + ramp.to_voxel[:, 3]
    np.testing.assert_allclose(back, np.moveaxis(np.indices(SHAPE[::-1]), 0, -1), atol=1e-9)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "f4", ">f4", "f8"])
@pytest.mark.parametrize("order", ["F", "C"])
def test_every_dtype_gives_the_same_values(dtype, order):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 2 if dtype == "bool" else 100, size=SHAPE).astype(dtype, order=order)
    image = image_of(Volume(data, OBLIQUE))
    points = centers_mm(SHAPE, OBLIQUE)[3:5, 10:30:9, 2:9:3].reshape(-1, 3)
    np.testing.assert_allclose(
        image.at(points), data[3:5, 10:30:9, 2:9:3].ravel(), rtol=1e-4, atol=1e-3
    )
    blocks = data[:26, :32, :14].astype(float).reshape(13, 2, 8, 4, 14, 1).mean(axis=(1, 3, 5))
    small = Image(image.voxels, np.diag([1, 1 / 4, 1 / 2, 1])).shrunk(1.0)
    np.testing.assert_allclose(small.voxels, blocks.T, rtol=1e-5)


def test_values_between_voxels_are_linear_and_0_outside(ramp):
    rng = np.random.default_rng(1)
    inside = rng.uniform(0, np.array(SHAPE) - 1, size=(200, 3))
    points = nib.affines.apply_affine(OBLIQUE, inside)
    np.testing.assert_allclose(ramp.at(points), ramp_mm(points), rtol=1e-5)
    outside = nib.affines.apply_affine(OBLIQUE, inside + np.array([SHAPE[0], 0, 0]))
    np.testing.assert_array_equal(ramp.at(outside), 0)


@pytest.mark.parametrize(("to_mm", "factors"), [(2, (1, 2, 2)), (4, (1, 4, 4)), (12, (2, 13, 11))])
def test_shrunk_voxels_are_means_of_blocks(ramp, to_mm, factors):
    small = ramp.shrunk(to_mm)
    n = np.array(ramp.voxels.shape) // factors
    used = ramp.voxels[tuple(slice(a) for a in n * factors)].astype(float)
    pairs = zip(n, factors, strict=True)
    blocks = used.reshape([m for pair in pairs for m in pair]).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(small.voxels, blocks, rtol=1e-5)
    np.testing.assert_allclose(small.spacing_mm, ramp.spacing_mm * factors)
    # a linear image stays the same function of the position
    np.testing.assert_allclose(small.voxels, ramp_mm(positions_mm(small)), rtol=1e-5)


def test_thick_and_few_voxels_stay():
    flat = Image(np.arange(12, dtype=np.float32).reshape(2, 3, 2), np.diag([9.0, 1, 1, 1]))
    small = flat.shrunk(4)
    np.testing.assert_allclose(small.voxels, [[[2.5]], [[8.5]]])
    np.testing.assert_allclose(positions_mm(small)[:, 0, 0], [[0, 1, 0.5], [9, 1, 0.5]])


def test_a_cut_keeps_places(ramp):
    part = ramp.cut(np.array([2, 5, 1]), np.array([9, 31, 1]))
    assert part.voxels.shape == (8, 27, 1)
    np.testing.assert_allclose(part.voxels, ramp_mm(positions_mm(part)), rtol=1e-6)


# Regions


@pytest.fixture(scope="module", params=GRIDS)
def placed(request):
    """A scan of a turned head on one of the grids, and how it lies."""
    shape, spacing, degrees, flip = GRIDS[request.param]
    pose = rigid((10, -6, 15), (30, -20, 80))
    return scan(shape, grid(shape, spacing, degrees, pose.matrix[:3, 3], flip), pose), pose


def beyond_mm(points_mm, pose):
    """Oracle: how far points are from the ellipsoid of the brain, at least and at most."""
    local = pose.inverse()(points_mm)
    over = np.linalg.norm(local / BRAIN_MM, axis=1) - 1
    return over * BRAIN_MM.min(), over * BRAIN_MM.max()


#: From the middle of a cell to its corner: cells of 4 mm, or of the slices' own thickness.
CELL_REACH_MM = 5.0


@pytest.mark.parametrize("margin_mm", [0, 4, 12, 20])
def test_points_lie_in_the_brain_and_around_it(placed, margin_mm):
    acquired, pose = placed
    points = region_of(acquired).points(20_000, margin_mm, np.random.default_rng(0))
    at_least, at_most = beyond_mm(points, pose)
    assert at_least.max() < margin_mm + CELL_REACH_MM
    voxels = nib.affines.apply_affine(np.linalg.inv(acquired.volume.affine), points)
    assert ((voxels > -0.6) & (voxels < np.array(acquired.brain.shape) - 0.4)).all()
    # and everywhere there: each octant of the brain has its share
    local = pose.inverse()(points[at_most < 0]) > 0
    shares = np.bincount(local @ [1, 2, 4], minlength=8) / len(local)
    np.testing.assert_allclose(shares, 1 / 8, atol=0.02)
    most, least = (
        BRAIN_MM.prod() / (BRAIN_MM + reach_mm).prod()
        for reach_mm in (max(margin_mm - CELL_REACH_MM, 0), margin_mm + CELL_REACH_MM)
    )
    assert least < np.mean(at_most < 0) <= most + 0.05  # some fields end before


def test_a_region_has_the_brains_volume_and_middle(placed):
    acquired, pose = placed
    region = region_of(acquired)
    assert region.brain_ml == pytest.approx(4 / 3 * np.pi * BRAIN_MM.prod() / 1000, rel=0.04)
    np.testing.assert_allclose(region.center_mm, pose.matrix[:3, 3], atol=0.7)


def test_the_same_seed_gives_the_same_points(placed):
    region = region_of(placed[0])
    one, two, other = (region.points(500, 12, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).all()
    assert np.linalg.norm(one - other, axis=1).max() < 20  # in the same cells: spread as evenly


@pytest.mark.parametrize("brain", [np.zeros, lambda shape, _: np.arange(8).reshape(shape) == 3])
def test_without_a_mask_the_whole_field_is_the_region(brain):
    shape = (2, 2, 2)
    empty = Scan(Volume(np.ones(shape), np.diag([1.0, 1, 1, 1])), brain(shape, bool))
    region = region_of(empty)
    assert region.brain_ml == pytest.approx(0.008)
    np.testing.assert_allclose(region.center_mm, 0.5)


# What the engine sees


def test_each_level_shows_the_brain_and_what_is_near(placed):
    acquired, pose = placed
    sight = acquired.sight
    region = sight.region
    points = region.points(2000, REACH_MM, np.random.default_rng(0))
    whole = image_of(acquired.volume).at(points)
    np.testing.assert_array_equal(sight.levels[ACQUIRED].at(points), whole)
    for level, mm in ((FINE, 2), (COARSE, 4)):
        spacing = sight.levels[level].spacing_mm
        thin = image_of(acquired.volume).spacing_mm < mm
        assert (np.abs(spacing[thin] / mm - 1) < 0.4).all()
    # in the brain all levels show the same, but for the shading taken away and what is blurred
    inside = region.points(2000, 0, np.random.default_rng(0))
    inside = inside[beyond_mm(inside, pose)[1] < -12]
    seen = [sight.values(level, inside) for level in (COARSE, FINE, ACQUIRED)]
    assert np.corrcoef(seen)[2].min() > 0.85
    gain = sight.shading.gain(inside)
    np.testing.assert_allclose(seen[2], image_of(acquired.volume).at(inside) * gain, rtol=1e-6)


def test_a_sight_is_made_once(placed):
    assert placed[0].sight is placed[0].sight


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float64"])
def test_a_scan_of_any_dtype_is_seen_alike(dtype):
    shape, affine = (40, 44, 36), grid((40, 44, 36), (4, 4, 5))
    as_float = scan(shape, affine)
    rounded = Volume(np.rint(as_float.volume.data), affine)
    sights = [
        Scan(Volume(rounded.data.astype(d), affine), as_float.brain).sight for d in ("f4", dtype)
    ]
    points = sights[0].region.points(500, 12, np.random.default_rng(0))
    for level in (COARSE, FINE, ACQUIRED):
        one, other = (sight.values(level, points) for sight in sights)
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_brain_mask_of_another_kind_is_the_same_region():
    shape, affine = (40, 44, 36), grid((40, 44, 36), (4, 4, 5))
    one = scan(shape, affine)
    other = Scan(one.volume, np.asfortranarray(one.brain.astype(np.uint8)))
    np.testing.assert_array_equal(region_of(one).outside_mm, region_of(other).outside_mm)
    moved = RigidTransform(rigid((0, 0, 90), (5, 6, 7)).matrix @ affine)
    turned = region_of(Scan(Volume(one.volume.data, moved.matrix), one.brain))
    np.testing.assert_array_equal(region_of(one).outside_mm, turned.outside_mm)
