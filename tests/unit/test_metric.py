"""The compiled metric against Mattes' formula in plain numpy, and against ITK itself."""

import numpy as np
import pytest
from scipy.interpolate import BSpline
from scipy.ndimage import map_coordinates

from mrmill.register import metric
from mrmill.register.engines.ants import import_ants, to_ants
from mrmill.register.quality import published_metric
from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume

SHAPE = (9, 11, 13)
SPLINE = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
N_SAMPLES = 3000


def smeared(places, n_bins):
    """Share of each sample in each bin: a cubic B-spline around its place."""
    return np.nan_to_num(SPLINE(np.arange(n_bins) - places[:, None]))


def mutual(joint):
    """Oracle: sum of p log(p / (p_s p_t)), in nats."""
    joint = joint / joint.sum()
    apart = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    some = joint > 0
    return (joint[some] * np.log(joint[some] / apart[some])).sum()


def plain_joint(voxels, points, bins, matrix):
    """Oracle: joint histogram with 32 bins and 36, and which samples were in the field."""
    at = points @ matrix[:, :3].T + matrix[:, 3]
    inside = ((at >= 0) & (at <= np.array(voxels.shape) - 1)).all(axis=1)
    values = map_coordinates(voxels.astype(float), at[inside].T, order=1)
    joint = np.zeros((32, 36))
    np.add.at(joint, bins[inside], smeared(values / 1024 + 2, 36))
    return joint, inside


@pytest.fixture(scope="module")
def image():
    """Smooth places on the axis of bins, as `Shading.binned` makes them."""
    k, j, i = np.indices(SHAPE)
    wave = np.sin(k / 2) + np.cos(j / 3 + 1) + np.sin(i / 2.5 + k / 4)
    return ((wave - wave.min()) / np.ptp(wave) * 31 * 1024).astype(np.uint16)


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    points = rng.uniform(-15, 15, size=(N_SAMPLES, 3))
    return points, rng.integers(0, 32, size=N_SAMPLES).astype(np.uint8)


def matrix_at(degrees=20.0, scale=0.2):
    """(3, 4): points within 15 mm of the middle into the image, all of them at this scale."""
    turn = np.radians(degrees)
    c, s = np.cos(turn), np.sin(turn)
    middle = (np.array(SHAPE) - 1) / 2
    return np.column_stack([scale * np.array([[c, -s, 0.1], [s, c, 0], [0, 0.1, 1]]), middle])


def filled(image, samples, matrix):
    """The library's joint histogram, and how many samples it counted."""
    points, bins = samples
    joint = np.empty((32, 36))
    position, slope = np.empty(len(points), np.float32), np.empty((0, 3), np.float32)
    n = metric.joint_histogram(image, points, bins, matrix, 1 / 1024, joint, position, slope)
    return joint, n, position


@pytest.mark.parametrize("scale", [0.1, 0.5])
def test_the_joint_histogram_is_the_plain_one(image, samples, scale):
    expected, inside = plain_joint(image, *samples, matrix_at(scale=scale))
    joint, n_inside, position = filled(image, samples, matrix_at(scale=scale))
    assert (n_inside, inside.all()) == (inside.sum(), scale == 0.1)
    np.testing.assert_array_equal(position >= 0, inside)
    np.testing.assert_allclose(joint, expected, atol=1e-6)
    assert joint.sum() == pytest.approx(n_inside)


def test_samples_outside_the_field_change_nothing(image, samples):
    points, bins = samples
    matrix = matrix_at(scale=0.5)
    _, inside = plain_joint(image, points, bins, matrix)
    with_all = metric.Information(image, points, bins).at(matrix)
    with_some = metric.Information(image, points[inside], bins[inside]).at(matrix)
    assert 0.2 < inside.mean() < 0.8
    assert with_all[0] == pytest.approx(with_some[0], rel=1e-12)
    np.testing.assert_allclose(with_all[1], with_some[1], rtol=1e-9)


def test_nothing_in_the_field_tells_nothing(image, samples):
    matrix = matrix_at()
    matrix[:, 3] = 1e4
    told, slope = metric.Information(image, *samples).at(matrix)
    assert (told, np.abs(slope).max()) == (0, 0)
    scores = np.empty((1, 3))
    metric.many(image, *samples, matrix[None], 1 / 1024, scores)
    np.testing.assert_array_equal(scores, 0)


def test_samples_on_the_faces_of_the_field_are_in_it(image):
    corners = np.array([[k, j, i] for k in (0, 8) for j in (0, 10) for i in (0, 12)], float)
    just_out = corners + np.where(corners > 0, 1e-6, -1e-6)
    same = np.eye(3, 4)
    values = np.empty(8, np.float32)
    metric.interpolate(image, corners, same, values)
    np.testing.assert_array_equal(values, image[::8, ::10, ::12].ravel())
    metric.interpolate(image, just_out, same, values)
    np.testing.assert_array_equal(values, 0)


def test_information_is_mattes_formula(image, samples):
    points, bins = samples
    told, _ = metric.Information(image, points, bins).at(matrix_at())
    joint, _ = plain_joint(image, points, bins, matrix_at())
    assert told == pytest.approx(mutual(joint), abs=1e-6)
    p = joint[joint > 0] / joint.sum()
    matrices = np.stack([matrix_at(), matrix_at(50)])
    scores = np.empty((2, 3))
    metric.many(image, points, bins, matrices, 1 / 1024, scores)
    assert scores[0, :2] == pytest.approx([mutual(joint), -(p * np.log(p)).sum()], abs=1e-6)
    assert scores[1, 0] == pytest.approx(
        mutual(plain_joint(image, points, bins, matrices[1])[0]), abs=1e-6
    )


def test_an_image_tells_all_about_itself_and_nothing_about_noise(image, samples):
    points, bins = samples
    values = np.empty(len(points), np.float32)
    metric.interpolate(image, points, matrix_at(), values)
    own = (values / 1024).astype(np.uint8)
    by_itself, _ = metric.Information(image, points, own).at(matrix_at())
    by_noise, _ = metric.Information(image, points, bins).at(matrix_at())
    assert by_itself > 10 * by_noise


def test_the_derivative_is_that_of_the_plain_formula(image, samples):
    points, _ = samples
    rng = np.random.default_rng(1)
    image = np.clip(image + rng.normal(0, 4000, SHAPE), 0, 31 * 1024).astype(np.uint16)
    near = plain_values(image, points, matrix_at(25)) / 1024 + rng.normal(0, 1.5, len(points))
    bins = np.clip(near, 0, 31).astype(np.uint8)  # bins that depend on the pose
    _, slope = metric.Information(image, points, bins).at(matrix_at())
    expected = np.empty((3, 4))
    for place in np.ndindex(3, 4):
        step = np.zeros((3, 4))
        step[place] = 1e-6 if place[1] < 3 else 1e-5  # about 1e-5 voxels
        ends = [mutual(plain_joint(image, points, bins, matrix_at() + s)[0]) for s in (step, -step)]
        expected[place] = (ends[0] - ends[1]) / (2 * step[place])
    np.testing.assert_allclose(slope[:, :3], expected[:, :3], atol=0.002 * abs(expected).max())
    np.testing.assert_allclose(slope[:, 3], expected[:, 3], atol=0.002 * abs(expected[:, 3]).max())


def plain_values(voxels, points, matrix):
    at = points @ matrix[:, :3].T + matrix[:, 3]
    return map_coordinates(voxels.astype(float), at.T, order=1)


def test_information_of_two_smeared_lists_and_its_derivatives():
    rng = np.random.default_rng(2)
    base = rng.uniform(2, 29, size=400)
    places = np.stack([base + rng.normal(0, 1, 400), 31 - base + rng.normal(0, 2, 400)])
    places = np.clip(places, 0, 31)
    places[0, :5], places[1, 5:10] = 0, 31  # clipped
    slopes = np.empty_like(places)
    told = metric.mutual_slopes(places, slopes)

    def plain(of):
        return mutual(smeared(of[0] + 2, 36).T @ smeared(of[1] + 2, 36))

    assert told == pytest.approx(plain(places), abs=1e-12)
    np.testing.assert_array_equal(slopes[(places <= 0) | (places >= 31)], 0)
    for axis, n in [(0, 20), (0, 111), (0, 350), (1, 21), (1, 222), (1, 399)]:
        step = np.zeros_like(places)
        step[axis, n] = 1e-4
        expected = (plain(places + step) - plain(places - step)) / 2e-4
        assert slopes[axis, n] == pytest.approx(expected, abs=1e-8)


# The published recipe's metric


def itk(fixed, moving, pose, n_bins, edge_voxels=0.5):
    """Oracle: what ITK's Mattes metric does, with all voxels.

    Its field reaches to the outer faces of the border voxels.
    """
    voxels = np.moveaxis(np.indices(fixed.data.shape), 0, -1).reshape(-1, 3)
    at = RigidTransform(np.linalg.inv(moving.affine) @ pose.matrix @ fixed.affine)(voxels)
    last = np.array(moving.data.shape) - 1
    inside = ((at >= -edge_voxels) & (at <= last + edge_voxels)).all(axis=1)
    values = map_coordinates(moving.data.astype(float), at[inside].T, order=1, mode="nearest")

    def places(some, image):
        low, high = float(image.min()), float(image.max())
        return 2 + (some - low) / (high - low) * (n_bins - 4)

    bins = places(fixed.data.ravel()[inside].astype(float), fixed.data).astype(int)
    joint = np.zeros((n_bins, n_bins))
    spread = smeared(places(values, moving.data), n_bins)
    np.add.at(joint, np.minimum(bins, n_bins - 3), spread)
    return mutual(joint)


def volume(shape, spacing_mm, seed):
    """A smooth image about the origin."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing_mm
    x, y, z = np.indices(shape).reshape(3, -1) * np.reshape(spacing_mm, (3, 1))
    data = 100 + 40 * np.sin(x / 15 + seed) + 30 * np.cos(y / 20) * np.sin(z / 12 + seed)
    return Volume(np.asfortranarray(data.reshape(shape), dtype=np.float32), affine)


@pytest.fixture(scope="module")
def pair():
    """A small field within a larger one of another grid."""
    return volume((20, 22, 12), (4, 4, 6), 0), volume((32, 30, 40), (4, 5, 3), 0.4)


def turned(shift_mm=(0, 0, 0)):
    matrix = np.eye(4)
    matrix[:2, :2] = [[0.995, -0.0998749], [0.0998749, 0.995]]
    matrix[:3, 3] = shift_mm
    return RigidTransform(matrix)


@pytest.mark.parametrize("shift_mm", [(0, 0, 0), (25, -10, 30)])
def test_the_oracle_is_what_itk_computes(pair, shift_mm):
    fixed, moving = pair
    away = RigidTransform()
    away.matrix[:3, 3] = shift_mm
    shifted = Volume(moving.data, np.linalg.inv(away.matrix) @ moving.affine)
    by_itk = import_ants().image_similarity(
        to_ants(fixed),
        to_ants(shifted),
        metric_type="MattesMutualInformation",
        sampling_strategy="none",
    )
    # 50 bins: this function of ANTs takes no other number
    assert itk(fixed, moving, away, 50) == pytest.approx(-by_itk, abs=1e-6)


def test_the_published_metric_is_itks_with_32_bins(pair):
    poses = [RigidTransform(), turned(), turned((3, -4, 2))]
    found = published_metric(*pair, poses, n=10**9)
    expected = [itk(*pair, pose, 32) for pose in poses]
    np.testing.assert_allclose(found, expected, atol=2e-5)  # places are whole 1/1024 of a bin
    assert np.ptp(expected) > 0.01


def test_the_published_metric_ends_at_the_middles_of_border_voxels(pair):
    """Half a voxel before ITK's field: the one difference, and a small one."""
    away = turned((25, -10, 30))
    (found,) = published_metric(*pair, [away], n=10**9)
    assert found == pytest.approx(itk(*pair, away, 32, edge_voxels=0), abs=2e-5)
    assert found == pytest.approx(itk(*pair, away, 32), rel=0.1)


@pytest.mark.parametrize("shape", [(30, 150, 150), (150, 30, 150), (150, 150, 30)])
def test_some_samples_tell_what_all_do_however_the_image_is_stored(shape):
    fixed, moving = volume(shape, (2, 2, 2), 0), volume((60, 60, 60), (6, 6, 6), 0.4)
    poses = [RigidTransform(), turned((6, 0, 0))]
    n = fixed.data.size // 30 - 1  # every 30th voxel: of the first image, all in one slice
    few, every = (published_metric(fixed, moving, poses, n=n) for n in (n, 10**9))
    np.testing.assert_allclose(few, every, atol=0.015)  # fewer tell 28 * 28 / 2 / n more
    np.testing.assert_array_equal(few, published_metric(fixed, moving, poses, n=n))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float64"])
def test_the_published_metric_takes_every_dtype(pair, dtype):
    as_read = [Volume(v.data.astype(dtype), v.affine) for v in pair]
    (found,) = published_metric(*as_read, [turned()], n=10**9)
    assert found == pytest.approx(itk(*as_read, turned(), 32), abs=1e-4)


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_has_nothing_to_tell(pair, value):
    flat = Volume(np.full((8, 8, 8), value, np.float32), np.diag([9.0, 9, 9, 1]))
    assert published_metric(pair[0], flat, [RigidTransform()])[0] == pytest.approx(0, abs=1e-9)
    assert published_metric(flat, pair[1], [RigidTransform()])[0] == pytest.approx(0, abs=1e-9)
