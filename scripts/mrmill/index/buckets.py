"""Rows of all files of an export, dealt out on disk so that a few shards fit into memory."""

import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from mrmill.index import FoundStudy, Shard
from mrmill.index.series import File

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows grouped at a time (about 0.5 GB); 10^8 rows make 400 buckets, each an open file.
BUCKET_ROWS = 250_000


class Buckets:
    """Files on disk that each hold the rows of some whole shards.

    Parameters
    ----------
    folder : Path
        Made on entering, and removed on leaving, the context.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Buckets":
        shutil.rmtree(self.folder, ignore_errors=True)  # a killed plan may have left some
        self.folder.mkdir(mode=0o700)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def deal(self, placed: list[tuple[FoundStudy, Shard]], tables: Iterator["pa.Table"]) -> None:
        """Write each row to the bucket of its study's shard.

        Parameters
        ----------
        placed : list of (FoundStudy, Shard)
            All studies that the rows speak of.
        tables : iterator of pyarrow.Table
            With the columns of `File`.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        studies = sorted(placed, key=lambda place: place[1])
        bucket_of_study, n_rows = [], 0
        for _, group in groupby(studies, key=lambda place: place[1]):
            shard = [study for study, _ in group]
            bucket_of_study += [n_rows // BUCKET_ROWS] * len(shard)
            n_rows += sum(study.n_files for study in shard)
        keys, buckets = pa.array([s.key for s, _ in studies]), np.array(bucket_of_study)
        writers: dict[int, pa.RecordBatchStreamWriter] = {}
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        for table in tables:
            bucket = buckets[pc.index_in(table["study"], keys).to_numpy()]
            table = table.take(np.argsort(bucket, kind="stable"))
            numbers, sizes = np.unique(bucket, return_counts=True)
            for number, end, size in zip(numbers, np.cumsum(sizes), sizes, strict=True):
                if number not in writers:
                    path = self.folder / f"{number:05d}.arrow"
                    writers[number] = pa.ipc.new_stream(path, table.schema, options=options)
                writers[number].write_table(table.slice(end - size, size))
        for writer in writers.values():
            writer.close()

    def __iter__(self) -> Iterator[Iterator[File]]:
        """Yield the files of one bucket after the other, by study, series, folder and name."""
        import pyarrow as pa

        for path in sorted(self.folder.iterdir()):
            with pa.ipc.open_stream(path) as stream:
                table = stream.read_all()
            table = table.sort_by([(name, "ascending") for name in File._fields[:4]])
            columns = [table[name].to_pylist() for name in File._fields]
            yield map(File._make, zip(*columns, strict=True))
