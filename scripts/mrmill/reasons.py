"""Reason codes: the closed list of why a series or study is not in a release.

The codes, their words and what a user may do about each stand in `config/reasons.yaml`.
"""

from functools import cache
from pathlib import Path

from mrmill.yaml_tables import parse_yaml

TABLE = Path(__file__).parents[2] / "config" / "reasons.yaml"

ACCEPTED, REJECTED, FAILED = "accepted", "rejected", "failed"

#: Codes of what waits for a person, who admits or rejects it in a decisions table.
WAITING = frozenset({"needs_review", "reg_needs_review", "center_reg_needs_review"})


class Rejected(Exception):
    """An expected reason to leave something out; never a broken machine.

    Parameters
    ----------
    reason : str
        A code of `config/reasons.yaml`.
    found, limit : str
        The value found and what is accepted; public, so never a name, date, path or free text.
    """

    def __init__(self, reason: str, found: str = "", limit: str = "") -> None:
        if reason not in reasons():
            raise KeyError(f"{reason} is not a code of {TABLE.name}")
        super().__init__(f"{reason}: found {found}, accepted {limit}")
        self.reason, self.found, self.limit = reason, found, limit

    def as_entry(self) -> dict:
        """Return the part of a record that says why."""
        return {
            "state": REJECTED,
            "reason": self.reason,
            "found": self.found,
            "limit": self.limit,
        }


@cache
def reasons() -> dict[str, dict[str, str]]:
    """Return the table of reason codes: code -> stage, meaning, advice."""
    return parse_yaml(TABLE.read_text(encoding="utf-8"))
