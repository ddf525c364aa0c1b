"""Curate synthetic series by the hundred thousand: seconds, CPU seconds and peak memory.

Headers are those of seven vendor protocols with random values around their own, so that every
kind of evidence is met; studies are curated as the stage does it, a shard at a time in worker
processes. Reading and writing records is not part of it.
"""

import argparse
import json
import os
import platform
import random
import resource
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from mrmill.config import Convert, Curate
from mrmill.curate import Tables, curate_study, load_tables
from mrmill.records import Outcome, Record
from mrmill.shards import Study

SERIES_PER_STUDY = 14
STUDIES_PER_SHARD = 48

#: What tells them apart; values in the units of header records (ms, degrees).
PROTOCOLS: list[dict[str, Any]] = [
    {"Manufacturer": "SIEMENS", "SequenceName": "*tfl3d1_16ns",
     "SeriesDescription": "T1 MPRAGE sag", "ScanningSequence": "GR\\IR", "TE_ms": 2.3,
     "TR_ms": 1900.0, "TI_ms": 900.0, "FlipAngle": 9.0, "MRAcquisitionType": "3D"},
    {"Manufacturer": "SIEMENS", "SequenceName": "*tir2d1_16",
     "SeriesDescription": "Beyin FLAIR tra", "ScanningSequence": "SE\\IR", "TE_ms": 90.0,
     "TR_ms": 9000.0, "TI_ms": 2500.0, "FlipAngle": 150.0, "MRAcquisitionType": "2D"},
    {"Manufacturer": "GE MEDICAL SYSTEMS", "PulseSequenceName": "FSE-XL",
     "SeriesDescription": "Ax T2 FRFSE", "ScanningSequence": "SE", "TE_ms": 102.0,
     "TR_ms": 5200.0, "FlipAngle": 142.0, "MRAcquisitionType": "2D",
     "ScanOptions": "FAST_GEMS\\FC_FREQ_AX_GEMS"},
    {"Manufacturer": "GE MEDICAL SYSTEMS", "PulseSequenceName": "SWAN",
     "SeriesDescription": "Ax SWAN", "ScanningSequence": "GR", "TE_ms": 24.0, "TR_ms": 39.0,
     "FlipAngle": 15.0, "MRAcquisitionType": "3D"},
    {"Manufacturer": "Philips Medical Systems", "SeriesDescription": "T1W_SE +C nach KM",
     "ScanningSequence": "SE", "TE_ms": 12.0, "TR_ms": 550.0, "FlipAngle": 69.0,
     "MRAcquisitionType": "2D", "ContrastBolusAgent": "GADOVIST"},
    {"Manufacturer": "CANON_MEC", "SequenceName": "FE3D_MRA", "SeriesDescription": "TOF MRA",
     "ScanningSequence": "GR", "TE_ms": 6.8, "TR_ms": 23.0, "FlipAngle": 20.0,
     "MRAcquisitionType": "3D"},
    {"Manufacturer": "UIH", "SequenceName": "epi_dwi", "SeriesDescription": "DWI b1000",
     "ScanningSequence": "EP", "TE_ms": 80.0, "TR_ms": 4000.0, "FlipAngle": 90.0,
     "MRAcquisitionType": "2D"},
]  # fmt: skip


@cache
def tables() -> Tables:
    """Read the tables once in every process."""
    return load_tables(Curate(), Convert().header_columns)


def study(number: int) -> Study:
    """Make a study with its record of convert; a number always gives the same one."""
    chance = random.Random(number)
    entries = [_entry(f"{number:07d}{k:02d}", k, chance) for k in range(SERIES_PER_STUDY)]
    plan = {
        "StudyDate": "20240131",
        "date_shift_days": -chance.randrange(1, 3650),
        "series": [{"series_key": entry["source"], "table": {}} for entry in entries],
    }
    converted = Record(f"{number:010d}", "key", Outcome(series=entries))
    return Study(f"{number:010d}", "patient", "batch00", plan, {"convert": converted})


def _entry(key: str, number: int, chance: random.Random) -> dict[str, Any]:
    header = dict(chance.choice(PROTOCOLS))
    for name in ("TE_ms", "TR_ms"):
        header[name] = round(header[name] * chance.uniform(0.97, 1.03), 2)
    header["SeriesDescription"] += f" {chance.randrange(300)}"
    header |= {
        "SeriesNumber": number + 1,
        "Patient'sAge": f"{chance.randrange(1, 99):03d}Y",
        "ImageOrientation(Patient)": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "BodyPartExamined": "HEAD",
        "FieldStrength_T": 3.0,
    }
    spacing_mm = [0.9, 0.9, chance.choice([1.0, 5.5])]
    return {
        "series_key": key,
        "source": key,
        "file": f"{key}.nii.gz",
        "state": "accepted",
        "reason": "",
        "header": header,
        "shape": [256, 256, 32],
        "spacing_mm": spacing_mm,
        "affine": [[0.9, 0, 0, 0], [0, 0.9, 0, 0], [0, 0, spacing_mm[2], 0], [0, 0, 0, 1]],
    }


def curate_shard(first: int) -> tuple[Counter[str], float, int]:
    """Curate a shard's studies; return reasons, CPU seconds and this process's peak memory."""
    studies = [study(number) for number in range(first, first + STUDIES_PER_SHARD)]
    reasons: Counter[str] = Counter()
    begun = time.process_time()
    for each in studies:
        outcome = curate_study(each, Path(), Curate(), tables())
        reasons.update(entry["reason"] or entry["state"] for entry in outcome.series)
    cpu_s = time.process_time() - begun
    return reasons, cpu_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Curate as many series as were asked for and say what it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curation", description=__doc__)
    parser.add_argument("--series", type=int, default=700_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    shards = range(0, max(1, asked.series // SERIES_PER_STUDY), STUDIES_PER_SHARD)
    reasons: Counter[str] = Counter()
    cpu_s, peaks_kb = 0.0, 0
    begun = time.perf_counter()
    with ProcessPoolExecutor(asked.processes) as pool:
        for found, seconds, peak_kb in pool.map(curate_shard, shards, chunksize=4):
            reasons += found
            cpu_s += seconds
            peaks_kb = max(peaks_kb, peak_kb)
    result = {
        "series": reasons.total(),
        "processes": asked.processes,
        "wall_s": round(time.perf_counter() - begun, 1),
        "curate_cpu_s": round(cpu_s, 1),
        "series_per_cpu_s": round(reasons.total() / cpu_s),
        "peak_mb_per_process": round(peaks_kb / 1000),
        "reasons": dict(reasons.most_common()),
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
