import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mrmill.register.descent import (
    AFFINE,
    MAX_EVALUATIONS,
    RADIUS_MM,
    RIGID,
    Motion,
    _rotation,
    minimum,
)

CENTER = np.array([12.0, -30.0, 45.0])


def start_pose():
    """A pose to start from: turned by 40 degrees, shifted, and (as from an affine) stretched."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0.4, -0.5, 0.3]).as_matrix()
    pose[:3, 3] = [7, -3, 50]
    return pose


def about_center(pose):
    """(3, 4): what a pose does to points given from the center on."""
    return np.column_stack([pose[:3, :3], pose[:3, :3] @ CENTER + pose[:3, 3]])


@pytest.fixture(params=range(4))
def rng(request):
    return np.random.default_rng(request.param)


# Motions


@pytest.mark.parametrize("degrees", [0, 1e-7, 1e-3, 30, 179.9])
def test_a_rotation_vector_turns_as_scipys_does(rng, degrees):
    axis = rng.normal(size=3)
    vector = np.radians(degrees) * axis / np.linalg.norm(axis)
    np.testing.assert_allclose(
        _rotation(vector), Rotation.from_rotvec(vector).as_matrix(), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("n", [RIGID, AFFINE])
def test_at_0_a_motion_is_its_start(n):
    pose = Motion(start_pose(), CENTER).pose(np.zeros(n))
    np.testing.assert_allclose(pose, start_pose(), atol=1e-12)


def test_a_motion_shifts_turns_and_stretches_about_the_center(rng):
    x = rng.normal(0, 20, size=AFFINE)
    pose = Motion(start_pose(), CENTER).pose(x)
    # where the center goes: where it went, and the shift
    before = start_pose()[:3, :3] @ CENTER + start_pose()[:3, 3]
    np.testing.assert_allclose(pose[:3, :3] @ CENTER + pose[:3, 3], before + x[:3], atol=1e-10)
    xx, yy, zz, xy, yz, zx = x[6:] / 70
    stretch = np.array([[1 + xx, xy, zx], [xy, 1 + yy, yz], [zx, yz, 1 + zz]])
    turn = Rotation.from_rotvec(x[3:6] / 70).as_matrix()
    np.testing.assert_allclose(pose[:3, :3], turn @ start_pose()[:3, :3] @ stretch, atol=1e-12)
    np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])


def test_six_numbers_stretch_nothing(rng):
    pose = Motion(start_pose(), CENTER).pose(rng.normal(0, 40, size=RIGID))
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


@pytest.mark.parametrize("axis", range(AFFINE))
def test_a_number_of_1_is_a_mm_at_the_radius(axis):
    motion = Motion(np.eye(4), CENTER)
    x = np.eye(AFFINE)[axis]
    directions = Rotation.random(300, random_state=0).as_matrix()[:, 0]
    points = CENTER + RADIUS_MM * directions
    moved = points @ motion.pose(x)[:3, :3].T + motion.pose(x)[:3, 3] - points
    furthest = np.linalg.norm(moved, axis=1).max()
    assert furthest == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("n", [RIGID, AFFINE])
@pytest.mark.parametrize("size_mm", [0, 1e-6, 5, 60])
def test_the_slope_is_that_of_finite_differences(rng, n, size_mm):
    motion = Motion(start_pose(), CENTER)
    x, by_pose = rng.normal(0, 1, size=n) * size_mm, rng.normal(size=(3, 4))

    def value(x):
        return (by_pose * about_center(motion.pose(x))).sum()

    steps = 1e-3 * np.eye(n)
    expected = [(value(x + step) - value(x - step)) / 2e-3 for step in steps]
    np.testing.assert_allclose(motion.slope(x, by_pose), expected, rtol=0, atol=1e-8)


# The way down


class Counted:
    """A cost and how often it was asked for."""

    def __init__(self, value, slope):
        self.value, self.slope, self.asked = value, slope, []

    def __call__(self, x):
        self.asked.append(x)
        return self.value(x), self.slope(x)


def bowl(lowest, bend):
    """(x - lowest) bend (x - lowest) / 2."""
    return Counted(lambda x: (x - lowest) @ bend @ (x - lowest) / 2, lambda x: bend @ (x - lowest))


def bend_of(rng, n):
    """A second derivative with axes of all lengths from 1 to 30."""
    axes = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return axes @ np.diag(np.geomspace(1, 30, n)) @ axes.T


@pytest.mark.parametrize("n", [RIGID, AFFINE])
def test_the_lowest_point_of_a_bowl_is_found(rng, n):
    lowest = rng.normal(0, 6, size=n)
    cost = bowl(lowest, bend_of(rng, n))
    x, _ = minimum(cost, n, None, 1e-3)
    np.testing.assert_allclose(x, lowest, atol=0.01)


def test_a_known_curvature_spares_evaluations(rng):
    bend = bend_of(rng, RIGID)
    near, nearby = bowl(rng.normal(0, 5, RIGID), bend), bowl(rng.normal(0, 5, RIGID), bend)
    _, learnt = minimum(near, RIGID, None, 1e-3)
    costs = {}
    for name, curvature in [("none", None), ("learnt", learnt), ("exact", np.linalg.inv(bend))]:
        nearby.asked.clear()
        x, _ = minimum(nearby, RIGID, curvature, 1e-3)
        np.testing.assert_allclose(x, nearby_lowest(nearby, bend), atol=0.01)
        costs[name] = len(nearby.asked)
    assert costs["exact"] <= 5  # 10 mm at a step, and a look
    assert costs["exact"] <= costs["learnt"] < costs["none"]


def nearby_lowest(cost, bend):
    return np.linalg.solve(bend, -cost.slope(np.zeros(len(bend))))


def test_the_curvature_is_learnt(rng):
    bend = bend_of(rng, RIGID)
    _, curvature = minimum(bowl(rng.normal(0, 20, RIGID), bend), RIGID, None, 1e-7)
    np.testing.assert_allclose(curvature, curvature.T, atol=1e-9)
    np.testing.assert_allclose(curvature @ bend, np.eye(RIGID), atol=0.2)


def test_a_bent_valley_is_followed():
    """Rosenbrock's, in mm: from (0, 0) to (10, 10), where it is 0."""

    def value(x):
        a, b = x / 10
        return (1 - a) ** 2 + 10 * (b - a * a) ** 2

    def slope(x):
        a, b = x / 10
        return np.array([-2 * (1 - a) - 40 * a * (b - a * a), 20 * (b - a * a)]) / 10

    cost = Counted(value, slope)
    x, _ = minimum(cost, 2, None, 1e-4)
    np.testing.assert_allclose(x, 10, atol=0.01)
    assert value(x) <= min(map(value, cost.asked)) + 1e-12


def test_a_start_at_the_lowest_point_stays_there(rng):
    cost = bowl(np.zeros(RIGID), bend_of(rng, RIGID))
    x, _ = minimum(cost, RIGID, None, 1e-3)
    np.testing.assert_array_equal(x, 0)
    assert len(cost.asked) == 1


def test_a_flat_cost_leaves_things_where_they_are():
    x, curvature = minimum(lambda x: (0.0, np.zeros(6)), 6, None, 0.01)
    np.testing.assert_array_equal(x, 0)
    assert np.isfinite(curvature).all()


def test_no_step_is_long_and_none_leads_up(rng):
    """A wrong curvature and a cliff: what comes out is never worse than the start."""

    def value(x):
        return np.abs(x).sum() if (x > -3).all() else 1e6

    cost = Counted(value, lambda x: np.ones(RIGID))
    x, _ = minimum(cost, RIGID, 1e9 * np.eye(RIGID), 1e-3)
    assert value(x) <= value(np.zeros(RIGID))
    assert np.linalg.norm(cost.asked[1] - cost.asked[0]) <= 10 + 1e-9


def test_it_ends_where_a_cost_never_does():
    cost = Counted(lambda x: -x.sum(), lambda x: -np.ones(RIGID))
    minimum(cost, RIGID, None, 1e-3)
    assert len(cost.asked) == MAX_EVALUATIONS
