"""The measures of a transform against what is known of simple bodies and of one head."""

import numpy as np
import pytest
from analytic_head import FIXED_MM, FIXED_SHAPE, grid, moving_scan, rigid, scan
from scipy.spatial.transform import Rotation

from mrmill.register.engines import Found
from mrmill.register.quality import measure, measured, published_metric
from mrmill.register.scans import Scan
from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume

AS_IT_IS = RigidTransform()


@pytest.fixture(scope="module")
def fixed():
    return scan(FIXED_SHAPE, grid(FIXED_SHAPE, FIXED_MM))


def at(pose, fixed, moving, start=AS_IT_IS):
    return measure(Found(pose, "known", start, spread_mm=1.25), fixed, moving)


def about(center_mm, rotvec_deg):
    """A turn that leaves a point where it is."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotvec_deg, degrees=True).as_matrix()
    matrix[:3, 3] = np.array(center_mm) - matrix[:3, :3] @ center_mm
    return RigidTransform(matrix)


def ball(radius_mm, middle_mm=(0, 0, 0), shape=(50, 50, 50), spacing=(3, 3, 3), degrees=(0, 0, 0)):
    """A brain that is a ball in noise."""
    affine = grid(shape, spacing, degrees)
    indices = np.moveaxis(np.indices(shape), 0, -1)
    points = RigidTransform(affine)(indices)
    brain = np.linalg.norm(points - middle_mm, axis=-1) < radius_mm
    noise = np.random.default_rng(0).normal(100, 10, shape)
    return Scan(Volume((noise * (1 + brain)).astype(np.float32), affine), brain)


# How far it moves


@pytest.mark.parametrize("rotvec_deg", [(0, 0, 0), (12, 0, 0), (-9, 20, 15), (0, 0, 170)])
def test_rotation_and_translation_are_those_of_the_brain(rotvec_deg):
    shape = (40, 44, 36)
    far = scan(shape, grid(shape, (4, 4, 5), center_mm=(0, 150, 0)), rigid(shift_mm=(0, 150, 0)))
    pose = rigid(shift_mm=(3, -4, 12)).matrix @ about((0, 150, 0), rotvec_deg).matrix
    quality = at(RigidTransform(pose), far, far)
    assert quality["rotation_degrees"] == pytest.approx(np.linalg.norm(rotvec_deg), abs=1e-3)
    assert quality["translation_mm"] == pytest.approx(13, abs=0.5)  # not that of the origin


# What of it lies where


def test_overlap_is_the_share_of_the_moving_field(fixed):
    """A square turned by 45 degrees within a square: 2 (sqrt(2) - 1) of it; a slab, all of it."""
    box = ball(40)
    assert at(about((0, 0, 0), (0, 0, 45)), box, box)["overlap"] == pytest.approx(
        2 * (np.sqrt(2) - 1), abs=0.01
    )
    slab = ball(40, shape=(50, 50, 10))
    assert at(AS_IT_IS, box, slab)["overlap"] == 1
    assert at(AS_IT_IS, slab, box)["overlap"] == pytest.approx(10 / 50, abs=0.01)
    # what lies 40 mm off and is thought another 40 mm off lacks 80 of 150 mm
    off = Scan(
        Volume(box.volume.data, rigid(shift_mm=(40, 0, 0)).matrix @ box.volume.affine), box.brain
    )
    away = rigid(shift_mm=(-40, 0, 0))
    assert at(away, box, off)["overlap"] == pytest.approx(70 / 150, abs=0.01)
    assert at(away.inverse(), box, off)["overlap"] == 1


@pytest.mark.parametrize(("one_mm", "other_mm"), [(40, 40), (40, 50), (56, 40)])
def test_dice_of_balls_of_two_sizes(one_mm, other_mm):
    volumes = np.array([one_mm, other_mm]) ** 3
    one, other = ball(one_mm), ball(other_mm, spacing=(2.5, 2.5, 6), degrees=(20, 0, 30))
    expected = 2 * volumes.min() / volumes.sum()
    for pair in ((one, other), (other, one)):  # cells and voxels are not cut at the surface
        assert at(AS_IT_IS, *pair)["brain_dice"] == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize("apart_mm", [10, 40, 79, 90])
def test_dice_of_balls_apart(apart_mm):
    one, d = ball(40, shape=(100, 50, 50)), apart_mm / 40
    lens = (4 + d) * (2 - d) ** 2 / 16 if d < 2 else 0  # share of a ball of radius 1
    quality = at(rigid(shift_mm=(apart_mm, 0, 0)), one, one)
    assert quality["brain_dice"] == pytest.approx(lens, abs=0.02)


def test_dice_is_that_within_the_common_field():
    """Of a brain cut by a slab's field only the part in the slab counts."""
    whole, slab = ball(45), ball(45, shape=(50, 50, 12))
    assert at(AS_IT_IS, whole, slab)["brain_dice"] > 0.96
    assert at(AS_IT_IS, slab, whole)["brain_dice"] > 0.96
    # the slab higher up: its own disc there against the brain's smaller ones
    moved = at(rigid(shift_mm=(0, 0, -40)), whole, slab)["brain_dice"]
    z = np.linspace(-18, 18, 1001)
    disc, there = 45**2 - z**2, np.clip(45**2 - (z + 40) ** 2, 0, None)
    expected = 2 * np.minimum(disc, there).sum() / (disc + there).sum()
    assert moved == pytest.approx(expected, abs=0.03)


# How well it fits


def test_the_metrics_are_those_of_the_poses(fixed):
    moving = moving_scan(pose=rigid((4, 0, -6), (5, -4, 3)))
    poses = [AS_IT_IS, rigid((3, 0, -4), (4, -3, 2)), rigid((4, 0, -6), (5, -4, 3))]
    quality = at(poses[2], fixed, moving, start=poses[1])
    names = ("metric_headers", "metric_start", "metric")
    every = published_metric(fixed.volume, moving.volume, poses, n=10**9)
    np.testing.assert_allclose([quality[name] for name in names], every, atol=0.01)
    assert quality["metric_headers"] < quality["metric_start"] < quality["metric"]
    assert quality["metric_gain"] == pytest.approx(every[2] - every[0], abs=0.01)
    assert quality["spread_mm"] == 1.25
    headers = at(AS_IT_IS, fixed, moving)
    assert headers["metric_gain"] == 0
    assert headers["similarity"] == pytest.approx(quality["similarity_headers"], abs=0.01)


@pytest.mark.parametrize(
    "away",
    [
        lambda far: rigid(shift_mm=(0, 0, 2 * far)),
        lambda far: about((0, 0, 0), (2 * far, 0, 0)),
        lambda far: about((10, 0, 0), (far, -far, far)),
    ],
)
def test_the_right_pose_stands_out_and_others_the_less_the_further(fixed, away):
    moving = moving_scan(pose=AS_IT_IS)
    seen = [at(away(far), fixed, moving)["prominence"] for far in (0, 2, 4, 8)]
    assert seen == sorted(seen, reverse=True)
    assert seen[0] > 15
    assert seen[-1] < seen[0] / 2


def test_noise_stands_out_nowhere(fixed):
    moving = moving_scan(pose=AS_IT_IS)
    noise = np.random.default_rng(1).normal(100, 20, moving.volume.data.shape).astype(np.float32)
    quality = at(AS_IT_IS, fixed, Scan(Volume(noise, moving.volume.affine), moving.brain))
    assert quality["prominence"] < 4
    assert quality["similarity"] < 0.02


@pytest.mark.parametrize("size", [(1, 1, 1), (1.08, 1, 1), (1, 0.92, 1), (0.92, 0.92, 0.92)])
@pytest.mark.parametrize("turn", [(0, 0, 0), (8, -10, 25)])
def test_stretch_is_that_of_the_head(fixed, size, turn):
    pose = rigid(turn, (5, -4, 3))
    quality = at(pose, fixed, moving_scan(pose=pose, size=size))
    expected = np.abs(np.array(size) - 1).max()
    assert quality["stretch"] == pytest.approx(expected, abs=0.012)


# Masks that are none


@pytest.mark.parametrize("empty", ["fixed", "moving", "both"])
def test_without_a_mask_there_are_measures_all_the_same(empty):
    shapes = (30, 30, 30), (32, 30, 28)
    pair = [scan(shape, grid(shape, (6, 6, 6))) for shape in shapes]
    for place, name in enumerate(("fixed", "moving")):
        if empty in (name, "both"):
            pair[place] = Scan(pair[place].volume, np.zeros_like(pair[place].brain))
    quality = at(AS_IT_IS, *pair)
    assert all(np.isfinite(value) for value in quality.values())
    assert quality["brain_dice"] == 0
    assert quality["overlap"] > 0.9


def test_measures_are_taken_once_and_always_the_same(fixed):
    moving = moving_scan(pose=AS_IT_IS)
    found = measured(Found(AS_IT_IS, "known", AS_IT_IS), fixed, moving)
    assert measured(found, moving, fixed) is found
    assert found.quality == measure(found, fixed, moving)
