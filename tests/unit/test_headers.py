"""Header records: DICOM classic and enhanced, sidecars, the series table, what may be released."""

import itertools
import json
import math
import re
import time

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from mrmill.columns import Column, ColumnsError, adopted_row, load_columns, release_columns
from mrmill.headers import age_years, dicom_header, sidecar_header, with_series_table
from mrmill.reasons import Rejected

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
CANARY = "CANARY"

# the guide's table, with dwi_sub_type where MR-RATE's column_order_prefix has it
GUIDE = [
    *("patient_uid", "study_uid", "series_id", "classified_modality", "is_derived"),
    *("acquisition_plane", "SeriesNumber", "is_localizer", "is_subtraction"),
    *("is_center_modality", "anon_study_date", "classification_rule", "sequence_family"),
    *("dwi_sub_type", "array_shape", "array_spacing_mm", "array_fov_mm", "Patient'sAge"),
    *("Patient'sSex", "FlipAngle", "TI_ms", "TE_ms", "TR_ms", "FieldStrength_T"),
    *("Manufacturer", "Manufacturer'sModelName"),
]


def written(folder, sop_class=MR, charset=None, **elements):
    """A DICOM file without pixels; keywords as in pydicom's dictionary."""
    dataset = Dataset()
    if charset:
        dataset.SpecificCharacterSet = charset
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = sop_class, "1.2.3", "MR"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    path = folder / "one.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(**elements):
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def released(header):
    """Every cell that these header values would give."""
    return {c.name: c.released(header.get(c.name)) for c in load_columns() if c.release}


def test_the_csv_starts_with_the_columns_of_the_guide():
    assert release_columns(load_columns())[: len(GUIDE)] == GUIDE


def test_a_classic_object_gives_values_in_the_units_of_the_table(tmp_path):
    path = written(
        tmp_path,
        EchoTime="2.98",
        RepetitionTime="2300",
        InversionTime="900",
        FlipAngle="9",
        MagneticFieldStrength="3",
        SeriesNumber="7",
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND"],
        ScanningSequence=["GR", "IR"],
        ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"],
        StudyDate="20240131",
        PatientAge="045Y",
    )
    header = dicom_header(path)
    assert {name: header[name] for name in ("TE_ms", "TR_ms", "TI_ms", "FlipAngle")} == {
        "TE_ms": 2.98,
        "TR_ms": 2300.0,
        "TI_ms": 900.0,
        "FlipAngle": 9.0,
    }
    assert header["ImageType"] == "ORIGINAL\\PRIMARY\\M\\ND"
    assert header["ScanningSequence"] == "GR\\IR"
    assert header["ImageOrientation(Patient)"] == [0, 1, 0, 0, 0, -1]
    assert (header["SeriesNumber"], header["StudyDate"]) == (7, "2024-01-31")
    assert json.loads(json.dumps(header)) == header


def test_an_enhanced_object_is_read_from_its_functional_groups(tmp_path):
    shared = item(
        MRTimingAndRelatedParametersSequence=Sequence([item(RepetitionTime=1800, FlipAngle=9)]),
        MRModifierSequence=Sequence([item(InversionRecovery="YES", InversionTimes=[900.0])]),
    )
    frames = [
        item(
            MREchoSequence=Sequence([item(EffectiveEchoTime=echo)]),
            PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
            MRDiffusionSequence=Sequence([item(DiffusionBValue=700.0)]),
        )
        for echo in (2.4, 4.8)
    ]
    header = dicom_header(
        written(
            tmp_path,
            ENHANCED_MR,
            EchoPulseSequence="GRADIENT",
            SharedFunctionalGroupsSequence=Sequence([shared]),
            PerFrameFunctionalGroupsSequence=Sequence(frames),
        )
    )
    assert (header["TE_ms"], header["TR_ms"], header["TI_ms"]) == (2.4, 1800.0, 900.0)
    assert header["ImageOrientation(Patient)"] == [1, 0, 0, 0, 1, 0]
    assert header["Diffusionb-value"] == 700.0
    assert header["ScanningSequence"] == "GR\\IR"


@pytest.mark.parametrize("charset", ["ISO_IR 148", "ISO_IR 192", None])
def test_text_that_is_not_ascii_does_not_raise(tmp_path, charset):
    described = {"SeriesDescription": "Difüzyon ağırlıklı"}
    path = written(tmp_path, charset=charset or "ISO_IR 192", **described)
    if charset is None:  # bytes that the declared character set cannot hold
        path.write_bytes(path.read_bytes().replace(b"\xc3\xbc", b"\xff\xfe"))
    assert dicom_header(path)["SeriesDescription"].startswith("Dif")


def test_malformed_and_empty_values_are_none(tmp_path):
    path = written(tmp_path, EchoTime="0.1234", RepetitionTime="", StudyDate="20240131")
    path.write_bytes(path.read_bytes().replace(b"0.1234", b"a few ").replace(b"0131", b"1399"))
    header = dicom_header(path)
    assert [header[name] for name in ("TE_ms", "TR_ms", "TI_ms", "StudyDate")] == [None] * 4


def test_a_file_that_is_no_dicom_is_rejected(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(Rejected) as refused:
        dicom_header(tmp_path / "notes.txt")
    assert refused.value.reason == "unreadable_image"


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_no_text_of_a_header_reaches_the_release(tmp_path):
    columns = [c for c in load_columns() if c.type in ("text", "codes", "tokens")]
    keywords = {keyword for c in columns for keyword in c.dicom} - {"SOPClassUID", "PatientAge"}
    header = dicom_header(written(tmp_path, **dict.fromkeys(keywords, CANARY)))
    assert sum(value == CANARY for value in header.values()) > 15  # it was read ...
    assert CANARY not in str(released(header))  # ... and is not written


def test_a_safe_code_is_written_and_its_unsafe_neighbour_is_not():
    cells = released({"ScanOptions": "FS\\DR SMITH\\PFP", "SequenceName": "*tfl3d1_16ns"})
    assert (cells["ScanOptions"], cells["SequenceName"]) == ("FS\\PFP", "*tfl3d1_16ns")


@pytest.mark.parametrize(
    ("raw", "cell"),
    [("SIEMENS", "Siemens"), ("GE MEDICAL SYSTEMS", "GE"), ("Geneva Hospital", ""), ("UIH", "UIH")],
)
def test_makers_are_written_in_one_way(raw, cell):
    assert released({"Manufacturer": raw})["Manufacturer"] == cell


@pytest.mark.parametrize(
    "model",
    [
        *("Prisma_fit", "MAGNETOM Prisma Fit", "TrioTim", "DISCOVERY MR750", "Optima_MR450w"),
        *("Signa HDxt", "GENESIS_SIGNA", "SIGNA PET/MR", "SIGNA Premier", "Achieva dStream"),
        *("Gyroscan Intera", "Ingenia Elition X", "Galan 3T", "uMR 790", "ECHELON Oval"),
    ],
)
def test_known_models_are_written_and_a_site_s_own_name_is_not(model):
    assert released({"Manufacturer'sModelName": model})["Manufacturer'sModelName"] == model
    of_a_site = {"Manufacturer'sModelName": f"{model} St Mary"}
    assert released(of_a_site)["Manufacturer'sModelName"] == ""


SAFE = {
    "Manufacturer'sModelName": ["MR 7700", "SIGNA Premier", "Intera", "Galan 3T", "uMR 790"],
    "ReceiveCoilName": ["Head_32", "HeadNeck_20_TCS", "8_Channel_Head", "SENSE-Head-8"],
    "SoftwareVersions": [
        *("syngo MR E11", "syngo_MR_2004A_4VA25A", "5.3.0\\5.3.0.3", "V6.1SP3002*"),
    ],
    "SequenceName": ["*tfl3d1_16ns", "*tir2d1rs17", "_fl3d1r_t70", "spc_314ns", "ep_b0"],
    "MRAcquisitionType": ["3D"],
    "PatientPosition": ["HFS"],
}
IDENTIFIERS = [
    *("20240131", "2024-01-31", "31.01.2024", "560312", "ACC1234567", "A-12.345.678"),
    *("12345678901", "1" * 90, "1 2 3 4 5 6 7 8 9 0", "12_34_56_78_90", "MR 1" + "1" * 90 + "!"),
    *("Smith", "Dr^Smith", "SMITH JOHN 19560312", "\n12345678", "1.2.840.113619.2.5"),
]
NASTY = {
    "Manufacturer'sModelName": [
        "MR 12345678901",
        "SIGNA 123456789",
        "Intera12345678901",
        "Intera1956",
    ],
    "ReceiveCoilName": ["Head_12_34_56_78_90", "Head_123", "SENSE-Head-1234"],
    "SoftwareVersions": [
        "12.03.56",
        "10.20.30.40",
        "1.2.3",
        "12.03.56\\12.03.56",
        "5.3.0\\5.3.1.0",
    ],
    "SequenceName": ["fl3d12345_678", "se2d12123_456", "ep_b19560312", "tse2d1_19560312"],
    "ScanOptions": ["ZIP1956_GEMS", "SAT19560312"],
    "ImageType": ["TE195603"],
}


@pytest.mark.parametrize(("name", "texts"), SAFE.items())
def test_what_vendors_write_is_released(name, texts):
    assert [released({name: text})[name] for text in texts] == texts


def test_no_name_date_or_identifier_comes_out_of_any_column():
    started = time.perf_counter()
    read = [column for column in load_columns() if column.release and not column.computed]
    for column in read:
        tails = itertools.product(
            SAFE.get(column.name, []), ["", " ", "_", "\\", "\n"], IDENTIFIERS
        )
        for text in [*IDENTIFIERS, *NASTY.get(column.name, []), *map("".join, tails)]:
            assert column.released(column.cleaned(text)) == "", (column.name, text)
    assert time.perf_counter() - started < 1
    assert len(read) > 25


def test_a_text_longer_than_64_characters_is_not_released():
    column = Column(name="x", description="", type="tokens", release=True, allowed=["a{1,99}"])
    assert column.released("a" * 64 + "\\" + "a" * 65) == "a" * 64


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("FieldStrength_T", 3.0, 30000.0),  # written in gauss
        ("SeriesNumber", 40012, 100000),
        ("SeriesNumber", 0, -1),
        ("TR_ms", 11000.0, 195603.0),
        ("FlipAngle", 180.0, 361.0),
    ],
)
def test_a_number_out_of_its_bounds_becomes_an_empty_cell(name, inside, outside):
    assert released({name: inside})[name] == inside
    assert released({name: outside})[name] == ""


def test_one_number_of_several_out_of_bounds_empties_the_cell():
    name = "AcquisitionMatrix"
    assert released({name: [0.0, 256.0, 192.0, 0.0]})[name] == "[0, 256, 192, 0]"
    assert released({name: [0.0, 256.0, 19560312.0, 0.0]})[name] == ""


# of the names that MR-RATE's table of columns knows
WHO_WHERE_WHEN = [
    *("AccessionNumber", "OriginalAccession", "RequestAttributesSequence_0_RequestedProcedureID"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameofReferenceUID"),
    *("AcquisitionTime", "StudyDate", "Patient'sBirthDate", "Privatetagdata_0_SOPInstanceUID"),
    *("DeviceSerialNumber", "StationName", "PerformedStationAETitle", "InstitutionName"),
    *("ProtocolName", "SeriesDescription", "StudyDescription", "RequestedProcedureDescription"),
    *("StudyComments", "CommentsonthePerformedProcedureStep", "OperatorsName", "Privatetagdata"),
    *("PerformedProcedureStepDescription", "PulseSequenceName", "BodyPartExamined", "HeartRate"),
]


def test_free_text_and_what_says_who_where_or_when_is_not_in_the_release():
    names = release_columns(load_columns())
    assert not {*names} & {*WHO_WHERE_WHEN}
    assert [n for n in names if re.search("UID|Date|Time|Comment|Description", n)] == [
        "TimeofFlightContrast"
    ]


def test_columns_of_our_own_come_last_and_can_be_left_out():
    columns = (*load_columns(), Column(**GUARDED, extra=True))
    assert release_columns(columns)[-1] == "x"
    own = {column.name for column in columns if column.extra}
    assert [n for n in release_columns(columns) if n not in own] == release_columns(columns, False)


def test_a_sidecar_in_seconds_becomes_milliseconds():
    sidecar = {
        "EchoTime": 0.00298,
        "RepetitionTime": 2.3,
        "InversionTime": math.nan,
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "ScanningSequence": "GR_IR",
        "PatientPosition": "",
        "FlipAngle": {"unexpected": 9},
    }
    header = sidecar_header(sidecar, {})
    assert (header["TE_ms"], header["TR_ms"]) == (2.98, 2300.0)
    assert [header[name] for name in ("TI_ms", "PatientPosition", "FlipAngle")] == [None] * 3
    assert (header["ImageType"], header["ScanningSequence"]) == ("ORIGINAL\\PRIMARY", "GR\\IR")
    json.dumps(header, allow_nan=False)


def test_somebody_else_s_row_is_adopted_in_our_words():
    row = {
        "study_uid": "S 1",  # what every row needs is left for the catalog to refuse
        "is_derived": "False",
        "sequence_family": "of Dr. Smith, St Mary",
        "Patient'sAge": "45.0",
        "Manufacturer": "Philips Medical Systems",
        "Manufacturer'sModelName": "St Mary 3",
        "ImageType": "['ORIGINAL', 'PRIMARY', 'DR SMITH']",
        "ImageOrientation(Patient)": "[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]",
        "PixelSpacing": "[0.5]",
        "TR_ms": "2300.0",
        "ProtocolName": "head",
    }
    expected = {
        **{"study_uid": "S 1", "is_derived": "False", "sequence_family": ""},
        **{"Patient'sAge": "45.0", "Manufacturer": "Philips", "Manufacturer'sModelName": ""},
        **{"ImageType": "ORIGINAL\\PRIMARY", "PixelSpacing": "", "TR_ms": 2300},
        **{"ImageOrientation(Patient)": "[1, 0, 0, 0, 1, 0]"},
    }
    assert adopted_row(row, load_columns()) == expected | {"ProtocolName": ""}


def test_the_series_table_wins_where_it_says_something():
    table = {"SeriesNumber": "12", "PatientAge": "45", "PatientSex": "", "modality": "FLAIR"}
    header = sidecar_header({"SeriesNumber": 3, "PatientSex": "F"}, table)
    assert (header["SeriesNumber"], header["Patient'sAge"]) == (12, "45")
    assert (header["Patient'sSex"], header["modality"]) == ("F", "FLAIR")
    overruled = with_series_table({}, {"is_derived": "False"}, load_columns())
    assert overruled == {"is_derived": False}


@pytest.mark.parametrize(
    ("header", "years"),
    [
        ({"Patient'sAge": "045Y"}, 45),
        ({"Patient'sAge": "030M"}, 2.5),
        ({"Patient'sAge": "026W"}, 26 * 7 / 365.25),
        ({"Patient'sAge": "010D"}, 10 / 365.25),
        ({"Patient'sAge": "45"}, 45),
        ({"Patient'sBirthDate": "1980-03-01", "StudyDate": "2020-03-01"}, 40),
        ({"Patient'sAge": "000Y", "Patient'sBirthDate": "2000-01-01"}, None),
        ({"Patient'sAge": "old"}, None),
        ({"Patient'sBirthDate": "2021-01-01", "StudyDate": "2020-01-01"}, None),
        ({}, None),
    ],
)
def test_the_age_is_read_in_all_its_units(header, years):
    found = age_years(header)
    assert found == (years if years is None else pytest.approx(years, abs=0.01))


GUARDED = {"name": "x", "description": "", "type": "text", "release": True, "allowed": ["[ab]"]}


@pytest.mark.parametrize(
    "keyword",
    [
        *("StudyInstanceUID", "PatientName", "PatientID", "AccessionNumber", "StudyDate"),
        *("AcquisitionTime", "AcquisitionDateTime", "InstitutionName", "StationName", "StudyID"),
        *("DeviceSerialNumber", "OperatorsName", "ReferringPhysicianName", "ImageComments"),
        *("PerformedStationAETitle", "ContrastBolusStartTime", "InstanceCreationTime"),
        *("PatientBirthName", "PatientMotherBirthName", "PatientReligiousPreference"),
        *("AdditionalPatientHistory", "CountryOfResidence"),
    ],
)
@pytest.mark.parametrize("place", ["dicom", "bids"])
def test_no_allow_list_releases_who_where_or_when(keyword, place):
    with pytest.raises(ValueError, match="never released"):
        Column(**GUARDED, **{place: [keyword]})
    Column(**{**GUARDED, "release": False}, **{place: [keyword]})  # to read it is no harm


def test_a_site_can_release_a_description_by_its_own_words():
    column = Column(**{**GUARDED, "allowed": ["T1 (sag|tra)"]}, dicom=["SeriesDescription"])
    assert [column.released(t) for t in ("T1 sag", "T1 sag Smith")] == ["T1 sag", ""]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"type": "text", "release": True}, "needs `allowed` or `rewrite`"),
        ({"type": "text", "release": True, "computed": True}, "needs `source`"),
        (
            {"type": "text", "release": True, "computed": True, "source": "curate"},
            "needs `values` or `pattern`",
        ),
        *(
            ({"type": "text", "release": True, "allowed": ["T1", wide]}, "too wide")
            for wide in (".*", "t1.+", r"\w{3,}", ".{0,60}", "[a-z]{1,20}", "[0-9]{8}")
        ),
        ({"type": "number", "release": True, "minimum": 0}, "needs `minimum` and `maximum`"),
        ({"type": "date", "release": True}, "never released"),
        ({"type": "number", "dicomm": ["EchoTime"]}, "Extra inputs"),
    ],
)
def test_a_column_that_could_leak_or_is_misspelt_is_refused(change, problem):
    with pytest.raises(ValueError, match=problem):
        Column(name="x", description="", **change)


def test_a_table_with_a_column_twice_says_which(tmp_path):
    row = "  - {name: TE_ms, type: number, description: ''}\n"
    (tmp_path / "columns.yaml").write_text("columns:\n" + row + row)
    with pytest.raises(ColumnsError, match="TE_ms: named twice"):
        load_columns(tmp_path / "columns.yaml")
