"""Mattes' mutual information of two images at sample points, and its derivative, compiled.

One image gives the samples: points in mm and, for each, the bin of its value there. The other is
interpolated linearly where a transform takes the points; its bins are smeared by a cubic B-spline,
so that the metric has a derivative (Mattes et al. 2003, IEEE TMI 22:120, as ITK's
`MattesMutualInformationImageToImageMetricv4` does it).

Arrays of voxels are C-contiguous with axes k, j, i: the order of a NIfTI file.
"""

import math

import numpy as np

from mrmill.compiled import compiled

#: Bins of each image, as in the published recipe; the interpolated image has two more on either
#: side, which the spline of its border values reaches into.
BINS = 32
PAD = 2

#: An interpolated image's voxels are places on the axis of bins, this many steps to a bin.
FIXED = 1024


@compiled
def _locate(matrix, x, y, z, shape):
    """Return voxel position (k, j, i) of a point, and whether it lies between voxel centers."""
    k = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3]
    j = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3]
    i = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + matrix[2, 3]
    inside = 0 <= k <= shape[0] - 1 and 0 <= j <= shape[1] - 1 and 0 <= i <= shape[2] - 1
    return k, j, i, inside


@compiled
def _corner(position, n):
    """Return the lower neighbour, the step to the upper one (0 on the last voxel), the share."""
    low = min(int(position), max(n - 2, 0))
    return low, min(1, n - 1), position - low


@compiled
def interpolate(voxels, points, matrix, values):
    """Sample an image linearly at points.

    Parameters
    ----------
    voxels : (K, J, I) ndarray of float32 or uint16
        The image.
    points : (n, 3) ndarray of float64
        In mm.
    matrix : (3, 4) ndarray of float64
        Points to voxel indices k, j, i.
    values : (n,) ndarray of float32
        Filled: 0 outside the field.
    """
    shape = voxels.shape
    for n in range(points.shape[0]):
        k, j, i, inside = _locate(matrix, points[n, 0], points[n, 1], points[n, 2], shape)
        if not inside:
            values[n] = 0
            continue
        k0, dk, u = _corner(k, shape[0])
        j0, dj, v = _corner(j, shape[1])
        i0, di, w = _corner(i, shape[2])
        a = voxels[k0, j0, i0] * (1 - w) + voxels[k0, j0, i0 + di] * w
        b = voxels[k0, j0 + dj, i0] * (1 - w) + voxels[k0, j0 + dj, i0 + di] * w
        c = voxels[k0 + dk, j0, i0] * (1 - w) + voxels[k0 + dk, j0, i0 + di] * w
        d = voxels[k0 + dk, j0 + dj, i0] * (1 - w) + voxels[k0 + dk, j0 + dj, i0 + di] * w
        values[n] = (a * (1 - v) + b * v) * (1 - u) + (c * (1 - v) + d * v) * u


@compiled
def joint_histogram(voxels, points, bins, matrix, scale, joint, position, slope):
    """Fill the joint histogram of the samples' bins and the interpolated image's values.

    Parameters
    ----------
    voxels : (K, J, I) ndarray of uint16
        The interpolated image: places on the axis of bins, `FIXED` steps to a bin.
    points, matrix
        As in `interpolate`.
    bins : (n,) ndarray of uint8
        Bins of the samples' own values.
    scale : float
        Bins that a step of the image makes: 1 / FIXED, or less for fewer bins.
    joint : (BINS, BINS + 2 PAD) ndarray of float64
        Filled: weights, not normalised.
    position : (n,) ndarray of float32
        Filled: place of the interpolated value on the axis of bins; -1 outside the field.
    slope : (n, 3) ndarray of float32
        Filled: derivative of that place along k, j, i. Empty (0, 3): not wanted.

    Returns
    -------
    n_inside : int
        Samples inside the field.
    """
    shape = voxels.shape
    with_slope = slope.shape[0] > 0
    joint[:] = 0
    n_inside = 0
    for n in range(points.shape[0]):
        k, j, i, inside = _locate(matrix, points[n, 0], points[n, 1], points[n, 2], shape)
        if not inside:
            position[n] = -1
            continue
        n_inside += 1
        k0, dk, u = _corner(k, shape[0])
        j0, dj, v = _corner(j, shape[1])
        i0, di, w = _corner(i, shape[2])
        a0, a1 = float(voxels[k0, j0, i0]), float(voxels[k0, j0, i0 + di])
        b0, b1 = float(voxels[k0, j0 + dj, i0]), float(voxels[k0, j0 + dj, i0 + di])
        c0, c1 = float(voxels[k0 + dk, j0, i0]), float(voxels[k0 + dk, j0, i0 + di])
        d0, d1 = float(voxels[k0 + dk, j0 + dj, i0]), float(voxels[k0 + dk, j0 + dj, i0 + di])
        a, b = a0 + (a1 - a0) * w, b0 + (b1 - b0) * w
        c, d = c0 + (c1 - c0) * w, d0 + (d1 - d0) * w
        near, far = a + (b - a) * v, c + (d - c) * v
        place = (near + (far - near) * u) * scale + PAD
        position[n] = place
        if with_slope:
            slope[n, 0] = (far - near) * scale
            slope[n, 1] = ((b - a) * (1 - u) + (d - c) * u) * scale
            front = (a1 - a0) * (1 - v) + (b1 - b0) * v
            back = (c1 - c0) * (1 - v) + (d1 - d0) * v
            slope[n, 2] = (front * (1 - u) + back * u) * scale
        first = int(place) - 1
        r = place - int(place)
        q = 1 - r
        row = joint[bins[n]]
        row[first] += q * q * q / 6
        row[first + 1] += (4 - 6 * r * r + 3 * r * r * r) / 6
        row[first + 2] += (4 - 6 * q * q + 3 * q * q * q) / 6
        row[first + 3] += r * r * r / 6
    return n_inside


@compiled
def information(joint, log_ratio):
    """Return mutual information and joint entropy, in nats, and fill the table of derivatives.

    Parameters
    ----------
    joint : (BINS, BINS + 2 PAD) ndarray of float64
        Weights of the joint histogram.
    log_ratio : (BINS, BINS + 2 PAD) ndarray of float64
        Filled: log of p(s, t) / p(t), 0 where nothing is.

    Returns
    -------
    mutual, entropy : float
    """
    total = joint.sum()
    log_ratio[:] = 0
    if total == 0:
        return 0.0, 0.0
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    mutual = entropy = 0.0
    for s in range(joint.shape[0]):
        for t in range(joint.shape[1]):
            if joint[s, t] > 0:
                log_ratio[s, t] = math.log(joint[s, t] / columns[t])
                mutual += joint[s, t] * (log_ratio[s, t] - math.log(rows[s] / total))
                entropy -= joint[s, t] * math.log(joint[s, t] / total)
    return mutual / total, entropy / total


@compiled
def derivative(points, bins, position, slope, log_ratio, n_inside, by_matrix):
    """Fill the derivative of the mutual information by the (3, 4) matrix points -> voxels.

    Parameters
    ----------
    points, bins, position, slope, log_ratio
        As `joint_histogram` and `information` left them.
    by_matrix : (3, 4) ndarray of float64
        Filled.
    """
    by_matrix[:] = 0
    for n in range(points.shape[0]):
        place = position[n]
        if place < 0:
            continue
        first = int(place) - 1
        r = place - int(place)
        q = 1 - r
        row = log_ratio[bins[n]]
        force = 0.5 * (
            -q * q * row[first]
            + (3 * r * r - 4 * r) * row[first + 1]
            + (4 * q - 3 * q * q) * row[first + 2]
            + r * r * row[first + 3]
        )
        for axis in range(3):
            pull = force * slope[n, axis]
            by_matrix[axis, 0] += pull * points[n, 0]
            by_matrix[axis, 1] += pull * points[n, 1]
            by_matrix[axis, 2] += pull * points[n, 2]
            by_matrix[axis, 3] += pull
    by_matrix /= max(n_inside, 1)


@compiled
def shaded_histogram(values, gains, bins, scale, low, joint, position):
    """Fill the joint histogram of samples whose values are scaled one by one.

    Parameters
    ----------
    values, gains : (n,) ndarray of float32 and float64
        Interpolated values, and what to multiply them with.
    scale, low : float
        A value v lies at v * scale - low on the axis of bins, clipped to its range.
    joint, position
        Filled, as by `joint_histogram`; -1 where the value is clipped.
    """
    joint[:] = 0
    for n in range(values.shape[0]):
        place = values[n] * gains[n] * scale - low
        within = 0 < place < BINS - 1
        place = min(max(place, 0.0), BINS - 1.0) + PAD
        position[n] = place if within else -1
        first = int(place) - 1
        r = place - int(place)
        q = 1 - r
        row = joint[bins[n]]
        row[first] += q * q * q / 6
        row[first + 1] += (4 - 6 * r * r + 3 * r * r * r) / 6
        row[first + 2] += (4 - 6 * q * q + 3 * q * q * q) / 6
        row[first + 3] += r * r * r / 6


@compiled
def shading_derivative(bins, position, terms, low, log_ratio, by_logs):
    """Fill the derivative of the mutual information by the coefficients of the gains' logarithm.

    Parameters
    ----------
    terms : (n, m) ndarray of float64
        What each coefficient adds to the logarithm of a sample's gain.
    by_logs : (m,) ndarray of float64
        Filled.
    """
    by_logs[:] = 0
    for n in range(position.shape[0]):
        place = position[n]
        if place < 0:
            continue
        first = int(place) - 1
        r = place - int(place)
        q = 1 - r
        row = log_ratio[bins[n]]
        force = 0.5 * (
            -q * q * row[first]
            + (3 * r * r - 4 * r) * row[first + 1]
            + (4 * q - 3 * q * q) * row[first + 2]
            + r * r * row[first + 3]
        )
        force *= place - PAD + low
        for m in range(terms.shape[1]):
            by_logs[m] += force * terms[n, m]
    by_logs /= position.shape[0]


@compiled
def many(voxels, points, bins, matrices, scale, scores):
    """Rate many poses by the information they give: mutual, joint entropy, share inside.

    Parameters
    ----------
    matrices : (m, 3, 4) ndarray of float64
        Points to voxels, one for each pose.
    scores : (m, 3) ndarray of float64
        Filled: mutual information and joint entropy in nats, share of samples in the field.
    """
    joint = np.empty((BINS, BINS + 2 * PAD))
    log_ratio = np.empty_like(joint)
    position = np.empty(points.shape[0], np.float32)
    slope = np.empty((0, 3), np.float32)
    for m in range(matrices.shape[0]):
        n_inside = joint_histogram(voxels, points, bins, matrices[m], scale, joint, position, slope)
        scores[m, 0], scores[m, 1] = information(joint, log_ratio)
        scores[m, 2] = n_inside / points.shape[0]


class Information:
    """Mutual information of samples and an image, and its derivative, pose by pose.

    Parameters
    ----------
    voxels, points, bins
        As in `joint_histogram`.
    """

    def __init__(self, voxels, points, bins):
        self.voxels, self.points, self.bins = voxels, points, bins
        self.joint = np.empty((BINS, BINS + 2 * PAD))
        self.log_ratio = np.empty_like(self.joint)
        self.position = np.empty(len(points), np.float32)
        self.slope = np.empty((len(points), 3), np.float32)
        self.by_matrix = np.empty((3, 4))

    def at(self, matrix):
        """Return the information in nats and its derivative by the matrix, points -> voxels."""
        n_inside = joint_histogram(
            self.voxels, self.points, self.bins, matrix, 1 / FIXED,
            self.joint, self.position, self.slope,
        )  # fmt: skip
        mutual, _ = information(self.joint, self.log_ratio)
        derivative(
            self.points, self.bins, self.position, self.slope, self.log_ratio, n_inside,
            self.by_matrix,
        )  # fmt: skip
        return mutual, self.by_matrix
