"""Names and places of studies: given once, never changed."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from mrmill.config import Config
from mrmill.index import FoundStudy, PlanError, Shard
from mrmill.plan.identity import Pseudonyms
from mrmill.plan.identity_tables import SiteNames


@dataclass(frozen=True)
class PlannedStudy:
    """A row of `studies.parquet`: one study, identified, with its public names and its place.

    Attributes
    ----------
    StudyInstanceUID : str
        Or what stands for it (`FoundStudy.key`).
    anon_study_date : str
        The date to be published, as 2024-01-31, where the site gives it; else dates are shifted.
    n_files : int
        Files found, copies included.
    """

    study_uid: str
    patient_uid: str
    StudyInstanceUID: str
    PatientID: str
    IssuerOfPatientID: str
    AccessionNumber: str
    StudyDate: str
    reject: str
    batch: str
    shard: str
    split: str
    date_shift_days: int
    anon_study_date: str
    n_series: int
    n_files: int

    @property
    def place(self) -> Shard:
        """Batch and shard."""
        return self.batch, self.shard


def place_studies(
    found: list[FoundStudy],
    known: dict[str, PlannedStudy],
    config: Config,
    pseudonyms: Pseudonyms | None,
    site_names: Mapping[str, SiteNames],
    warnings: Counter[str],
) -> dict[str, PlannedStudy]:
    """Add what was found to what is planned; nothing that is planned moves.

    New studies follow in the order of their uid, which is as good as chance, into the last
    shard until it is full, then into new shards and batches. Those of a release stay in their
    batch.

    Parameters
    ----------
    known : dict
        StudyInstanceUID -> study, as planned so far.
    pseudonyms : Pseudonyms or None
        None for a release, which brings its names along.
    site_names : mapping
        StudyInstanceUID -> what the site calls the study; such patients and dates are not keyed.
    warnings : Counter
        Gets `patient_changed`: studies whose patient is another now; they keep the first one.

    Returns
    -------
    planned : dict
        StudyInstanceUID -> study, those that vanished from the export included.
    """
    patients = {study.patient_uid: study for study in known.values()}
    named = [
        _named(study, config, pseudonyms, site_names.get(study.key), patients) for study in found
    ]
    planned = dict(known)
    new = []
    for study in named:
        old = known.get(study.StudyInstanceUID)
        if old is None:
            new.append(study)
        else:
            planned[study.StudyInstanceUID] = _kept(study, old, warnings)
    keyed = [study for study in named if study.StudyInstanceUID not in site_names]
    _refuse_collisions(keyed, [*planned.values(), *new])
    new.sort(key=lambda study: (study.batch, study.study_uid))
    for batch, group in groupby(new, key=lambda study: study.batch):
        taken = [study.place for study in planned.values() if batch in ("", study.batch)]
        per_batch = math.inf if batch else config.plan.studies_per_batch
        places = free_places(taken, per_batch, config.plan.studies_per_shard)
        for study, (free_batch, shard) in zip(group, places, strict=False):
            placed = replace(study, batch=batch or free_batch, shard=shard)
            planned[study.StudyInstanceUID] = placed
    return planned


def _named(
    study: FoundStudy,
    config: Config,
    pseudonyms: Pseudonyms | None,
    site: SiteNames | None,
    patients: dict[str, PlannedStudy],
) -> PlannedStudy:
    """Give a study its public names; a patient who is known keeps split and shift."""
    study_uid, patient_uid, split, shift = study.study_uid, study.patient_uid, study.split, 0
    if pseudonyms is not None:
        study_uid = pseudonyms.study_uid(study.key)
        patient_uid = site.patient_uid if site else _keyed_patient(study, pseudonyms)
        fractions = config.plan.val_fraction, config.plan.test_fraction
        split = pseudonyms.split(patient_uid, *fractions)
        shift = pseudonyms.date_shift_days(patient_uid, config.identity.max_date_shift_days)
    known = patients.get(patient_uid)
    return PlannedStudy(
        study_uid=study_uid,
        patient_uid=patient_uid,
        StudyInstanceUID=study.key,
        PatientID=study.patient_id,
        IssuerOfPatientID=study.issuer,
        AccessionNumber=study.accession_number,
        StudyDate=study.study_date,
        reject=study.reject,
        batch=study.batch,
        shard="",
        split=known.split if known else split,
        date_shift_days=known.date_shift_days if known else shift,
        anon_study_date=site.anon_study_date if site else "",
        n_series=study.n_series,
        n_files=study.n_files,
    )


def _keyed_patient(study: FoundStudy, pseudonyms: Pseudonyms) -> str:
    if study.patient_id:
        return pseudonyms.patient_uid(study.issuer, study.patient_id)
    return pseudonyms.lone_patient_uid(study.key)


def _kept(study: PlannedStudy, old: PlannedStudy, warnings: Counter[str]) -> PlannedStudy:
    """Bring a planned study up to date; its patient may only be mended while it is rejected."""
    study = replace(study, batch=old.batch, shard=old.shard)
    if study.patient_uid == old.patient_uid or old.reject:
        return study
    warnings["patient_changed"] += not study.reject
    return replace(
        study,
        patient_uid=old.patient_uid,
        split=old.split,
        date_shift_days=old.date_shift_days,
        anon_study_date=old.anon_study_date,
    )


def _refuse_collisions(named: list[PlannedStudy], everything: Iterable[PlannedStudy]) -> None:
    """Stop if two studies or two patients got the same public name."""
    studies: dict[str, set] = defaultdict(set)
    patients: dict[str, set] = defaultdict(set)
    for study in everything:
        studies[study.study_uid].add(study.StudyInstanceUID)
    for study in named:
        if study.PatientID:
            identity = study.IssuerOfPatientID, study.PatientID
            patients[study.patient_uid].add(identity)
    for what, names in (("studies", studies), ("patients", patients)):
        shared = [uid for uid, identities in names.items() if len(identities) > 1]
        if shared:
            raise PlanError(
                f"two {what} have the same pseudonym {shared[0]}.\n"
                "  This happens once in many thousand datasets. Nothing was planned.\n"
                "  Next: for a dataset not yet begun, make another key; else plan without one "
                f"of the two {what}"
            )


def free_places(taken: Iterable[Shard], per_batch: float, per_shard: int) -> Iterator[Shard]:
    """Yield the places after those taken, without end.

    Examples
    --------
    >>> places = free_places([("batch00", "shard0000")], per_batch=3, per_shard=2)
    >>> [next(places) for _ in range(3)]
    [('batch00', 'shard0000'), ('batch00', 'shard0001'), ('batch01', 'shard0000')]
    """
    counts = Counter(taken)
    last = max(counts, key=_numbers, default=("batch00", "shard0000"))
    batch, shard = _numbers(last)
    in_shard = counts[last]
    in_batch = sum(count for place, count in counts.items() if place[0] == last[0])
    while True:
        if in_batch >= per_batch:
            batch, shard, in_batch, in_shard = batch + 1, 0, 0, 0
        elif in_shard >= per_shard:
            shard, in_shard = shard + 1, 0
        yield f"batch{batch:02d}", f"shard{shard:04d}"
        in_batch, in_shard = in_batch + 1, in_shard + 1


def _numbers(place: Shard) -> tuple[int, int]:
    return int(place[0].removeprefix("batch")), int(place[1].removeprefix("shard"))
