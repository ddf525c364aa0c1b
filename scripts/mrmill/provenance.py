"""With what a release was made: versions, models and limits, for the dataset card."""

from functools import cache
from importlib.metadata import version

from mrmill import __version__
from mrmill.config import Config
from mrmill.curate.acceptance import load_criteria

#: Distribution behind each mask backend.
BACKENDS = {"hdbet": "HD_BET", "deepbet": "deepbet"}

#: Distributions whose numbers a transform depends on, by registration engine.
ENGINES = {
    "ants": ("antspyx",),
    "mattes": ("numba", "numpy", "scipy"),
    "auto": ("antspyx", "numba", "numpy", "scipy"),
}


@cache
def engine_versions(engine: str) -> dict[str, str]:
    """Return versions of mrmill and of what a registration engine is made of."""
    return {"mrmill": __version__} | {name: version(name) for name in ENGINES.get(engine, ())}


def facts(config: Config) -> dict[str, str]:
    """Return versions of the tools, criteria, name and digest of the atlas; no date, no host."""
    found = {"mrmill": __version__}
    if config.input.kind == "dicom":
        found["dcm2niix"] = version("dcm2niix")
    if config.input.kind != "release":
        criteria = load_criteria(config.curate.acceptance, config.curate.limits)
        found["accepted series"] = "; ".join(
            f"{c.value} {c.limit}" for c in criteria if c.is_adjustable
        )
        found["brain mask"] = f"{config.deface.backend} {version(BACKENDS[config.deface.backend])}"
    if {"coreg", "atlas"} & set(config.spaces):
        found["registration"] = f"rigid, engine {config.register_.engine}"
        found |= engine_versions(config.register_.engine)
    if "atlas" in config.spaces:
        from mrmill.register.atlas import load_atlas

        atlas = load_atlas(config.register_)
        found["atlas"] = f"{atlas.name}, sha256 {atlas.sha256}"
        if atlas.mask_sha256:
            found["atlas brain mask"] = f"sha256 {atlas.mask_sha256}"
    return found
