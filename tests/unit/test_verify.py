import csv
import gzip
import io
import json
import shutil
import subprocess
import zipfile

import nibabel as nib
import numpy as np
import pytest

from mrmill import layout
from mrmill.columns import Column, load_columns
from mrmill.layout import ReleaseTree
from mrmill.package import write_zip
from mrmill.records import write_json
from mrmill.register.transforms import RigidTransform, description, write_transform
from mrmill.tables import load_table
from mrmill.verify import ReleaseError, verify_release, write_checksums
from mrmill.volumes import write_volume

UID, OTHER, CENTER, T2 = "2END5JBWVA", "3KQ7AAAAAA", "t1w-raw-axi", "t2w-raw-sag"
STUDIES = {UID: ("batch00", (CENTER, T2)), OTHER: ("batch01", (CENTER,))}
SHAPE = (6, 5, 4)
AFFINE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([-1.0, 2.0, 5.0]), [30, -20, 10]
)
ATLAS = np.diag([2.0, 2, 2, 1])


#: A row of the metadata, in the order of the columns; what is not here is left out.
ROW = {
    **{"patient_uid": "P1", "study_uid": "", "series_id": "", "classified_modality": "T1w"},
    **{"is_derived": "False", "acquisition_plane": "AXIAL", "is_localizer": "False"},
    **{"is_subtraction": "False", "is_center_modality": "False", "classification_rule": "tags:t1"},
    **{"array_shape": "[6, 5, 4]", "array_spacing_mm": "[1.0, 2.0, 5.0]"},
    **{"array_fov_mm": "[6.0, 10.0, 20.0]", "TR_ms": "8.5", "Manufacturer": "GE"},
}


def metadata_row(uid, series_id, **others):
    """A row as text; of the center where that is not said."""
    named = {"study_uid": uid, "series_id": series_id, "is_center_modality": series_id == CENTER}
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow((ROW | named | others).values())
    return line.getvalue()


def image(dtype, mask=None):
    data = np.arange(1, 121).reshape(SHAPE).astype(dtype)
    return data if mask is None else data * mask


def masks():
    defacing = np.ones(SHAPE, np.uint8)
    defacing[:2, 3:] = 0
    brain = np.zeros(SHAPE, np.uint8)
    brain[2:5, 1:3, 1:3] = 1
    return {"brain": brain, "defacing": defacing}


def table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])


def write_study(release, uid, batch, series, scratch):
    """Write the three zips of a study; `scratch` gets their members."""
    kept = masks()["defacing"]
    members = {space: {} for space in layout.SPACES}

    def add(space, name, data=None, affine=AFFINE):
        path = scratch / uid / space / name
        members[space][f"{uid}/{name}"] = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"matrix") if data is None else write_volume(path, data, affine)

    for series_id in series:
        add("native", layout.native_image(uid, series_id), image(np.uint16, kept))
        for kind, mask in masks().items():
            add("native", layout.native_mask(uid, series_id, kind), mask)
        add("atlas", layout.atlas_image(uid, series_id), image(np.float32), ATLAS)
        if series_id != CENTER:
            add("coreg", layout.coreg_image(uid, series_id), image(np.float32))
            add("coreg", layout.coreg_transform(series_id))
    add("coreg", layout.coreg_center_image(uid, CENTER), image(np.uint16, kept))
    add("atlas", layout.atlas_transform(CENTER))
    for kind, mask in masks().items():
        add("coreg", layout.coreg_mask(uid, CENTER, kind), mask)
        add("atlas", layout.atlas_mask(uid, CENTER, kind), mask, ATLAS)
    for space, files in members.items():
        write_zip(release.zip(space, batch, uid), files)


def sign(release):
    for space in layout.SPACES:
        write_checksums(release.repository(space), {})


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A release with nothing wrong."""
    folder = tmp_path_factory.mktemp("sound")
    release = ReleaseTree(folder / "release", "TINY")
    ledger = [["batch00", OTHER, "K9", "", "curate", "rejected", "localizer", *[""] * 5]]
    for uid, (batch, series) in STUDIES.items():
        write_study(release, uid, batch, series, folder / "members")
        path = release.metadata(batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [",".join(ROW), *(metadata_row(uid, series_id) for series_id in series)]
        path.write_text("\n".join(lines) + "\n")
        for s in series:
            ledger.append([batch, uid, f"K{s}", s, "deface", "accepted", *[""] * 3, *["yes"] * 3])
    splits = [["batch00", "P1", uid, "train"] for uid in STUDIES]
    table(release.splits, [field.name for field in load_table("splits")], splits)
    table(release.ledger, [field.name for field in load_table("ledger")], ledger)
    sign(release)
    return release


@pytest.fixture
def release(sound, tmp_path):
    shutil.copytree(sound.root, tmp_path / "release")
    return ReleaseTree(tmp_path / "release", "TINY")


def codes(release, **options):
    return {problem.code for problem in verify_release(release.root, **options)}


def rezip(release, space, change):
    """Change the members of the first study's zip: `change` gets name -> bytes."""
    path = release.zip(space, "batch00", UID)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    sign(release)


def replace_image(release, space, member, data, affine=AFFINE, alter=lambda image: None):
    def change(members):
        changed = nib.Nifti1Image(data, affine)
        changed.set_qform(affine, code=1)
        changed.set_sform(affine, code=1)
        alter(changed)
        members[f"{UID}/{member}"] = gzip.compress(changed.to_bytes(), mtime=0)

    rezip(release, space, change)


def edit(release, path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    sign(release)


def test_a_sound_release_has_no_problem(sound):
    assert verify_release(sound.root) == []


def test_sha256sum_agrees_with_the_checksums(sound):
    for space in layout.SPACES:
        command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
        done = subprocess.run(command, cwd=sound.repository(space), capture_output=True, text=True)
        assert done.returncode == 0
        files = [p for p in sound.repository(space).rglob("*") if p.is_file()]
        assert len(done.stdout.splitlines()) == len(files) - 1


def test_a_known_digest_is_not_computed_again(release):
    name = f"mri/batch00/{UID}.zip"
    path = write_checksums(release.repository("native"), {name: "f" * 64})
    assert f"{'f' * 64}  {name}\n" in path.read_text()
    assert codes(release) == {"checksum"}


@pytest.mark.parametrize("absent", [("coreg",), ("native",), ("native", "atlas")])
def test_a_repository_that_was_not_fetched_is_no_problem(release, absent):
    for space in absent:
        shutil.rmtree(release.repository(space))
    assert verify_release(release.root) == []


def test_a_flipped_bit_a_lost_file_and_a_stray_one_are_told_apart(release):
    path = release.zip("coreg", "batch00", UID)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    release.zip("atlas", "batch01", OTHER).unlink()
    (release.repository("native") / "notes.txt").write_text("x")
    problems = verify_release(release.root, fast=True)
    assert {(p.code, p.where) for p in problems} >= {
        ("checksum", f"TINY-coreg/mri/batch00/{UID}_coreg.zip"),
        ("file_missing", f"TINY-atlas/mri/batch01/{OTHER}_atlas.zip"),
        ("file_unlisted", "TINY/notes.txt"),
    }


def test_a_lost_member_and_an_orphan_row_are_both_named(release):
    member = f"{UID}/{layout.native_image(UID, T2)}"
    rezip(release, "native", lambda members: members.pop(member))
    with release.metadata("batch01").open("a") as file:
        file.write(metadata_row(OTHER, "swi-raw-axi") + "\n")
    sign(release)
    problems = verify_release(release.root)
    named = {(p.code, p.where) for p in problems}
    assert ("member_missing", f"TINY/mri/batch00/{UID}.zip:{member}") in named
    assert ("image_missing", f"TINY/mri/batch01/{OTHER}.zip") in named


@pytest.mark.parametrize(
    ("table_of", "old", "new", "code"),
    [
        (lambda r: r.splits, "train", "dev", "cell"),
        (lambda r: r.splits, "train", "test", "patient_split"),
        (lambda r: r.splits, f"P1,{UID}", f"P2,{UID}", "patient_differs"),
        (
            lambda r: r.metadata("batch00"),
            f"P1,{UID},{CENTER}",
            f"P2,{UID},{CENTER}",
            "patient_differs",
        ),
        (lambda r: r.splits, UID, OTHER, "split_count"),
        (lambda r: r.metadata("batch00"), "True", "False", "center_count"),
        (lambda r: r.metadata("batch00"), T2, CENTER, "row_twice"),
        (lambda r: r.metadata("batch00"), T2, "t2w-raw-axi", "row_missing"),
        (lambda r: r.metadata("batch00"), "series_id", "series", "column_missing"),
        (lambda r: r.metadata("batch01"), OTHER, "4AAAAAAAAA", "zip_missing"),
        (lambda r: r.ledger, "localizer", "", "reason_missing"),
        (lambda r: r.ledger, "rejected", "lost", "cell"),
        (lambda r: r.ledger, "yes,yes,yes", "yes,reg_failed,yes", "coreg_differs"),
    ],
)
def test_tables_that_contradict_each_other_are_found(release, table_of, old, new, code):
    edit(release, table_of(release), old, new)
    assert code in codes(release, fast=True)


SECRET = "Smith^John"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("Manufacturer", SECRET),
        ("classified_modality", SECRET),
        ("is_derived", SECRET),
        ("study_uid", SECRET),
        ("array_shape", "[6, 5]"),
        ("TR_ms", "19560312"),
    ],
)
def test_a_cell_that_its_column_does_not_accept_is_found_and_not_repeated(release, column, value):
    right = metadata_row(UID, T2)
    edit(release, release.metadata("batch00"), right, metadata_row(UID, T2, **{column: value}))
    found = [p for p in verify_release(release.root, fast=True) if p.code == "cell"]
    uid = "?" if column == "study_uid" else UID
    assert [p.where for p in found] == [f"TINY/metadata/batch00_metadata.csv:{uid}/{T2}"]
    assert found[0].text.startswith(f"{column} must be ")
    assert value not in str(found)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("TR_ms", "PatientName", "column_unknown"),
        ("TR_ms,Manufacturer", "Manufacturer,TR_ms", "column_order"),
        ("array_fov_mm", "Manufacturer", "column_missing"),
        ("Manufacturer\n", "Manufacturer,SAR\n", "row_length"),
    ],
)
def test_columns_that_a_release_does_not_have_are_found(release, old, new, code):
    edit(release, release.metadata("batch00"), old, new)
    assert code in codes(release, fast=True)


def test_the_words_and_columns_of_somebody_else_s_dataset_are_no_problem(release):
    for batch in ("batch00", "batch01"):
        path = release.metadata(batch)
        text = path.read_text().replace("TR_ms", "ProtocolName").replace(",GE", ",GE Medical")
        path.write_text(text)
    for space in layout.SPACES:
        release.checksums(space).unlink()
    release.ledger.unlink()
    assert codes(release, fast=True) == {"no_checksums", "table_missing"}
    release.metadata("batch00").write_text(text.replace("AXIAL", "AX"))
    assert "cell" in codes(release, fast=True)


def test_a_release_is_held_against_the_columns_it_was_made_with(release):
    for batch in ("batch00", "batch01"):
        path = release.metadata(batch)
        path.write_text(path.read_text().replace("TR_ms", "Noise"))
    sign(release)
    assert codes(release, fast=True) == {"column_unknown"}
    noise = {"type": "number", "release": True, "minimum": 0, "maximum": 9}
    column = Column(name="Noise", description="", **noise)
    own = tuple(column if c.name == "TR_ms" else c for c in load_columns())
    assert codes(release, fast=True, columns=own) == set()


def test_a_zip_of_another_center_or_without_a_native_study_is_found(release):
    rows = release.metadata("batch00")
    for series_id in (CENTER, T2):
        other = metadata_row(UID, series_id, is_center_modality=series_id == T2)
        edit(release, rows, metadata_row(UID, series_id), other)
    shutil.move(
        release.zip("atlas", "batch01", OTHER), release.zip("atlas", "batch00", "4AAAAAAAAA")
    )
    sign(release)
    assert {"center_differs", "member_name", "atlas_differs"} <= codes(release, fast=True)


def put_transform(release, space, series_id, off_mm=0.0):
    """Put the transform of a series in the first study's zip, and its JSON, off by so much."""
    transform = RigidTransform(AFFINE @ np.diag([-1, 1 / 2, 1 / 5, 1]))
    told = np.eye(4)
    told[0, 3] = off_mm
    name = {"coreg": layout.coreg_transform, "atlas": layout.atlas_transform}[space](series_id)
    folder = release.root.parent / "described"
    write_transform(folder / name, transform)
    beside = layout.transform_json(name)
    (folder / beside).write_bytes(description(RigidTransform(told @ transform.matrix)))
    files = {f"{UID}/{n}": (folder / n).read_bytes() for n in (name, beside)}
    rezip(release, space, lambda members: members.update(files))


@pytest.mark.parametrize(("space", "series_id"), [("coreg", T2), ("atlas", CENTER)])
@pytest.mark.parametrize(
    ("off_mm", "found"), [(0, set()), (5e-7, set()), (2e-6, {"transform_differs"})]
)
def test_a_transform_may_be_described_by_a_json_that_says_the_same(
    release, space, series_id, off_mm, found
):
    put_transform(release, space, series_id, off_mm)
    assert codes(release, fast=True) == found
    assert codes(release) == found


def test_a_json_that_turns_the_other_way_or_cannot_be_read_is_found(release):
    put_transform(release, "coreg", T2)
    name = f"{UID}/{layout.transform_json(layout.coreg_transform(T2))}"

    def turn(members):
        content = json.loads(members[name])
        content["matrix"] = np.linalg.inv(content["matrix"]).tolist()
        members[name] = json.dumps(content).encode()

    rezip(release, "coreg", turn)
    assert codes(release, fast=True) == {"transform_differs"}
    for broken in (b"{", b"{}", b'{"matrix": [[1, 2], [3, 4]]}', b'{"matrix": [[null]]}'):
        rezip(release, "coreg", lambda members, broken=broken: members.update({name: broken}))
        assert codes(release, fast=True) == {"unreadable"}


def test_atlas_json_has_to_give_the_grid_of_the_images(release):
    write_json(release.atlas, {"atlas": "T", "shape": list(SHAPE), "affine": ATLAS.tolist()})
    sign(release)
    assert codes(release) == set()
    write_json(release.atlas, {"atlas": "T", "shape": list(SHAPE), "affine": AFFINE.tolist()})
    sign(release)
    assert codes(release) == {"atlas_grid"}
    assert codes(release, fast=True) == set()
    release.atlas.write_text('{"atlas": "T"}')
    sign(release)
    assert codes(release, fast=True) == {"unreadable"}


@pytest.mark.parametrize(
    ("space", "name", "code"),
    [
        ("native", "img/secret_name.nii.gz", "member_name"),
        ("coreg", layout.coreg_transform("swi-raw-axi"), "member_unexpected"),
        ("coreg", "transform/M_coreg_swi-raw-axi.json", "member_unexpected"),
        ("coreg", "transform/M_coreg_swi-raw-axi.json", "member_missing"),
        ("coreg", layout.coreg_center_image(UID, "t1w-raw-sag"), "center_count"),
        ("atlas", layout.atlas_mask(UID, T2, "brain"), "member_unexpected"),
    ],
)
def test_a_member_that_does_not_belong_is_found(release, space, name, code):
    rezip(release, space, lambda members: members.update({f"{UID}/{name}": b""}))
    assert code in codes(release, fast=True)


NATIVE = layout.native_image(UID, T2)
DEFACING = layout.native_mask(UID, T2, "defacing")
KEPT = masks()["defacing"]


def unset_sform(image):
    image.set_sform(image.affine, code=0)


def shift_sform(image):
    image.set_sform(nib.affines.from_matvec(AFFINE[:3, :3], AFFINE[:3, 3] + 0.5), code=1)


def describe(image):
    image.header["descrip"] = b"Dr Smith"


def extend(image):
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Dr Smith"))


@pytest.mark.parametrize(
    ("space", "member", "data", "affine", "alter", "code"),
    [
        ("native", NATIVE, image("int16", KEPT), AFFINE, None, "dtype"),
        ("native", NATIVE, image("float32"), AFFINE, None, "not_defaced"),
        ("native", NATIVE, image("uint16", KEPT), AFFINE, unset_sform, "form_codes"),
        ("native", NATIVE, image("uint16", KEPT), AFFINE, shift_sform, "forms_differ"),
        ("native", NATIVE, image("uint16", KEPT), AFFINE, describe, "header_text"),
        ("atlas", layout.atlas_image(UID, T2), image("float32"), ATLAS, extend, "header_text"),
        ("native", DEFACING, KEPT * 2, AFFINE, None, "mask_values"),
        ("native", DEFACING, KEPT, ATLAS, None, "grid"),
        ("native", DEFACING, KEPT[:-1], AFFINE, None, "grid"),
        ("coreg", layout.coreg_image(UID, T2), image("float32"), ATLAS, None, "grid"),
        ("coreg", layout.coreg_image(UID, T2), image("uint16"), AFFINE, None, "dtype"),
        (
            "coreg",
            layout.coreg_center_image(UID, CENTER),
            image("uint16"),
            AFFINE,
            None,
            "not_defaced",
        ),
        ("atlas", layout.atlas_image(UID, T2), image("float32"), AFFINE, None, "grid"),
        ("atlas", layout.atlas_mask(UID, CENTER, "brain"), KEPT * 3, ATLAS, None, "mask_values"),
    ],
)
def test_a_volume_that_breaks_the_guide_is_found(release, space, member, data, affine, alter, code):
    replace_image(release, space, member, data, affine, alter or (lambda image: None))
    problems = verify_release(release.root)
    assert code in {p.code for p in problems if p.where.endswith(member)}
    assert codes(release, fast=True) == set()


def test_a_volume_with_a_slope_is_found(release):
    def scale(members):
        content = bytearray(gzip.decompress(members[f"{UID}/{NATIVE}"]))
        content[112:116] = np.float32(2).tobytes()  # scl_slope in a NIfTI-1 header
        members[f"{UID}/{NATIVE}"] = gzip.compress(content, mtime=0)

    rezip(release, "native", scale)
    assert codes(release) == {"scaled"}


@pytest.mark.parametrize("told", [{"mtime": 1}, {"mtime": 0, "filename": "smith.nii"}])
def test_a_name_or_a_time_in_the_gzip_is_found(release, told):
    def repack(members):
        content = gzip.decompress(members[f"{UID}/{NATIVE}"])
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", **{"filename": "", **told}) as file:
            file.write(content)
        members[f"{UID}/{NATIVE}"] = packed.getvalue()

    rezip(release, "native", repack)
    assert codes(release) == {"gzip_header"}


def test_an_image_cut_short_is_found_and_the_others_are_still_read(release):
    def cut(members):
        members[f"{UID}/{NATIVE}"] = members[f"{UID}/{NATIVE}"][:-30]

    rezip(release, "native", cut)
    replace_image(release, "coreg", layout.coreg_image(UID, T2), image("uint16"))
    assert codes(release) == {"unreadable", "dtype"}


def test_a_geometry_that_itk_reads_otherwise_is_found(release):
    pytest.importorskip("SimpleITK")

    def shear(image):
        sheared = AFFINE.copy()
        sheared[:3, 0] += 0.02 * AFFINE[:3, 1]
        image.set_sform(sheared, code=1)

    replace_image(release, "native", NATIVE, image("uint16", KEPT), alter=shear)
    assert {"itk_geometry", "itk_unreadable"} & codes(release)


def test_a_zip_that_is_no_zip_is_found(release):
    release.zip("native", "batch00", UID).write_bytes(b"x")
    assert {"bad_zip", "zip_missing"} <= codes(release)


def test_the_problems_come_in_one_order(release):
    edit(release, release.splits, "train", "val")
    shutil.rmtree(release.repository("atlas") / "mri" / "batch00")
    found = verify_release(release.root)
    assert found == sorted(found) == verify_release(release.root)
    assert len(found) > 1


def test_a_folder_without_or_with_several_releases_is_an_error_with_advice(release, tmp_path):
    with pytest.raises(ReleaseError, match="give the folder"):
        verify_release(tmp_path / "nowhere")
    shutil.copytree(release.repository("native"), release.root / "ELSE")
    with pytest.raises(ReleaseError, match="ELSE, TINY"):
        verify_release(release.root)
    assert verify_release(release.root, name="TINY") == []
