"""How three vendors name and describe the same acquisitions in their headers.

Modelled on public sidecars of Siemens, GE and Philips scanners; a header field that a vendor leaves
out is an empty string here.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SequenceHeader:
    """What a vendor writes about one sequence.

    Attributes
    ----------
    description : str
        SeriesDescription; `{plane}` is replaced by the vendor's word for the plane.
    name : str
        SequenceName (Siemens) or private PulseSequenceName (GE).
    scanning, variant, options : str
        ScanningSequence, SequenceVariant, ScanOptions, with backslashes.
    """

    description: str
    name: str
    scanning: str
    variant: str
    options: str = ""


@dataclass(frozen=True)
class Vendor:
    """One scanner.

    Attributes
    ----------
    manufacturer, short_name, model : str
        Manufacturer in DICOM and in sidecars, ManufacturerModelName.
    field_t : float
        MagneticFieldStrength in tesla.
    gain : float
        Stored value per thousandth of signal.
    image_type : dict
        ImageType by role.
    planes : dict
        The vendor's words for the planes.
    sequences : dict
        `SequenceHeader` by sequence.
    """

    manufacturer: str
    short_name: str
    model: str
    field_t: float
    gain: float
    image_type: dict[str, str]
    planes: dict[str, str]
    sequences: dict[str, SequenceHeader] = field(default_factory=dict)


SIEMENS = Vendor(
    "SIEMENS", "Siemens", "Prisma", 3.0, 0.9,
    {
        "raw": r"ORIGINAL\PRIMARY\M\ND\NORM",
        "localizer": r"ORIGINAL\PRIMARY\M\ND",
        "derived": r"DERIVED\SECONDARY\MPR\CSA MPR\M\ND",
    },
    {"axi": "tra", "sag": "sag", "cor": "cor", "obl": "obl"},
    {
        "localizer": SequenceHeader("localizer", "*fl2d1", "GR", r"SP\OSP"),
        "t1w_3d": SequenceHeader(
            "t1_mprage_{plane}_p2_iso", "*tfl3d1_ns", r"GR\IR", r"SP\MP", "IR"
        ),
        "t1w_2d": SequenceHeader("t1_se_{plane}", "*se2d1", "SE", r"SP\OSP", "SAT1"),
        "t2w": SequenceHeader("t2_tse_{plane}", "*tse2d1_15", "SE", r"SK\SP\OSP"),
        "flair": SequenceHeader(
            "t2_tirm_{plane}_dark-fluid", "*tir2d1_21", r"SE\IR", r"SK\SP\MP\OSP", "IR"
        ),
        "swi": SequenceHeader("SWI_Images", "*fl3d1r", "GR", "SP", "PFP"),
        "mra": SequenceHeader("TOF_3D_multi-slab", "*fl3d1r_t70", "GR", "TOF", "SAT2"),
        "dwi": SequenceHeader("ep2d_diff_b1000", "*ep_b1000#1", "EP", r"SK\SP", r"PFP\FS"),
    },
)  # fmt: skip

GE = Vendor(
    "GE MEDICAL SYSTEMS", "GE", "DISCOVERY MR750", 3.0, 3.2,
    {
        "raw": r"ORIGINAL\PRIMARY\OTHER",
        "localizer": r"ORIGINAL\PRIMARY\OTHER",
        "derived": r"DERIVED\SECONDARY\REFORMATTED\AVERAGE",
    },
    {"axi": "Ax", "sag": "Sag", "cor": "Cor", "obl": "Obl"},
    {
        "localizer": SequenceHeader("3Plane Loc SSFSE", "ssfse", "SE", "SS", "FAST_GEMS"),
        "t1w_3d": SequenceHeader(
            "{plane} T1 BRAVO", "BRAVO", "GR", r"SS\SP\SK", r"FAST_GEMS\EDR_GEMS\IR"
        ),
        "t1w_2d": SequenceHeader("{plane} T1 SE", "SE", "SE", "NONE", "SAT_GEMS"),
        "t2w": SequenceHeader("{plane} T2 FSE", "FSE-XL", "SE", "SK", r"FAST_GEMS\FC"),
        "flair": SequenceHeader(
            "{plane} T2 FLAIR", "T2FLAIR", "SE", "SK", r"FAST_GEMS\SAT_GEMS\IR\T2FLAIR_GEMS"
        ),
        "swi": SequenceHeader("Ax SWAN", "3DSWAN", "GR", r"SS\SP\SK", r"FAST_GEMS\FC\ACC_GEMS"),
        "mra": SequenceHeader("3D TOF COW", "3DTOF", "GR", r"SS\SP", r"FAST_GEMS\FC\MT_GEMS"),
        "dwi": SequenceHeader("Ax DWI b1000", "EPI2", r"EP\SE", "NONE", r"EPI_GEMS\PFF"),
    },
)  # fmt: skip

PHILIPS = Vendor(
    "Philips Medical Systems", "Philips", "Achieva", 1.5, 1.4,
    {
        "raw": r"ORIGINAL\PRIMARY\M_SE\M\SE",
        "localizer": r"ORIGINAL\PRIMARY\M_FFE\M\FFE",
        "derived": r"DERIVED\SECONDARY\MPR",
    },
    {"axi": "TRA", "sag": "SAG", "cor": "COR", "obl": "OBL"},
    {
        "localizer": SequenceHeader("SURVEY", "", "GR", "SS", "OTHER"),
        "t1w_3d": SequenceHeader("sT1W_3D_TFE_{plane}", "", "GR", "MP", "OTHER"),
        "t1w_2d": SequenceHeader("T1W_SE_{plane}", "", "SE", "NONE", "FC"),
        "t2w": SequenceHeader("T2W_TSE_{plane}", "", "SE", "SK", "FC"),
        "flair": SequenceHeader("FLAIR_longTR_{plane}", "", "IR", "SK", "IR"),
        "swi": SequenceHeader("SWIp_{plane}", "", "GR", "SP", "FC"),
        "mra": SequenceHeader("s3DI_MC_TOF", "", "GR", "SP", "FC"),
        "dwi": SequenceHeader("DWI_b1000_{plane}", "", r"SE\EP", "SK", "FS"),
    },
)  # fmt: skip

VENDORS = {"siemens": SIEMENS, "ge": GE, "philips": PHILIPS}
