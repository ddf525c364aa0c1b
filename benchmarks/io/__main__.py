"""Read, resample, write and compress phantom series: CPU seconds, beside nibabel and antspyx.

Everything happens in one process with one thread. The ways take turns, and the fastest round of
each counts. Files come from the cache: the disk is not measured.
"""

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

from mrmill.config import Register
from mrmill.phantom import CONTRASTS, Acquisition, Warp, acquire, rigid, standard_head
from mrmill.phantom.presets import T1W_3D, T2W
from mrmill.register.atlas import load_atlas
from mrmill.register.engines.ants import import_ants, to_ants
from mrmill.register.resampling import resample
from mrmill.register.transforms import RigidTransform, write_transform
from mrmill.volumes import Volume, read_volume, write_volume

Ways = dict[str, Callable[[], Any]]
Results = dict[str, dict[str, dict[str, dict[str, float]]]]

SAME_SHAPE = Warp(np.ones(3), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
ONE_MM = replace(T1W_3D, columns=256, rows=256, slices=176, pixel_mm=1.0, thickness_mm=1.0)
TRANSFORM = RigidTransform(rigid((4, -3, 6), (3, -5, 2)))

#: The first use of `resample` in a process: what is imported, found in the cache or compiled.
FIRST_USE = """
import time
import numpy as np
from mrmill.register.resampling import resample
from mrmill.register.transforms import RigidTransform
from mrmill.volumes import Volume
volumes = [Volume(np.ones((9, 9, 9), t, order="F"), np.eye(4)) for t in ("u1", "u2", "f4")]
start = time.process_time()
for order, volume in zip((0, 1, 1), volumes):
    resample(volume, volume, RigidTransform(), order)
print(time.process_time() - start)
"""


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="times that everything is done")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mrmill-io-") as name:
        results = measured(Path(name), arguments.rounds)
    print(tables(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def measured(scratch: Path, rounds: int) -> dict[str, Any]:
    """Return CPU seconds by what is done, series and way."""
    native = {"thick": taken(T2W), "1 mm": taken(ONE_MM)}
    masks = {name: Volume((v.data > 200).astype(np.uint8), v.affine) for name, v in native.items()}
    grids = {"atlas": load_atlas(Register()).volume, "thick": native["thick"]}
    series = {f"{name}, uint16": volume for name, volume in native.items()}
    series |= {f"{name}, mask": masks[name] for name in native}
    moved = {
        (n, g): resample(native[n], grid, TRANSFORM) for n in native for g, grid in grids.items()
    }
    for (name, grid), data in moved.items():
        series[f"{name} on {grid} grid, float32"] = Volume(data, grids[grid].affine)
    results: Results = {"read": {}, "write": {}, "resample": {}, "compress": {}}
    for name, volume in series.items():
        path = scratch / f"{name}.nii.gz"
        write_volume(path, volume.data, volume.affine)
        for kind, ways in (
            ("read", reading(path)),
            ("write", writing(volume, scratch / "out.nii.gz")),
            ("compress", compressing(volume)),
        ):
            results[kind][name] = cpu_seconds(ways, rounds, volume.data.nbytes)
        for cost in results["compress"][name].values():
            cost["share"] = cost.pop("result") / volume.data.nbytes
    write_transform(scratch / "M.mat", TRANSFORM)
    for name in native:
        for grid, fixed in grids.items():
            for order, moving in ((1, native[name]), (0, masks[name])):
                title = f"{name} to {grid} grid, {'linear' if order else 'nearest'}"
                ways = resampling(moving, fixed, scratch / "M.mat", order)
                n_bytes = fixed.data.size * (4 if order else 1)
                results["resample"][title] = cpu_seconds(ways, rounds, n_bytes)
    return {**results, "first_use_cpu_s": first_use(scratch), "machine": machine()}


def taken(acquisition: Acquisition) -> Volume:
    """Acquire the standard head, noise in the air included."""
    head = standard_head(1.25)
    painted = head.paint(CONTRASTS[acquisition.modality])
    rng = np.random.default_rng(0)
    scan = acquire(head, painted, SAME_SHAPE, acquisition, np.eye(4), np.eye(4), rng)
    return Volume(np.asfortranarray(scan.voxels), scan.affine)


def reading(path: Path) -> Ways:
    """Ways to get an array from a file."""
    ants = import_ants()
    return {
        "mrmill": lambda: read_volume(path).data.nbytes,
        "nibabel": lambda: np.asanyarray(nib.load(path).dataobj).nbytes,
        "antspyx": lambda: ants.image_read(str(path)).numpy().nbytes,
    }


def writing(volume: Volume, path: Path) -> Ways:
    """Ways to get a file from an array."""
    ants, image = import_ants(), nib.Nifti1Image(volume.data, volume.affine)
    itk = to_ants(volume)  # float32, as antspyx reads images; it has no uint16
    if volume.data.dtype == np.uint8:
        itk = itk.clone("unsigned char")
    return {
        "mrmill": lambda: write_volume(path, volume.data, volume.affine),
        "nibabel": lambda: nib.save(image, path),
        "antspyx": lambda: ants.image_write(itk, str(path)),
    }


def resampling(moving: Volume, fixed: Volume, transform: Path, order: int) -> Ways:
    """Ways to sample one image on the grid of another."""
    ants = import_ants()
    images = to_ants(fixed), to_ants(moving)
    interpolator = "linear" if order else "nearestNeighbor"
    return {
        "mrmill": lambda: resample(moving, fixed, TRANSFORM, order),
        "antspyx": lambda: ants.apply_transforms(
            *images, [str(transform)], interpolator=interpolator
        ),
    }


def compressing(volume: Volume) -> Ways:
    """Ways to compress the voxels; each returns the number of bytes."""
    voxels = volume.data.tobytes("F")
    ways: Ways = {
        f"igzip {level}": lambda level=level: len(igzip.compress(voxels, level))
        for level in range(4)
    }
    try:
        from imagecodecs import zlibng_encode
    except ImportError:
        pass
    else:
        for level in (1, 2, 6):
            ways[f"zlib-ng {level}"] = lambda level=level: len(zlibng_encode(voxels, level))
    for level in (1, 6):
        ways[f"gzip {level}"] = lambda level=level: len(gzip.compress(voxels, level))
    return ways


def cpu_seconds(ways: Ways, rounds: int, n_bytes: int) -> dict[str, dict[str, float]]:
    """Return for each way the CPU seconds of its fastest round, MB of voxels per second, result."""
    fastest: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for way, do in ways.items():
            start = time.process_time()
            result = do()
            cpu_s = time.process_time() - start
            if way not in fastest or cpu_s < fastest[way]["cpu_s"]:
                fastest[way] = {"cpu_s": cpu_s, "mb_per_s": n_bytes / 1e6 / cpu_s}
            if isinstance(result, int):
                fastest[way]["result"] = result
    return fastest


def first_use(scratch: Path) -> dict[str, float]:
    """Return CPU seconds of the first three resamplings in a process, without and with a cache."""
    paths = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(scratch / "cache")}
    command = [sys.executable, "-c", FIRST_USE]
    without, with_cache = (
        float(subprocess.check_output(command, env=environment)) for _ in range(2)
    )
    return {"nothing cached": without, "cached": with_cache}


def machine() -> dict[str, str]:
    """Return versions and the name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = ("numpy", "nibabel", "antspyx", "isal", "numba")
    return {
        "cpu": names[0] if names else platform.machine(),
        "python": platform.python_version(),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        **{name: version(name) for name in packages},
    }


def tables(results: dict[str, Any]) -> str:
    """Return the results as Markdown tables."""
    lines = []
    for kind in ("read", "resample", "write", "compress"):
        rows = results[kind]
        ways = list(next(iter(rows.values())))
        lines += [f"| {kind} | {' | '.join(ways)} |", "| --- |" + " ---: |" * len(ways)]
        for name, costs in rows.items():
            lines.append(f"| {name} | {' | '.join(_cell(costs[way]) for way in ways)} |")
        lines.append("")
    first = ", ".join(f"{way} {cpu_s:.2f} s" for way, cpu_s in results["first_use_cpu_s"].items())
    lines.append(f"First use of `resample` in a process: {first}.")
    lines.append(", ".join(f"{name} {value}" for name, value in results["machine"].items()))
    return "\n".join(lines)


def _cell(cost: dict[str, float]) -> str:
    """Return milliseconds, with MB/s or the share of the size that is left."""
    other = f"{cost['share']:.3f}" if "share" in cost else f"{cost['mb_per_s']:,.0f} MB/s"
    return f"{1000 * cost['cpu_s']:,.1f} ms, {other}"


if __name__ == "__main__":
    main()
