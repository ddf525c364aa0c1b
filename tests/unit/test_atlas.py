"""The template: which one it is, where its brain is, and what a release says of it."""

import gzip
import hashlib
import logging

import nibabel as nib
import numpy as np
import pytest

from mrmill.check import check
from mrmill.config import Register, checked
from mrmill.plan.identity import new_key
from mrmill.provenance import facts
from mrmill.register import atlas as module
from mrmill.register.atlas import AtlasError, content_digest, known_templates, load_atlas
from mrmill.volumes import Volume, read_volume, write_volume

PUBLISHED = "mni_icbm152_t1_tal_nlin_sym_09c.nii"
TEMPLATEFLOW = "tpl-MNI152NLin2009cSym_res-1_T1w.nii.gz"
NAME_2009A = "MNI152 ICBM 2009a Nonlinear Symmetric T1w, brain only, 1 mm"


def template(path, inside_mm=75):
    """Write a ball of a given radius, 1 inside."""
    points = np.moveaxis(np.indices((50, 50, 50)), 0, -1) * 5.0 - 122.5
    data = (np.linalg.norm(points, axis=-1) < inside_mm).astype(np.float32)
    write_volume(path, data, nib.affines.from_matvec(np.eye(3) * 5, [-122.5] * 3))
    return path


def test_the_embedded_atlas_is_the_brain_of_mni152_at_1_mm():
    atlas = load_atlas(Register())
    np.testing.assert_allclose(atlas.volume.spacing_mm, 1)
    np.testing.assert_allclose(np.linalg.inv(atlas.volume.affine)[:3, 3], (98, 134, 72))
    assert 1700 < atlas.brain.sum() / 1000 < 2000  # mL
    assert (atlas.name, atlas.doubt) == (NAME_2009A, "")


def test_a_template_with_a_skull_needs_its_mask(tmp_path):
    path = template(tmp_path / "t1.nii.gz", inside_mm=110)
    with pytest.raises(AtlasError, match="atlas_mask"):
        load_atlas(Register(atlas=path))
    mask = template(tmp_path / "brain.nii.gz", inside_mm=75)
    atlas = load_atlas(Register(atlas=path, atlas_mask=mask))
    assert atlas.mask_sha256 == hashlib.sha256(mask.read_bytes()).hexdigest()
    assert (
        atlas.brain.sum()
        == (atlas.brain_only.volume.data > 0).sum()
        < (atlas.volume.data > 0).sum()
    )


def test_an_atlas_that_is_missing_or_4d_is_refused_with_advice(tmp_path):
    with pytest.raises(AtlasError, match="give the path of a T1w template"):
        load_atlas(Register(atlas=tmp_path / "none.nii.gz"))
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 2)), np.eye(4)), tmp_path / "4d.nii.gz")
    with pytest.raises(AtlasError, match="give the path of a T1w template"):
        load_atlas(Register(atlas=tmp_path / "4d.nii.gz"))


# Which one it is


def test_a_known_template_is_known_under_any_name_packed_or_not_and_saved_anew(tmp_path):
    original = module._embedded()
    unpacked = gzip.decompress(original.read_bytes())
    (tmp_path / "unpacked.nii").write_bytes(unpacked)
    (tmp_path / "packed_anew.nii.gz").write_bytes(gzip.compress(unpacked, 9))
    image = nib.load(original)
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine), tmp_path / "as_float.nii.gz")
    for path in (original, *tmp_path.iterdir()):
        found = load_atlas(Register(atlas=path))
        assert (found.name, found.doubt) == (NAME_2009A, "")
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_listed_file_is_known_when_somebody_packed_it(tmp_path, monkeypatch):
    """Of the published recipe's template only the checksum of the bare .nii is known."""
    packed = template(tmp_path / "mine.nii.gz")
    bare = hashlib.sha256(gzip.decompress(packed.read_bytes())).hexdigest()
    row = known_templates()[0].model_copy(update={"sha256": (bare,)})
    monkeypatch.setattr(module, "known_templates", lambda: (row,))
    assert load_atlas(Register(atlas=packed)).name == row.name


def test_one_changed_voxel_or_another_place_is_another_template():
    volume = read_volume(module._embedded())
    digest = content_digest(volume)
    assert digest in {d for known in known_templates() for d in known.content}
    changed = volume.data.copy()
    changed[90, 100, 90] += 1
    moved = volume.affine.copy()
    moved[0, 3] += 0.5
    turned = Volume(volume.data.swapaxes(0, 2), volume.affine)
    others = Volume(changed, volume.affine), Volume(volume.data, moved), turned
    assert len({digest, *map(content_digest, others)}) == 4


@pytest.mark.parametrize(
    ("name", "stem", "words"),
    [
        ("our_own_t1.nii.gz", "our_own_t1", "unknown template: name taken from the file"),
        (f"{PUBLISHED}.gz", PUBLISHED[:-4], "IS NOT any copy of it that is known"),
        (TEMPLATEFLOW, TEMPLATEFLOW[:-7], "no checksum of MNI152 ICBM 2009c"),
    ],
)
def test_an_unknown_template_is_taken_with_a_warning(tmp_path, caplog, name, stem, words):
    path = template(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        found = load_atlas(Register(atlas=path))
    assert found.name == stem
    assert words in found.doubt
    assert words in caplog.text
    assert str(tmp_path) not in found.doubt  # logs may leave the work tree


def test_every_known_template_says_where_it_is_and_its_licence():
    rows = known_templates()
    assert {PUBLISHED, TEMPLATEFLOW} <= {name for row in rows for name in row.files}
    assert all(row.licence and row.get and row.source for row in rows)
    digests = [d for row in rows for d in (*row.sha256, *row.content)]
    assert len(set(digests)) == len(digests)


# What is said of it


def settings(folder, **register):
    new_key(folder / "pseudonym.key")
    (folder / "export").mkdir()
    deface = {"backend": "deepbet", "device": "cpu"}
    return checked({"deface": deface, "register": register}, folder)


def test_the_check_warns_of_a_template_it_does_not_know(tmp_path):
    config = settings(tmp_path, atlas=str(template(tmp_path / "our_own_t1.nii.gz")))
    found = {(f.level, f.what) for f in check(config) if "atlas" in f.what}
    sha256 = hashlib.sha256((tmp_path / "our_own_t1.nii.gz").read_bytes()).hexdigest()
    assert ("ok", f"atlas our_own_t1, sha256 {sha256[:12]}") in found
    (warning,) = [what for level, what in found if level == "warning"]
    assert "unknown template" in warning


def test_the_check_has_nothing_to_say_against_the_embedded_one(tmp_path):
    found = [f for f in check(settings(tmp_path)) if "atlas" in f.what]
    assert [(f.level, f.what.partition(",")[0]) for f in found] == [
        ("ok", "atlas MNI152 ICBM 2009a Nonlinear Symmetric T1w")
    ]


def test_the_provenance_names_template_and_mask_with_their_checksums(tmp_path):
    path = template(tmp_path / "t1.nii.gz", inside_mm=110)
    mask = template(tmp_path / "brain.nii.gz")
    said = facts(settings(tmp_path, atlas=str(path), atlas_mask=str(mask)))
    assert said["atlas"] == f"t1, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    mask_sha256 = hashlib.sha256(mask.read_bytes()).hexdigest()
    assert said["atlas brain mask"] == f"sha256 {mask_sha256}"


def test_the_description_has_the_grid_of_every_image_in_atlas_space(tmp_path):
    path = template(tmp_path / "t1.nii.gz")
    said = load_atlas(Register(atlas=path)).described()
    image = nib.load(path)
    assert said["shape"] == list(image.shape)
    np.testing.assert_allclose(said["affine"], image.affine, atol=1e-4)
    assert (said["atlas"], "mask_sha256" in said) == ("t1", False)


def test_a_release_without_atlas_space_names_no_atlas(tmp_path):
    config = settings(tmp_path).model_copy(update={"spaces": ("native", "coreg")})
    assert "atlas" not in facts(config)
    assert {"antspyx", "registration"} <= facts(config).keys()
