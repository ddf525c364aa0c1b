"""NIfTI input: rewritten voxel for voxel, without anything but voxels and geometry."""

import nibabel as nib
import numpy as np
import pytest
from tiny_series import convert, pictures, planned


def write_nifti(path, data, sidecar=None):
    """Write an image that says too much, and its sidecar; return what the plan says of them."""
    image = nib.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header["descrip"] = b"CANARY"
    image.header["aux_file"] = b"CANARY"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    if sidecar is not None:
        path.with_name("x.json").write_text(sidecar)
    return planned(
        path.parent,
        kind="nifti",
        files=[path.name],
        sidecar=str(path.with_name("x.json")) if sidecar is not None else "",
        table={"SeriesNumber": 5},
    )


def test_a_nifti_is_rewritten_without_free_text_and_voxel_for_voxel(tmp_path):
    data = pictures(dtype=np.int16)
    series = write_nifti(tmp_path / "in/x.nii.gz", data, '{"EchoTime": 0.02}')
    outcome, out = convert(tmp_path, series)
    (entry,) = outcome.series
    image = nib.load(out / entry["file"])
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), data)
    assert image.header["descrip"] == image.header["aux_file"] == b""
    assert (entry["shape"], entry["spacing_mm"]) == ([8, 20, 24], [2.0, 2.0, 3.0])
    assert entry["header"]["TE_ms"] == pytest.approx(20)
    assert entry["header"]["SeriesNumber"] == 5
    assert (entry["state"], entry["warnings"]) == ("accepted", [])


@pytest.mark.parametrize("sidecar", ["{broken", "[1, 2]"])
def test_an_unreadable_sidecar_is_a_warning_and_the_table_stands(tmp_path, sidecar):
    outcome, _ = convert(tmp_path, write_nifti(tmp_path / "in/x.nii.gz", pictures(), sidecar))
    (entry,) = outcome.series
    assert (entry["state"], entry["warnings"]) == ("accepted", ["bad_sidecar"])
    assert entry["header"]["SeriesNumber"] == 5


def cut(path, data):
    series = write_nifti(path, data)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return series


@pytest.mark.parametrize(
    ("write", "data", "reason"),
    [
        (cut, pictures(), "unreadable_image"),
        (write_nifti, np.stack([pictures()] * 3, axis=-1), "not_3d"),
        (write_nifti, np.full((4, 4, 4), np.nan), "non_finite_voxels"),
        (write_nifti, np.ones((4, 4, 4), np.complex64), "not_scalar"),
        (write_nifti, np.full((4, 4, 4), 2**30 + 1, np.int32), "values_out_of_range"),
        (write_nifti, np.full((4, 4, 4), 1e200), "values_out_of_range"),
    ],
    ids=["cut", "4D", "NaN", "complex", "large integers", "large numbers"],
)
def test_an_image_that_cannot_go_on_is_rejected_with_its_reason(tmp_path, write, data, reason):
    outcome, out = convert(tmp_path, write(tmp_path / "in/x.nii.gz", data))
    (entry,) = outcome.series
    assert (entry["state"], entry["reason"]) == ("rejected", reason)
    assert "file" not in entry
    assert list(out.iterdir()) == []
