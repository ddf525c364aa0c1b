"""The loops of `resampling`, compiled.

A position is a whole number of 2^-40 voxels. Sums of whole numbers are exact, so it does not
matter how the loops get to a position, and one that should be on the face between two voxels is.
It is within 10^-9 voxels of the true one on grids of up to 700 voxels per axis.

All arrays are in C order: `source` (A, B, C), `sampled` (K, J, I). `steps` (3, 4), int64, takes
(i, j, k, 1) of `sampled` to a position in `source`, its rows in the order of A, B, C.
"""

from typing import TYPE_CHECKING

import numpy as np

from mrmill.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS = 40

#: One voxel as a position.
VOXEL = 1 << BITS


@compiled
def _clip(first: int, stop: int, start: int, step: int, size: int) -> tuple[int, int]:
    """Narrow first <= i < stop to where `start + i * step` is in a field of `size` voxels.

    As in ITK the field reaches to the outer faces of its border voxels: from -0.5 to just below
    size - 0.5.
    """
    low, high = -VOXEL // 2, size * VOXEL - VOXEL // 2
    if step == 0:
        return first, stop if low <= start < high else first
    if step < 0:  # the same, mirrored
        start, step, low, high = -start, -step, 1 - high, 1 - low
    return max(first, -((start - low) // step)), min(stop, -((start - high) // step))


@compiled
def _row(
    shape: tuple[int, int, int], steps: "NDArray[np.int64]", width: int, j: int, k: int
) -> tuple[int, int, int, int, int]:
    """Return the position at i = 0 of a row, and the first and last + 1 of its i in the field."""
    a = steps[0, 1] * j + steps[0, 2] * k + steps[0, 3]
    b = steps[1, 1] * j + steps[1, 2] * k + steps[1, 3]
    c = steps[2, 1] * j + steps[2, 2] * k + steps[2, 3]
    first, stop = _clip(0, width, a, steps[0, 0], shape[0])
    first, stop = _clip(first, stop, b, steps[1, 0], shape[1])
    first, stop = _clip(first, stop, c, steps[2, 0], shape[2])
    return a, b, c, first, stop


@compiled
def _before(position: int, size: int, stride: int) -> tuple[int, int, float]:
    """Return the voxel at or before a position, the way from it to the next, the share of that.

    Beyond the middle of a border voxel there is no next: its value is repeated.
    """
    last = (size - 1) * VOXEL
    position = min(max(position, 0), last)
    share = (position & (VOXEL - 1)) / VOXEL
    return (position >> BITS) * stride, stride if position < last else 0, share


@compiled
def _blend(one: float, other: float, share: float) -> float:
    return one + share * (other - one)


@compiled
def _blend_two(flat: "NDArray", n: int, to_next: int, share: float) -> float:
    # unsigned, so that numba does not look whether they count from the end
    one, other = flat[np.uintp(n)], flat[np.uintp(n + to_next)]
    return _blend(np.float64(one), np.float64(other), share)


@compiled
def _blend_four(flat: "NDArray", n: int, to_b: int, v: float, to_c: int, w: float) -> float:
    return _blend(_blend_two(flat, n, to_c, w), _blend_two(flat, n + to_b, to_c, w), v)


@compiled
def linear(source: "NDArray", steps: "NDArray[np.int64]", sampled: "NDArray") -> None:
    """Interpolate at each position in the field between the eight voxels around it."""
    size_a, size_b, size_c = source.shape
    step_a, step_b, step_c = steps[0, 0], steps[1, 0], steps[2, 0]
    flat = source.reshape(-1)
    for k in range(sampled.shape[0]):
        for j in range(sampled.shape[1]):
            a, b, c, first, stop = _row(source.shape, steps, sampled.shape[2], j, k)
            for i in range(first, stop):
                n_a, to_a, u = _before(a + i * step_a, size_a, size_b * size_c)
                n_b, to_b, v = _before(b + i * step_b, size_b, size_c)
                n_c, to_c, w = _before(c + i * step_c, size_c, 1)
                n = n_a + n_b + n_c
                near = _blend_four(flat, n, to_b, v, to_c, w)
                far = _blend_four(flat, n + to_a, to_b, v, to_c, w)
                sampled[k, j, i] = _blend(near, far, u)


@compiled
def nearest(source: "NDArray", steps: "NDArray[np.int64]", sampled: "NDArray") -> None:
    """Take at each position in the field the voxel it lies in; on a face, the one after it."""
    half = VOXEL // 2
    step_a, step_b, step_c = steps[0, 0], steps[1, 0], steps[2, 0]
    for k in range(sampled.shape[0]):
        for j in range(sampled.shape[1]):
            a, b, c, first, stop = _row(source.shape, steps, sampled.shape[2], j, k)
            for i in range(first, stop):
                n_a = (a + i * step_a + half) >> BITS
                n_b = (b + i * step_b + half) >> BITS
                n_c = (c + i * step_c + half) >> BITS
                sampled[k, j, i] = source[n_a, n_b, n_c]
