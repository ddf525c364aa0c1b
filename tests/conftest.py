"""What several floors of the tests share: the real data, phantom exports, and a finished run."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]

#: A fixed pseudonym key, so that the expected files can be named.
KEY = "00" * 32

SETTINGS = {
    "dataset": {"name": "TINY"},
    "deface": {"backend": "deepbet", "device": "cpu"},
    "plan": {"studies_per_shard": 2, "studies_per_batch": 4},
    "register": {"sampling_fraction": 0.05},  # a quarter of the recipe: tests, not science
}


@pytest.fixture(scope="session")
def real_data():
    """Folder of real images and DICOM; they are not part of the project."""
    folder = Path(os.environ.get("MRMILL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "real" / "MANIFEST.csv").exists():
        pytest.skip(f"no real data in {folder} (set MRMILL_TEST_DATA)")
    return folder / "real"


def mrmill(*arguments, **options):
    """Call the command as a user would; return the finished process with its output as text."""
    command = [sys.executable, "-m", "mrmill", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), **options)


def environment():
    """Environment of a child process: this project's library, and no terminal colours."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "COLUMNS": "120", "NO_COLOR": "1"}


def project(folder, **settings):
    """Make a folder with a config and the fixed key; return the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "pseudonym.key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    merged = {**SETTINGS, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(merged))
    return folder / "config.yaml"


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory):
    """A DICOM export of coarse phantom heads."""
    folder = tmp_path_factory.mktemp("tiny") / "export"
    assert mrmill("phantom", folder, "--preset", "tiny").returncode == 0
    return folder


@pytest.fixture(scope="session")
def finished(tiny_export, tmp_path_factory):
    """The folder of a run that went from that export to a release without disturbance."""
    folder = tmp_path_factory.mktemp("finished")
    config = project(folder, input={"path": str(tiny_export)})
    with peak_of_images(folder) as peak:
        result = mrmill("run", "-c", config, "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    (folder / "peak_bytes.txt").write_text(str(max(peak)))
    return folder


def release_files(folder):
    """Digest of every file of a release, by its path."""
    root = folder / "release"
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def image_bytes(folder):
    """Bytes of all images and zips below a folder, half-written ones included."""
    total = 0
    for place, _, names in os.walk(folder):  # goes on where a folder vanishes while we look
        for name in names:
            if ".nii.gz" in name or ".zip" in name:
                with suppress(FileNotFoundError):
                    total += Path(place, name).stat().st_size
    return total


@contextmanager
def peak_of_images(folder, every_s=0.2):
    """Look how many bytes of images there are, again and again; gives the list of what was seen."""
    seen, over = [0], threading.Event()

    def look():
        while not over.wait(every_s):
            seen.append(image_bytes(folder))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield seen
    over.set()
    thread.join()


@pytest.fixture(scope="session")
def report():
    """Rows of docs/faults.md, which is written if that is asked for."""
    from faults_page import page

    rows = []
    yield rows
    if path := os.environ.get("MRMILL_WRITE_FAULTS"):
        ROOT.joinpath(path).write_text(page(rows))


@pytest.fixture
def reported(report):
    """Return a block for one fault: how it ended, and how long it took, goes into the report."""

    @contextmanager
    def during(where, fault):
        started, outcome = time.monotonic(), "**another release, or none**"
        try:
            yield
            outcome = "as undisturbed"
        finally:
            report.append((where, fault, outcome, time.monotonic() - started))

    return during
