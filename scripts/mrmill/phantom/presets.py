"""What the phantom exports hold: studies, series and what must become of each."""

from dataclasses import dataclass, replace

from mrmill.phantom.acquire import Acquisition


@dataclass(frozen=True)
class PlannedSeries:
    """One series of an export.

    Attributes
    ----------
    stacks : tuple of Acquisition
        One, or several for a localizer in three planes.
    outcome : str
        "accepted", or the reason code (`config/reasons.yaml`) with which it must be rejected.
    """

    stacks: tuple[Acquisition, ...]
    outcome: str = "accepted"


@dataclass(frozen=True)
class PlannedStudy:
    """One study of an export.

    Attributes
    ----------
    patient : int
        Number of the patient; a patient with two studies has one head.
    age_years : int
        Age at the study.
    sex : str
        F or M.
    vendor : str
        siemens, ge or philips.
    study_date : str
        YYYYMMDD, in a year that no real study has.
    series : tuple of PlannedSeries
        In the order of SeriesNumber.
    """

    patient: int
    age_years: int
    sex: str
    vendor: str
    study_date: str
    series: tuple[PlannedSeries, ...]


@dataclass(frozen=True)
class Preset:
    """Studies and the voxel size of the head they are scanned from."""

    head_voxel_mm: float
    studies: tuple[PlannedStudy, ...]


T1W_3D = Acquisition(
    "T1w", "t1w_3d", "sag", 216, 216, 160, 1.2, 1.2, te_ms=2.9, tr_ms=2300, flip_deg=9, ti_ms=900,
    centre_mm=(0, -8, -36), volumetric=True,
)  # fmt: skip
T1W_2D = Acquisition(
    "T1w", "t1w_2d", "axi", 256, 256, 31, 0.9, 5.0, te_ms=12, tr_ms=550, flip_deg=90
)
T2W = Acquisition(
    "T2w", "t2w", "axi", 256, 256, 31, 0.9, 5.0, te_ms=98, tr_ms=4800, flip_deg=150, echo_train=15
)
FLAIR = Acquisition(
    "FLAIR", "flair", "axi", 256, 256, 31, 0.9, 4.5, te_ms=92, tr_ms=9000, flip_deg=150, gap_mm=0.5,
    ti_ms=2500, echo_train=21,
)  # fmt: skip
SWI = Acquisition(
    "SWI", "swi", "axi", 224, 224, 78, 1.0, 2.0, te_ms=20, tr_ms=28, flip_deg=15, volumetric=True
)
MRA = Acquisition(
    "MRA", "mra", "axi", 256, 256, 96, 0.8, 1.5, te_ms=3.7, tr_ms=22, flip_deg=18, volumetric=True,
    centre_mm=(0, -17, -12),
)  # fmt: skip
DWI = Acquisition(
    "DWI", "dwi", "axi", 128, 128, 30, 1.8, 5.0, te_ms=89, tr_ms=6400, flip_deg=90, echo_train=64
)
SCOUT = Acquisition(
    "T1w", "localizer", "axi", 128, 128, 3, 2.2, 6.0, te_ms=5, tr_ms=9, flip_deg=20, gap_mm=14,
    role="localizer",
)  # fmt: skip

LOCALIZER = PlannedSeries(
    tuple(replace(SCOUT, plane=plane) for plane in ("sag", "cor", "axi")), "localizer"
)
DIFFUSION = PlannedSeries((DWI,), "modality_not_accepted")
REFORMATTED = PlannedSeries(
    (replace(T1W_3D, plane="cor", slices=60, thickness_mm=3.0, role="derived"),), "derived"
)
SHORT_SLAB = PlannedSeries((replace(T2W, slices=20),), "fov_out_of_range")

SAGITTAL_MM = (0.0, -17.0, -18.0)
T2W_CORONAL = replace(T2W, plane="cor", slices=38, centre_mm=(0, -17, -10))
T1W_SAGITTAL = replace(T1W_2D, plane="sag", slices=31, centre_mm=SAGITTAL_MM)
FLAIR_SAGITTAL = replace(FLAIR, plane="sag", slices=31, centre_mm=SAGITTAL_MM)
T2W_OBLIQUE = replace(T2W, tilt_deg=(-38.0, 0.0, 0.0), slices=36, centre_mm=(0, -17, -4))


def coarse(acquisition: Acquisition) -> Acquisition:
    """The same field of view with large voxels: 2 mm for 3D, 1.8 x 1.8 x 6 mm for 2D."""
    pixel_mm, thickness_mm = (2.0, 2.0) if acquisition.volumetric else (1.8, 6.0)
    spacing_mm = acquisition.spacing_mm
    return replace(
        acquisition,
        columns=round(acquisition.columns * spacing_mm[0] / pixel_mm),
        rows=round(acquisition.rows * spacing_mm[1] / pixel_mm),
        slices=round(acquisition.slices * spacing_mm[2] / thickness_mm),
        pixel_mm=pixel_mm,
        thickness_mm=thickness_mm,
        gap_mm=0.0,
    )


def _accepted(*acquisitions: Acquisition) -> tuple[PlannedSeries, ...]:
    return tuple(PlannedSeries((acquisition,)) for acquisition in acquisitions)


def _rejected(outcome: str, *acquisitions: Acquisition) -> tuple[PlannedSeries, ...]:
    return tuple(PlannedSeries((acquisition,), outcome) for acquisition in acquisitions)


DEMO = Preset(
    1.25,
    (
        PlannedStudy(
            1, 45, "F", "siemens", "20990114",
            (LOCALIZER, *_accepted(T1W_3D, T2W, FLAIR, T2W_CORONAL, SWI, MRA), REFORMATTED),
        ),
        PlannedStudy(
            1, 46, "F", "ge", "21000220",
            (LOCALIZER, *_accepted(T1W_2D, T2W, FLAIR, T1W_SAGITTAL), DIFFUSION),
        ),
        PlannedStudy(
            2, 62, "M", "philips", "20990305",
            (LOCALIZER, SHORT_SLAB, *_accepted(T2W, T1W_3D, FLAIR, SWI), DIFFUSION),
        ),
        PlannedStudy(
            3, 31, "F", "ge", "20991127",
            (LOCALIZER, *_accepted(FLAIR_SAGITTAL, T1W_2D, T2W_OBLIQUE, FLAIR, MRA)),
        ),
        PlannedStudy(
            4, 9, "M", "siemens", "20990618",
            _rejected("age_below_minimum", coarse(T1W_3D), T2W),
        ),
    ),
)  # fmt: skip

TINY = Preset(
    2.0,
    (
        PlannedStudy(
            1, 45, "F", "siemens", "20990114", _accepted(*map(coarse, (T1W_3D, T2W, FLAIR)))
        ),
        PlannedStudy(1, 46, "F", "ge", "21000220", _accepted(*map(coarse, (FLAIR, T1W_2D)))),
        PlannedStudy(
            2, 62, "M", "philips", "20990305",
            _rejected("study_rejected", *map(coarse, (T2W, FLAIR))),
        ),
        PlannedStudy(
            3, 9, "F", "siemens", "20991127",
            _rejected("age_below_minimum", *map(coarse, (T1W_3D, T2W))),
        ),
    ),
)  # fmt: skip

PRESETS = {"demo": DEMO, "tiny": TINY}
