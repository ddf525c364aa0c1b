"""The quick reader of headers says what pydicom says, of every kind of file."""

import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
)
from tiny_dicom import MR, write_dicom

from mrmill.index.header import LOOK_BYTES, TAGS, WANTED, read_header, read_with_pydicom
from mrmill.index.scan import Unusual, scan

KNOWN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1)
UNKNOWN = (ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def by_pydicom(path):
    with Path(path).open("rb") as file:
        return read_with_pydicom(file)


# ------------------------------------------------------------------ headers of all kinds

uids = st.lists(st.integers(0, 10**9), min_size=2, max_size=6).map(
    lambda numbers: ".".join(map(str, [1, *numbers]))
)
texts = st.text("ABCDEF 0123456789._-^ÄŞé\\", max_size=16)


@st.composite
def other_elements(draw, depth=2):
    """Elements that nobody wants: texts, numbers, bytes, private ones, and sequences of them."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    if draw(st.booleans()):
        dataset.ImageType = ["ORIGINAL", "PRIMARY"]
        dataset.SliceThickness = draw(st.integers(0, 99))
        dataset.Rows = draw(st.integers(0, 2**16 - 1))
    for group in draw(st.sets(st.sampled_from([0x0009, 0x0019, 0x0021, 0x0027, 0x0029]))):
        block = dataset.private_block(group, "MAKER", create=True)
        block.add_new(1, draw(st.sampled_from(["OB", "UN"])), draw(st.binary(max_size=64)))
        block.add_new(2, "UT", draw(texts))
        block.add_new(3, "FD", draw(st.floats(allow_nan=False)))
    keywords = ["ReferencedImageSequence", "ProcedureCodeSequence", "ReferencedStudySequence"]
    for keyword in draw(st.sets(st.sampled_from(keywords))) if depth else ():
        items = draw(st.lists(other_elements(depth - 1), max_size=2))
        setattr(dataset, keyword, items)
        dataset[keyword].is_undefined_length = draw(st.booleans())
        for item in items:
            item.is_undefined_length_sequence_item = draw(st.booleans())
    return dataset


@st.composite
def headers(draw):
    """A whole header, with some of what is wanted."""
    dataset = draw(other_elements())
    dataset.SOPClassUID = MR
    for keyword in TAGS:
        if keyword.endswith("InstanceUID") and draw(st.integers(0, 9)):
            setattr(dataset, keyword, draw(uids))
    for keyword in ("PatientID", "IssuerOfPatientID", "AccessionNumber"):
        if draw(st.booleans()):
            setattr(dataset, keyword, draw(texts))
    for keyword in ("SeriesNumber", "NumberOfFrames"):
        if draw(st.booleans()):
            setattr(dataset, keyword, draw(st.integers(0, 9999)))
    dataset.PixelRepresentation = 0
    return dataset


def as_file(dataset, syntax):
    """Bytes of a file; pixels that are said to be compressed are not looked at."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = MR
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    buffer = DicomBytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture(scope="module", autouse=True)
def _any_value():
    """Let strange values be written without a warning for each."""
    mode = pydicom_config.settings.writing_validation_mode
    pydicom_config.settings.writing_validation_mode = pydicom_config.IGNORE
    yield
    pydicom_config.settings.writing_validation_mode = mode


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("headers") / "file"


@settings(max_examples=100, deadline=None)
@given(dataset=headers(), syntax=st.sampled_from(KNOWN + UNKNOWN), cut=st.floats(0, 1))
def test_any_header_reads_as_pydicom_reads_it_whole_and_cut(path, dataset, syntax, cut):
    content = as_file(dataset, syntax)
    path.write_bytes(content)
    assert read_header(str(path)) == by_pydicom(path)
    if syntax in KNOWN:
        expected = {tag for tag in WANTED if tag in dataset}
        assert scan(content, WANTED).keys() == expected  # by itself, that is
    path.write_bytes(content[: int(cut * len(content))])
    assert read_header(str(path)) == by_pydicom(path)


@pytest.mark.parametrize("syntax", UNKNOWN)
def test_what_is_no_plain_little_endian_is_left_to_pydicom(syntax):
    dataset = Dataset()
    dataset.SOPInstanceUID, dataset.Rows = "1.2.3", 2
    with pytest.raises(Unusual):
        scan(as_file(dataset, syntax), WANTED)


@pytest.mark.parametrize("n_bytes", [10, *LOOK_BYTES, 2 * max(LOOK_BYTES)])
def test_headers_of_any_length_are_read_to_their_end(path, n_bytes):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = MR, "1.2.3.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2", "1.2.3"
    dataset.private_block(0x0019, "MAKER", create=True).add_new(1, "OB", bytes(n_bytes))
    dataset.SeriesNumber, dataset.Rows = 7, 2
    path.write_bytes(as_file(dataset, ExplicitVRLittleEndian))
    status, *values = read_header(str(path))
    assert status == "ok"
    assert dict(zip(TAGS, values, strict=True))["SeriesNumber"] == "7"


@settings(max_examples=200, deadline=None)
@given(
    place=st.integers(0, 600),
    damage=st.binary(min_size=1, max_size=8),
    moved=st.booleans(),
)
def test_no_damage_stops_an_index(path, place, damage, moved):
    content = write_dicom(path).read_bytes()
    rest = content[place + (0 if moved else len(damage)) :]
    path.write_bytes(content[:place] + damage + rest)
    assert read_header(str(path))[0] in ("ok", "no_uid", "unreadable", "not_dicom")


def test_a_file_whose_meta_information_is_damaged_is_unreadable_and_no_error(path):
    content = write_dicom(path).read_bytes()
    at = content.index(b"\2\0\2\0UI")
    path.write_bytes(content[: at + 4] + b"U " + content[at + 6 :])
    assert read_header(str(path))[0] == "unreadable"


def test_endless_nesting_is_unreadable_and_no_error(path):
    content = write_dicom(path).read_bytes()
    at = content.index(b"\x08\0\x50\0")
    item = b"\xfe\xff\0\xe0\xff\xff\xff\xff" + b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff"
    path.write_bytes(content[:at] + b"\x08\0\x40\0SQ\0\0\xff\xff\xff\xff" + item * 5000)
    assert read_header(str(path))[0] == "unreadable"


# ------------------------------------------------------------------ real files


@pytest.mark.parametrize(
    "archive",
    [
        "dicom-siemens-prisma-hfs",
        "dicom-siemens-xa30-enhanced",
        "dicom-7t-t1-defaced",
        "dicom-fragmented-jpeglossless",
        "dicom-nasty",
    ],
)
def test_real_files_read_as_pydicom_reads_them(real_data, tmp_path, archive):
    folder = real_data / archive
    if not folder.is_dir():
        folder = tmp_path
        with tarfile.open(real_data / f"{archive}.tar.xz") as tar:
            tar.extractall(folder, filter="data")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert read_header(str(path)) == by_pydicom(path)
