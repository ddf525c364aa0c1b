"""Implicit surfaces of the phantom's head: signed distances in mm, negative inside."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Volume = NDArray[np.float32]

# Face without the nose, at the midline: z, front y, half width, y of the widest place.
PROFILE_MM = np.array([
    (30, 70, 66, 20), (10, 82, 68, 20), (-10, 87.5, 68, 18), (-26, 89, 67, 16), (-40, 84, 67, 14),
    (-55, 83.5, 69, 12), (-70, 85, 69, 10), (-88, 89, 65, 8), (-100, 91, 60, 6), (-112, 90, 57, 6),
    (-122, 88, 56, 8), (-132, 86, 53, 12), (-144, 89, 46, 18), (-154, 85, 36, 26),
    (-166, 70, 26, 30),
])  # fmt: skip
# The nose along z: height above the profile, half width.
NOSE_MM = np.array([
    (-32, 0, 8), (-40, 2.5, 7), (-50, 8.5, 6.5), (-60, 15, 7), (-70, 21, 8.5), (-76, 25.5, 10),
    (-80, 26.5, 10.5), (-84, 23.5, 10.5), (-88, 15, 9.5), (-92, 5, 8), (-95, 0, 7),
])  # fmt: skip
# Bumps and hollows: |x|, z, height, spread along x, spread along z.
RELIEF_MM = np.array(
    [
        (24, -24, 3.0, 13, 5.5),  # brow ridge
        (33, -43, -13.0, 13, 9),  # eye socket
        (17, -46, -4.0, 5, 8),  # inner corner of the eye
        (46, -64, 4.5, 13, 10),  # cheek bone
        (44, -98, -3.5, 12, 16),  # hollow of the cheek
        (12.5, -84, 8.0, 4.6, 5.5),  # wing of the nose
        (19, -88, -2.0, 3.5, 7),  # fold beside the nose
        (6, -107, 5.0, 7.5, 3.8),  # upper lip
        (16, -109, 2.5, 6, 2.8),
        (0, -117.8, 6.5, 13, 4.2),  # lower lip
        (0, -99, -1.3, 2.0, 5),  # philtrum
        (7, -112.3, -4.0, 9, 1.3),  # mouth
        (18, -111.5, -2.2, 5, 1.6),
        (25, -111, -2.0, 3.0, 4),  # corner of the mouth
        (0, -128, -2.2, 12, 4),  # fold above the chin
        (0, -145, 3.0, 11, 8),  # chin
    ]
)
EYE_MM = (32.0, 62.5, -42.0)


def outer_surface_mm(x: Volume, y: Volume, z: Volume, vault_mm: Volume) -> Volume:
    """Skin of the whole head: vault, face, neck, eyelids and ears, melted together.

    Parameters
    ----------
    x, y, z : ndarray of float32
        Open grid of head coordinates, RAS+ mm, as from `numpy.ix_`.
    vault_mm : (nx, ny, nz) ndarray
        Distance to the skin over the vault of the skull.
    """
    front = face_front_mm(x[:, 0, 0], z[0, 0])
    slope = np.hypot(*np.gradient(front, x[:, 0, 0], z[0, 0]))
    steepness = np.sqrt(1 + np.minimum(slope, 6) ** 2)
    half_width = np.interp(z, PROFILE_MM[::-1, 0], PROFILE_MM[::-1, 2]).astype(np.float32)
    jaw_mm = (-158 + 0.45 * (80 - y) - z) / 1.1
    face = (y - front[:, None]) / steepness[:, None]
    face = _meet(face, jaw_mm, 10)
    face = _meet(face, np.abs(x) - half_width, 12)
    face = _meet(_meet(face, z - 24, 30), -8 - y, 16)
    neck_y = -14 + 0.16 * (z + 100)
    neck = 54 * (np.hypot(x / 51, (y - neck_y) / 58) - 1)
    skin = _melt(vault_mm, face, 10)
    skin = _melt(skin, np.maximum(neck, z + 70), 14)
    for side in (-1, 1):
        eye = (side * EYE_MM[0], EYE_MM[1], EYE_MM[2])
        skin = _melt(skin, ellipsoid_mm(x, y, z, eye, (15.5, 14.0, 12.5)), 4)
        slit = (eye[0], eye[1] + 13.5, eye[2] - 3.5)
        skin = _meet(skin, -ellipsoid_mm(x, y, z, slit, (13.0, 3.5, 1.6)), 1)
        skin = _melt(skin, _ear_mm(x, y, z, side), 3)
    return skin.astype(np.float32)


def face_front_mm(x: Volume, z: Volume) -> Volume:
    """How far forward the skin of the face reaches, y in mm, at every x (nx,) and z (nz,)."""
    from scipy.interpolate import PchipInterpolator

    across = np.abs(x)[:, None]
    profile = PchipInterpolator(PROFILE_MM[::-1, 0], PROFILE_MM[::-1, 1:])
    front, half_width, centre = profile(np.clip(z, PROFILE_MM[-1, 0], PROFILE_MM[0, 0])).T
    share = np.clip(1 - (across / half_width) ** 2.3, 0, 1) ** (1 / 2.3)
    depth = centre + (front - centre) * share
    nose_profile = PchipInterpolator(NOSE_MM[::-1, 0], NOSE_MM[::-1, 1:])
    height, nose_width = nose_profile(np.clip(z, NOSE_MM[-1, 0], NOSE_MM[0, 0])).T
    nose = height * np.exp(-((across / nose_width) ** 2))
    relief = sum(
        height
        * np.exp(-(((across - at) / wide) ** 2) / 2)
        * np.exp(-(((z - level) / tall) ** 2) / 2)
        for at, level, height, wide, tall in RELIEF_MM
    )
    return (depth + nose + relief).astype(np.float32)


def ellipsoid_mm(x: Volume, y: Volume, z: Volume, centre: ArrayLike, radii: ArrayLike) -> Volume:
    """About the distance to an ellipsoid with axes along x, y, z (exact for a sphere)."""
    parts = [(axis - c) / r for axis, c, r in zip((x, y, z), centre, radii, strict=True)]
    radius = np.sqrt(sum(part**2 for part in parts))
    return ((radius - 1) * np.min(radii)).astype(np.float32)


def capsule_mm(
    x: Volume, y: Volume, z: Volume, start: ArrayLike, end: ArrayLike, radius: float
) -> Volume:
    """Distance to the round-ended cylinder between two points."""
    along = np.subtract(end, start)
    offset = [axis - at for axis, at in zip((x, y, z), start, strict=True)]
    share = sum(part * step for part, step in zip(offset, along, strict=True)) / (along @ along)
    share = np.clip(share, 0, 1)
    squared = sum((part - share * step) ** 2 for part, step in zip(offset, along, strict=True))
    return (np.sqrt(squared) - radius).astype(np.float32)


def _ear_mm(x: Volume, y: Volume, z: Volume, side: int) -> Volume:
    """A shell that leans back and outwards, hollow in front."""
    out = side * x
    lean_y = y + 24 + 0.25 * (z + 50)
    flat = out - 80 + 0.3 * lean_y
    shell = ellipsoid_mm(flat, lean_y, z, (0, 0, -50), (5, 16, 31)) * 2
    hollow = ellipsoid_mm(flat, lean_y, z, (5, 3, -52), (6, 9, 18))
    return _meet(shell, -hollow, 2)


def _melt(first: Volume, second: Volume, blend_mm: float) -> Volume:
    """Union with a rounded seam: the polynomial smooth minimum."""
    near = np.maximum(blend_mm - np.abs(first - second), 0)
    return np.minimum(first, second) - near**2 / (4 * blend_mm)


def _meet(first: Volume, second: Volume, blend_mm: float) -> Volume:
    """Intersection with a rounded edge."""
    return -_melt(-first, -second, blend_mm)
