"""Where the time of a study goes: named steps inside a stage, added up as they run.

A stage marks its parts with `with step("mask"):`. The engine takes what has been added up when the
study is done and puts it into the record's usage; a key, a digest or a released byte never
depends on it. Steps do not nest: the time of an inner one would count twice.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mrmill.profile.sampler import read

#: Step -> what it took so far, in this process.
_taken: dict[str, dict[str, float]] = {}


@contextmanager
def step(name: str) -> Iterator[None]:
    """Add what a block takes to a step of the study that this process works on."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    try:
        yield
    finally:
        total = _taken.setdefault(name, {"wall_s": 0.0, "cpu_s": 0.0, "n": 0})
        total["wall_s"] += time.perf_counter() - wall
        total["cpu_s"] += cpu_seconds() - cpu
        total["n"] += 1


def take_steps() -> dict[str, dict[str, float]]:
    """Return what was added up since the last call, and begin anew.

    Returns
    -------
    steps : dict
        Step -> `wall_s`, `cpu_s` (all threads, children that ended included) and `n`, how often.
    """
    taken = {
        name: {"wall_s": round(t["wall_s"], 4), "cpu_s": round(t["cpu_s"], 4), "n": t["n"]}
        for name, t in _taken.items()
    }
    _taken.clear()
    return taken


def peak_mb() -> float:
    """Return the highest memory so far of this process or of a child that ended, in MB of 2^20 B.

    For itself it asks /proc: Linux hands `ru_maxrss` on through exec, from whoever started us.
    """
    _, _, rest = read("/proc/self/status").partition("VmHWM:")
    own = int(rest.split()[0]) if rest else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
