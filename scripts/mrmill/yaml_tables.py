"""The tables of `config/`, which people write: read and checked, with a line for every problem."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mrmill.errors import UserError

Model = TypeVar("Model", bound=BaseModel)

#: libyaml's where it is there: ten times as fast, and every job of a cluster reads tables twice.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str) -> Any:
    """Return what a YAML document holds: plain values only.

    Raises
    ------
    yaml.YAMLError
        If it is none.
    """
    return yaml.load(text, LOADER)


def read_yaml(path: Path, error: type[UserError]) -> Any:
    """Return what a YAML file holds.

    Raises
    ------
    error
        If it cannot be read.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise error(f"{path.name} cannot be read: {problem}") from problem


def checked_table(path: Path, model: type[Model], error: type[UserError]) -> Model:
    """Return the table in a YAML file.

    Raises
    ------
    error
        If it cannot be read, or with one line per problem.
    """
    try:
        return model.model_validate(read_yaml(path, error))
    except ValidationError as problems:
        lines = problem_lines(problems)
        raise error(f"{path.name} cannot be used:\n" + "\n".join(lines)) from None


def problem_lines(problems: ValidationError, *outer: str) -> list[str]:
    """Return a line per problem: where it stands, below `outer`, and what is wrong."""
    return [
        f"  {'.'.join(map(str, (*outer, *problem['loc']))) or 'table'}: {plain_message(problem)}"
        for problem in problems.errors()
    ]


def plain_message(problem: Any) -> str:
    """Return what pydantic says of a problem, without its own preamble."""
    return problem["msg"].removeprefix("Value error, ")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the known word that is nearest to one that is not known, as the end of a message.

    Examples
    --------
    >>> did_you_mean("rule", ["rules", "tiers"]), did_you_mean("xyz", ["rules"])
    ('; did you mean `rules`?', '')
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"; did you mean `{near[0]}`?" if near else ""
