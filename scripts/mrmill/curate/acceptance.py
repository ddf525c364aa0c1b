"""Which series are accepted: an interpreter for the criteria in `config/acceptance.yaml`.

The first criterion that does not hold gives its reason; limits can be changed for a run without
a copy of the table (`curate.limits`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from mrmill.config import Limits
from mrmill.errors import UserError
from mrmill.reasons import Rejected, reasons
from mrmill.yaml_tables import checked_table, did_you_mean

TABLE = Path(__file__).parents[3] / "config" / "acceptance.yaml"

#: What a criterion can look at; `mrmill.curate` finds their values.
VALUES = (
    *("sop_class_uid", "dicom_modality", "burned_in_annotation"),
    *("kind", "is_derived", "is_localizer", "is_subtraction", "classified_modality"),
    *("acquisition_plane", "obliquity_degrees", "body_part", "age_years", "field_strength_t"),
    *("shape", "spacing_mm", "fov_mm"),
)

#: Criteria that keep names out of a release: every table has them as they are.
FIXED = ("not_mr", "burned_in_annotation")

#: Values whose text is the header's own: a private word may say too much to be made public.
NOT_SHOWN = ("sop_class_uid", "dicom_modality")


class AcceptanceError(UserError):
    """The criteria cannot be used as they are."""


class Criterion(BaseModel):
    """One thing that has to hold.

    Attributes
    ----------
    reason : str
        Code of `config/reasons.yaml`, given where it does not hold.
    value : str
        What is looked at, one of `VALUES`.
    known : bool
        The value has to be there; the other tests let one pass that is not.
    minimum, maximum : float, optional
        In `unit`, both included; they hold for each axis where there are several.
    says : str
        What is accepted in words, where the codes say little to a reader.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: str
    value: str
    source: str
    says: str = ""
    unit: str = ""
    known: bool = False
    accepted: tuple[str, ...] | None = None
    refused: tuple[str | bool, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    @model_validator(mode="after")
    def _check_names(self) -> "Criterion":
        for what, known in ((self.reason, reasons()), (self.value, VALUES)):
            if what not in known:
                raise ValueError(f"{what} is not known{_nearest(what, known)}")
        return self

    def holds(self, value: Any) -> bool:
        """Say whether a value of a series is within the limits."""
        if value is None or value == "":
            return not self.known
        if value in self.refused or (self.accepted is not None and value not in self.accepted):
            return False
        if self.minimum is None and self.maximum is None:
            return True
        numbers = value if isinstance(value, list | tuple) else [value]
        too_low = self.minimum is not None and min(numbers) < self.minimum
        return not (too_low or (self.maximum is not None and max(numbers) > self.maximum))

    def shown(self, value: Any) -> str:
        """Return a value as the ledger says it."""
        if value is None or value is True or value == "":
            return ""
        if self.value in NOT_SHOWN:
            return "another one"
        numbers = value if isinstance(value, list | tuple) else [value]
        words = " x ".join(n if isinstance(n, str) else f"{n:g}" for n in numbers)
        return f"{words} {self.unit}".rstrip()

    @property
    def is_adjustable(self) -> bool:
        """Whether it has limits that a run may change."""
        return self.reason not in FIXED and bool(_kinds(self))

    @property
    def limit(self) -> str:
        """What is accepted, as the ledger says it."""
        if self.says:
            return self.says
        unit = f" {self.unit}" if self.unit else ""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:g} to {self.maximum:g}{unit}"
        if self.minimum is not None:
            return f">= {self.minimum:g}{unit}"
        if self.maximum is not None:
            return f"<= {self.maximum:g}{unit}"
        if self.accepted is not None:
            return ", ".join(self.accepted)
        if self.refused:
            return "not " + ", ".join(str(value).lower() for value in self.refused)
        return "known"


class Criteria(BaseModel):
    """The whole table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    criteria: tuple[Criterion, ...]

    @model_validator(mode="after")
    def _check_fixed(self) -> "Criteria":
        if missing := {*FIXED} - {criterion.reason for criterion in self.criteria}:
            raise ValueError(f"{', '.join(sorted(missing))} must stay: it keeps names out")
        return self

    def __iter__(self) -> Iterator[Criterion]:  # type: ignore[override]
        return iter(self.criteria)

    def limited(self, limits: Mapping[str, Limits]) -> "Criteria":
        """Return the criteria with other limits, by reason.

        Raises
        ------
        AcceptanceError
            If no criterion has that reason and kind of limit, or it may not be changed.
        """
        for reason, limit in limits.items():
            changed = limit.model_dump(exclude_none=True).keys()
            row = next((c for c in self.criteria if c.reason == reason), None)
            if row is None or reason in FIXED:
                free = [c.reason for c in self.criteria if c.is_adjustable]
                raise AcceptanceError(
                    f"curate.limits: no limit of {reason} can be changed{_nearest(reason, free)}"
                )
            if wrong := changed - _kinds(row):
                kinds = " and ".join(sorted(_kinds(row))) or "nothing that can be changed"
                raise AcceptanceError(
                    f"curate.limits.{reason}: {', '.join(sorted(wrong))} does not apply; "
                    f"it has {kinds}"
                )
        return Criteria(
            criteria=tuple(
                c.model_copy(update=limits[c.reason].model_dump(exclude_none=True))
                if c.reason in limits
                else c
                for c in self.criteria
            )
        )

    def of_known(self, words: Mapping[str, Sequence[str]]) -> "Criteria":
        """Return the criteria, once it is clear that they accept only what there is.

        Parameters
        ----------
        words : mapping
            Value -> all the words it can be.

        Raises
        ------
        AcceptanceError
            If a criterion accepts another one: a misspelled word would let nothing pass.
        """
        for row in self.criteria:
            known = words.get(row.value, row.accepted or ())
            for word in {*(row.accepted or ())} - {*known}:
                raise AcceptanceError(
                    f"{row.reason}: {word} is no {row.value}{_nearest(word, known)}"
                )
        return self


def load_criteria(path: Path = TABLE, limits: Mapping[str, Limits] | None = None) -> Criteria:
    """Read a table of criteria and put a run's own limits into it.

    Raises
    ------
    AcceptanceError
        With one line per problem.
    """
    table = checked_table(path, Criteria, AcceptanceError)
    return table.limited(limits or {})


def judged(values: Mapping[str, Any], criteria: Criteria) -> Iterator[tuple[Criterion, bool]]:
    """Yield each criterion and whether a series meets it, up to the first that it does not."""
    for criterion in criteria:
        held = criterion.holds(values[criterion.value])
        yield criterion, held
        if not held:
            return


def accept(values: Mapping[str, Any], criteria: Criteria) -> None:
    """Let a series pass that meets every criterion.

    Parameters
    ----------
    values : mapping
        One for each of `VALUES`; None or empty where unknown.

    Raises
    ------
    Rejected
        With the reason of the first criterion that is not met.
    """
    for criterion, held in judged(values, criteria):
        if not held:
            raise Rejected(
                criterion.reason, criterion.shown(values[criterion.value]), criterion.limit
            )


def _kinds(criterion: Criterion) -> set[str]:
    """Return the kinds of limit that a criterion has."""
    return {name for name in Limits.model_fields if getattr(criterion, name) is not None}


def _nearest(word: str, known: Iterable[str]) -> str:
    return did_you_mean(word, known) or f"; known: {', '.join(known)}"
