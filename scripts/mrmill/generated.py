"""Files written from the models and tables, so that they cannot drift from the code.

`mrmill docs` writes them; a test fails while any of them is stale.
"""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mrmill.columns import load_columns, published
from mrmill.config import ROOT, Config
from mrmill.curate.acceptance import load_criteria
from mrmill.reasons import reasons
from mrmill.tables import described, load_table

HEADER = "Written by `mrmill docs` from {source}; edit that instead."


def write_all(root: Path) -> list[Path]:
    """Write every generated file; return their paths."""
    written = []
    for name, text in contents().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def contents() -> dict[str, str]:
    """Return what each generated file has to hold."""
    return {
        "config/config.yaml": default_config(),
        "config/config.schema.json": schema(),
        "docs/generated/configuration.md": configuration_page(),
        "docs/generated/acceptance.md": acceptance_page(),
        "docs/generated/columns.md": columns_page(),
        "docs/generated/reasons.md": reasons_page(),
    }


def schema() -> str:
    """Return the JSON schema of a config file; editors use it to complete and check."""
    text = json.dumps(Config.model_json_schema(by_alias=True), indent=2) + "\n"
    return text.replace(f"{ROOT}/", "")  # the project's own tables, wherever it is checked out


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted name, field and default of every setting, block by block."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            # a block's own default may differ from its type's (resources of each rule)
            block = kind.model_construct(**defaults_of(kind, field.default))
            yield key, kind, None
            for inner, inner_field, default in settings_of(kind, f"{key}."):
                own = inner.removeprefix(f"{key}.")
                yield inner, inner_field, getattr(block, own, default)
        else:
            yield key, field, field.default


def defaults_of(kind: type[BaseModel], default: Any) -> dict[str, Any]:
    """Return a block's default values by attribute name."""
    given = default.model_dump() if isinstance(default, BaseModel) else {}
    return {n: given.get(n, f.default) for n, f in kind.model_fields.items()}


def default_config() -> str:
    """Return the default config file: every setting with its meaning."""
    lines = [
        "# yaml-language-server: $schema=config.schema.json",
        "# Every setting of mrmill with its default. Copy it, keep what you change, and call",
        "#   mrmill run --configfile my.yaml",
        "# A relative path starts at the folder of the config file that holds it.",
        f"# {HEADER.format(source='scripts/mrmill/config.py')}",
    ]
    said = set()
    for key, field, default in settings_of(Config):
        *parents, name = key.split(".")
        indent = "  " * len(parents)
        is_block = isinstance(field, type)
        words = field.__doc__.split("\n")[0] if is_block else field.description
        if not parents:
            lines.append("")
        if words not in said:  # the rules' resources repeat themselves
            lines += textwrap.wrap(
                words, 96, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
            said.add(words)
        # a table of the project itself is named, but not copied into a user's file
        off = "# " if isinstance(default, Path) and default.is_absolute() else ""
        lines.append(f"{indent}{name}:" if is_block else f"{indent}{off}{name}: {as_yaml(default)}")
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """Return the docs page of all settings."""
    rows = [
        f"| `{key}` | `{as_yaml(default)}` | {field.description}{bounds(field)} |"
        for key, field, default in settings_of(Config)
        if not isinstance(field, type)
    ]
    head = ["| setting | default | meaning |", "| --- | --- | --- |"]
    title = ["# Every setting", "", HEADER.format(source="`scripts/mrmill/config.py`"), ""]
    return "\n".join([*title, *head, *rows]) + "\n"


def reasons_page() -> str:
    """Return the docs page of all reason codes."""
    rows = [
        f"| `{code}` | {row['stage']} | {row['meaning']} | {row['advice']} |"
        for code, row in reasons().items()
    ]
    head = ["| code | stage | meaning | what to do |", "| --- | --- | --- | --- |"]
    title = [
        "# Why a series is not in the release",
        "",
        HEADER.format(source="`config/reasons.yaml`"),
    ]
    return "\n".join([*title, "", *head, *rows]) + "\n"


def acceptance_page() -> str:
    """Return the docs page of the criteria of acceptance."""
    rows = [f"| `{c.reason}` | {c.value} | {c.limit} | {c.source} |" for c in load_criteria()]
    parts = [
        "# What a series has to be",
        HEADER.format(source="`config/acceptance.yaml`"),
        "Looked at in this order; the first criterion that is not met gives the reason in the "
        "ledger, with the value found and the limit. What a header does not say passes, except "
        "where it has to be known. `curate.limits` changes a limit for a run, such as "
        "`age_below_minimum: {minimum: 18}`.",
        "\n".join(
            ["| reason | looked at | accepted | source |", "| --- | --- | --- | --- |", *rows]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def columns_page() -> str:
    """Return the docs page of the columns of every table of a release."""
    columns = load_columns()
    own = ", ".join(f"`{c.name}`" for c in published(columns) if c.extra)
    unwritten = [column for column in columns if not column.release]
    headings = ("column", "type", "unit", "accepted", "empty", "source", "meaning")
    parts = [
        "# Every column",
        HEADER.format(source="`config/header_columns.yaml` and `config/tables.yaml`"),
        "Every cell is held against this before it is written, and again by `mrmill verify`. What "
        "a header says and a column does not accept becomes an empty cell. Of several sources the "
        "first that says something counts; BIDS keys are those of JSON sidecars. Known forms are "
        "expressions, in the first of the two tables.",
        "## Metadata: `metadata/<batch>_metadata.csv`",
        f"One row per series. Last come columns that MR-RATE does not have ({own}); "
        "`dataset.extra_columns: false` leaves them out.",
        described(published(columns), *headings),
        "## Splits: `splits.csv`",
        "One row per study in the release.",
        described(load_table("splits"), "column", "accepted", "empty", "source", "meaning"),
        "## Ledger: `ledger.csv`",
        "One row per series ever seen.",
        described(load_table("ledger"), "column", "accepted", "empty", "source", "meaning"),
        "## Read and never written",
        "To classify, to group and to accept.",
        described(unwritten, "column", "type", "source", "meaning"),
    ]
    return "\n\n".join(parts) + "\n"


def bounds(field: Any) -> str:
    """Return a field's bounds in words."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in signs.items()
        if hasattr(rule, name)
    ]
    return f" ({', '.join(found)})" if found else ""


def as_yaml(value: Any) -> str:
    """Return a default as YAML on one line; paths of the project relative to its root."""
    if isinstance(value, Path):
        return str(value.relative_to(ROOT)) if value.is_relative_to(ROOT) else str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(as_yaml(item) for item in value) + "]"
    return json.dumps(value)
