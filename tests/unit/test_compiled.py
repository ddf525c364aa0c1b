import os
import shutil
import subprocess
import sys

import pytest

KERNEL = """
from mrmill.compiled import compiled
from shared import HALVES, half

@compiled
def halved(values):
    total = 0.0
    for value in values:
        total += half(value) * HALVES
    return total
"""

SHARED = """
from mrmill.compiled import compiled

HALVES = 1

@compiled
def half(value):
    return value / 2
"""

CALL = """
import sys
import numpy as np
from kernel import halved
values = np.array([1, 2, 251]).astype(sys.argv[1])
print(halved(values), sum(halved.stats.cache_hits.values()))
"""


@pytest.fixture
def module(tmp_path):
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "kernel.py").write_text(KERNEL)
    (folder / "shared.py").write_text(SHARED)
    return folder


def call(module, dtype, **environment):
    """Sum in a new process; return the sum and how many compiled functions were found."""
    paths = os.pathsep.join([str(module), *sys.path])
    process = subprocess.run(
        [sys.executable, "-c", CALL, dtype],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    total, hits = process.stdout.split()
    return float(total), int(hits)


def test_jobs_that_start_at_once_keep_what_each_compiled(module, tmp_path):
    caches = [tmp_path / "one", tmp_path / "other"]
    for cache, dtype in zip(caches, ("uint8", "int8"), strict=True):
        call(module, dtype, NUMBA_CACHE_DIR=str(cache))
    # none saw the other's files: as if both had written at the same time
    shutil.copytree(caches[1], caches[0], dirs_exist_ok=True)
    both = {"NUMBA_CACHE_DIR": str(caches[0])}
    assert call(module, "uint8", **both) == (127, 1)
    assert call(module, "int8", **both) == (-1, 1)


def test_what_a_function_calls_is_part_of_it(module):
    assert call(module, "float32") == (127, 0)
    assert call(module, "float32") == (127, 1)
    (module / "shared.py").write_text(SHARED.replace("value / 2", "value / 4"))
    assert call(module, "float32") == (63.5, 0)
    (module / "shared.py").write_text(SHARED.replace("HALVES = 1", "HALVES = 2"))
    assert call(module, "float32") == (254, 0)


def test_half_a_file_is_compiled_anew(module, tmp_path):
    assert call(module, "float32", NUMBA_CACHE_DIR=str(tmp_path)) == (127, 0)
    for path in tmp_path.rglob("*.nbc"):
        path.write_bytes(path.read_bytes()[:-100])
    assert call(module, "float32", NUMBA_CACHE_DIR=str(tmp_path)) == (127, 0)
    assert call(module, "float32", NUMBA_CACHE_DIR=str(tmp_path)) == (127, 1)


def test_without_a_folder_to_write_to_it_works_all_the_same(module):
    (module / "__pycache__").touch()  # a file where a folder should be made
    nowhere = {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "NUMBA_CACHE_DIR": ""}
    assert call(module, "float32", **nowhere) == (127, 0)
    assert call(module, "float32", **nowhere) == (127, 0)
