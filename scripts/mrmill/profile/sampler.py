"""Watch one job from beside it: memory, CPU, bytes and GPU of all its processes.

A program of its own, because a thread would wait for the job's interpreter lock and die with the
job. It needs the standard library only (`python -I -S sampler.py`) and is told through its standard
input: a first line with the order, then lines that change the row, the last one its `state`. When
the input ends without that, the job was killed. It starts and looks often, so it is kept light: no
pathlib, for one.

The row stands in the file from the beginning (`running`) and is renewed while the job goes on,
so something is known even if everything dies at once.
"""

import json
import os
import select
import signal
import sys
import time

MB = 2**20

#: Seconds between two looks at the memory; longer when the looks cost more than `SHARE` of a core.
TICK_S = 0.1
SLOWEST_TICK_S = 2.0
SHARE = 0.01
#: CPU seconds granted beyond that share, for the start and for bursts.
GRANTED_S = 0.2

#: Seconds between readings of CPU, bytes and GPU: the kernel and the driver add up in between.
COUNT_S = 1.0
#: Seconds between two renewals of the row on disk.
RENEW_S = 30.0


class Tree:
    """The processes of a job: its roots, their children, and theirs, but not this one.

    Attributes
    ----------
    members : set of int
        Process numbers, as of the last `look`.
    """

    def __init__(self, roots: list[int]) -> None:
        self.members = set(roots)
        self._known = {*roots, os.getpid()}

    def look(self) -> None:
        """Find new members; only processes not seen before are opened."""
        present = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self.members &= present
        self._known &= present
        parents = {pid: parent_of(pid) for pid in present - self._known}
        self._known |= parents.keys()
        while new := {p for p, parent in parents.items() if parent in self.members} - self.members:
            self.members |= new


class Memory:
    """Highest memory of a process tree.

    A page that forked workers share counts once: the sum of proportional set sizes (PSS). Reading
    those walks page tables, so it is done only where a new peak is possible, which is where the
    sum of resident sizes (RSS, never smaller) is above the peak.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._rss_then = 0.0
        self._next_s = 0.0

    def look(self, pids: set[int], now: float) -> None:
        """Take one sample, in bytes."""
        resident = {pid: rss_bytes(pid) for pid in pids}
        total = sum(resident.values())
        if total <= self.peak or (total < 1.01 * self._rss_then and now < self._next_s):
            return
        shared = {pid: pss_bytes(pid) for pid in pids}
        self.peak = max(self.peak, sum(shared[pid] or resident[pid] for pid in pids))
        self._rss_then, self._next_s = max(total, self._rss_then), now + COUNT_S


class Gpu:
    """The GPUs a job holds, as their driver sees them.

    Attributes
    ----------
    busy : list of float
        Share of the last moment in which a kernel ran, one value per reading, mean of the GPUs.
    peak : int
        Bytes in use; those of the job where the driver tells processes apart, else of the GPU.
    """

    def __init__(self, library: str, visible: str, count: int) -> None:
        sys.path.append(library)
        import pynvml

        self.nvml = pynvml
        pynvml.nvmlInit()
        self._count = count
        self._candidates = self._find(visible)
        self.busy: list[float] = []
        self.peak = 0

    def _find(self, visible: str) -> list:
        """Return the devices that `CUDA_VISIBLE_DEVICES` names (by number or UUID), or all."""
        total = self.nvml.nvmlDeviceGetCount()
        names = [name.strip() for name in visible.split(",") if name.strip()]
        found = []
        for name in names or map(str, range(total)):
            try:
                if name.isdigit():
                    found.append(self.nvml.nvmlDeviceGetHandleByIndex(int(name)))
                else:
                    found.append(self.nvml.nvmlDeviceGetHandleByUUID(name))
            except self.nvml.NVMLError:
                continue  # numbered among those the job may see, and hidden from it
        return found or [self.nvml.nvmlDeviceGetHandleByIndex(i) for i in range(total)]

    def look(self, pids: set[int]) -> None:
        """Take one sample."""
        used = [self._used_by(device, pids) for device in self._candidates]
        ours = [device for device, n_bytes in zip(self._candidates, used, strict=True) if n_bytes]
        held = (ours or self._candidates)[: self._count]
        in_use = sum(used) or sum(self._used(device) for device in held)
        self.peak = max(self.peak, in_use)
        rates = [rate for rate in map(self._rate, held) if rate is not None]
        if rates:
            self.busy.append(sum(rates) / len(rates))

    def _used_by(self, device, pids: set[int]) -> int:
        try:
            running = self.nvml.nvmlDeviceGetComputeRunningProcesses(device)
        except self.nvml.NVMLError:
            return 0
        return sum(process.usedGpuMemory or 0 for process in running if process.pid in pids)

    def _used(self, device) -> int:
        try:
            return self.nvml.nvmlDeviceGetMemoryInfo(device).used
        except self.nvml.NVMLError:
            return 0

    def _rate(self, device) -> float | None:
        try:
            return self.nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
        except self.nvml.NVMLError:  # parts of a GPU (MIG) do not tell
            return None

    def row(self, wall_s: float) -> dict:
        """Return what the row says of it."""
        share = round(sum(self.busy) / len(self.busy), 3) if self.busy else None
        held_s = round(wall_s * self._count, 2)
        return {"held_s": held_s, "busy_share": share, "peak_mb": round(self.peak / MB, 1)}


class Watch:
    """All that is measured about one attempt of a job.

    Parameters
    ----------
    order : dict
        `row` (what is known beforehand), `path` of the attempts, `job` (its process), `roots` (that
        and others whose children are the job's) and `gpu`: None or the arguments of `Gpu`.
    """

    def __init__(self, order: dict) -> None:
        self.path, self.job = order["path"], order["job"]
        self.rows = read_rows(self.path)
        for row in self.rows:  # whoever runs now holds the lease
            row["state"] = "killed" if row["state"] == "running" else row["state"]
        self.row = {**order["row"], "attempt": 1 + len(self.rows)}
        self.tree, self.memory, self.gpu = Tree(order["roots"]), Memory(), open_gpu(order["gpu"])
        self.cgroup = peak_file(self.row["job_id"])
        self.counts = {"cpu_s": 0.0, "read_mb": 0.0, "written_mb": 0.0}
        self._count_at = self._renew_at = 0.0

    def listen(self, told: bytes) -> bytes:
        """Put what the job says into the row; return the part of a line that has no end yet."""
        *lines, rest = told.split(b"\n")
        for line in lines:
            self.row.update(json.loads(line))
        return rest

    def look(self) -> float:
        """Measure what is due; return how many seconds to wait."""
        now = time.monotonic()
        if os.path.isdir("/proc/self"):  # Linux
            self.tree.look()
            self.memory.look(self.tree.members, now)
        if now >= self._count_at:
            self.count()
            self._count_at = now + COUNT_S
        if now >= self._renew_at:
            self.write()
            self._renew_at = now + RENEW_S
        granted = GRANTED_S + SHARE * (time.time() - self.row["started"])
        overdrawn = time.process_time() - granted
        return min(max(TICK_S, overdrawn / SHARE), SLOWEST_TICK_S)

    def count(self) -> None:
        """Read what the kernel adds up, of ended children too, and the GPU."""
        # parents first, as children hand their counts up when they end: never counted twice
        counts = [counts_of(pid) for pid in sorted(self.tree.members)]
        for name in self.counts:
            self.counts[name] = max(self.counts[name], sum(count[name] for count in counts))
        if self.gpu:
            self.gpu.look(self.tree.members)

    def finish(self, state: str) -> None:
        """Take the last readings of a job that is about to end, or is gone."""
        if os.path.exists(f"/proc/{self.job}"):
            self.tree.look()
            self.memory.look(self.tree.members, time.monotonic())
            self.count()
        self.row["state"] = state
        self.write()

    def write(self) -> None:
        """Renew this attempt's row on disk; a disk that is full or away is no reason to stop."""
        row, now = self.row, time.time()
        row["ended"] = round(now, 2)
        row["wall_s"] = round(now - row["started"], 2)
        row["peak_mb"] = max(row["peak_mb"], round(self.memory.peak / MB, 1))
        row["cgroup_peak_mb"] = read_peak(self.cgroup)
        row.update({n: max(row[n], round(value, 2)) for n, value in self.counts.items()})
        row["gpu"] = self.gpu.row(row["wall_s"]) if self.gpu else None
        try:
            write_rows(self.path, [*self.rows, row])
        except OSError:
            pass


def parent_of(pid: int) -> int:
    """Return the parent's number; 0 if the process is gone."""
    fields = stat_of(pid)
    return int(fields[1]) if fields else 0


def stat_of(pid: int) -> list[str]:
    """Return /proc/<pid>/stat from the state on (proc_pid_stat(5), field 3); [] if it is gone."""
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def rss_bytes(pid: int) -> int:
    """Return the resident set size."""
    text = read(f"/proc/{pid}/statm")
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") if text else 0


def pss_bytes(pid: int) -> int:
    """Return the proportional set size; 0 where the kernel does not tell."""
    _, _, rest = read(f"/proc/{pid}/smaps_rollup").partition("\nPss:")
    return int(rest.split()[0]) * 1024 if rest else 0


def counts_of(pid: int) -> dict[str, float]:
    """Return CPU seconds and megabytes read and written, of its ended children too.

    Bytes are those asked for by read and write calls, as in Slurm's accounting, whether a disk or
    the page cache served them; memory maps are not among them.
    """
    fields = stat_of(pid)
    ticks = sum(map(int, fields[11:15])) if fields else 0  # utime, stime, cutime, cstime
    lines = dict(line.split(": ") for line in read(f"/proc/{pid}/io").splitlines())
    return {
        "cpu_s": ticks / os.sysconf("SC_CLK_TCK"),
        "read_mb": int(lines.get("rchar", 0)) / MB,
        "written_mb": int(lines.get("wchar", 0)) / MB,
    }


def read(path: str) -> str:
    """Return the text of a file of the kernel; empty if the process is gone or not ours."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def peak_file(job_id: str) -> str:
    """Return the file with the peak of the cgroup, if that is the Slurm job's own; else ""."""
    for line in read("/proc/self/cgroup").splitlines() if job_id else ():
        _, controllers, path = line.split(":", 2)
        head, found, _ = f"{path}/".partition(f"/job_{job_id}/")
        if found and controllers in ("", "memory"):
            mount, name = (
                ("/sys/fs/cgroup/memory", "memory.max_usage_in_bytes")
                if controllers
                else ("/sys/fs/cgroup", "memory.peak")
            )
            file = f"{mount}{head}/job_{job_id}/{name}"
            if os.path.exists(file):
                return file
    return ""


def read_peak(path: str) -> float | None:
    """Return a cgroup's peak in MB, page cache included: an upper bound of what is needed."""
    text = read(path) if path else ""
    return round(int(text) / MB, 1) if text else None


def open_gpu(order: dict | None) -> Gpu | None:
    """Return the GPUs to look at; None without a driver or its Python package."""
    if order is None:
        return None
    try:
        return Gpu(**order)
    except Exception:  # of a library that may be absent: ImportError, or its own NVMLError
        return None


def read_rows(path: str) -> list[dict]:
    """Return the rows of an attempts file; lines that are not whole are left out."""
    rows = []
    for line in read(path).splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def write_rows(path: str, rows: list[dict]) -> None:
    """Write an attempts file that appears whole or not at all."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    part = os.path.join(folder, f".{name}.{os.getpid()}.part")
    try:
        with open(part, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        if os.path.exists(part):
            os.unlink(part)
        raise


def main() -> None:
    """Watch until the job says how it ended, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the job; its row comes after
    told = b""
    while b"\n" not in told:
        told += os.read(0, 65536) or sys.exit(1)
    order, _, told = told.partition(b"\n")
    watch = Watch(json.loads(order))
    told, due = watch.listen(told), 0.0
    while watch.row["state"] == "running" and os.getppid() == watch.job:
        if time.monotonic() >= due:
            due = watch.look() + time.monotonic()
        if select.select([0], [], [], max(0.0, due - time.monotonic()))[0]:
            more = os.read(0, 65536)
            if not more:
                break
            told = watch.listen(told + more)
    state = watch.row["state"]
    watch.finish("killed" if state == "running" else state)


if __name__ == "__main__":
    main()
