"""One writer at a time: a file that says who works here, and that they are still alive.

The same lease guards a shard job and a whole run. It needs no lock daemon: on the holder's own
machine a lease is stale as soon as its process is gone, elsewhere when its heartbeat has been
silent for `SILENT_S`.
"""

import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from mrmill.errors import UserError

log = logging.getLogger(__name__)

BEAT_S = 10.0
SILENT_S = 12 * BEAT_S


class LeaseTaken(UserError):
    """Somebody else holds the lease and is alive."""


class Lease:
    """Hold a lease file for the length of a `with` block.

    Parameters
    ----------
    path : Path
        The lease file.
    wait_s : float
        How long to wait for a living holder to end before giving up.

    Raises
    ------
    LeaseTaken
        When a living holder does not end within `wait_s`.
    """

    def __init__(self, path: Path, wait_s: float = 0) -> None:
        self.path, self.wait_s = path, wait_s
        self.token = uuid4().hex
        self._over = threading.Event()

    def __enter__(self) -> "Lease":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.wait_s
        while not self._take():
            if time.monotonic() > deadline:
                raise LeaseTaken(
                    f"{self.path.stem} of {self.path.parent}: {describe(self.path)} is at work on "
                    "it\n  Wait for it to end, or end it; `mrmill status` shows how far it is. "
                    "What is done is kept."
                )
            time.sleep(min(1.0, max(0.05, self.wait_s / 10)))
        threading.Thread(target=self._beat, daemon=True, name="lease").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self.held():
            self.path.unlink(missing_ok=True)

    def held(self) -> bool:
        """Whether the lease is still ours; a holder that was silent too long may lose it."""
        return read(self.path).get("token") == self.token

    def _take(self) -> bool:
        holder = read(self.path)
        if holder and not is_stale(self.path, holder):
            return False
        if self.path.exists() and not self._remove_stale(holder):
            return False
        mine = {"token": self.token, "host": socket.gethostname(), "pid": os.getpid()}
        part = self.path.with_name(f".{self.path.name}.{self.token}.part")
        try:
            part.write_text(json.dumps({**mine, "born": birth(os.getpid())}), encoding="utf-8")
            os.link(part, self.path)  # atomic, and refuses to replace another's lease
        except FileExistsError:
            return False
        finally:
            part.unlink(missing_ok=True)
        return True

    def _remove_stale(self, holder: dict) -> bool:
        """Move a stale lease aside; of two takers only one may, and never a fresh one's."""
        aside = self.path.with_name(f".{self.path.name}.{self.token}.stale")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return True
        fresh = read(aside).get("token") != holder.get("token")
        if fresh:
            with suppress(FileExistsError):
                os.link(aside, self.path)
        aside.unlink()
        return not fresh

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(OSError):  # a file server that is away for a moment
                if not self.held():
                    return
                os.utime(self.path)


def read(path: Path) -> dict:
    """Return what a lease file says; empty when there is none or it is torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def is_stale(path: Path, holder: dict) -> bool:
    """Whether a lease's holder is gone."""
    if holder.get("host") == socket.gethostname():
        return birth(holder["pid"]) != holder["born"]
    probe = path.with_name(f".{path.name}.{uuid4().hex}.part")
    probe.touch()  # by the clock of the file server, which stamps the heartbeats too
    try:
        return probe.stat().st_mtime - path.stat().st_mtime > SILENT_S
    except FileNotFoundError:
        return True
    finally:
        probe.unlink()


def is_alive(path: Path) -> bool:
    """Say whether the holder of a lease is alive, without writing a probe beside it.

    The heartbeat of another machine is held against this machine's clock.
    """
    holder = read(path)
    if not holder:
        return False
    if holder.get("host") == socket.gethostname():
        return birth(holder["pid"]) == holder["born"]
    try:
        return time.time() - path.stat().st_mtime <= SILENT_S
    except FileNotFoundError:
        return False


def birth(pid: int) -> str:
    """Return when a process of this machine started, which tells a reused pid apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        import psutil

        return str(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else ""


def describe(path: Path) -> str:
    """Return who holds a lease, for a message."""
    holder = read(path)
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
