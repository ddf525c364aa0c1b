"""Which part of the body a series shows: brain, spine, other, or unknown.

Three voices are heard. *What the series says of itself* (its description, else its protocol) is
the strongest; it contradicts nothing of the exam but a tag that was set on purpose. *What the exam
says* (BodyPartExamined, descriptions of study and request) must agree with itself, for several
parts may be imaged in one exam and its tags are the same for all. *Geometry* only excludes: too
long and thin for a head, too wide for a spine. Anything else is unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from mrmill.curate.evidence import (
    NOTHING,
    BodyPartTable,
    Direction,
    Evidence,
    Exclusion,
    Part,
    Said,
    given,
)

TAG = "BodyPartExamined"

#: Evidence codes, each with the parts it names.
Voices = list[tuple[str, frozenset[str]]]


def body_part(
    header: Mapping[str, Any], plane: str, fov_mm_ras: Sequence[float], evidence: Evidence
) -> Said:
    """Say which part of the body a series shows.

    Parameters
    ----------
    header : mapping
        Column -> value, as `mrmill.headers` makes it; `body_part`, which only a series table
        gives, wins.
    plane : {'AXIAL', 'SAGITTAL', 'CORONAL', 'OBLIQUE', ''}
    fov_mm_ras : (3,) sequence of float
        Extent along the axes nearest to R-L, A-P and S-I, in mm.
    evidence : Evidence

    Returns
    -------
    Said
        brain, spine, other or unknown. Codes: `word:COLUMN`, `tag:BodyPartExamined`, `geometry`.

    Raises
    ------
    ValueError
        If the series table gives none of them.
    """
    if said := given(header, "body_part", get_args(Part)):
        return said
    table = evidence.body_part
    tag = _tag(header, table)
    own = _words(header, table.series_texts, table)[:1]
    if own:
        was_unasked = _parts(tag) == {table.default} != _parts(own)
        voices = own if was_unasked else own + tag
    else:
        voices = tag + _words(header, table.exam_texts, table)
    parts = _parts(voices)
    excluded = {e.part for e in table.exclusions if _holds(e, plane, fov_mm_ras)} & parts
    geometry = ["geometry"] if excluded else []
    if not parts:
        return NOTHING
    if len(parts - excluded) == 1 and not (own and excluded):
        (part,) = parts - excluded
        codes = [code for code, named in voices if part in named]
        return Said(part, "+".join(codes + geometry))
    return Said.conflict([code for code, _ in voices] + geometry)


def _tag(header: Mapping[str, Any], table: BodyPartTable) -> Voices:
    """Hear the tag: one of the codes, else words."""
    text = header.get(TAG) or ""
    coded = frozenset(part for part, codes in table.codes.items() if text.strip().lower() in codes)
    named = coded or table.named(text)
    return [(f"tag:{TAG}", named)] if named else []


def _words(header: Mapping[str, Any], columns: Iterable[str], table: BodyPartTable) -> Voices:
    """Hear the columns that name a part."""
    named = ((f"word:{name}", table.named(header.get(name) or "")) for name in columns)
    return [(code, parts) for code, parts in named if parts]


def _parts(voices: Voices) -> set[str]:
    return set().union(*(parts for _, parts in voices))


def _holds(exclusion: Exclusion, plane: str, fov_mm_ras: Sequence[float]) -> bool:
    """Say whether a field of view is one that the part cannot have."""
    extent_mm = dict(zip(get_args(Direction), fov_mm_ras, strict=True))
    return (
        plane == exclusion.plane
        and all(extent_mm[along] <= mm for along, mm in exclusion.most_mm.items())
        and all(extent_mm[along] >= mm for along, mm in exclusion.least_mm.items())
    )
