"""What several floors of the tests share: the real data, phantom exports, and a finished run."""

import os
import subprocess
import sys
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
    result = mrmill("run", "-c", config, "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder
