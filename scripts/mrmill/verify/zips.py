"""Hold the zips of a release against the dataset guide: names of the members, and voxels."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mrmill import layout
from mrmill.layout import ZIP_SUFFIX, ReleaseTree
from mrmill.register.transforms import read_transform

if TYPE_CHECKING:
    import nibabel as nib

Key = tuple[str, str]

PLACE = "\0"  # stands for a series id while a name becomes a pattern
MAX_CORNER_MM = 0.01
MAX_AFFINE_DIFFERENCE = 1e-4  # float32 in a header, in mm at the edge of a field

#: How far a JSON may take a point from where its .mat takes it, at the corners of any head's box.
MAX_TRANSFORM_MM = 1e-6
CORNERS_MM = np.array([[x, y, z, 1] for x, y, z in product((-150.0, 150.0), repeat=3)])

#: Space -> kind of member -> its name, of (study_uid, series_id).
MEMBERS: dict[str, dict[str, Callable[[str, str], str]]] = {
    "native": {
        "image": layout.native_image,
        "brain": lambda uid, series: layout.native_mask(uid, series, "brain"),
        "defacing": lambda uid, series: layout.native_mask(uid, series, "defacing"),
    },
    "coreg": {
        "center": layout.coreg_center_image,
        "image": layout.coreg_image,
        "transform": lambda _, series: layout.coreg_transform(series),
        "transform_json": lambda _, series: layout.transform_json(layout.coreg_transform(series)),
        "brain": lambda uid, series: layout.coreg_mask(uid, series, "brain"),
        "defacing": lambda uid, series: layout.coreg_mask(uid, series, "defacing"),
    },
    "atlas": {
        "image": layout.atlas_image,
        "transform": lambda _, series: layout.atlas_transform(series),
        "transform_json": lambda _, series: layout.transform_json(layout.atlas_transform(series)),
        "brain": lambda uid, series: layout.atlas_mask(uid, series, "brain"),
        "defacing": lambda uid, series: layout.atlas_mask(uid, series, "defacing"),
    },
}

#: Data types the guide gives, by space and kind of member.
NATIVE_TYPES, FLOAT, MASK = ("uint16", "float32"), ("float32",), ("uint8",)
TYPES = {
    "native": {"image": NATIVE_TYPES, "brain": MASK, "defacing": MASK},
    "coreg": {"center": NATIVE_TYPES, "image": FLOAT, "brain": MASK, "defacing": MASK},
    "atlas": {"image": FLOAT, "brain": MASK, "defacing": MASK},
}

#: Fields of a NIfTI header that hold free text; NIfTI-2 lacks the first two.
TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a release.

    Attributes
    ----------
    where : str
        File below the root of the release, with the member of a zip or the row of a table.
    code, text : str
        What is wrong, for programs and for people.
    """

    where: str
    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text} ({self.code})"


@dataclass
class StudyZip:
    """One zip of the release.

    Attributes
    ----------
    members : dict
        (kind, series_id) -> name in the zip.
    """

    path: Path
    space: str
    batch: str
    study_uid: str
    members: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def all_series(self) -> set[str]:
        """Return the ids of the series that have any member."""
        return {series_id for _, series_id in self.members}

    def series(self, *kinds: str) -> set[str]:
        """Return the ids of the series that have a member of one of these kinds."""
        return {series_id for kind, series_id in self.members if kind in kinds}

    @property
    def centers(self) -> set[str]:
        """Return the series that the names in a coreg or atlas zip make its center."""
        return self.series("center" if self.space == "coreg" else "transform")


def read_zips(release: ReleaseTree, space: str) -> tuple[list[StudyZip], list[Problem]]:
    """Return the zips of one space with their members by kind, and what cannot be told."""
    zips, problems = [], []
    for path in sorted((release.repository(space) / "mri").glob("*/*.zip")):
        uid = path.stem.removesuffix(ZIP_SUFFIX[space])
        archive = StudyZip(path, space, path.parent.name, uid)
        try:
            with zipfile.ZipFile(path) as file:
                names = file.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            problems.append(
                Problem(str(path), "bad_zip", f"cannot be read: {type(error).__name__}")
            )
            continue
        zips.append(archive)
        for name in names:
            key = _kind_and_series(space, uid, name)
            if key is None:
                problems.append(Problem(f"{path}:{name}", "member_name", "not a name of the guide"))
            else:
                archive.members[key] = name
    return zips, problems


def _kind_and_series(space: str, uid: str, name: str) -> tuple[str, str] | None:
    for kind, name_of in MEMBERS[space].items():
        pattern = re.escape(f"{uid}/{name_of(uid, PLACE)}").replace(PLACE, "([a-z0-9-]+)")
        if match := re.fullmatch(pattern, name):
            return kind, match[1]
    return None


def member_problems(archive: StudyZip) -> Iterator[Problem]:
    """Yield what one zip lacks or has too much, seen from the zip alone."""
    series = archive.series("image", "center")
    center = archive.centers
    wanted = {
        "native": dict.fromkeys(("image", "brain", "defacing"), archive.all_series),
        "coreg": {
            "brain": center,
            "defacing": center,
            "image": series - center,
            "transform": series - center,
        },
        "atlas": {"image": series | center, "brain": center, "defacing": center},
    }[archive.space]
    if archive.series("transform_json"):  # a release has none, or one beside each transform
        wanted["transform_json"] = archive.series("transform")
    if archive.space != "native" and len(center) != 1:
        text = f"has {len(center)} center series, must have 1"
        yield Problem(str(archive.path), "center_count", text)
    for kind, ids in wanted.items():
        for series_id in ids ^ archive.series(kind):
            name = MEMBERS[archive.space][kind](archive.study_uid, series_id)
            there = series_id in archive.series(kind)
            yield Problem(
                f"{archive.path}:{archive.study_uid}/{name}",
                "member_unexpected" if there else "member_missing",
                "is there without its image" if there else "is not in the zip",
            )


def transform_problems(archive: StudyZip) -> Iterator[Problem]:
    """Hold the JSON beside each transform against the transform."""
    pairs = archive.series("transform") & archive.series("transform_json")
    with zipfile.ZipFile(archive.path) as file:
        for series_id in sorted(pairs):
            names = [archive.members[kind, series_id] for kind in ("transform", "transform_json")]
            where = f"{archive.path}:{names[1]}"
            try:
                transform = read_transform(io.BytesIO(file.read(names[0])))
                rows = json.loads(file.read(names[1]))["matrix"]
                told = np.array(rows, dtype=float).reshape(4, 4)
                apart = np.abs(CORNERS_MM @ (told - transform.matrix)[:3].T).max()
            except Exception as error:  # whatever a broken file makes a reader raise
                text = f"cannot be read, or its .mat: {type(error).__name__}"
                yield Problem(where, "unreadable", text)
                continue
            if not apart <= MAX_TRANSFORM_MM:
                text = f"its matrix is not that of the .mat: {apart:.1e} mm apart"
                yield Problem(where, "transform_differs", text)


def read_atlas(release: ReleaseTree) -> tuple[dict[str, Any], list[Problem]]:
    """Return what atlas.json says, nothing where there is none, and what is wrong with it."""
    if not release.atlas.is_file():
        return {}, []
    try:
        atlas = json.loads(release.atlas.read_text(encoding="utf-8"))
        np.array(atlas["affine"], dtype=float).reshape(4, 4), atlas["shape"]
        return atlas, []
    except (ValueError, LookupError, TypeError) as error:
        text = f"does not tell the grid of the atlas: {type(error).__name__}"
        return {}, [Problem(str(release.atlas), "unreadable", text)]


def volume_problems(archive: StudyZip, atlas: Mapping[str, Any]) -> Iterator[Problem]:
    """Open every image of a zip and hold it against the image whose grid it must have.

    Parameters
    ----------
    atlas : mapping
        What atlas.json says; empty where nothing is known of the template.
    """
    with zipfile.ZipFile(archive.path) as file, TemporaryDirectory(prefix="mrmill-") as scratch:
        for reference, dependents in _groups(archive):
            base, problems = _open(archive, file, reference, Path(scratch))
            yield from problems
            if base is not None and atlas and archive.space == "atlas":
                at = f"{archive.path}:{archive.members[reference]}"
                yield from _atlas_problems(at, base, atlas)
            for key in dependents:
                image, problems = _open(archive, file, key, Path(scratch))
                yield from problems
                if base is not None and image is not None:
                    where = [f"{archive.path}:{archive.members[k]}" for k in (reference, key)]
                    resampled = archive.space == "atlas"
                    yield from _pair_problems(*where, key[0], base, image, resampled)


def _atlas_problems(
    where: str, image: "nib.Nifti1Image", atlas: Mapping[str, Any]
) -> Iterator[Problem]:
    near = np.allclose(image.affine, atlas["affine"], rtol=0, atol=MAX_AFFINE_DIFFERENCE)
    if list(image.shape) != atlas["shape"] or not near:
        yield Problem(where, "atlas_grid", "is not on the grid that atlas.json gives")


def _groups(archive: StudyZip) -> list[tuple[Key, list[Key]]]:
    """Return each reference image and the members that must lie on its grid."""
    images = sorted(key for key in archive.members if key[0] in TYPES[archive.space])
    if archive.space == "native":
        bases = [key for key in images if key[0] == "image"]
        return [(b, [k for k in images if k[1] == b[1] and k != b]) for b in bases]
    kind = "center" if archive.space == "coreg" else "image"
    bases = [key for key in images if key[0] == kind and key[1] in archive.centers]
    return [(base, [key for key in images if key != base]) for base in bases]


def _open(
    archive: StudyZip, file: zipfile.ZipFile, key: Key, scratch: Path
) -> tuple["nib.Nifti1Image | None", list[Problem]]:
    """Read one member, with what is wrong with it taken alone."""
    import nibabel as nib
    from isal import igzip

    name = archive.members[key]
    where = f"{archive.path}:{name}"
    try:
        packed = file.read(name)
        image = nib.Nifti1Image.from_bytes(igzip.decompress(packed))
        np.asanyarray(image.dataobj)
    except Exception as error:  # whatever a broken file makes a reader raise
        return None, [Problem(where, "unreadable", f"cannot be read: {type(error).__name__}")]
    found = list(_header_problems(where, image, TYPES[archive.space][key[0]]))
    if any(packed[3:8]):  # RFC 1952: flags of optional fields (name, comment, ...), then the time
        found.append(Problem(where, "gzip_header", "has a name, a comment or a time in its gzip"))
    found += _itk_problems(where, image, packed, scratch)
    return image, found


def _header_problems(
    where: str, image: "nib.Nifti1Image", types: Iterable[str]
) -> Iterator[Problem]:
    header = image.header
    if places := header_text(image):
        yield Problem(where, "header_text", f"carries text in {', '.join(places)}")
    if str(image.get_data_dtype()) not in types:
        text = f"is {image.get_data_dtype()}, must be {' or '.join(types)}"
        yield Problem(where, "dtype", text)
    if (image.dataobj.slope, image.dataobj.inter) != (1, 0):
        yield Problem(where, "scaled", "has a slope or intercept other than 1 and 0")
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        yield Problem(where, "form_codes", "sform_code and qform_code must be above 0")
    elif not np.allclose(image.get_sform(), image.get_qform(), rtol=0, atol=MAX_AFFINE_DIFFERENCE):
        yield Problem(where, "forms_differ", "sform and qform are not equal")


def header_text(image: "nib.Nifti1Image") -> list[str]:
    """Return where the header of an image, read from a file, carries text: fields, extensions."""
    header = image.header
    places = [name for name in TEXT_FIELDS if name in header and header[name].item().strip(b"\0 ")]
    between_header_and_voxels = image.dataobj.offset > header.single_vox_offset
    return [*places, "extensions"] if between_header_and_voxels else places


def _itk_problems(
    where: str, image: "nib.Nifti1Image", packed: bytes, scratch: Path
) -> Iterator[Problem]:
    """Compare the corners of the volume as nibabel and, where installed, SimpleITK see them."""
    try:
        import SimpleITK as sitk
    except ImportError:
        return
    path = scratch / "image.nii.gz"
    path.write_bytes(packed)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        yield Problem(where, "itk_unreadable", "SimpleITK cannot read it")
        return
    last = np.array(image.shape) - 1
    corners = np.array(list(np.ndindex(2, 2, 2))) * last
    direction = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    seen = (corners @ direction.T + reader.GetOrigin()) * (-1, -1, 1)
    apart = np.abs(seen - (corners @ image.affine[:3, :3].T + image.affine[:3, 3])).max()
    if apart > MAX_CORNER_MM:
        yield Problem(where, "itk_geometry", f"SimpleITK sees a corner {apart:.2f} mm away")


def _pair_problems(
    base_where: str,
    where: str,
    kind: str,
    base: "nib.Nifti1Image",
    image: "nib.Nifti1Image",
    resampled: bool,
) -> Iterator[Problem]:
    """Hold an image or mask against the image whose grid it must have."""
    near = np.allclose(image.affine, base.affine, rtol=0, atol=MAX_AFFINE_DIFFERENCE)
    same = image.shape == base.shape and near
    if not same:
        yield Problem(where, "grid", "is not on the grid of the image it belongs to")
    if kind not in ("brain", "defacing"):
        return
    mask = np.asanyarray(image.dataobj)
    if not np.isin(mask, (0, 1)).all():
        yield Problem(where, "mask_values", "holds values other than 0 and 1")
    if kind != "defacing" or not same or resampled:
        return  # in the atlas both are interpolated: a kept voxel fades over its mask's border
    if np.asanyarray(base.dataobj)[mask == 0].any():
        yield Problem(base_where, "not_defaced", "is not 0 where its defacing mask is 0")
