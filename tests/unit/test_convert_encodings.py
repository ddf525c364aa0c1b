"""Files in other encodings: read right, or refused with a reason; never half of them in silence."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from tiny_series import (
    account,
    assert_every_pixel_is_where_its_header_says,
    convert,
    planned,
    rewrite,
    verdicts,
    write_enhanced,
    write_parts,
    write_series,
)

imagecodecs = pytest.importorskip("imagecodecs")  # nnU-Net brings it

ENCODERS = {
    RLELossless: None,  # pydicom's own
    JPEGLossless: lambda pixels: imagecodecs.ljpeg_encode(pixels, bitspersample=16),
    JPEGLosslessSV1: lambda pixels: imagecodecs.ljpeg_encode(pixels, bitspersample=16),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEG2000Lossless: lambda pixels: imagecodecs.jpeg2k_encode(
        pixels, codecformat="J2K", reversible=True, level=0
    ),
    HTJ2K: imagecodecs.htj2k_encode,
}
CUTTING = [RLELossless, JPEGLossless, JPEGLSLossless, JPEG2000Lossless, HTJ2K]


def encoded(folder, syntax, cut=None):
    """Compress every picture of a folder; the one of instance `cut` breaks off."""

    def change(ds):
        if ENCODERS[syntax] is None:
            ds.compress(syntax, generate_instance_uid=False)
            pixels = ds.PixelData
        else:
            frame = ENCODERS[syntax](ds.pixel_array.copy())
            pixels = encapsulate([frame[: len(frame) // 2] if ds.InstanceNumber == cut else frame])
        ds.PixelData = pixels
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax

    return rewrite(folder, change)


def pretending(folder, syntax):
    """Let the files say that they are compressed in some way; they are not."""

    def change(ds):
        ds.PixelData = encapsulate([ds.PixelData])
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax

    return rewrite(folder, change)


@pytest.mark.filterwarnings("ignore:The number of bytes of compressed")  # noise, in HTJ2K
@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda uid: uid.name)
def test_compressed_pictures_are_read_exactly(tmp_path, syntax):
    plain = write_series(tmp_path / "plain")  # pydicom alone reads no JPEG
    folder = encoded(Path(shutil.copytree(plain, tmp_path / "in")), syntax)
    outcome, out = convert(tmp_path, planned(folder))
    assert account(outcome) == [("accepted", "", "magnitude", "", 8, 8, [])]
    assert_every_pixel_is_where_its_header_says(out / "SERIESAA.nii.gz", plain.iterdir())


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ImplicitVRLittleEndian])
def test_other_orders_of_bytes_are_read_exactly(tmp_path, syntax):
    def change(ds):
        if not syntax.is_little_endian:
            ds.PixelData = ds.pixel_array.byteswap().tobytes()
        ds.file_meta.TransferSyntaxUID = syntax

    folder = rewrite(write_series(tmp_path / "in"), change)
    outcome, out = convert(tmp_path, planned(folder))
    assert account(outcome) == [("accepted", "", "magnitude", "", 8, 8, [])]
    assert_every_pixel_is_where_its_header_says(out / "SERIESAA.nii.gz", folder.iterdir())


def test_an_enhanced_instance_in_jpeg_lossless_is_read_exactly(tmp_path):
    def change(ds):
        frames = [
            imagecodecs.ljpeg_encode(frame.copy(), bitspersample=16) for frame in ds.pixel_array
        ]
        ds.PixelData = encapsulate(frames)
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1

    plain = write_enhanced(tmp_path / "plain/a.dcm")
    folder = rewrite(Path(shutil.copytree(plain, tmp_path / "in")), change)
    outcome, out = convert(tmp_path, planned(folder))
    assert account(outcome) == [("accepted", "", "magnitude", "", 1, 8, [])]
    assert_every_pixel_is_where_its_header_says(out / "SERIESAA.nii.gz", plain.iterdir())


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        (JPEGExtended12Bit, "JPEG Extended (Process 2 and 4)"),
        (MPEG2MPML, "MPEG2 Main Profile / Main Level"),
        (DeflatedExplicitVRLittleEndian, "Deflated Explicit VR Little Endian"),
    ],
)
def test_what_dcm2niix_cannot_read_is_refused_by_its_name(tmp_path, syntax, name):
    folder = write_series(tmp_path / "in")
    if syntax == DeflatedExplicitVRLittleEndian:
        rewrite(folder, lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", syntax))
    else:
        pretending(folder, syntax)
    outcome, _ = convert(tmp_path, planned(folder))
    assert verdicts(outcome) == [("SERIESAA", "rejected", "unsupported_encoding")]
    (entry,) = outcome.series
    assert (entry["found"], entry["warnings"]) == (name, ["unsupported_encoding"])


def test_a_series_of_which_some_files_cannot_be_read_is_incomplete(tmp_path):
    folder = write_series(tmp_path / "in")

    def change(ds):
        if ds.InstanceNumber > 5:
            ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    outcome, _ = convert(tmp_path, planned(rewrite(folder, change)))
    said = ["unsupported_encoding"]
    assert account(outcome) == [("rejected", "incomplete", "magnitude", "", 8, 5, said)]
    (entry,) = outcome.series
    assert (entry["found"], entry["limit"]) == ("5 slices", "8 instances")


def test_a_phase_image_never_stands_in_for_a_magnitude_that_cannot_be_read(tmp_path):
    def change(ds):
        if "M" in ds.ImageType:
            ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    parts = [{"ImageType": ["ORIGINAL", "PRIMARY", letter]} for letter in "MP"]
    write_parts(tmp_path / "in", parts, Manufacturer="SIEMENS")
    outcome, _ = convert(tmp_path, planned(rewrite(tmp_path / "in", change)))
    assert account(outcome) == [
        ("rejected", "unsupported_encoding", None, None, 12, None, ["unsupported_encoding"]),
        ("rejected", "extra_output", "phase", "", 12, 6, []),
    ]


@pytest.mark.parametrize("syntax", CUTTING, ids=lambda uid: uid.name)
def test_a_compressed_picture_that_breaks_off_costs_the_series(tmp_path, syntax):
    folder = encoded(write_series(tmp_path / "in"), syntax, cut=5)
    if syntax == RLELossless:  # has no end of its own: the file breaks off
        path = folder / "005.dcm"
        path.write_bytes(path.read_bytes()[:-400])
    outcome, out = convert(tmp_path, planned(folder))
    reason = "unreadable_image" if syntax == JPEGLossless else "not_converted"
    assert verdicts(outcome) == [("SERIESAA", "rejected", reason)]
    assert list(out.iterdir()) == []


def test_a_file_of_jpeg_lossless_that_breaks_off_costs_the_series(tmp_path):
    folder = encoded(write_series(tmp_path / "in"), JPEGLosslessSV1)
    path = folder / "005.dcm"
    path.write_bytes(path.read_bytes()[:-300])
    outcome, _ = convert(tmp_path, planned(folder))
    assert verdicts(outcome) == [("SERIESAA", "rejected", "unreadable_image")]


def test_pictures_that_lost_something_on_their_way_are_marked(tmp_path):
    outcome, _ = convert(
        tmp_path, planned(write_series(tmp_path / "in", LossyImageCompression="01"))
    )
    assert account(outcome) == [("accepted", "", "magnitude", "", 8, 8, ["lossy_compression"])]


@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO_IR 148", "ISO 2022 IR 148"])
def test_turkish_words_of_the_header_are_read_in_its_character_set(tmp_path, charset):
    words = {"SeriesDescription": "T1 AĞIRLIKLI ÇEKİM", "ProtocolName": "Beyin, kontrastlı ş"}
    name = {"PatientName": "ŞAHİN^ÇİĞDEM"}
    folder = write_series(tmp_path / "in", SpecificCharacterSet=charset, **words, **name)
    outcome, _ = convert(tmp_path, planned(folder))
    header = outcome.accepted_series()[0]["header"]
    assert {key: header[key] for key in words} == words


def test_latin_words_of_the_header_are_read_in_its_character_set(tmp_path):
    words = {"SeriesDescription": "Schädel nativ, séquence"}
    folder = write_series(tmp_path / "in", SpecificCharacterSet="ISO_IR 100", **words)
    outcome, _ = convert(tmp_path, planned(folder))
    assert outcome.accepted_series()[0]["header"]["SeriesDescription"] == "Schädel nativ, séquence"


@pytest.mark.parametrize(
    "name", ["çekim şöğüı; $x".encode(), "çekim".encode("iso8859-9"), b"a b\tc"]
)
def test_names_of_files_and_folders_may_have_any_letters(tmp_path, name):
    plain, odd = write_series(tmp_path / "plain"), tmp_path / os.fsdecode(name)
    write_series(odd)
    for path in list(odd.iterdir()):
        path.rename(path.with_name(f"{path.stem} {os.fsdecode(name)}"))
    _, one = convert(tmp_path / "a", planned(plain))
    outcome, other = convert(tmp_path / "b", planned(odd))
    assert outcome.state == "accepted"
    assert (one / "SERIESAA.nii.gz").read_bytes() == (other / "SERIESAA.nii.gz").read_bytes()


def test_damaged_headers_do_not_stop_the_study(tmp_path):
    rng = np.random.default_rng(1)
    good, bad = write_series(tmp_path / "good"), write_series(tmp_path / "bad")
    for path in bad.iterdir():
        content = bytearray(path.read_bytes())
        places = rng.integers(132, 1200, 40)
        for place in places:
            content[place] = rng.integers(256)
        path.write_bytes(bytes(content))
    outcome, _ = convert(tmp_path, planned(bad, "BADSERIE"), planned(good, "GOODSERI"))
    assert [e["state"] for e in outcome.series if e["source"] == "BADSERIE"] == ["rejected"]
    assert ("GOODSERI", "accepted", "") in verdicts(outcome)
