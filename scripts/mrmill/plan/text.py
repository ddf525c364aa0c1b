"""What a plan found, in words."""

from mrmill.plan import PlanSummary

#: Code of a warning -> what was counted, what it means, and what to do about it.
WARNINGS = {
    "mixed_patients": "studies have files of several PatientIDs and are left out: separate the "
    "patients in the export; plan/mixed_patients.csv names the folders",
    "quarantined": "studies share a folder with files of another patient and are left out: "
    "separate them (plan/mixed_patients.csv names the folders), or set input.mixed_folders: accept "
    "where folders mean nothing",
    "excluded": "studies are left out because identity.opt_out names them",
    "opt_out_unmatched": "rows of identity.opt_out match no study: a mistyped id leaves its "
    "patient in; `mrmill check` names their lines",
    "opt_out_nearly": "rows of identity.opt_out match studies but for leading zeros or case: these "
    "studies are left out as well; mend the rows",
    "readmitted": "studies were left out as opted out and come back, as identity.opt_out no longer "
    "names them: is it the right table?",
    "not_in_mapping": "studies are left out because identity.mapping has no row for them: "
    "plan/not_in_mapping.csv in the work tree lists them",
    "patient_changed": "studies have another patient than when they were planned and keep the "
    "first, as uids never change",
    "missing_patient_id": "studies have no PatientID: each is taken for a patient of its own, so "
    "studies of one patient may stand in several splits",
    "patient_id_with_and_without_issuer": "patients have an issuer of their PatientID in some "
    "studies only and are taken for two: complete IssuerOfPatientID",
    "study_id_of_two_patients": "study ids stand for several patients in input.series_table: "
    "each patient has a study of that name",
    "merged_accession": "studies were put together from several StudyInstanceUIDs with one "
    "AccessionNumber, patient and day: plan/merges.csv lists them; "
    "input.one_study_per_accession: false keeps them apart",
    "merged_series_uids": "studies have series whose slices have a SeriesInstanceUID each and "
    "were put together: plan/merges.csv lists them",
    "shared_instances": "studies share instances with another study, as copies of a study under "
    "another UID do: they may be released twice",
    "unreadable_files": "files cannot be read, and whose they are cannot be told: "
    "plan/skipped.csv lists them; export them again",
    "unmatched_table_rows": "rows of input.series_table match no series: look for mistyped UIDs",
}


def plan_text(summary: PlanSummary) -> str:
    """Return what a plan found, with a line on everything unusual."""
    lines = [
        f"plan: {summary.files} files ({summary.read} read now), {summary.patients} patients, "
        f"{summary.studies} studies ({summary.new_studies} new), {summary.series} series, "
        f"{summary.batches} batches, {summary.shards} shards"
    ]
    left = {**summary.skipped, "duplicates": summary.duplicates}
    if any(left.values()):
        lines.append("files left out: " + ", ".join(f"{n} {why}" for why, n in left.items() if n))
    if summary.vanished_studies:
        lines.append(f"{summary.vanished_studies} planned studies are no longer in the export")
    lines += (f"note: {code} ({n}): {WARNINGS[code]}" for code, n in summary.warnings.items())
    quarantined = summary.warnings.get("quarantined", 0)
    if 2 * quarantined > summary.studies:
        lines.append(
            f"ATTENTION: {quarantined} of {summary.studies} studies are quarantined, so hardly "
            "anything would be released. Where folders hold files of many patients by design, "
            "set input.mixed_folders: accept and plan again; UIDs tell the patients apart"
        )
    return "\n".join(lines)
