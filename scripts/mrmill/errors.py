"""Errors: messages for a person, and what may be said of a defect outside the work tree."""

import traceback
from pathlib import Path


class UserError(Exception):
    """Something a user can put right: what, where, what was found, what to do next."""


def error_location(error: BaseException) -> str:
    """Return class and code line of an error, and nothing of its text (it may hold paths)."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    path = Path(frames[-1].filename)
    name = "/".join(path.parts[-2:]) if path.name == "__init__.py" else path.name
    return f"{type(error).__name__} {name}:{frames[-1].lineno}"


def public_words(error: BaseException) -> str:
    """Return what may be said of an error outside the work tree, for a person."""
    if isinstance(error, UserError):
        return str(error)
    reason = f"{error.strerror} " if isinstance(error, OSError) and error.strerror else ""
    return f"{reason}({error_location(error)})"
