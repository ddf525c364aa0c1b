"""A job's own folder for temporary files, on the node's disk, gone when the job is.

Libraries write below $TMPDIR what may show a patient. A job that is killed cannot clean up; the
next one on the machine does it, for whoever is no longer there.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrmill.lease import birth


@contextmanager
def job_scratch() -> Iterator[Path]:
    """Have all temporary files of this process and its children in one folder, then remove it.

    Yields
    ------
    folder : Path
        Below $TMPDIR (a cluster's node-local disk), readable by its owner only.
    """
    parent = Path(tempfile.gettempdir())
    sweep(parent)
    before = os.environ.get("TMPDIR")
    folder = tempfile.mkdtemp(prefix=f"{_here()}{os.getpid()}-{birth(os.getpid())}-", dir=parent)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        yield Path(folder)
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove the folders of this user's jobs that are no longer there."""
    for path in parent.glob(f"{_here()}*"):
        pid, born = path.name.removeprefix(_here()).split("-")[:2]
        with suppress(FileNotFoundError):  # another job sweeps too
            if path.stat().st_uid == os.getuid() and birth(int(pid)) != born:
                shutil.rmtree(path, ignore_errors=True)


def _here() -> str:
    """Return how names of folders begin whose process ids this machine can tell apart.

    Containers may share a disk and not their process ids.
    """
    namespace = Path("/proc/self/ns/pid")
    n = namespace.stat().st_ino if namespace.exists() else 0
    return f"mrmill-{socket.gethostname()}-{n}-"
