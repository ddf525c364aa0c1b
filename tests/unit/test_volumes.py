import gzip
import hashlib
import tracemalloc
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import igzip

from mrmill.reasons import Rejected
from mrmill.volumes import GZIP_LEVEL, read_volume, write_volume

SHAPE = (10, 11, 12)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([-0.9, 1.1, 3.0]), (40, -70, 15)
)
INTEGERS = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8"]


def image(kind=nib.Nifti1Image, dtype="i2", endian="<", shape=SHAPE, **fields):
    """An image as a file would hold it, with header fields set to given values."""
    header = kind.header_class(endianness=endian)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(endian))
    values = np.random.default_rng(0).uniform(0, 100, shape)
    made = kind(values.astype(dtype), OBLIQUE, header)
    made.set_qform(OBLIQUE, 1)
    made.set_sform(OBLIQUE, 1)
    whole = made.to_bytes()
    written = kind.header_class(whole[: header.sizeof_hdr], endian)
    for name, value in fields.items():
        written[name] = value
    return written.binaryblock + whole[header.sizeof_hdr :]


def members(whole, cuts):
    """Compress a file in several pieces that lie one behind the other."""
    edges = [0, *sorted(cuts), len(whole)]
    return b"".join(gzip.compress(whole[a:b]) for a, b in pairwise(edges))


# Reading, against nibabel


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    dtype=st.sampled_from([*INTEGERS, "f4", "f8"]),
    endian=st.sampled_from("<>"),
    shape=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    ones=st.integers(0, 3),
    scl_slope=st.sampled_from([np.nan, 0, 1, 2.5, -1, 1e-30, 1e30]),
    scl_inter=st.sampled_from([0, 1, -1024.5]),
    cuts=st.lists(st.integers(0, 600), max_size=3),
    suffix=st.sampled_from([".nii", ".nii.gz", ".NII.GZ"]),
)
def test_voxels_and_position_are_what_nibabel_reads(
    tmp_path_factory, kind, dtype, endian, shape, ones, scl_slope, scl_inter, cuts, suffix
):
    whole = image(
        kind, dtype, endian, [*shape, *[1] * ones], scl_slope=scl_slope, scl_inter=scl_inter
    )
    path = tmp_path_factory.mktemp("read") / f"image{suffix}"
    path.write_bytes(whole if suffix == ".nii" else members(whole, cuts))
    expected = nib.load(path)
    voxels = np.asanyarray(expected.dataobj).reshape(shape, order="F")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, voxels)
    assert volume.data.dtype == voxels.dtype.newbyteorder("=")
    assert volume.data.flags.f_contiguous
    assert volume.data.flags.writeable
    np.testing.assert_array_equal(volume.affine, expected.affine)


def test_an_extension_between_header_and_voxels_is_passed_over(tmp_path):
    made = nib.Nifti1Image(np.ones(SHAPE, np.int16), OBLIQUE)
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"hello" * 50))
    nib.save(made, tmp_path / "image.nii.gz")
    assert (read_volume(tmp_path / "image.nii.gz").data == 1).all()


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(image()) + bytes(512),  # as tapes and some archives pad
        gzip.compress(b"") + gzip.compress(image()),
        gzip.compress(image() + b"more"),
    ],
)
def test_what_gzip_and_nibabel_pass_over_is_passed_over(tmp_path, packed):
    path = tmp_path / "image.nii.gz"
    path.write_bytes(packed)
    np.testing.assert_array_equal(read_volume(path).data, np.asarray(nib.load(path).dataobj))


def test_reading_needs_no_second_copy(tmp_path):
    path, n_bytes = tmp_path / "image.nii.gz", 4 * 200**3
    write_volume(path, np.zeros((200, 200, 200), np.float32), OBLIQUE)
    assert peak_bytes(lambda: read_volume(path)) < 1.2 * n_bytes


def peak_bytes(do):
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# What cannot be read


def reason(path, content):
    path.write_bytes(content)
    with pytest.raises(Rejected) as rejected:
        read_volume(path)
    return rejected.value.reason


def flipped(packed, where):
    changed = bytearray(packed)
    changed[where] ^= 0xFF
    return bytes(changed)


PACKED = gzip.compress(image(shape=(40, 41, 42)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        image(),
        PACKED[: len(PACKED) // 2],
        PACKED[:-8],
        PACKED[:-1],
        flipped(PACKED, len(PACKED) // 2),
        flipped(PACKED, -6),  # the checksum
        flipped(PACKED, -2),  # the length
        PACKED + b"something else",
        PACKED + gzip.compress(b"something else")[:-4],
        gzip.compress(b"no image" * 200),
        gzip.compress(image()[:100]),
        gzip.compress(image()[:352]),
        gzip.compress(image()[:-1]),
        gzip.compress(image(datatype=999)),
        gzip.compress(image(vox_offset=100)),
        gzip.compress(image(vox_offset=1e12)),
        gzip.compress(image(vox_offset=np.nan)),
        gzip.compress(image(scl_slope=1, scl_inter=np.nan)),
        gzip.compress(image(dim=[3, -10, 11, 12, 1, 1, 1, 1])),
        gzip.compress(image(dim=[3, -10, -11, 12, 1, 1, 1, 1])),
        gzip.compress(image(magic=b"xyz")),
        gzip.compress(image(sform_code=0, quatern_b=2)),
    ],
)
def test_a_damaged_file_is_rejected(tmp_path, content):
    assert reason(tmp_path / "image.nii.gz", content) == "unreadable_image"


@pytest.mark.parametrize("content", [b"", image()[:-1], PACKED, b"no image" * 200])
def test_a_damaged_uncompressed_file_is_rejected(tmp_path, content):
    assert reason(tmp_path / "image.nii", content) == "unreadable_image"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("kind", "edge"),
    [(nib.Nifti1Image, 10_000), (nib.Nifti2Image, 10_000), (nib.Nifti2Image, 2**40)],
)
def test_no_memory_is_asked_for_on_the_word_of_a_header(tmp_path, kind, edge, suffix):
    whole = image(kind, dim=[3, edge, edge, edge, 1, 1, 1, 1])
    content = gzip.compress(whole) if suffix == ".nii.gz" else whole
    reason(tmp_path / f"image{suffix}", content)  # imports what it needs
    peak = peak_bytes(lambda: reason(tmp_path / f"image{suffix}", content))
    assert peak < 10 * 2**20
    assert reason(tmp_path / f"image{suffix}", content) == "unreadable_image"


def with_a_value(value):
    data = np.ones(SHAPE, np.float32)
    data[3, 4, 5] = value
    return nib.Nifti1Image(data, OBLIQUE).to_bytes()


COLOUR = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (image(dim=[4, 10, 11, 6, 2, 1, 1, 1]), "not_3d"),
        (image(dim=[2, 10, 11, 1, 1, 1, 1, 1]), "not_3d"),
        (image(dim=[3, 10, 11, 0, 1, 1, 1, 1]), "not_3d"),
        (image(dim=[0, 1, 1, 1, 1, 1, 1, 1]), "not_3d"),
        (nib.Nifti1Image(COLOUR, OBLIQUE).to_bytes(), "not_scalar"),
        (image(dtype="c8"), "not_scalar"),
        (with_a_value(np.nan), "non_finite_voxels"),
        (with_a_value(np.inf), "non_finite_voxels"),
        (with_a_value(-np.inf), "non_finite_voxels"),
        (image(sform_code=0, qform_code=0), "bad_geometry"),
        (image(srow_x=[np.nan, 0, 0, 0]), "bad_geometry"),
        (image(srow_x=[0, 0, 0, 0]), "sheared_affine"),
        (image(srow_x=[1, 1, 1, 0]), "sheared_affine"),
    ],
)
def test_an_image_that_cannot_be_processed_is_rejected(tmp_path, content, expected):
    assert reason(tmp_path / "image.nii.gz", gzip.compress(content)) == expected


def test_a_file_that_is_not_there_says_nothing_about_an_image(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_volume(tmp_path / "image.nii.gz")


# Writing


def as_nibabel_writes(data):
    made = nib.Nifti1Image(data, OBLIQUE)
    made.header.set_xyzt_units("mm")
    made.set_qform(OBLIQUE, code=1)
    made.set_sform(made.get_qform(), code=1)
    return igzip.compress(made.to_bytes(), GZIP_LEVEL, mtime=0)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8", ">u2", ">f4"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (64, 65, 20), (30, 31, 1)])
def test_the_bytes_are_those_of_nibabel_and_igzip(tmp_path, dtype, shape):
    values = np.random.default_rng(0).normal(100, 30, shape).clip(0, 255)
    values[: shape[0] // 3] = 0
    for data in (
        np.asfortranarray(values.astype(dtype)),
        np.ascontiguousarray(values.astype(dtype)),
        values.astype(dtype)[::-1, 1:],
    ):
        write_volume(tmp_path / "image.nii.gz", data, OBLIQUE)
        assert (tmp_path / "image.nii.gz").read_bytes() == as_nibabel_writes(data)


def test_the_bytes_are_those_of_earlier_releases(tmp_path):
    data = (np.arange(5 * 6 * 7).reshape(5, 6, 7) * 3).astype(np.uint16)
    write_volume(tmp_path / "image.nii.gz", data, OBLIQUE)
    packed = (tmp_path / "image.nii.gz").read_bytes()
    assert packed[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no name, no time
    digest = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    assert digest == "f7b4dae843f0a87dab1b40cacfb41f12e051c9b5785d09ae661f698f025b70ae"


def test_writing_needs_one_copy_of_the_voxels(tmp_path):
    data = np.zeros((200, 200, 200), np.float32, order="F")
    path = tmp_path / "image.nii.gz"
    assert peak_bytes(lambda: write_volume(path, data, OBLIQUE)) < 1.1 * data.nbytes


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_what_is_written_is_read_back(tmp_path, dtype):
    data = np.random.default_rng(0).uniform(0, 200, SHAPE).astype(dtype)
    write_volume(tmp_path / "new/image.nii.gz", data, OBLIQUE)
    volume = read_volume(tmp_path / "new/image.nii.gz")
    assert volume.data.dtype == dtype
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
