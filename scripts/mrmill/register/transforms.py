"""Rigid transforms: what they do to points, how they compose, the files they live in.

All points are in mm in NIfTI's frame (RAS+); only the `.mat` files speak ITK's (LPS+).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

#: Turns RAS+ into LPS+ coordinates and back.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])

#: Which way a transform goes, in the words of its JSON.
DIRECTION = {
    "images": "the moving image comes to lie on the fixed one",
    "points": "matrix @ [x, y, z, 1] takes a point of the fixed image to the same anatomy in the "
    "moving image; the inverse of the matrix takes points of the moving image to the fixed one",
    "coordinates": "RAS+, mm: x to the patient's right, y to the front, z up, as in NIfTI",
}

#: Decimals of the numbers in a JSON; 1e-12 of a rotation is 1e-10 mm at the edge of a head.
DECIMALS = 12


@dataclass(frozen=True)
class RigidTransform:
    """A rotation and a translation from the fixed to the moving image.

    Attributes
    ----------
    matrix : (4, 4) ndarray of float64
        Takes a point of the fixed image (RAS+, mm) to the point of the same anatomy in the
        moving image. This is the direction resampling needs, and what ANTs calls the forward
        transform: "moving to fixed" as images move, fixed to moving as points do.
    """

    matrix: "NDArray[np.float64]" = field(default_factory=lambda: np.eye(4))

    def __call__(self, points_mm: "ArrayLike") -> "NDArray[np.float64]":
        """Map points, (n, 3) in mm, from the fixed to the moving image."""
        return np.asarray(points_mm) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def inverse(self) -> "RigidTransform":
        """Return the transform from the moving to the fixed image."""
        return RigidTransform(np.linalg.inv(self.matrix))

    def then(self, further: "RigidTransform") -> "RigidTransform":
        """Return this transform followed by one that starts where this one ends."""
        return RigidTransform(further.matrix @ self.matrix)

    def nearest_rigid(self, points_mm: "ArrayLike") -> "RigidTransform":
        """Return the rigid transform nearest to one that stretches, over points (n, 3) in mm.

        Least squares (Kabsch 1976, Acta Cryst. A32:922).
        """
        points, targets = np.asarray(points_mm, dtype=float), self(points_mm)
        middle, goal = points.mean(axis=0), targets.mean(axis=0)
        left, _, right = np.linalg.svd((targets - goal).T @ (points - middle))
        matrix = np.eye(4)
        matrix[:3, :3] = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
        matrix[:3, 3] = goal - matrix[:3, :3] @ middle
        return RigidTransform(matrix)

    @property
    def rotation_degrees(self) -> float:
        """Angle of the rotation around its one axis."""
        from scipy.spatial.transform import Rotation

        return float(np.degrees(Rotation.from_matrix(self.matrix[:3, :3]).magnitude()))


def write_transform(path: Path, transform: RigidTransform) -> None:
    """Write a transform as ITK's `.mat`, with the meaning of ANTs' `0GenericAffine.mat`.

    The file is a MATLAB 4 file, which carries no time: `AffineTransform_double_3_3` is the
    LPS+ rotation row by row and the translation, `fixed` the center of rotation (the origin).
    """
    from scipy.io import savemat

    matrix = FLIP @ transform.matrix @ FLIP
    parameters = np.concatenate([matrix[:3, :3].ravel(), matrix[:3, 3]])
    content = {"AffineTransform_double_3_3": parameters[:, None], "fixed": np.zeros((3, 1))}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content, format="4")


def description(transform: RigidTransform, **about: Any) -> bytes:
    """Return a transform as JSON: its RAS+ matrix, which way it goes, and what else is known of it.

    Parameters
    ----------
    about : plain values
        What is fixed and what moves, engine, versions, quality figures, ... Nothing here may
        change from run to run: no time, no host, no path.
    """
    matrix = (np.round(transform.matrix, DECIMALS) + 0.0).tolist()  # + 0.0: no negative zeros
    content = {"matrix": matrix, "direction": DIRECTION, **about}
    # a line for each of them: a matrix over twenty lines is nothing to look at
    lines = [f"{json.dumps(n)}: {json.dumps(content[n], sort_keys=True)}" for n in sorted(content)]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_transform(file: Path | BinaryIO) -> RigidTransform:
    """Read a linear transform from ITK's `.mat`, as written here or by ANTs."""
    from scipy.io import loadmat

    content = loadmat(file)
    name = next(name for name in content if name.startswith("AffineTransform"))
    parameters, center = content[name].ravel().astype(float), content["fixed"].ravel()
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:] + center - matrix[:3, :3] @ center
    return RigidTransform(FLIP @ matrix @ FLIP)
