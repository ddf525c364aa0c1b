"""Index an export in a test and look at what comes out."""

import csv
from pathlib import Path

from mrmill.config import Input
from mrmill.index import index_export


def index(path, tmp_path, kind="dicom", workers=1, series_table=None, **more):
    settings = Input.model_construct(kind=kind, path=path, series_table=series_table, **more)
    return index_export(settings, tmp_path / "index", workers, lambda *_: None)


def entries_of(found, known=()):
    """All studies' entries, with UIDs in the place of pseudonyms."""
    placed = [(study, ("batch00", "shard0000")) for study in found.studies(known)]
    merged = {}
    for shards in found.entries(placed, str):
        for studies in shards.values():
            merged |= studies
    return merged


def skipped(found):
    return sorted((Path(skip.folder, skip.name).name, skip.reason) for skip in found.skips())


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return path
