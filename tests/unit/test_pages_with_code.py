"""The code on the pages for users is run, and does what mrmill does."""

import os
import re
import shlex

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mrmill import layout
from mrmill.config import ROOT
from mrmill.layout import ReleaseTree
from mrmill.package import write_zip
from mrmill.register.resampling import resample
from mrmill.register.transforms import RigidTransform, description, write_transform
from mrmill.volumes import Volume, as_released, write_volume

UID, SERIES, CENTER = "XZK42OJMMC", "t2w-raw-axi", "t1w-raw-sag"
POINT = np.array([12.0, -30.0, 25.0])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def sections(name):
    """Heading -> its code blocks, as (language, code)."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    parts = re.split(r"^#+ +(.+)$", text, flags=re.MULTILINE)[1:]
    return {title: BLOCK.findall(part) for title, part in zip(parts[::2], parts[1::2], strict=True)}


def run(page, *headings):
    """Run the Python of some sections in one namespace and return it."""
    space = {}
    for heading in headings:
        for language, code in sections(page)[heading]:
            if language == "python":
                exec(compile(code, f"docs/{page}, {heading}", "exec"), space)
    return space


def rigid(degrees, shift_mm):
    turn = nib.eulerangles.euler2mat(*np.radians(degrees))
    return RigidTransform(nib.affines.from_matvec(turn, shift_mm))


TO_SERIES = rigid((9, -14, 21), (6.5, -11, 18))
TO_CENTER = rigid((-7, 12, 5), (4, 9, -13))


def volume(shape, spacing, degrees, seed):
    """A smooth random image on an oblique grid around the origin, 2 mm and more in a voxel."""
    values = gaussian_filter(np.random.default_rng(seed).uniform(0, 9000, shape), 1)
    turn = rigid(degrees, (0, 0, 0)).matrix[:3, :3] @ np.diag(spacing)
    affine = nib.affines.from_matvec(turn, -turn @ ((np.array(shape) - 1) / 2))
    return Volume(as_released(np.rint(values)), affine)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A release of one study, made by mrmill's own functions; the truth for each section."""
    folder = tmp_path_factory.mktemp("site")
    series = volume((34, 36, 14), (-4.5, 4.5, 12), (4, -9, 13), 1)
    center = volume((22, 30, 28), (7, 6, 6), (-6, 3, 8), 2)
    atlas = volume((30, 34, 28), (5, 5, 5), (0, 0, 0), 3)
    mask = Volume((center.data > np.median(center.data)).astype(np.uint8), center.affine)
    truth = {
        "on_center": resample(series, center, TO_SERIES),
        "in_atlas": resample(series, atlas, TO_CENTER.then(TO_SERIES)),
        "mask_in_series": resample(mask, series, TO_SERIES.inverse(), order=0),
        "point_in_series": TO_SERIES(POINT),
        "point_back": POINT,
        "atlas_point_in_series": TO_SERIES(TO_CENTER(POINT)),
    }
    images = {
        "native": {layout.native_image(UID, SERIES): series},
        "coreg": {
            layout.coreg_image(UID, SERIES): Volume(truth["on_center"], center.affine),
            layout.coreg_center_image(UID, CENTER): center,
            layout.coreg_mask(UID, CENTER, "brain"): mask,
        },
        "atlas": {layout.atlas_image(UID, SERIES): Volume(truth["in_atlas"], atlas.affine)},
    }
    transforms = {
        "coreg": (layout.coreg_transform(SERIES), TO_SERIES),
        "atlas": (layout.atlas_transform(CENTER), TO_CENTER),
    }
    release = ReleaseTree(folder / "my-project/release", "MY-MRI")
    for space, volumes in images.items():
        made = folder / "made" / space
        for name, image in volumes.items():
            write_volume(made / name, image.data, image.affine)
        if space in transforms:
            name, transform = transforms[space]
            write_transform(made / name, transform)
            (made / layout.transform_json(name)).write_bytes(description(transform))
        files = (p for p in made.rglob("*") if p.is_file())
        members = {f"{UID}/{p.relative_to(made)}": p for p in files}
        write_zip(release.zip(space, "batch00", UID), members)
    return folder, truth


@pytest.fixture
def site(written, monkeypatch):
    monkeypatch.chdir(written[0])
    return written[1]


def assert_done(found, truth):
    """Images within 0.001 of their range, points within 0.001 mm; masks but for ties."""
    for name in ("on_center", "in_atlas"):
        if name in found:
            apart = np.abs(found[name] - truth[name]).max()
            assert apart < 1e-3 * np.ptp(truth[name]), name
            assert 0.1 < (truth[name] == 0).mean() < 0.9, name  # the field's border is within
    assert (found["mask_in_series"] != truth["mask_in_series"]).mean() < 1e-3
    assert 0.1 < truth["mask_in_series"].mean() < 0.9


@pytest.mark.parametrize(
    ("heading", "needs"),
    [
        ("nibabel and scipy", "scipy"),
        ("SimpleITK", "SimpleITK"),
        ("ANTs in Python", "ants"),
    ],
)
def test_each_way_to_use_a_transform_does_what_mrmill_does(site, heading, needs):
    pytest.importorskip(needs)
    found = run("registration.md", "Use them", heading)
    assert_done(found, site)
    for name in ("point_in_series", "point_back", "atlas_point_in_series"):
        np.testing.assert_allclose(found[name], site[name], rtol=0, atol=1e-3)


def test_the_json_gives_the_matrix_that_the_mat_gives(site):
    found = run("registration.md", "Use them", "nibabel and scipy")
    np.testing.assert_allclose(found["matrix"], found["center_to_series"], rtol=0, atol=1e-9)


def test_the_commands_do_what_mrmill_does(site, monkeypatch):
    """antspyx has the command antsApplyTransforms as a function of its library."""
    pytest.importorskip("ants")
    from ants.internal import get_lib_fn

    monkeypatch.chdir(run("registration.md", "Use them")["folder"])
    ((_, code),) = sections("registration.md")["ANTs on the command line"]
    made = {}
    for command in code.replace("\\\n", " ").splitlines():
        name, *arguments = shlex.split(command)
        assert get_lib_fn(name)(arguments) == 0
        file = arguments[arguments.index("-o") + 1]
        made[file.removesuffix(".nii.gz")] = nib.load(file).get_fdata()
    assert set(made) == {"in_atlas", "mask_in_series"}
    assert_done(made, site)


def test_transforms_in_the_wrong_order_give_another_image(site):
    """Else the tests above could not tell."""
    found = run("registration.md", "Use them", "nibabel and scipy")
    wrong = found["read_mat"](found["m_atlas"]) @ found["center_to_series"]
    image = found["resample"](found["native"], nib.load(found["atlas_img"]), wrong)
    assert np.abs(image - site["in_atlas"]).max() > 0.3 * np.ptp(site["in_atlas"])


def test_the_code_of_the_coordinates_page_finds_the_same_place(site):
    run("registration.md", "Use them")  # unpacks
    found = run("coordinates.md", "Affines: RAS+, millimetres", "Orientation")
    np.testing.assert_allclose(found["back"], found["voxel"], atol=1e-3)
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(f"unpacked/{UID}/img/{UID}_{SERIES}.nii.gz")
    place = image.TransformIndexToPhysicalPoint(found["voxel"].tolist())
    np.testing.assert_allclose(found["lps"], place, atol=1e-3)
    assert nib.aff2axcodes(found["same_order"].affine) == ("R", "A", "S")
    assert nib.aff2axcodes(found["image"].affine) == ("L", "A", "S")
