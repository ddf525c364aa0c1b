"""The file index of a DICOM export: Parquet parts of whole folders, only ever added to.

A part holds one row per file of some folders, and in its footer these folders with a digest
of the names, sizes and times of their files. A folder that changed gets new rows in a new
part, which count from then on; rows of files that did not change are taken over unread.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, groupby
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrmill.index.header import TAGS, UNREADABLE, nothing, read_header

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("name", "size", "mtime_ns", "status", *TAGS)

#: Rows of a part; at most this many headers are read again after a crash (about half a minute).
PART_ROWS = 50_000
#: Files that a worker takes at a time, and tasks that wait for workers.
TASK_FILES = 250
TASKS_AHEAD = 64

Row = tuple[Any, ...]


def stat_files(folder: str, names: Sequence[str]) -> list[Row]:
    """Return name, size and mtime_ns of each file; -1 if it vanished or cannot be seen."""
    rows: list[Row] = []
    for name in names:
        try:
            found = os.stat(f"{folder}/{name}")  # noqa: PTH116 (called 10^8 times)
            rows.append((name, found.st_size, found.st_mtime_ns))
        except OSError:
            rows.append((name, -1, -1))
    return rows


def read_files(folder: str, rows: Sequence[Row]) -> list[Row]:
    """Complete the rows that have name, size and mtime_ns only; return the others as they are."""
    return [row if len(row) == len(COLUMNS) else _read(folder, row) for row in rows]


def _read(folder: str, row: Row) -> Row:
    try:
        return (*row, *read_header(f"{folder}/{row[0]}"))
    except OSError:  # no size is the same as this: the file is tried again next time
        return (row[0], -1, -1, *nothing(UNREADABLE))


def worker_pool(workers: int) -> AbstractContextManager[Executor | None]:
    """Start processes; None if one is enough."""
    if workers <= 1:
        return nullcontext()
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def on_folders(
    pool: Executor | None,
    function: Callable[[str, Sequence], list[Row]],
    folders: Iterable[tuple[str, Sequence]],
) -> Iterator[tuple[str, list[Row]]]:
    """Apply a function to the files of each folder, in parallel, and keep the order.

    Small folders go to a worker together, large ones to several.
    """
    results = _in_order(pool, function, _tasks(folders))
    for folder, pieces in groupby(chain.from_iterable(results), key=itemgetter(0)):
        yield folder, list(chain.from_iterable(rows for _, rows in pieces))


def _tasks(folders: Iterable[tuple[str, Sequence]]) -> Iterator[list[tuple[str, Sequence]]]:
    task: list[tuple[str, Sequence]] = []
    size = 0
    for folder, items in folders:
        for begin in range(0, len(items), TASK_FILES):
            task.append((folder, items[begin : begin + TASK_FILES]))
            size += len(task[-1][1])
            if size >= TASK_FILES:
                yield task
                task, size = [], 0
    if task:
        yield task


def _in_order(pool: Executor | None, function: Callable, tasks: Iterable[list]) -> Iterator[list]:
    if pool is None:
        yield from (_apply(function, task) for task in tasks)
        return
    running: deque = deque()
    for task in tasks:
        running.append(pool.submit(_apply, function, task))
        if len(running) >= TASKS_AHEAD:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _apply(function: Callable, task: list[tuple[str, Sequence]]) -> list[tuple[str, list[Row]]]:
    return [(folder, function(folder, items)) for folder, items in task]


class Parts:
    """The parts in a folder, and which of their rows count.

    Parameters
    ----------
    folder : Path
        Of the parts; made if there is none.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._place: dict[str, tuple[int, str]] = {}  # folder -> part it is in, digest
        self._present: set[str] = set()
        self._pending: dict[str, list[Row]] = {}
        self._n_pending = 0
        self._old: tuple[int, pa.Table | None] = (-1, None)
        self._n_folders: list[int] = []  # of each part, those that changed since included
        while self._path(self._count).exists():
            footer = pq.read_metadata(self._path(self._count)).metadata
            self._take_in(json.loads(footer[b"folders"]))

    @property
    def _count(self) -> int:
        return len(self._n_folders)

    def _take_in(self, digests: dict[str, str]) -> None:
        """Note what the part that comes next holds: folder -> its digest."""
        for exported, digest in digests.items():
            self._place[exported] = (self._count, digest)
        self._n_folders.append(len(digests))

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.parquet"

    def unchanged(self, exported: str, listing: list[Row]) -> bool:
        """Tell whether a folder of the export is known as it is; its rows then count."""
        same = self._place.get(exported, (-1, ""))[1] == _digest(listing)
        if same:
            self._present.add(exported)
        return same

    def completed(self, exported: str, listing: list[Row]) -> list[Row]:
        """Return the files of a changed folder, with full rows for those known as they are."""
        if exported not in self._place:
            return listing
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        part = self._place[exported][0]
        if self._old[0] != part:
            self._old = (part, pq.read_table(self._path(part)))
        rows = self._old[1].filter(pc.equal(self._old[1]["folder"], os.fsencode(exported)))
        columns = [rows[name].to_pylist() for name in COLUMNS[1:]]
        names = [os.fsdecode(name) for name in rows["name"].to_pylist()]
        known = {row[:3]: row for row in zip(names, *columns, strict=True)}
        return [known.get(row, row) for row in listing]

    def add(self, exported: str, rows: list[Row]) -> None:
        """Take the rows of a new or changed folder; they count from now on."""
        self._pending[exported] = rows
        self._n_pending += len(rows)
        if self._n_pending >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last part as a part of its own."""
        if not self._pending:
            return
        import pyarrow.parquet as pq

        digests = {
            exported: _digest([row[:3] for row in rows]) for exported, rows in self._pending.items()
        }
        table = _table(self._pending)
        table = table.replace_schema_metadata({b"folders": json.dumps(digests).encode()})
        scratch = self._path(self._count).with_suffix(".writing")
        with scratch.open("wb") as file:
            scratch.chmod(0o600)
            pq.write_table(table, file, compression="zstd", row_group_size=PART_ROWS)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(self._path(self._count))
        self._take_in(digests)
        self._present |= digests.keys()
        self._pending, self._n_pending = {}, 0

    def tables(self, columns: Sequence[str]) -> Iterator["pa.Table"]:
        """Yield the rows that count, part by part."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        folders: dict[int, list[str]] = {}
        for exported in self._present:
            folders.setdefault(self._place[exported][0], []).append(exported)
        for part, present in sorted(folders.items()):
            table = pq.read_table(self._path(part), columns=list({"folder", *columns}))
            if len(present) < self._n_folders[part]:  # some vanished, or stand in a later part
                paths = pa.array([os.fsencode(exported) for exported in present])
                table = table.filter(pc.is_in(table["folder"], paths))
            yield table


def _digest(listing: list[Row]) -> str:
    return hashlib.sha256(repr(listing).encode()).hexdigest()[:32]


def _table(folders: dict[str, list[Row]]) -> "pa.Table":
    """Lay rows out in columns; paths are bytes, as the file system has them."""
    import pyarrow as pa

    names = [os.fsencode(folder) for folder, rows in folders.items() for _ in rows]
    columns = list(zip(*chain.from_iterable(folders.values()), strict=True))
    paths = [pa.array(names), pa.array([os.fsencode(name) for name in columns[0]])]
    numbers = [pa.array(column, pa.int64()) for column in columns[1:3]]
    texts = [pa.array(column, pa.string()) for column in columns[3:]]
    return pa.table([*paths, *numbers, *texts], names=["folder", *COLUMNS])
