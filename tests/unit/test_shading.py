import numpy as np
import pytest
from analytic_head import BRAIN_MM, apart_mm, centers_mm, grid, rigid, scan
from scipy.interpolate import RegularGridInterpolator

from mrmill.config import Register
from mrmill.register.engines import mattes
from mrmill.register.levels import FINE, image_of
from mrmill.register.scans import Scan
from mrmill.register.shading import FIELD_STEP_MM, Shading, agree
from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume

SHAPE = (60, 66, 56)
AFFINE = grid(SHAPE, (3, 3, 3))
#: Coefficients of the field's logarithm, as `Shading.logs`: x, y, z, xx, yy, zz, xy, yz, xz.
LOGS = np.array([0.4, -0.3, 0.5, -0.5, 0.3, -0.4, 0.6, -0.3, 0.4])
POSE = rigid((8, -5, 10), (10, 4, -6))


def quadratic(points_mm):
    """A field whose logarithm is a polynomial; its extremes in the brain are a factor 2.2 apart."""
    x, y, z = np.moveaxis(points_mm / 100, -1, 0)
    return np.exp(np.stack([x, y, z, x * x, y * y, z * z, x * y, y * z, x * z], axis=-1) @ LOGS)


def coil(points_mm):
    """Another family: five elements around one side of the head; a factor of 2.7."""
    angles = np.arange(5) * np.pi / 5 + 0.3
    elements = np.stack([95 * np.cos(angles), 95 * np.sin(angles), 40 * np.sin(3 * angles)])
    squares = ((points_mm[..., None] - elements) ** 2).sum(axis=-2)
    return (1 / (1 + squares / 60**2)).sum(axis=-1)


@pytest.fixture(scope="module")
def brain_points():
    points = np.random.default_rng(5).uniform(-1, 1, size=(20_000, 3))
    return points[np.linalg.norm(points, axis=1) < 0.9] * BRAIN_MM


def spread(field):
    """How far a field is from constant: standard deviation of its logarithm."""
    return np.log(field).std()


# One image


@pytest.mark.parametrize("field", [quadratic, coil])
def test_a_known_shading_is_taken_away(brain_points, field):
    before = field(brain_points)
    after = before * scan(SHAPE, AFFINE, field=field).sight.shading.gain(brain_points)
    assert spread(before) > 0.15
    assert spread(after) < 0.03
    assert after.max() / after.min() < 1.3 < before.max() / before.min()


def test_an_image_without_shading_is_left_as_it_is(brain_points):
    assert spread(scan(SHAPE, AFFINE).sight.shading.gain(brain_points)) < 0.025


def test_bright_spots_and_holes_are_no_shading(brain_points):
    def lesions(points_mm):
        spots = [[25, 20, 10], [30, -20, 0]]
        near = [np.linalg.norm(points_mm - spot, axis=-1) < 14 for spot in spots]
        return np.select(near, [2.5, 0.3], 1)

    plain, with_lesions = (scan(SHAPE, AFFINE, field=field).sight for field in (None, lesions))
    change = with_lesions.shading.gain(brain_points) / plain.shading.gain(brain_points)
    assert spread(lesions(brain_points)) > 0.1
    assert spread(change) < 0.02


def test_a_gain_is_bounded():
    steep = Shading(np.zeros(3), np.array([100.0, 0, 0, 0, 0, 0, 0, 0, 0]))
    ends = steep.gain(np.array([[-80.0, 0, 0], [0, 0, 0], [80, 0, 0]]))
    np.testing.assert_allclose(ends, [np.exp(1.5), 1, np.exp(-1.5)], rtol=1e-6)


def places(image, shading, low, high):
    """Oracle: values without shading on an axis of 31 bins with 1024 steps each.

    The field is linear between points `FIELD_STEP_MM` apart.
    """
    steps = np.maximum(1, np.rint(FIELD_STEP_MM / image.spacing_mm)).astype(int)
    axes = [np.arange(0, n + s, s) for n, s in zip(image.voxels.shape, steps, strict=True)]
    at = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    gain = shading.gain(RigidTransform(image.affine)(at))
    everywhere = np.moveaxis(np.indices(image.voxels.shape), 0, -1)
    values = image.voxels * RegularGridInterpolator(axes, gain.astype(float))(everywhere)
    return np.clip((values - low) / (high - low), 0, 1) * 31 * 1024


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("logs", [np.zeros(9), LOGS])
def test_binned_values_are_those_of_the_plain_formula(dtype, logs):
    shape, affine = (31, 40, 37), grid((31, 40, 37), (5, 2.5, 3.7), (10, 0, 20))
    image = image_of(Volume(scan(shape, affine).volume.data.astype(dtype), affine))
    shading = Shading(np.array([3.0, -4.0, 5.0]), logs)
    found = shading.binned(image, 20.0, 130.0).astype(float)
    expected = places(image, shading, 20.0, 130.0)
    assert (expected.min(), expected.max()) == (0, 31 * 1024)
    np.testing.assert_allclose(found, expected, atol=1)
    # and the field itself, not only as it is looked up
    gain = shading.gain(centers_mm(shape, affine)).T
    exact = np.clip((image.voxels * gain - 20) / 110, 0, 1) * 31 * 1024
    np.testing.assert_allclose(found, exact, atol=0.01 * 31 * 1024)


# Two images


def folded(points_mm, white, grey, fluid):
    """A brain of three tissues, folded: grey matter lies outside, as a shading might."""
    rng = np.random.default_rng(4)
    direction = rng.normal(size=(12, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wavelength_mm, phase = rng.uniform(18, 40, size=(12, 1)), rng.uniform(0, 6, size=12)
    folds = np.sin(points_mm @ (direction * 2 * np.pi / wavelength_mm).T + phase).mean(axis=-1)
    radius = np.linalg.norm(points_mm / BRAIN_MM, axis=-1)
    depth = radius + 0.45 * folds
    values = np.select([depth > 0.92, depth > 0.72], [fluid, grey], white)
    return np.select([radius > 1.25, radius > 1], [0, 0.4 * white], values), radius < 1


def acquired(shape, affine, tissues, pose=None, field=None, seed=0):
    """A scan of that brain with 3 % of noise."""
    points = centers_mm(shape, affine).reshape(-1, 3)
    values, brain = folded((pose or RigidTransform()).inverse()(points), *tissues)
    values = values * (1 if field is None else field(points))
    values += np.random.default_rng(seed).normal(0, 3, size=len(points))
    return Scan(Volume(values.reshape(shape).astype(np.float32), affine), brain.reshape(shape))


T1W, T2W, FLAIR = (110, 75, 25), (60, 85, 160), (80, 100, 15)
THICK = (80, 80, 30), grid((80, 80, 30), (2.2, 2.2, 5), (4, 0, 0), POSE.matrix[:3, 3])


@pytest.fixture(scope="module", params=[T2W, FLAIR], ids=["T2w", "FLAIR"])
def pair(request):
    """A T1w and another scan without shading."""
    return acquired(SHAPE, AFFINE, T1W), acquired(*THICK, request.param, POSE, seed=1)


@pytest.mark.parametrize("axis", [0, 2])
def test_a_wrong_shading_of_one_scan_is_seen_in_the_other(pair, brain_points, axis):
    still, other = (one.sight for one in pair)
    right = still.shading.gain(brain_points)
    wrong = still.reshaded(0.3 * np.eye(9)[axis])
    better, _ = agree(wrong, other, FINE, POSE, np.random.default_rng(0))
    before, after = (spread(s.shading.gain(brain_points) / right) for s in (wrong, better))
    assert after < 0.9 * before


def test_without_shading_little_is_agreed_on(pair, brain_points):
    before = [one.sight for one in pair]
    after = agree(*before, FINE, POSE, np.random.default_rng(0))
    for points, old, new in zip((brain_points, POSE(brain_points)), before, after, strict=True):
        assert spread(new.shading.gain(points)) < spread(old.shading.gain(points)) + 0.01


def test_two_scans_that_do_not_meet_keep_their_shadings(pair):
    before = [one.sight for one in pair]
    after = agree(*before, FINE, rigid(shift_mm=(900, 0, 0)), np.random.default_rng(0))
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old.shading.logs, new.shading.logs)


@pytest.mark.parametrize("fields", [(None, None), (quadratic, coil), (coil, None)])
def test_the_pose_is_found_in_spite_of_shading(fields):
    still = acquired(SHAPE, AFFINE, T1W, field=fields[0])
    other = acquired(*THICK, FLAIR, POSE, fields[1], seed=1)
    assert apart_mm(mattes.find(still, other, Register()).transform, POSE) < 0.25


@pytest.mark.parametrize("value", [0, 100])
def test_an_image_of_one_value_has_no_shading(value):
    shape = (20, 22, 20)
    flat = Volume(np.full(shape, value, np.float32), grid(shape, (8, 8, 8)))
    flat = Scan(flat, scan(shape, flat.affine).brain)
    points = np.random.default_rng(0).uniform(-60, 60, size=(100, 3))
    agreed = agree(flat.sight, flat.sight, FINE, RigidTransform(), np.random.default_rng(0))
    for sight in (flat.sight, *agreed):
        np.testing.assert_allclose(sight.shading.gain(points), 1, rtol=1e-4)
    found = flat.sight.shading.binned(image_of(flat.volume), 0.0, 200.0)
    np.testing.assert_allclose(found, value / 200 * 31 * 1024, atol=20)
