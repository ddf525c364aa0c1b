"""What the Snakefile reads while it is parsed; kept light, every cluster job parses it again."""

import json
from pathlib import Path
from typing import Any

from mrmill.config import Config, ConfigError, Resources, checked
from mrmill.layout import WorkTree


def settings_for(config: dict[str, Any], configfiles: list) -> Config:
    """Check Snakemake's config and put the checked values, with absolute paths, back into it.

    Raises
    ------
    ConfigError
        When there is no config file or something in it is wrong.
    """
    if not configfiles:
        raise ConfigError(
            "no config file given\n  Copy config/config.yaml or one of config/examples/, edit it, "
            "and call: snakemake --configfile my.yaml"
        )
    settings = checked(config, Path(configfiles[-1]).resolve().parent)
    config.clear()
    config.update(settings.model_dump(mode="json", by_alias=True))
    return settings


def read_plan(settings: Config) -> dict[str, dict[str, dict[str, Any]]]:
    """Return batch -> shard -> its number of studies and digest.

    Raises
    ------
    ConfigError
        When nothing has been planned yet.
    """
    path = WorkTree(settings.work).shards
    if not path.exists():
        raise ConfigError(
            f"nothing is planned in {settings.work}\n  `mrmill plan --configfile FILE` looks "
            "through the export and writes the plan; `mrmill run` does both."
        )
    return json.loads(path.read_text(encoding="utf-8"))["batches"]


def rule_resources(settings: Config, rule: str) -> Resources:
    """Return what a rule asks the scheduler for."""
    resources = settings.resources
    return resources.register_ if rule == "register" else getattr(resources, rule)
