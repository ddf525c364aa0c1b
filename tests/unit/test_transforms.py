"""Transform files: every tool that reads them has to move points and images alike."""

import json
import os

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from mrmill import layout
from mrmill.register.engines.ants import import_ants
from mrmill.register.transforms import (
    RigidTransform,
    description,
    read_transform,
    write_transform,
)
from mrmill.volumes import write_volume

LPS = np.array([-1.0, -1.0, 1.0])
POINTS = np.random.default_rng(0).uniform(-150, 150, size=(50, 3))
SHAPE = (12, 10, 9)


def rigid(degrees=(0, 0, 0), shift_mm=(0, 0, 0)):
    turn = nib.eulerangles.euler2mat(*np.radians(degrees))
    return RigidTransform(nib.affines.from_matvec(turn, shift_mm))


TO_SERIES = rigid((10, -20, 30), (12.5, -7, 40))
TO_CENTER = rigid((-4, 2, 8), (-3, 11, 6))
TRANSFORMS = {
    "identity": RigidTransform(),
    "oblique": TO_SERIES,
    "half a turn": rigid((180, 0, 0), (0, -30, 12)),
    "far away": rigid((0, 3, 0), (400, -250, 300)),
    "inverse": TO_SERIES.inverse(),
}
each = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@each
def test_points_move_in_simpleitk_as_in_the_matrix(transform, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    write_transform(tmp_path / "M.mat", transform)
    read = sitk.ReadTransform(str(tmp_path / "M.mat"))
    moved = [np.array(read.TransformPoint(point * LPS)) * LPS for point in POINTS]
    np.testing.assert_allclose(transform(POINTS), moved, rtol=0, atol=1e-3)


@each
def test_points_move_in_antspyx_as_in_the_matrix(transform, tmp_path):
    write_transform(tmp_path / "M.mat", transform)
    read = import_ants().read_transform(str(tmp_path / "M.mat"))
    moved = [np.array(read.apply_to_point(list(point * LPS))) * LPS for point in POINTS]
    np.testing.assert_allclose(transform(POINTS), moved, rtol=0, atol=1e-3)


@each
@pytest.mark.parametrize("inverse", [False, True])
def test_points_move_in_antsapplytransformstopoints(transform, inverse, tmp_path):
    write_transform(tmp_path / "M.mat", transform)
    table = pd.DataFrame(POINTS * LPS, columns=list("xyz"))
    moved = import_ants().apply_transforms_to_points(
        3, table, [str(tmp_path / "M.mat")], whichtoinvert=[inverse]
    )
    expected = (transform.inverse() if inverse else transform)(POINTS)
    np.testing.assert_allclose(expected, moved[list("xyz")] * LPS, rtol=0, atol=1e-3)


# Images: in one whose values are its own x (or y, or z), linear interpolation is exact, so an image
# that was moved says of each voxel where a tool looked


@pytest.fixture
def images(tmp_path):
    """The coordinates of a large source image, one image for each axis, and a small target."""
    shape = (40, 44, 36)
    affine = nib.affines.from_matvec(np.diag([-10.0, 9, 11]), (190, -200, -170))
    indices = np.moveaxis(np.indices(shape), 0, -1)
    points = nib.affines.apply_affine(affine, indices).astype(np.float32)
    for axis, name in enumerate("xyz"):
        write_volume(tmp_path / f"{name}.nii.gz", np.ascontiguousarray(points[..., axis]), affine)
    turn = rigid((20, 5, -10)).matrix[:3, :3] @ np.diag([6.0, -7, 8])
    target = nib.affines.from_matvec(turn, (-30, 20, -35))
    write_volume(tmp_path / "target.nii.gz", np.zeros(SHAPE, np.float32), target)
    write_transform(tmp_path / "to_series.mat", TO_SERIES)
    write_transform(tmp_path / "to_center.mat", TO_CENTER)
    return tmp_path


def by_simpleitk(folder, axis, names):
    sitk = pytest.importorskip("SimpleITK")
    transforms = [sitk.ReadTransform(str(folder / name)) for name in reversed(names)]
    source, target = (sitk.ReadImage(str(folder / f"{n}.nii.gz")) for n in (axis, "target"))
    moved = sitk.Resample(source, target, sitk.CompositeTransform(transforms))
    return sitk.GetArrayFromImage(moved).T


def by_ants(folder, axis, names):
    itk = import_ants()
    source, target = (itk.image_read(str(folder / f"{n}.nii.gz")) for n in (axis, "target"))
    return itk.apply_transforms(target, source, [str(folder / name) for name in names]).numpy()


def by_antsapplytransforms(folder, axis, names):
    """Call the command of that name, which is a function of antspyx's library, on files."""
    import_ants()
    from ants.internal import get_lib_fn

    files = {"-i": f"{axis}.nii.gz", "-r": "target.nii.gz", "-o": "moved.nii.gz"}
    arguments = [text for flag, name in files.items() for text in (flag, str(folder / name))]
    transforms = [text for name in names for text in ("-t", str(folder / name))]
    command = ["-d", "3", *arguments, "-n", "Linear", *transforms, "-v", "0"]
    assert get_lib_fn("antsApplyTransforms")(command) == 0
    return nib.load(folder / "moved.nii.gz").get_fdata()


@pytest.mark.parametrize("tool", [by_simpleitk, by_ants, by_antsapplytransforms])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["to_series.mat"], TO_SERIES),
        # as ANTs wants them: the last of the list is applied to the image first
        (["to_center.mat", "to_series.mat"], TO_CENTER.then(TO_SERIES)),
    ],
    ids=["one", "composed"],
)
def test_images_move_in_every_tool_as_points_say(images, tool, names, expected):
    looked_at = np.stack([tool(images, axis, names) for axis in "xyz"], axis=-1)
    affine = nib.load(images / "target.nii.gz").affine
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1))
    where = expected(points.reshape(-1, 3)).reshape(points.shape)
    np.testing.assert_allclose(looked_at, where, rtol=0, atol=1e-3)


# Files


def test_a_transform_file_is_read_back_and_always_the_same_bytes(tmp_path):
    for name in ("a/M.mat", "b/M.mat"):
        write_transform(tmp_path / name, TO_SERIES)
    assert (tmp_path / "a/M.mat").read_bytes() == (tmp_path / "b/M.mat").read_bytes()
    read = read_transform(tmp_path / "a/M.mat").matrix
    np.testing.assert_allclose(read, TO_SERIES.matrix, rtol=0, atol=1e-12)


def test_a_transform_of_ants_that_turns_about_another_point_is_read_as_it_acts(tmp_path):
    turn, middle, shift = TO_SERIES.matrix[:3, :3], np.array([10.0, -25, 40]), [3.0, 4, -5]
    theirs = import_ants().create_ants_transform(
        "AffineTransform", matrix=turn, center=middle.tolist(), translation=shift
    )
    import_ants().write_transform(theirs, str(tmp_path / "0GenericAffine.mat"))
    moved = [np.array(theirs.apply_to_point(list(point * LPS))) * LPS for point in POINTS]
    ours = read_transform(tmp_path / "0GenericAffine.mat")
    np.testing.assert_allclose(ours(POINTS), moved, rtol=0, atol=1e-3)


def test_the_json_holds_the_matrix_and_what_is_known_in_the_same_bytes(tmp_path):
    about = {"quality": {"b": 0.25, "a": 1.0}, "moving": {"series_id": "t2w-raw-axi"}, "seed": 42}
    one, other = (description(TO_SERIES, **t) for t in (about, dict(reversed(about.items()))))
    assert one == other
    content = json.loads(one)
    assert {name: content[name] for name in about} == about
    # taken by its own words: matrix @ [x, y, z, 1] goes from the fixed to the moving image
    assert "matrix @ [x, y, z, 1] takes a point of the fixed" in content["direction"]["points"]
    moved = (np.array(content["matrix"]) @ np.c_[POINTS, np.ones(50)].T).T[:, :3]
    np.testing.assert_allclose(moved, TO_SERIES(POINTS), rtol=0, atol=1e-6)
    write_transform(tmp_path / "M.mat", TO_SERIES)
    np.testing.assert_allclose(moved, read_transform(tmp_path / "M.mat")(POINTS), rtol=0, atol=1e-6)


def test_the_json_has_no_negative_zeros_and_a_row_of_the_matrix_can_be_read(tmp_path):
    flat = description(RigidTransform(np.diag([1.0, 1, 1, 1]) * -0.0 + np.eye(4)))
    for text in (flat, description(TRANSFORMS["half a turn"])):
        assert b"-0.0," not in text
    assert b'"matrix": [[1.0, 0.0, 0.0, 0.0], [0.0,' in flat


def test_the_json_stands_beside_the_transform():
    assert layout.transform_json(layout.coreg_transform("t2w-raw-axi")) == (
        "transform/M_coreg_t2w-raw-axi.json"
    )
