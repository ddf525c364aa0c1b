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

#: Shares of an image's values that lie below the first and the last bin.
WINDOW_PERCENT = (0.5, 99.5)

#: Values that lie closer together are one and the same: float32 has no room for steps so small.
LEAST_RANGE = 1e-33

#: An interpolated image's voxels are places on the axis of bins, this many steps to a bin.
FIXED = 1024


def window(values):
    """Return the values between which the bins lie."""
    low, high = np.percentile(values, WINDOW_PERCENT)
    return float(low), float(high)


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
def _spline(place, weights, slopes):
    """Fill the weights of the four bins around a place and their derivatives; return the first."""
    first = int(place) - 1
    r = place - int(place)
    q = 1 - r
    weights[0], weights[3] = q * q * q / 6, r * r * r / 6
    weights[1] = (4 - 6 * r * r + 3 * r * r * r) / 6
    weights[2] = (4 - 6 * q * q + 3 * q * q * q) / 6
    slopes[0], slopes[3] = -q * q / 2, r * r / 2
    slopes[1], slopes[2] = (3 * r * r - 4 * r) / 2, (4 * q - 3 * q * q) / 2
    return first


@compiled
def mutual_slopes(places, slopes):
    """Return the mutual information of two lists of places, both smeared, and its derivatives.

    Parameters
    ----------
    places : (2, n) ndarray of float64
        Places on the axes of bins, clipped to 0 ... BINS - 1.
    slopes : (2, n) ndarray of float64
        Filled: derivative by each place, 0 where it is clipped.

    Returns
    -------
    mutual : float
        In nats.
    """
    n_samples = places.shape[1]
    of_a, of_b, by_a, by_b = np.empty(4), np.empty(4), np.empty(4), np.empty(4)
    joint = np.zeros((BINS + 2 * PAD, BINS + 2 * PAD))
    for n in range(n_samples):
        a = _spline(places[0, n] + PAD, of_a, by_a)
        b = _spline(places[1, n] + PAD, of_b, by_b)
        for s in range(4):
            for t in range(4):
                joint[a + s, b + t] += of_a[s] * of_b[t]
    joint /= n_samples
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    mutual = 0.0
    for s in range(joint.shape[0]):
        for t in range(joint.shape[1]):
            if joint[s, t] > 0:
                ratio = math.log(joint[s, t] / (rows[s] * columns[t]))
                mutual += joint[s, t] * ratio
                joint[s, t] = ratio
    for n in range(n_samples):
        a = _spline(places[0, n] + PAD, of_a, by_a)
        b = _spline(places[1, n] + PAD, of_b, by_b)
        pull_a = pull_b = 0.0
        for s in range(4):
            for t in range(4):
                pull_a += by_a[s] * of_b[t] * joint[a + s, b + t]
                pull_b += of_a[s] * by_b[t] * joint[a + s, b + t]
        slopes[0, n] = pull_a / n_samples if 0 < places[0, n] < BINS - 1 else 0.0
        slopes[1, n] = pull_b / n_samples if 0 < places[1, n] < BINS - 1 else 0.0
    return mutual


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
