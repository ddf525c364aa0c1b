"""Real DICOM and real clinical NIfTI go the same way as the phantom, to zips and tables."""

import csv
import shutil
import tarfile

import pytest
from conftest import mrmill, project

#: What a person says of the 7 T series: rebuilt from a NIfTI, its header knows next to nothing.
SEVEN_TESLA = "1.2.826.0.1.3680043.2.1143.515404396022363061013111326823367652"

TCGA = [
    # file, SeriesNumber as the source names it, modality
    ("t2", 2, "T2w"),
    ("flair", 5, "FLAIR"),
    ("t1", 10, "T1w"),
    ("t1c", 13, "T1w"),
]


def run(folder, **settings):
    """Run a project to its release and verify it; return its ledger."""
    result = mrmill("run", "-c", project(folder, **settings), "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    verified = mrmill("verify", folder / "release")
    assert verified.returncode == 0, verified.stdout
    with (folder / "release/TINY/ledger.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def outcomes(ledger):
    """What became of each series: its id, or the reason it has none."""
    return sorted(row["series_id"] or row["reason"] for row in ledger)


@pytest.fixture
def dicom_export(real_data, tmp_path):
    names = ("siemens-prisma-hfs", "siemens-xa30-enhanced", "7t-t1-defaced")
    for name in names:
        with tarfile.open(real_data / f"dicom-{name}.tar.xz") as archive:
            archive.extractall(tmp_path / "export" / name, filter="data")
    return tmp_path / "export"


def test_classic_enhanced_and_rebuilt_dicom(dicom_export, tmp_path):
    said = "SeriesInstanceUID,modality,is_derived,PatientAge,PatientSex"
    (tmp_path / "said.csv").write_text(f"{said}\n{SEVEN_TESLA},T1w,false,042Y,M\n")
    ledger = run(tmp_path, input={"path": str(dicom_export), "series_table": "said.csv"})
    assert outcomes(ledger) == [
        "no_images",  # the Phoenix reports
        "not_3d",  # the diffusion mosaics
        "t1w-raw-axi",  # 7 T
        "t1w-raw-sag",  # Prisma
        "t1w-raw-sag",  # XA30, and the same with prescan normalisation
        "t1w-raw-sag-2",
    ]
    released = [row for row in ledger if row["state"] == "accepted"]
    assert {(row["native"], row["coreg"], row["atlas"]) for row in released} == {("yes",) * 3}
    everything = b"".join(p.read_bytes() for p in (tmp_path / "release").rglob("*") if p.is_file())
    for secret in (b"hucheng", b"crlab", b"20220711", b"20220407", b"Prisma_fit_AWP"):
        assert secret not in everything


def test_a_clinical_study_of_nifti_without_sidecars(real_data, tmp_path):
    (tmp_path / "export").mkdir()
    lines = ["path,patient_id,study_id,SeriesNumber,modality,PatientAge,PatientSex,StudyDate"]
    for name, number, modality in TCGA:
        shutil.copy(real_data / "tcga-fg-6692" / f"{name}.nii.gz", tmp_path / "export")
        lines.append(f"{name}.nii.gz,6692,first,{number},{modality},050Y,F,20000101")
    (tmp_path / "export" / "series.csv").write_text("\n".join(lines) + "\n")
    ledger = run(
        tmp_path,
        input={"kind": "nifti", "path": "export", "series_table": "export/series.csv"},
    )
    assert outcomes(ledger) == ["flair-raw-axi", "t1w-raw-axi", "t1w-raw-axi-2", "t2w-raw-axi"]
    assert {(row["native"], row["coreg"], row["atlas"]) for row in ledger} == {("yes",) * 3}
