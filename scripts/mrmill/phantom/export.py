"""Whole exports of the phantom, as a hospital would hand them over, with the truth beside them."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrmill.phantom.acquire import CONTRASTS, Acquisition, Scan, acquire, rigid
from mrmill.phantom.dicom import (
    Identity,
    SeriesLabel,
    series_description,
    stable_uid,
    write_series,
)
from mrmill.phantom.head import Head, Warp, standard_head
from mrmill.phantom.presets import PRESETS, PlannedSeries, PlannedStudy
from mrmill.phantom.vendors import VENDORS, Vendor

SERIES_TABLE = "series.csv"
SERIES_COLUMNS = (
    "path", "patient_id", "study_id", "SeriesNumber", "PatientAge", "PatientSex", "StudyDate",
    "modality",
)  # fmt: skip
STRAY_FILES = {
    "README.txt": b"Exported by CANARY-PACS for CANARY-HOSPITAL. Not a DICOM file.\n",
    "DICOMDIR": b"CANARY: looks like a media directory, is none\x00\x01\x02" * 8,
    "VIEWER/autorun.inf": b"[autorun]\r\nopen=viewer.exe\r\n",
}


@dataclass(frozen=True)
class ScannedSeries:
    """One series as scanned, before it is written.

    Attributes
    ----------
    study : PlannedStudy
    planned : PlannedSeries
    vendor : Vendor
    identity : Identity
    label : SeriesLabel
    scans : tuple of Scan
        One per stack of `planned`.
    """

    study: PlannedStudy
    planned: PlannedSeries
    vendor: Vendor
    identity: Identity
    label: SeriesLabel
    scans: tuple[Scan, ...]


def make_export(
    folder: str | Path,
    preset: str = "demo",
    kind: str = "dicom",
    seed: int = 0,
    truth: str | Path | None = None,
) -> list[dict]:
    """Write an export of several patients and the truth about it.

    Parameters
    ----------
    folder : path
        Where the export goes; it must not hold anything yet.
    preset : {"demo", "tiny"}
        `demo` looks clinical (under a minute on one core), `tiny` is coarse and quick, for tests.
    kind : {"dicom", "nifti"}
        One DICOM file per slice, or BIDS-like NIfTI with JSON sidecars and `series.csv`.
    seed : int
        Same seed, same bytes.
    truth : path, optional
        Folder for the truth, `<folder>-truth` unless given.

    Returns
    -------
    records : list of dict
        One per series, as written to `<truth>/<series uid>.json`.

    Raises
    ------
    ValueError
        If preset or kind is unknown.
    FileExistsError
        If `folder` or the truth folder is not empty.
    """
    if preset not in PRESETS or kind not in ("dicom", "nifti"):
        raise ValueError(
            f"found preset {preset!r} and kind {kind!r}; "
            f"presets are {', '.join(PRESETS)}, kinds are dicom and nifti"
        )
    folder = Path(folder)
    truth = Path(truth) if truth else folder.with_name(f"{folder.name}-truth")
    for target in (folder, truth):
        if target.exists() and any(target.iterdir()):
            raise FileExistsError(f"{target} is not empty: choose a new folder for the phantom")
        target.mkdir(parents=True, exist_ok=True)
    write = _write_dicom if kind == "dicom" else _write_nifti
    records, rows = [], []
    for series in scan_preset(preset, seed):
        paths = [path.relative_to(folder).as_posix() for path in write(folder, series)]
        records.append(_write_truth(truth, series, paths))
        rows += [_table_row(series, path) for path in paths]
    if kind == "nifti":
        _write_table(folder / SERIES_TABLE, rows)
    else:
        _write_stray_files(folder)
    return records


def scan_preset(preset: str, seed: int = 0) -> Iterator[ScannedSeries]:
    """Scan every series of a preset, study by study."""
    plan = PRESETS[preset]
    head = standard_head(plan.head_voxel_mm)
    for index, study in enumerate(plan.studies):
        yield from _StudyScanner(head, study, index, seed).series()


class _StudyScanner:
    """One patient on the table, for one study."""

    def __init__(self, head: Head, study: PlannedStudy, index: int, seed: int) -> None:
        self.head, self.study, self.index, self.seed = head, study, index, seed
        self.vendor = VENDORS[study.vendor]
        patient_rng = np.random.default_rng([seed, 1, study.patient])
        self.warp = Warp.random(patient_rng)
        self.texture_seed = int(patient_rng.integers(2**31))
        study_rng = np.random.default_rng([seed, 2, index])
        self.pose = rigid(study_rng.uniform(-7, 7, size=3), study_rng.uniform(-12, 12, size=3))
        self.painted: dict[str, NDArray[np.float32]] = {}

    def series(self) -> Iterator[ScannedSeries]:
        """Scan the series in the order of their numbers."""
        identity = self._identity()
        for number, planned in enumerate(self.study.series, start=1):
            rng = np.random.default_rng([self.seed, 3, self.index, number])
            # what a cooperative patient moves between series
            motion = rigid(rng.normal(scale=0.6, size=3), rng.normal(scale=0.8, size=3))
            scans = tuple(self._scan(stack, motion @ self.pose, rng) for stack in planned.stacks)
            label = SeriesLabel(
                uid=stable_uid(identity.study_uid, "series", number),
                number=number,
                time=f"{9 + self.index:02d}{5 * number:02d}17",
            )
            yield ScannedSeries(self.study, planned, self.vendor, identity, label, scans)

    def _scan(self, acquisition: Acquisition, pose: NDArray, rng: np.random.Generator) -> Scan:
        return acquire(
            self.head,
            self._contrast(acquisition.modality),
            self.warp,
            acquisition,
            prescription=self.pose,
            pose=pose,
            rng=rng,
            gain=self.vendor.gain,
        )

    def _contrast(self, modality: str) -> NDArray[np.float32]:
        """The head painted for a sequence type, with the patient's texture."""
        if modality not in self.painted:
            self.painted[modality] = self.head.paint(CONTRASTS[modality]) * self._texture
        return self.painted[modality]

    @cached_property
    def _texture(self) -> NDArray[np.float32]:
        """Fine variation of the tissue, about 3 %, the same in all contrasts of a patient."""
        from scipy.ndimage import gaussian_filter

        rng = np.random.default_rng(self.texture_seed)
        noise = rng.standard_normal(self.head.brain_minus_face.shape, dtype=np.float32)
        smooth = gaussian_filter(noise, 1.2)
        return 1 + np.float32(0.03) * smooth / smooth.std()

    def _identity(self) -> Identity:
        study = self.study
        patient_id = f"CANARYID{study.patient:04d}"
        study_uid = stable_uid(self.seed, "study", self.index)
        return Identity(
            patient_id=patient_id,
            patient_name=f"CANARY^NAME-{study.patient:04d}",
            birth_date=f"{int(study.study_date[:4]) - study.age_years}01{study.patient:02d}",
            sex=study.sex,
            age_years=study.age_years,
            study_uid=study_uid,
            frame_uid=stable_uid(study_uid, "frame"),
            study_date=study.study_date,
            study_time=f"{9 + self.index:02d}0117",
            accession=f"CANARYACC{self.index + 1:04d}",
            study_id=f"CANARYSTUDY{self.index + 1:03d}",
        )


def _write_dicom(folder: Path, series: ScannedSeries) -> list[Path]:
    """One folder per patient, study and series, with names as telling as hospitals give them."""
    identity, acquisition = series.identity, series.planned.stacks[0]
    name = series_description(series.vendor, acquisition).replace(" ", "_")
    target = folder / identity.patient_id / f"{identity.study_date}_{identity.accession}"
    target /= f"{series.label.number:04d}_{name}"
    stacks = list(zip(series.planned.stacks, series.scans, strict=True))
    write_series(target, stacks, series.vendor, identity, series.label)
    return [target]


def _write_nifti(folder: Path, series: ScannedSeries) -> list[Path]:
    """BIDS-like: `sub-01/ses-01/anat/sub-01_ses-01_acq-t2wAxi3_T2w.nii.gz` with its sidecar."""
    session = int(series.identity.study_id[-3:])
    subject = f"sub-{series.study.patient:02d}_ses-{session:02d}"
    target = folder.joinpath(*subject.split("_"), "anat")
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for acquisition, scan in zip(series.planned.stacks, series.scans, strict=True):
        sequence = acquisition.sequence.replace("_", "")
        entity = f"acq-{sequence}{acquisition.plane.capitalize()}{series.label.number}"
        path = target / f"{subject}_{entity}_{acquisition.modality}.nii.gz"
        _save_nifti(path, scan.voxels, scan.affine, acquisition)
        sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
        _write_json(sidecar, _sidecar(series, acquisition))
        paths.append(path)
    return paths


def _save_nifti(path: Path, voxels: NDArray, affine: NDArray, acquisition: Acquisition) -> None:
    """Save in the axis order that dcm2niix gives: 3D turned to RAS+, 2D with its rows flipped."""
    import nibabel as nib

    flipped = affine.copy()
    flipped[:3, 3] += (voxels.shape[1] - 1) * affine[:3, 1]
    flipped[:3, 1] *= -1
    image = nib.Nifti1Image(voxels[:, ::-1], flipped)
    if acquisition.volumetric:
        image = nib.as_closest_canonical(image)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def _sidecar(series: ScannedSeries, acquisition: Acquisition) -> dict:
    """What `dcm2niix -ba n` would write about the series: BIDS names, seconds."""
    vendor, identity = series.vendor, series.identity
    header = vendor.sequences[acquisition.sequence]
    description = series_description(vendor, acquisition)
    sidecar = {
        "Modality": "MR",
        "MagneticFieldStrength": vendor.field_t,
        "Manufacturer": vendor.short_name,
        "ManufacturersModelName": vendor.model,
        "InstitutionName": "CANARY-HOSPITAL",
        "PatientName": identity.patient_name,
        "PatientID": identity.patient_id,
        "PatientBirthDate": "-".join(re.findall(r"^....|..", identity.birth_date)),
        "PatientSex": identity.sex,
        "PatientAge": identity.age_years,
        "AccessionNumber": identity.accession,
        "StudyInstanceUID": identity.study_uid,
        "SeriesInstanceUID": series.label.uid,
        "BodyPart": "HEAD",
        "PatientPosition": "HFS",
        "SeriesDescription": description,
        "ProtocolName": description,
        "ScanningSequence": header.scanning.replace("\\", "_"),
        "SequenceVariant": header.variant.replace("\\", "_"),
        "ScanOptions": header.options.replace("\\", "_"),
        "SequenceName": header.name.strip("*"),
        "ImageType": vendor.image_type[acquisition.role].split("\\"),
        "MRAcquisitionType": "3D" if acquisition.volumetric else "2D",
        "SeriesNumber": series.label.number,
        "AcquisitionTime": ":".join(re.findall("..", series.label.time)),
        "SliceThickness": acquisition.thickness_mm,
        "SpacingBetweenSlices": acquisition.spacing_mm[2],
        "EchoTime": acquisition.te_ms / 1000,
        "RepetitionTime": acquisition.tr_ms / 1000,
        "InversionTime": acquisition.ti_ms / 1000,
        "FlipAngle": acquisition.flip_deg,
        "EchoTrainLength": acquisition.echo_train,
    }
    return {name: value for name, value in sidecar.items() if value not in ("", 0)}


def _write_truth(truth: Path, series: ScannedSeries, paths: list[str]) -> dict:
    """Write the record of a series and, unless it is a localizer, its masks on its own grid."""
    identity, planned = series.identity, series.planned
    record = {
        "patient_id": identity.patient_id,
        "study_uid": identity.study_uid,
        "series_uid": series.label.uid,
        "series_number": series.label.number,
        "modality": planned.stacks[0].modality,
        "outcome": planned.outcome,
        "paths": paths,
        "age_years": series.study.age_years,
        "vendor": series.study.vendor,
        "acquisitions": [asdict(stack) for stack in planned.stacks],
        "affines": [scan.affine.tolist() for scan in series.scans],
        "pose_head_to_scanner": series.scans[0].pose.tolist(),
    }
    if len(series.scans) == 1:
        (scan,), (acquisition,) = series.scans, planned.stacks
        for name, mask in (("brain-mask", scan.brain), ("face", scan.face)):
            record[name] = f"{series.label.uid}_{name}.nii.gz"
            _save_nifti(truth / record[name], mask, scan.affine, acquisition)
    _write_json(truth / f"{series.label.uid}.json", record)
    return record


def _table_row(series: ScannedSeries, path: str) -> dict:
    identity = series.identity
    return {
        "path": path,
        "patient_id": identity.patient_id,
        "study_id": identity.study_id,
        "SeriesNumber": series.label.number,
        "PatientAge": f"{identity.age_years:03d}Y",
        "PatientSex": identity.sex,
        "StudyDate": identity.study_date,
        "modality": series.planned.stacks[0].modality,
    }


def _write_table(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, SERIES_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_stray_files(folder: Path) -> None:
    """What else lies in an export: notes, a broken media directory, a viewer."""
    for name, content in STRAY_FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
