"""DICOM exports: every header is read once, kept in Parquet, and grouped by UID.

Made for 10^8 files in 4 GB of memory. Files are never all in memory:

- `index_dicom` goes folder by folder and keeps rows only until a part is full (`PART_ROWS`).
  It remembers one digest per folder (about 0.3 kB) and needs no more than that to pass over
  a folder in which nothing changed. The largest single folder has to fit (1.5 kB per file).
- `DicomIndex.studies` goes part by part and keeps one row per series (about 0.3 kB).
- `DicomIndex.entries` first deals all rows out into files on disk, one for some whole shards
  (`BUCKET_ROWS`), then takes these one at a time.
"""

import csv
import hashlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from itertools import groupby, pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mrmill.dicom_headers import OK
from mrmill.index import FoundStudy, Index, PlanError, Progress, Shard, Skip, walk
from mrmill.index_parts import Parts, read_folders, stat_folders, worker_pool

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows that are grouped at a time: about 0.5 GB.
BUCKET_ROWS = 500_000

#: No image, though the name of the class has the word: Siemens CSA Non-Image Storage.
PRIVATE_WITHOUT_IMAGE = {"1.3.12.2.1107.5.9.1"}

PATIENT = ("PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyDate")


class File(NamedTuple):
    """One row of the index, as far as grouping needs it."""

    StudyInstanceUID: str
    SeriesInstanceUID: str
    SOPInstanceUID: str
    SOPClassUID: str | None
    folder: bytes
    name: bytes
    size: int
    mtime_ns: int
