"""The value contract: which scale is applied, in which type, and what does not fit it."""

import nibabel as nib
import numpy as np
import pytest
from tiny_series import (
    PHILIPS_SCALE_SLOPE,
    account,
    assert_every_pixel_is_where_its_header_says,
    convert,
    item,
    pictures,
    planned,
    verdicts,
    write_series,
)

from mrmill.reasons import Rejected
from mrmill.volumes import as_released

PHILIPS = {"Manufacturer": "Philips Medical Systems"}
BITS_16 = {"BitsStored": 16, "HighBit": 15}


@pytest.mark.parametrize(
    ("images", "tags", "dtype"),
    [
        (pictures(dtype=np.int16, low=-500), {}, np.float32),
        (pictures(), {"RescaleSlope": 2, "RescaleIntercept": 10}, np.uint16),
        (pictures(), {"RescaleSlope": 0.5, "RescaleIntercept": 0}, np.float32),
        (pictures() * np.uint16(60), BITS_16, np.uint16),  # more than int16 holds
        (pictures() * np.uint16(61), {"RescaleSlope": 0.5, **BITS_16}, np.float32),
        (pictures(dtype=np.uint8), {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, np.uint16),
    ],
    ids=["negative", "scaled", "halves", "above int16", "above int16, halves", "8 bits"],
)
def test_values_are_those_of_the_header_scale_in_the_smallest_lossless_type(
    tmp_path, images, tags, dtype
):
    scale = {"RescaleIntercept": 0, **tags} if "RescaleSlope" in tags else tags
    folder = write_series(tmp_path / "in", images, Manufacturer="SIEMENS", **scale)
    outcome, out = convert(tmp_path, planned(folder))
    path = out / outcome.series[0]["file"]
    assert nib.load(path).get_data_dtype() == dtype
    assert_every_pixel_is_where_its_header_says(path, folder.iterdir())


def philips(folder, slope, intercept, scale_slope, **tags):
    """A series with Philips' three numbers; a tuple has one value for each slice."""
    many = scale_slope if isinstance(scale_slope, tuple) else (scale_slope,) * 8
    own = tuple({PHILIPS_SCALE_SLOPE: value} for value in many)
    scale = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    return write_series(folder, private=own, **scale, **PHILIPS, **tags)


def test_philips_values_are_the_precise_ones(tmp_path):
    # FP = (PV * RS + RI) / (RS * SS) (Chenevert 2014, PMC3998685): moves with no converter
    folder = philips(tmp_path / "in", slope=4, intercept=-8, scale_slope=0.5)
    outcome, out = convert(tmp_path, planned(folder))
    assert account(outcome) == [("accepted", "", "magnitude", "", 8, 8, [])]
    path = out / "SERIESAA.nii.gz"
    assert_every_pixel_is_where_its_header_says(
        path, folder.iterdir(), lambda pv: (pv * 4 - 8) / (4 * 0.5)
    )
    assert pictures()[0, 0, :3].tolist() == [944, 625, 684]
    assert np.asanyarray(nib.load(path).dataobj)[:3, -1, 0].tolist() == [1884, 1246, 1364]


def test_philips_values_stay_the_precise_ones_beside_a_real_world_mapping(tmp_path):
    mapping = item(
        RealWorldValueSlope=3.0,
        RealWorldValueIntercept=7.0,
        RealWorldValueFirstValueMapped=0,
        RealWorldValueLastValueMapped=4095,
    )
    folder = philips(tmp_path / "in", 4, -8, 0.5, RealWorldValueMappingSequence=mapping)
    _, out = convert(tmp_path, planned(folder))
    path = out / "SERIESAA.nii.gz"
    assert_every_pixel_is_where_its_header_says(path, folder.iterdir(), lambda pv: 2 * pv - 4)


@pytest.mark.parametrize(
    ("slope", "scale_slope", "said"),
    [
        (tuple(range(1, 9)), 0.5, ["intensity_scale_varies"]),
        (4, tuple(i / 4 for i in range(1, 9)), []),  # dcm2niix does not say so
    ],
    ids=["rescale slope", "scale slope"],
)
def test_philips_slices_of_different_scale_are_refused(tmp_path, slope, scale_slope, said):
    # dcm2niix would apply the scale of each slice, and then that of the first once more
    folder = philips(tmp_path / "in", slope, -8, scale_slope)
    outcome, _ = convert(tmp_path, planned(folder))
    assert account(outcome) == [("rejected", "scale_varies", "magnitude", "", 8, 8, said)]


@pytest.mark.parametrize("maker", ["SIEMENS", "GE MEDICAL SYSTEMS", "UIH"])
def test_slices_of_other_makers_keep_each_its_scale(tmp_path, maker):
    scale = {"RescaleSlope": tuple(range(1, 9)), "RescaleIntercept": 0, "Manufacturer": maker}
    folder = write_series(tmp_path / "in", **scale)
    outcome, out = convert(tmp_path, planned(folder))
    said = ["intensity_scale_varies"]
    assert account(outcome) == [("accepted", "", "magnitude", "", 8, 8, said)]
    assert_every_pixel_is_where_its_header_says(out / "SERIESAA.nii.gz", folder.iterdir())


def test_whole_numbers_that_float32_would_round_are_refused(tmp_path):
    images = pictures(dtype=np.uint32) * np.uint32(100_003)
    bits = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}
    outcome, _ = convert(tmp_path, planned(write_series(tmp_path / "in", images, **bits)))
    assert verdicts(outcome) == [("SERIESAA", "rejected", "values_out_of_range")]


def test_colours_are_refused(tmp_path):
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    folder = write_series(tmp_path / "in", PixelData=bytes(20 * 24 * 3), **bits, **rgb)
    outcome, _ = convert(tmp_path, planned(folder))
    assert verdicts(outcome) == [("SERIESAA", "rejected", "not_scalar")]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([0, 65535], np.int64), np.uint16),
        (np.array([0.0, 7.0]), np.uint16),
        (np.array([0.0, 0.0]), np.uint16),
        (np.array([-1, 65535], np.int32), np.float32),
        (np.array([0, 2**24], np.int32), np.float32),
        (np.array([-(2**24), 0], np.int64), np.float32),
        (np.array([0.25, 1e38]), np.float32),
    ],
)
def test_what_float32_holds_is_kept_exactly(values, dtype):
    written = as_released(values)
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, values.astype(dtype))
    assert np.isfinite(written).all()
    assert (written.astype(float) == values).all() or dtype == np.float32


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, 2**24 + 1], np.int32),
        np.array([-(2**24) - 1, 0], np.int32),
        np.array([0, 2**40], np.uint64),
        np.array([0, 1e39]),
        np.array([-1e39, 0]),
        np.array([0, 1e-46]),
    ],
)
def test_what_float32_cannot_hold_is_refused(values):
    with pytest.raises(Rejected, match="values_out_of_range"):
        as_released(values)
