"""What a person means by a name: a study, or a series of one."""

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any

from mrmill.errors import UserError
from mrmill.layout import WorkTree

#: What stands around a series id in the names of released files.
SPACE_PREFIX = re.compile(r"^(coreg|atlas)_")
FILE_SUFFIX = re.compile(r"(_(brain|defacing)-mask)?\.nii(\.gz)?$")

#: How many names a message gives.
NAMED = 8


class TargetError(UserError):
    """There is nothing of that name."""


def find(work: WorkTree, target: str) -> tuple[dict[str, Any], str]:
    """Return the study that a target means, as the plan's table has it, and the series' name.

    Raises
    ------
    TargetError
        If nothing, or more than one thing, is called so.
    """
    if not work.studies.exists():
        raise TargetError(f"nothing is planned in {work.root}")
    import pyarrow.parquet as pq

    uids = pq.read_table(work.studies, columns=["study_uid"])["study_uid"].to_pylist()
    known = set(uids)
    uid, _, rest = target.partition("/") if "/" in target else target.partition("_")
    if target in known:
        uid, name = target, ""
    elif uid in known:
        name = SPACE_PREFIX.sub("", FILE_SUFFIX.sub("", rest))
    else:
        owners = sorted(_owners(work, target))
        if len(owners) != 1:
            hint = near_names(uid, uids)
            if owners:
                hint = "; say which: " + ", ".join(f"{o}/{target}" for o in owners[:NAMED])
            count = "no" if not owners else "more than one"
            raise TargetError(f"{count} study or series is called {target}{hint}")
        uid, name = owners[0], target
    (study,) = pq.read_table(work.studies, filters=[("study_uid", "==", uid)]).to_pylist()
    return study, name


def _owners(work: WorkTree, series_key: str) -> Iterator[str]:
    """Yield the studies that have a series of that key, or an image made of it (`KEY-2`)."""
    keys = {series_key, re.sub(r"-\d+$", "", series_key)}
    quoted = [json.dumps(key).encode() for key in keys]
    for path in (work.plan / "shards").glob("*/*.json"):
        content = path.read_bytes()  # a large plan has gigabytes of file names: parse what matters
        if any(key in content for key in quoted):
            for study in json.loads(content)["studies"]:
                if keys & {series["series_key"] for series in study["series"]}:
                    yield study["study_uid"]


def near_names(name: str, known: list[str]) -> str:
    """Say which names are near to one that is not known."""
    near = difflib.get_close_matches(name, known, n=NAMED, cutoff=0.4)
    if near:
        return f"; near: {', '.join(near)}"
    return f"; there are: {', '.join(known)}" if len(known) <= NAMED else ""
