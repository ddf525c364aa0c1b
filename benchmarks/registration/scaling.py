"""How many series N workers get through on N cores, and how much memory one worker takes."""

import multiprocessing
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.registration.cases import get_case, taken_head
from mrmill.phantom.presets import T1W_3D
from mrmill.volumes import write_volume

CASES = ("P01", "P02", "C01", "C11")  # thick on thick, the everyday step
ROUNDS = 5
SIDE = 256  # voxels of 1 mm
MIB_PER_KIB = 1 / 1024


def measured(engine: str, folder: Path) -> dict[str, Any]:
    """Run the per-series step in one worker, then in as many as there are cores.

    Parameters
    ----------
    folder : Path
        Keeps the phantoms.
    """
    for name in CASES:
        get_case(name, folder)
    cores = len(os.sched_getaffinity(0))
    alone, together = (_throughput(engine, folder, n) for n in (1, cores))
    big = folder / "256"
    _write_big_pair(big)
    return {
        "engine": engine,
        "cores": cores,
        "one_worker": alone,
        f"{cores}_workers": together,
        "speedup": round(together["series_per_s"] / alone["series_per_s"], 2),
        "share_of_ideal": round(together["series_per_s"] / alone["series_per_s"] / cores, 3),
        # the same where other work takes part of the cores: what a series costs beside others
        "share_of_ideal_by_cpu": round(alone["cpu_s_per_series"] / together["cpu_s_per_series"], 3),
        "peak_mib_256_float32": _peak_mib(engine, big),
    }


def _throughput(engine: str, folder: Path, n_workers: int) -> dict[str, float]:
    """Start workers together, each with the same series to do."""
    context = multiprocessing.get_context("spawn")  # nothing inherited: as in a job of its own
    with context.Manager() as manager:
        start = manager.Barrier(n_workers)
        with context.Pool(n_workers) as pool:
            tasks = [(engine, folder, CASES, ROUNDS, start)] * n_workers
            done = pool.starmap(_work, tasks, chunksize=1)
    n_series = n_workers * len(CASES) * ROUNDS
    wall_s = max(worker["wall_s"] for worker in done)
    return {
        "series_per_s": round(n_series / wall_s, 3),
        "cpu_s_per_series": round(sum(worker["cpu_s"] for worker in done) / n_series, 4),
        "cores_used": round(sum(worker["cpu_s"] for worker in done) / wall_s, 2),
        "peak_mib": round(max(worker["peak_mib"] for worker in done)),
    }


def _work(
    engine: str, folder: Path, names: Sequence[str], rounds: int, start: Any
) -> dict[str, float]:
    """Warm up, wait for the others, and go through the series."""
    from benchmarks.registration.bench import Bench

    bench, cases = Bench(), [get_case(name, folder) for name in names]
    bench.measured(cases[0], engine, seed=42)
    start.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        for case in cases:
            bench.measured(case, engine, seed=42)
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mib": _own_peak_mib(),
    }


def _own_peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MIB_PER_KIB


def _write_big_pair(folder: Path) -> None:
    """Write two contrasts of a head on 256^3 voxels, float32, with their brain masks."""
    if (folder / "moving_brain.nii.gz").is_file():
        return
    acquisition = replace(
        T1W_3D, columns=SIDE, rows=SIDE, slices=SIDE, pixel_mm=1.0, thickness_mm=1.0
    )
    for name, contrast, turn_deg in (("fixed", "T1w", 0), ("moving", "FLAIR", 10)):
        taken = taken_head(replace(acquisition, modality=contrast), turn_deg)
        voxels = taken.voxels.astype(np.float32) * np.float32(1.1)
        write_volume(folder / f"{name}.nii.gz", voxels, taken.affine)
        write_volume(folder / f"{name}_brain.nii.gz", taken.brain, taken.affine)


def _peak_mib(engine: str, folder: Path) -> int:
    """Run one whole step on the big pair in a process of its own; return its peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return round(pool.apply(_big_step, (engine, folder)))


def _big_step(engine: str, folder: Path) -> float:
    from benchmarks.registration import ours
    from benchmarks.registration.cases import embedded_template
    from mrmill.config import Register
    from mrmill.register.transforms import RigidTransform

    center, moving = (
        (folder / f"{name}.nii.gz", folder / f"{name}_brain.nii.gz") for name in ("fixed", "moving")
    )
    _, atlas = embedded_template()
    settings = Register(engine=engine)
    out = folder / "out"
    ours.register_series(center, moving, atlas, RigidTransform(), settings, out)
    return _own_peak_mib()


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    cores = results["cores"]
    alone, together = results["one_worker"], results[f"{cores}_workers"]
    return "\n".join(
        [
            f"| {results['engine']} | 1 worker | {cores} workers on {cores} cores |",
            "| --- | ---: | ---: |",
            f"| series a second | {alone['series_per_s']} | {together['series_per_s']} |",
            f"| CPU s a series | {alone['cpu_s_per_series']} | {together['cpu_s_per_series']} |",
            f"| cores in use | {alone['cores_used']} | {together['cores_used']} |",
            f"| throughput, share of ideal | | {results['share_of_ideal']} |",
            f"| the same by CPU time | | {results['share_of_ideal_by_cpu']} |",
            f"| peak memory of a worker, MiB | {alone['peak_mib']} | {together['peak_mib']} |",
            f"| the same, two images of 256^3 float32 | {results['peak_mib_256_float32']} | |",
        ]
    )
