"""Rigid and affine motions as a few numbers in mm, and the way down to a minimum over them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Radius at which a turn or a stretch counts as much as a shift: about that of a brain.
RADIUS_MM = 70.0

#: Numbers of a rigid and of an affine motion.
RIGID, AFFINE = 6, 12

#: Longest step of a descent, and evaluations after which it ends where it is.
MAX_STEP_MM, MAX_EVALUATIONS = 10.0, 60


@dataclass(frozen=True)
class Motion:
    """Poses around a start: shift, turn and, where it is affine, stretch; all 0 at the start.

    Attributes
    ----------
    start : (4, 4) ndarray
        The pose at 0.
    center : (3,) ndarray
        Point that turn and stretch leave where it is.
    """

    start: "NDArray[np.float64]"
    center: "NDArray[np.float64]"

    def pose(self, x: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """Return the (4, 4) pose of 6 or 12 numbers, in mm at `RADIUS_MM`.

        They are the shift; the rotation vector; the stretch along x, y, z and across xy, yz, zx.
        """
        linear = self._turned(x) @ _stretch(x)
        middle = self.start[:3, :3] @ self.center + self.start[:3, 3] + x[:3]
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = linear, middle - linear @ self.center
        return pose

    def slope(
        self, x: "NDArray[np.float64]", by_pose: "NDArray[np.float64]"
    ) -> "NDArray[np.float64]":
        """Turn a derivative by the (3, 4) pose of points about the center into one by x."""
        turned = self._turned(x)
        pull = by_pose[:, :3] @ _stretch(x).T @ turned.T
        torque = [pull[2, 1] - pull[1, 2], pull[0, 2] - pull[2, 0], pull[1, 0] - pull[0, 1]]
        by_turn = _left_jacobian(x[3:6] / RADIUS_MM).T @ torque
        parts = [by_pose[:, 3], by_turn / RADIUS_MM]
        if len(x) == AFFINE:
            by_linear = turned.T @ by_pose[:, :3] / RADIUS_MM
            both = by_linear + by_linear.T
            parts += [np.diag(by_linear), [both[0, 1], both[1, 2], both[2, 0]]]
        return np.concatenate(parts)

    def _turned(self, x: "NDArray[np.float64]") -> "NDArray[np.float64]":
        return _rotation(x[3:6] / RADIUS_MM) @ self.start[:3, :3]


def minimum(
    cost: Callable[["NDArray"], tuple[float, "NDArray"]],
    n: int,
    curvature: "NDArray[np.float64] | None",
    tolerance_mm: float,
) -> tuple["NDArray[np.float64]", "NDArray[np.float64]"]:
    """Minimise a smooth function from 0 on by BFGS (Nocedal & Wright 2006, algorithm 6.1).

    Unlike a library's, it knows that its numbers are mm, and it can start from what the descent
    before it learnt.

    Parameters
    ----------
    cost : callable
        x -> value, derivative.
    n : int
        Numbers in x.
    curvature : (n, n) ndarray or None
        Inverse of the second derivative, as far as it is known.
    tolerance_mm : float
        Ends when the next step would be shorter.

    Returns
    -------
    x : (n,) ndarray
    curvature : (n, n) ndarray
        What is known of it now.
    """
    x = np.zeros(n)
    value, slope = cost(x)
    if curvature is None:
        curvature = np.eye(n) * (2.0 / max(np.linalg.norm(slope), 1e-12))
    evaluations = 1
    while evaluations < MAX_EVALUATIONS:
        step = -curvature @ slope
        step *= min(1.0, MAX_STEP_MM / max(np.linalg.norm(step), 1e-12))
        while np.linalg.norm(step) >= tolerance_mm:
            new_value, new_slope = cost(x + step)
            evaluations += 1
            if new_value <= value + 1e-4 * (step @ slope) or evaluations >= MAX_EVALUATIONS:
                break
            step = 0.4 * step
        else:
            break
        if new_value > value:
            break
        curvature = _updated(curvature, step, new_slope - slope)
        x, value, slope = x + step, new_value, new_slope
    return x, curvature


def _updated(
    curvature: "NDArray[np.float64]", step: "NDArray[np.float64]", change: "NDArray[np.float64]"
) -> "NDArray[np.float64]":
    bend = step @ change
    if bend <= 1e-12:
        return curvature
    left = np.eye(len(step)) - np.outer(step, change) / bend
    return left @ curvature @ left.T + np.outer(step, step) / bend


def _stretch(x: "NDArray[np.float64]") -> "NDArray[np.float64]":
    if len(x) == RIGID:
        return np.eye(3)
    xx, yy, zz, xy, yz, zx = x[6:] / RADIUS_MM
    return np.array([[1 + xx, xy, zx], [xy, 1 + yy, yz], [zx, yz, 1 + zz]])


def _rotation(vector: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Matrix of a rotation vector, in radians (Rodrigues)."""
    angle, cross = np.linalg.norm(vector), _cross(vector)
    if angle < 1e-9:
        return np.eye(3) + cross
    return (
        np.eye(3) + np.sin(angle) / angle * cross + (1 - np.cos(angle)) / angle**2 * cross @ cross
    )


def _left_jacobian(vector: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Derivative of a rotation by its vector, as a turn from the left (Sola 2018, eq. 145)."""
    angle, cross = np.linalg.norm(vector), _cross(vector)
    if angle < 1e-6:
        return np.eye(3) + cross / 2
    return (
        np.eye(3)
        + (1 - np.cos(angle)) / angle**2 * cross
        + (angle - np.sin(angle)) / angle**3 * cross @ cross
    )


def _cross(vector: "NDArray[np.float64]") -> "NDArray[np.float64]":
    x, y, z = vector
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
