"""Whether a contrast agent was in the patient's blood when a series was acquired.

Asked of all series of a study together, in three steps:

1. What each series says of itself: words ("nach KM", "sans injection"), and tags that name an
   agent. Many consoles write the agent of the whole exam into every series, so the tag counts only
   where it came on during the exam: a series without it was acquired earlier, and no T1w protocol
   is repeated under it later on, which would be the real injection. In a study of one series
   there is no exam to confuse it with.
2. Order: an agent stays in the blood for hours, so what was acquired after a proven injection has
   it. By SeriesNumber alone this is said only of a T1w with the same parameters (numbers of
   reformats and copies are later than their scans); of other series where AcquisitionTime agrees.
   Before the injection nothing follows, as T2w and FLAIR are often acquired while the agent
   spreads, but for the first of several T1w with the same parameters: it is the native one.
3. A study that was ordered without contrast, in which nothing says otherwise: no.

Where these contradict each other, and where nothing is said, it is unknown.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mrmill.curate.evidence import (
    NO,
    NOTHING,
    UNKNOWN,
    YES,
    ContrastTable,
    Evidence,
    Said,
    folded,
    given,
)

#: Tag of a frame of enhanced objects, which is not that of the exam.
PER_FRAME = "ContrastBolusAgentAdministered"

#: Values of ImageType that say: computed, not acquired (DICOM PS3.3 C.7.6.1.1.2).
COMPUTED = frozenset({"DERIVED", "SECONDARY"})

#: Scan and reconstruction share a SeriesNumber in hundreds.
COPIES = 100

#: Columns that are equal in series acquired with the same parameters, beside plane and grid.
PARAMETERS = ("TE_ms", "TR_ms", "TI_ms", "FlipAngle", "MRAcquisitionType", "ScanOptions")


@dataclass(eq=False)
class Series:
    """What is known of one series.

    Attributes
    ----------
    header : mapping
        Column -> value.
    said : Said or None
        What a person said in the series table.
    is_acquired : bool
        Neither computed nor a localizer: it has a place in the order of the study.
    places : dict
        Column that tells an order -> place in it.
    protocol : tuple or None
        Parameters of an acquired T1w.
    tag : str
        Column of the tag that names an agent.
    voices : list of (str, str)
        Evidence codes, each with yes or no.
    """

    header: Mapping[str, Any]
    said: Said | None
    is_acquired: bool
    places: dict[str, int]
    protocol: tuple | None
    tag: str
    voices: list[tuple[str, str]] = field(default_factory=list)

    @property
    def answers(self) -> set[str]:
        """What its voices say."""
        return {answer for _, answer in self.voices}

    def repeats(self, other: "Series") -> bool:
        """Say whether both are a T1w with the same parameters."""
        return self.protocol is not None and self.protocol == other.protocol

    def orders_after(self, other: "Series") -> list[str]:
        """Return the columns by which it was acquired after another one."""
        return [c for c, place in self.places.items() if place > other.places.get(c, math.inf)]

    def is_after(self, other: "Series") -> bool:
        """Say whether it was, by every column that places both."""
        shared = self.places.keys() & other.places.keys()
        return bool(shared) and len(self.orders_after(other)) == len(shared)


def contrast_agents(series: Sequence[Mapping[str, Any]], evidence: Evidence) -> list[Said]:
    """Say of each series of one study whether there was a contrast agent.

    Parameters
    ----------
    series : sequence of mapping
        Each with `header` (column -> value, as `mrmill.headers` makes it; `contrast_agent`, which
        only a series table gives, wins), `classified_modality`, `SeriesNumber`,
        `acquisition_plane`, `shape` and `spacing_mm`.
    evidence : Evidence

    Returns
    -------
    list of Said
        yes, no or unknown, in the order of `series`. Codes: `word:COLUMN`, `tag:COLUMN`,
        `order:COLUMN`; `exam:COLUMN` where a tag names an agent and cannot be told from that of
        the whole exam.

    Raises
    ------
    ValueError
        If the series table gives none of them.
    """
    table = evidence.contrast_agent
    numbers = _numbers(series)
    study = [_read(each, numbers, table) for each in series]
    tagged = [each for each in study if each.tag and _tag_tells(each, study)]
    for each in tagged:
        each.voices.append((f"tag:{each.tag}", YES))
    proven = [each for each in study if each.answers == {YES}]
    said = [each.said or _from_itself(each, proven) or _after(each, proven) for each in study]
    enhanced = [
        each for each, answer in zip(study, said, strict=True) if answer and answer.value == YES
    ]
    is_untouched = not any(each.tag or each.voices for each in study)
    return [
        answer
        or _before(each, study, enhanced)
        or (_as_ordered(each, table) if is_untouched else None)
        or (Said(UNKNOWN, f"exam:{each.tag}") if each.tag else NOTHING)
        for each, answer in zip(study, said, strict=True)
    ]


def _numbers(series: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the SeriesNumbers of a study; none where they start again, as after a reboot."""
    names = {(s["SeriesNumber"], s["header"].get("SeriesDescription")) for s in series}
    numbers = {number for number, _ in names}
    return numbers - {None} if len(numbers) == len(names) else set()


def _read(series: Mapping[str, Any], numbers: set[int], table: ContrastTable) -> Series:
    """Take from a series what counts, with the voices that need no other series."""
    header, modality = series["header"], series["classified_modality"]
    kinds = (header.get("ImageType") or "").upper().split("\\")
    is_acquired = modality != "localizer" and COMPUTED.isdisjoint(kinds)
    said = given(header, "contrast_agent", (YES, NO))
    read = Series(
        header=header,
        said=said,
        is_acquired=is_acquired,
        places=_places(header, series["SeriesNumber"], numbers) if is_acquired else {},
        protocol=_protocol(series) if is_acquired and modality == "T1w" else None,
        tag="" if said else _tag(header, table),
    )
    if said:
        read.voices = [(said.evidence, said.value)] if said.value != UNKNOWN else []
        return read
    column = next((name for name in table.series_texts if header.get(name)), "")
    answers = table.answers(header.get(column) or "", modality)
    read.voices = [(f"word:{column}", answer) for answer in sorted(answers)]
    per_frame = (header.get(PER_FRAME) or "").lower()
    if per_frame in (YES, NO):
        read.voices.append((f"tag:{PER_FRAME}", per_frame))
    return read


def _places(header: Mapping[str, Any], number: int | None, numbers: set[int]) -> dict[str, int]:
    """Return the place of a series in the study by number and by time."""
    places = {}
    if number in numbers and min(numbers) >= COPIES:
        # Philips and Canon: the scan, then two digits of its reconstruction
        places["SeriesNumber"] = number // COPIES
    elif number in numbers and number // COPIES not in numbers:
        # 300 beside 3 is GE's copy of it, made at any time
        places["SeriesNumber"] = number
    digits = (header.get("AcquisitionTime") or "").partition(".")[0].replace(":", "")
    if re.fullmatch(r"(\d{8})?\d{6}", digits):
        hours, minutes, seconds = (int(digits[at : at + 2 or None]) for at in (-6, -4, -2))
        places["AcquisitionTime"] = 3600 * hours + 60 * minutes + seconds
    return places


def _protocol(series: Mapping[str, Any]) -> tuple | None:
    """Return the parameters of a series, or None where the header does not tell them."""
    header = series["header"]
    if header.get("TE_ms") is None or header.get("TR_ms") is None:
        return None
    spacing_mm = [round(mm, 2) for mm in series["spacing_mm"]]
    grid = (series["acquisition_plane"], *series["shape"], *spacing_mm)
    return (*grid, *(header.get(name) for name in PARAMETERS))


def _tag(header: Mapping[str, Any], table: ContrastTable) -> str:
    """Return the column of the tag that names an agent in the blood."""
    told = folded(" ".join(header.get(name) or "" for name in ("ContrastBolusRoute", *table.tags)))
    if header.get("ContrastBolusVolume") == 0 or table.other_routes.search(told):
        return ""
    return next((name for name in table.tags if table.is_agent(header.get(name) or "")), "")


def _tag_tells(series: Series, study: Sequence[Series]) -> bool:
    """Say whether the tag of a series is one of the series, not of the exam."""
    if sum(each.is_acquired for each in study) == 1:
        return True
    tagged = [each for each in study if each.tag]
    repeats = (
        second
        for first in tagged
        for second in tagged
        if second.repeats(first) and second.is_after(first)
    )
    came_on = any(series.is_after(each) for each in study if not each.tag)
    return came_on and not any(second.is_after(series) for second in repeats)


def _from_itself(series: Series, proven: Sequence[Series]) -> Said | None:
    """Say what a series says of itself, unless that cannot be."""
    codes = list(dict.fromkeys(code for code, _ in series.voices))
    if len(series.answers) == 2:
        return Said.conflict(codes)
    # one order that says so is enough to doubt a no
    orders = [column for each in proven for column in series.orders_after(each)]
    if series.answers == {NO} and orders:
        return Said.conflict([*codes, *_order_codes(orders)])
    return Said(*series.answers, "+".join(codes)) if series.answers else None


def _after(series: Series, proven: Sequence[Series]) -> Said | None:
    """Say yes of what was acquired after a proven series."""
    for each in proven:
        orders = series.orders_after(each)
        if series.is_after(each) and (series.repeats(each) or len(orders) == 2):
            return Said(YES, "+".join(_order_codes(orders)))
    return None


def _before(series: Series, study: Sequence[Series], enhanced: Sequence[Series]) -> Said | None:
    """Say no of the first series of a protocol that was repeated with an agent."""
    if any(series.orders_after(each) for each in enhanced):
        return None
    if any(series.repeats(each) and series.is_after(each) for each in study):
        return None
    for each in enhanced:
        # where both are tagged, a tag alone does not tell which of them is enhanced
        by_tag = series.tag and all(code.startswith("tag:") for code, _ in each.voices)
        if each.repeats(series) and each.is_after(series) and not by_tag:
            return Said(NO, "+".join(_order_codes(each.orders_after(series))))
    return None


def _as_ordered(series: Series, table: ContrastTable) -> Said | None:
    """Say what the exam was ordered as, where all texts that say something say: without."""
    answers = {
        name: said
        for name in table.exam_texts
        if (said := table.answers(series.header.get(name) or "", ""))
    }
    if answers and all(said == {NO} for said in answers.values()):
        return Said(NO, "+".join(f"word:{name}" for name in answers))
    return None


def _order_codes(columns: Iterable[str]) -> list[str]:
    return [f"order:{column}" for column in sorted({*columns})]
