"""Real pairs, whose truth nobody knows: what can be said all the same.

The images lie below `MRMILL_TEST_DATA` (`real/MANIFEST.csv` names their sources). All series of a
person are registered to all others, with the face removed as in production: then going around a
triangle of series, or there and back, should move nothing. Where the authors of the data publish
transforms, distances to them are given too.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.registration.bench import REFERENCE, SEEDS, Bench
from benchmarks.registration.cases import (
    Case,
    best_rigid,
    defaced,
    embedded_template,
    points_within,
)
from benchmarks.registration.ours import read_scan
from benchmarks.registration.pictures import draw_on_template
from benchmarks.registration.summary import STEP
from mrmill.register.scans import Scan
from mrmill.register.transforms import FLIP, RigidTransform
from mrmill.volumes import Volume, as_released, read_volume, write_volume

Pair = tuple[str, str]  # fixed, moving

#: By fixed, moving and method, a row for each seed.
Found = dict[tuple[str, str, str], list[dict[str, Any]]]


@dataclass(frozen=True)
class Person:
    """Series of one head.

    Attributes
    ----------
    name : str
        Folder of the data.
    series : dict
        Name of a series -> file of its brain mask, or empty: then deepbet makes one.
    """

    name: str
    series: dict[str, str]

    @property
    def names(self) -> list[str]:
        """The series, with their folder."""
        return [f"{self.name}/{series}" for series in self.series]


PEOPLE = (
    Person("tcga-fg-6692", {"t1c": "t1c_hdbet_mask", "t1": "", "t2": "", "flair": ""}),
    Person(
        "ms-long-p01",
        {
            "study1_T1W": "derived/study1_T1W_brainmask_native",
            "study1_T2W": "",
            "study1_FLAIR": "derived/study1_FLAIR_brainmask_native",
            "study2_T1W": "derived/study2_T1W_brainmask_native",
            "study2_T2W": "",
            "study2_FLAIR": "derived/study2_FLAIR_brainmask_native",
        },
    ),
    Person("fullface-t1-1p6mm", {"T1_head_ext2": ""}),
)

#: T1w series that are registered onto the template.
TEMPLATE = "template"
CENTERS = (
    "tcga-fg-6692/t1c",
    "tcga-fg-6692/t1",
    "ms-long-p01/study1_T1W",
    "ms-long-p01/study2_T1W",
    "fullface-t1-1p6mm/T1_head_ext2",
)

#: Pairs of ms-long-p01 whose transforms are published.
PUBLISHED = (
    ("study1_FLAIR", "study1_T1W"),
    ("study1_FLAIR", "study1_T2W"),
    ("study2_FLAIR", "study2_T1W"),
    ("study2_FLAIR", "study2_T2W"),
    ("study1_FLAIR", "study2_FLAIR"),
)


def measured(engines: Sequence[str], folder: Path, pictures: Path | None = None) -> dict[str, Any]:
    """Register all real pairs in every way.

    Parameters
    ----------
    engines : sequence of str
        Of mrmill; the reference is always there.
    folder : Path
        Keeps defaced images, masks and what the reference found.
    pictures : Path or None
        Folder that gets a picture of each head on the template.

    Returns
    -------
    results : dict
        `skipped`, with the reason, where the data are absent.
    """
    data = Path(os.environ.get("MRMILL_TEST_DATA", "")) / "real"
    if not (data / "MANIFEST.csv").is_file():
        return {"skipped": f"no real/MANIFEST.csv in MRMILL_TEST_DATA ({data.parent})"}
    prepare(data, folder)
    pairs = [pair for person in PEOPLE for pair in permutations(person.names, 2)]
    pairs += [(TEMPLATE, center) for center in CENTERS]
    found = register_all(pairs, engines, folder)
    methods = (REFERENCE, *engines)
    results = {
        "pairs": [pair_row(pair, engines, found, folder) for pair in pairs],
        "loops": {},
        "there_and_back": {},
        "published": [published_row(data, pair, methods, found, folder) for pair in PUBLISHED],
        "template": [template_row(center, methods, found, folder) for center in CENTERS],
    }
    for person in PEOPLE:
        if len(person.series) > 1:
            results["loops"][person.name] = loops(person, methods, found, folder)
            back = there_and_back(person, methods, found, folder)
            results["there_and_back"][person.name] = back
    results["loop_ratio"] = {engine: loop_ratio(results["loops"], engine) for engine in engines}
    if pictures:
        for center in CENTERS:
            path = pictures / f"{center.replace('/', '-')}.png"
            shown = {m: _transform(found, (TEMPLATE, center), m) for m in methods}
            shown = {method: transform for method, transform in shown.items() if transform}
            draw_on_template(path, _scan(folder, TEMPLATE), _scan(folder, center), shown)
    return results


def loop_ratio(drifts: dict[str, dict[str, dict[str, float]]], engine: str) -> float:
    """Return the engine's drift around all triangles over the reference's; below 1 is better."""
    total = {
        method: sum(found[method]["mean_mm"] * found[method]["ways"] for found in drifts.values())
        for method in (REFERENCE, engine)
    }
    return round(total[engine] / total[REFERENCE], 3)


def prepare(data: Path, folder: Path) -> None:
    """Write every image without its face, and its brain mask, once."""
    masker = None
    for person in PEOPLE:
        for series, mask_name in person.series.items():
            image_file, brain_file = _files(folder, f"{person.name}/{series}")
            if image_file.is_file():
                continue
            volume = read_volume(data / person.name / f"{series}.nii.gz")
            volume = Volume(as_released(volume.data), volume.affine)
            if mask_name:
                brain = read_volume(data / person.name / f"{mask_name}.nii.gz").data > 0
            else:
                masker = masker or _deepbet()
                brain = masker(volume) > 0
            write_volume(brain_file, brain.astype(np.uint8), volume.affine)
            write_volume(image_file, defaced(volume, brain), volume.affine)


def _deepbet() -> Any:
    from mrmill.config import Deface
    from mrmill.masks import make_masker

    return make_masker(Deface(backend="deepbet", device="cpu"), threads=1)


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.nii.gz", folder / f"{name}_brain.nii.gz"


def _scan(folder: Path, name: str) -> Scan:
    return embedded_template()[1] if name == TEMPLATE else read_scan(*_files(folder, name))


def _points(folder: Path, name: str) -> NDArray[np.float64]:
    scan = _scan(folder, name)
    return points_within(Volume(scan.brain, scan.volume.affine), np.random.default_rng(0))


def _case(pair: Pair, folder: Path) -> Case:
    """Make a case without a truth: its errors are distances from the headers."""
    fixed, moving = pair
    fixed_files = (embedded_template()[0],) * 2 if fixed == TEMPLATE else _files(folder, fixed)
    moving_files = _files(folder, moving)
    return Case(
        name=f"{fixed} <- {moving}",
        rigid=fixed != TEMPLATE,
        onto_template=fixed == TEMPLATE,
        fixed_file=fixed_files[0],
        moving_file=moving_files[0],
        fixed_brain_file=fixed_files[1],
        moving_brain_file=moving_files[1],
        fixed=_scan(folder, fixed),
        moving=_scan(folder, moving),
        truth=RigidTransform(),
        brain_points_mm=_points(folder, fixed),
    )


def register_all(pairs: Sequence[Pair], engines: Sequence[str], folder: Path) -> Found:
    """Register every pair with every method: once with the reference, else with every seed."""
    kept = folder / "reference.jsonl"
    known = {}
    if kept.exists():
        for text in kept.read_text("utf-8").splitlines():
            row = json.loads(text)
            known[tuple(row["pair"])] = row
    bench = Bench()
    found: Found = {}
    for pair in pairs:
        case = _case(pair, folder)
        if pair not in known:
            known[pair] = {"pair": pair, **bench.measured(case, REFERENCE, SEEDS[0])}
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[pair]) + "\n")
        found[*pair, REFERENCE] = [known[pair]]
        for engine in engines:
            seeds = SEEDS if engine != "ants" else SEEDS[:1]
            found[*pair, engine] = [bench.measured(case, engine, seed) for seed in seeds]
    return found


def _transform(found: Found, pair: Pair, method: str, seed: int = 0) -> RigidTransform | None:
    """Return what was found for a pair with the n-th seed; None if the engine gave up."""
    row = found[*pair, method][seed]
    return RigidTransform(np.array(row["matrix"])) if "matrix" in row else None


def _apart(
    one: RigidTransform | None, other: RigidTransform | None, points: NDArray
) -> dict[str, float] | None:
    """Return how far two transforms put points from each other, on average and at most, in mm."""
    if one is None or other is None:
        return None
    distance = np.linalg.norm(one(points) - other(points), axis=1)
    return {"mean": round(float(distance.mean()), 3), "max": round(float(distance.max()), 3)}


def _step_s(row: dict[str, Any]) -> float:
    return round(sum(row["cpu_s"].get(part, 0) for part in STEP), 3) if "cpu_s" in row else 0.0


def pair_row(pair: Pair, engines: Iterable[str], found: Found, folder: Path) -> dict[str, Any]:
    """Return CPU seconds, agreement, distances to the reference, and between seeds, of one pair."""
    points = _points(folder, pair[0])
    scans = [_scan(folder, name) for name in pair]
    theirs = _transform(found, pair, REFERENCE)
    row = {"pair": pair, "cpu_s": {REFERENCE: _step_s(found[*pair, REFERENCE][0])}}
    row["nmi"] = {REFERENCE: agreement(theirs, *scans)["nmi"]}
    for engine in engines:
        rows = found[*pair, engine]
        seeds = [_transform(found, pair, engine, n) for n in range(len(rows))]
        between = [_apart(a, b, points) for a, b in combinations(seeds, 2)]
        row["cpu_s"][engine] = round(float(np.mean([_step_s(one) for one in rows])), 3)
        row["nmi"][engine] = agreement(seeds[0], *scans)["nmi"] if seeds[0] else None
        row[engine] = {
            "to_reference_mm": _apart(seeds[0], theirs, points),
            "between_seeds_mm": max((b["mean"] for b in between if b), default=0.0),
        }
    return row


def loops(
    person: Person, methods: Iterable[str], found: Found, folder: Path
) -> dict[str, dict[str, float]]:
    """Go around all triangles of a person's series, both ways; return how far points drift."""
    ways = [way for three in combinations(person.names, 3) for way in (three, three[::-1])]
    return {method: _drift(ways, method, found, folder) for method in methods}


def there_and_back(
    person: Person, methods: Iterable[str], found: Found, folder: Path
) -> dict[str, dict[str, float]]:
    """Go from each series to each other and back; return how far points drift."""
    ways = list(combinations(person.names, 2))
    return {method: _drift(ways, method, found, folder) for method in methods}


def _drift(
    ways: Sequence[Sequence[str]], method: str, found: Found, folder: Path
) -> dict[str, float]:
    """Average over closed ways how far points of the first series end from where they began."""
    drifts, given_up = [], 0
    for way in ways:
        steps = [
            _transform(found, pair, method) for pair in zip(way, (*way[1:], way[0]), strict=True)
        ]
        if None in steps:
            given_up += 1
            continue
        around = RigidTransform()
        for step in steps:
            around = around.then(step)
        drifts.append(_apart(around, RigidTransform(), _points(folder, way[0]))["mean"])
    return {
        "ways": len(ways),
        "given_up": given_up,
        "mean_mm": round(float(np.mean(drifts)), 3),
        "worst_mm": max(drifts),
    }


def published_row(
    data: Path, pair: Pair, methods: Iterable[str], found: Found, folder: Path
) -> dict[str, Any]:
    """Return distances to the authors' transform, which is affine, and to its best rigid fit."""
    fixed, moving = (f"ms-long-p01/{name}" for name in pair)
    points = _points(folder, fixed)
    affine = published(data / "ms-long-p01", *pair)
    fit = RigidTransform(best_rigid(points, affine(points)))
    row = {"pair": pair, "affine_to_rigid_mm": _apart(affine, fit, points)}
    for method in methods:
        row[method] = _apart(_transform(found, (fixed, moving), method), fit, points)
    return row


def published(folder: Path, fixed: str, moving: str) -> RigidTransform:
    """Read the authors' transform, from points of one series to points of another, RAS+ mm.

    Within a visit a file leads from the FLAIR; between visits, from a common space to each FLAIR.
    """
    if fixed[:6] == moving[:6]:
        return read_itk_text(folder / f"{moving}_intrastudy_to_FLAIR.txt")
    from_common = [read_itk_text(folder / f"{s}_to_common_space.txt") for s in (fixed, moving)]
    return from_common[0].inverse().then(from_common[1])


def read_itk_text(path: Path) -> RigidTransform:
    """Read an affine transform from ITK's text format, which is LPS+."""
    lines = dict(line.split(":", 1) for line in path.read_text("utf-8").splitlines() if ":" in line)
    numbers = np.array(lines["Parameters"].split(), float)
    center = np.array(lines["FixedParameters"].split(), float)
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = numbers[9:] + center - matrix[:3, :3] @ center
    return RigidTransform(FLIP @ matrix @ FLIP)


def template_row(center: str, methods: Iterable[str], found: Found, folder: Path) -> dict[str, Any]:
    """Return how well a center's brain lies on the template's, the same measures for all."""
    row: dict[str, Any] = {"center": center}
    for method in methods:
        transform = _transform(found, (TEMPLATE, center), method)
        if transform is None:
            continue
        row[method] = agreement(transform, _scan(folder, TEMPLATE), _scan(folder, center))
    return row


def agreement(transform: RigidTransform, fixed: Scan, moving: Scan) -> dict[str, float]:
    """Return how well two brains lie on each other, measured apart from any engine.

    Returns
    -------
    agreement : dict
        `nmi`: 2 I(a; b) / (H(a) + H(b)) of the images at all voxels of the fixed brain that lie
        in the moving field, 32 bins. `brain_dice`: of the two masks, there.
    """
    from scipy.ndimage import affine_transform

    def laid_over(values: NDArray, order: int) -> NDArray:
        to_voxel = np.linalg.inv(moving.volume.affine) @ transform.matrix @ fixed.volume.affine
        shape = fixed.volume.data.shape
        return affine_transform(
            values, to_voxel[:3, :3], to_voxel[:3, 3], shape, order=order, cval=-1
        )

    image = laid_over(moving.volume.data.astype(np.float32), 1)
    brain = laid_over(moving.brain.astype(np.int8), 0)
    seen = fixed.brain & (brain >= 0)
    values = [fixed.volume.data[seen], image[seen]]
    edges = [np.linspace(*np.percentile(v, [0.5, 99.5]), 31)[:-1] for v in values]
    bins = [np.searchsorted(e, v) for e, v in zip(edges, values, strict=True)]
    joint = np.bincount(bins[0] * 32 + bins[1], minlength=32**2).reshape(32, 32)
    marginals = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))
    shared = (brain[seen] > 0).sum()
    in_field = (fixed.brain & (brain >= 0)).sum() + (brain > 0).sum()
    return {
        "nmi": round(2 - 2 * _entropy(joint.ravel()) / marginals, 4),
        "brain_dice": round(float(2 * shared / in_field), 4),
    }


def _entropy(counts: NDArray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    if "skipped" in results:
        return f"Real pairs: skipped, {results['skipped']}"
    engines = [name for name in results["pairs"][0]["cpu_s"] if name != REFERENCE]
    parts = [_pairs_table(results["pairs"], engines)]
    for name, title in (("loops", "around triangles"), ("there_and_back", "there and back")):
        lines = [f"| {title}: drift mm, mean (worst) | {' | '.join((REFERENCE, *engines))} |"]
        lines.append("| --- |" + " ---: |" * (1 + len(engines)))
        for person, found in results[name].items():
            cells = [f"{found[m]['mean_mm']:.2f} ({found[m]['worst_mm']:.2f})" for m in found]
            lines.append(f"| {person}, {found[REFERENCE]['ways']} ways | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    lines = [f"| distance to the published transform, mm | {' | '.join((REFERENCE, *engines))} |"]
    lines.append("| --- |" + " ---: |" * (1 + len(engines)))
    for row in results["published"]:
        cells = [_mean_max(row[method]) for method in (REFERENCE, *engines)]
        lines.append(f"| {' <- '.join(row['pair'])} | {' | '.join(cells)} |")
    parts.append("\n".join(lines))
    lines = [f"| on the template: NMI, brain Dice | {' | '.join((REFERENCE, *engines))} |"]
    lines.append("| --- |" + " ---: |" * (1 + len(engines)))
    for row in results["template"]:
        found = [row.get(method) for method in (REFERENCE, *engines)]
        cells = [f"{q['nmi']:.4f}, {q['brain_dice']:.3f}" if q else "none" for q in found]
        lines.append(f"| {row['center']} | {' | '.join(cells)} |")
    return "\n\n".join([*parts, "\n".join(lines)])


def _pairs_table(rows: Sequence[dict[str, Any]], engines: Sequence[str]) -> str:
    head = ["pair", "MR-RATE: CPU s", "NMI"]
    for engine in engines:
        head += [f"{engine}: CPU s", "NMI", "mm to MR-RATE: mean / max", "between seeds"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in rows:
        cells = [" <- ".join(row["pair"])]
        cells += [f"{row['cpu_s'][REFERENCE]:.1f}", f"{row['nmi'][REFERENCE]:.4f}"]
        for engine in engines:
            found = row[engine]
            cells += [
                f"{row['cpu_s'][engine]:.2f}",
                f"{row['nmi'][engine]:.4f}" if row["nmi"][engine] else "none",
                _mean_max(found["to_reference_mm"]),
                f"{found['between_seeds_mm']:.2f}",
            ]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _mean_max(apart: dict[str, float] | None) -> str:
    return f"{apart['mean']:.2f} / {apart['max']:.2f}" if apart else "none"
