"""The package stage: one zip per study and space, the same bytes on any day and machine."""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrmill import layout
from mrmill.layout import ReleaseTree
from mrmill.profile.steps import step
from mrmill.reasons import ACCEPTED, REJECTED
from mrmill.records import Outcome, sha256_of
from mrmill.shards import Study

#: Why a study has no zip in a space.
NOTHING_LEFT = {
    "native": "no_accepted_series",
    "coreg": "reg_failed",
    "atlas": "center_reg_failed",
}

#: Earliest date a zip can hold.
NO_DATE = (1980, 1, 1, 0, 0, 0)
UNIX = 3
PLAIN_FILE = 0o100644


def package_study(
    study: Study, scratch: Path, space: str, release: ReleaseTree, transform_json: bool = False
) -> Outcome:
    """Write the zip of one study in one space, or take away the one that must not be there.

    Parameters
    ----------
    scratch : Path
        Not used: the zip grows beside its place in the release tree and is renamed there.
    space : {'native', 'coreg', 'atlas'}
        Native takes the accepted series of deface; the others those of register and, in coreg
        space, unchanged copies of the center.
    transform_json : bool
        Put in the descriptions beside the transforms as well; MR-RATE's zips have none.

    Returns
    -------
    outcome : Outcome
        With `zip`, and one entry per packaged series; rejected when no series is accepted in
        this space.
    """
    accepted = _accepted_series(study, space)
    if not accepted:
        remove_zip(release, space, study.batch, study.study_uid)
        return Outcome(state=REJECTED, reason=_why_nothing(study, space))
    final = release.zip(space, study.batch, study.study_uid)
    members = _files(study, space, accepted)
    if transform_json:
        members |= _descriptions(study.study_uid, accepted)
    with step("zip"):
        digests = write_zip(final, members)
    return Outcome(
        series=[
            {"series_key": e["series_key"], "series_id": e["series_id"], "state": ACCEPTED}
            for e in accepted
        ],
        zip={
            "path": str(final.relative_to(release.repository(space))),
            "sha256": sha256_of(final),
            "bytes": final.stat().st_size,
            "members": digests,
        },
    )


def remove_zip(release: ReleaseTree, space: str, batch: str, study_uid: str) -> None:
    """Take a study out of one space of the release, if it is there."""
    release.zip(space, batch, study_uid).unlink(missing_ok=True)


def write_zip(final: Path, members: Mapping[str, Path | bytes]) -> dict[str, str]:
    """Write a zip that appears whole or not at all and depends on nothing but its content.

    Members are sorted and stored, without dates, extra fields or comments.

    Parameters
    ----------
    members : dict
        Name -> file or content.

    Returns
    -------
    digests : dict
        Member -> SHA-256 of its content.
    """
    digests = {}
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f".{final.name}.part")
    try:
        with part.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name in sorted(members):
                    content = members[name]
                    if isinstance(content, Path):
                        content = content.read_bytes()
                    digests[name] = hashlib.sha256(content).hexdigest()
                    member = zipfile.ZipInfo(name, NO_DATE)
                    member.create_system = UNIX
                    member.external_attr = PLAIN_FILE << 16
                    archive.writestr(member, content)
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.rename(final)
    finally:
        part.unlink(missing_ok=True)
    return digests


def _accepted_series(study: Study, space: str) -> list[dict[str, Any]]:
    if space == "native":
        return study.upstream["deface"].outcome.accepted_series()
    accepted = study.upstream["register"].outcome.accepted_series()
    return [entry for entry in accepted if entry["space"] == space]


def _why_nothing(study: Study, space: str) -> str:
    """Return why a study has no zip in a space: its center's reason, where that has one."""
    series = study.upstream["register"].outcome.series if space != "native" else []
    centers = (e for e in series if e["space"] == space and e["is_center_modality"])
    kept_out = (e.get("reason", "") for e in centers if e["state"] == REJECTED)
    return next(kept_out, "") or NOTHING_LEFT[space]


def _files(study: Study, space: str, accepted: list[dict[str, Any]]) -> dict[str, Path | bytes]:
    """Return member -> file of everything that goes into the zip."""
    folder = study.folders["deface" if space == "native" else "register"]
    names = [name for entry in accepted for name in entry["files"].values()]
    files = {layout.place_in_zip(study.study_uid, name)[1]: folder / name for name in names}
    return files | _center_copies(study) if space == "coreg" else files


def _descriptions(study_uid: str, accepted: list[dict[str, Any]]) -> dict[str, Path | bytes]:
    """Return member -> content of the JSON beside every transform."""
    from mrmill.register import describe_fit

    names = [(entry["files"].get("transform"), entry) for entry in accepted]
    return {
        layout.transform_json(layout.place_in_zip(study_uid, name)[1]): describe_fit(entry)
        for name, entry in names
        if name
    }


def _center_copies(study: Study) -> dict[str, Path | bytes]:
    series = study.upstream["deface"].outcome.accepted_series()
    center = next(entry for entry in series if entry["is_center_modality"])
    uid, center_id = study.study_uid, center["series_id"]
    names = {
        "img": layout.coreg_center_image(uid, center_id),
        "brain": layout.coreg_mask(uid, center_id, "brain"),
        "defacing": layout.coreg_mask(uid, center_id, "defacing"),
    }
    folder = study.folders["deface"]
    return {f"{uid}/{name}": folder / center["files"][kind] for kind, name in names.items()}
