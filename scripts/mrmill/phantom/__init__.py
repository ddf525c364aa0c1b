"""The project's own data: a synthetic head, scanned like a patient, with the truth known."""

from mrmill.phantom.acquire import CONTRASTS, Acquisition, Scan, acquire, grid_affine, rigid
from mrmill.phantom.export import ScannedSeries, make_export, scan_preset
from mrmill.phantom.head import Head, Warp, standard_head
from mrmill.phantom.render import render_face

__all__ = [
    "CONTRASTS",
    "Acquisition",
    "Head",
    "Scan",
    "ScannedSeries",
    "Warp",
    "acquire",
    "grid_affine",
    "make_export",
    "render_face",
    "rigid",
    "scan_preset",
    "standard_head",
]
