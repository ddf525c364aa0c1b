"""Plans and records of studies, made by hand or drawn."""

from mrmill.ledger import stages_of
from mrmill.records import Outcome, Record

ALL = ("native", "coreg", "atlas")
PACKAGES = ("package-native", "package-coreg", "package-atlas")


def study(uid, *keys, **more):
    return {
        "study_uid": uid,
        "batch": "batch00",
        "series": [{"series_key": k} for k in keys],
        **more,
    }


def ok(key, **more):
    return {"series_key": key, "state": "accepted", "reason": "", **more}


def no(key, reason, state="rejected", **more):
    return {"series_key": key, "state": state, "reason": reason, **more}


def both(key, coreg="", atlas=""):
    """The two entries of a series in register."""
    return [
        no(key, reason, space=space) if reason else ok(key, space=space)
        for space, reason in (("coreg", coreg), ("atlas", atlas))
    ]


def records_of(uid, **outcomes):
    """One study's records: keyword (dashes as underscores) -> entries or a whole outcome."""
    return {
        name.replace("_", "-"): {
            uid: Record(uid, "key", o if isinstance(o, Outcome) else Outcome(series=o))
        }
        for name, o in outcomes.items()
    }


def in_all_stages(records):
    return {stage: records.get(stage, {}) for stage in stages_of(ALL)}


def whole_way(uid="S", keys=("A",)):
    """Records of a study that all went well with."""
    entries = [ok(key, series_id=f"t1w-raw-{key.lower()}") for key in keys]
    spaces = [entry for key in keys for entry in both(key)]
    stages = dict.fromkeys(("convert", "curate", "deface", "package_native"), entries)
    packages = dict.fromkeys(("package_coreg", "package_atlas"), entries)
    return records_of(uid, **stages, register=spaces, **packages)


def random_run(rng, n_studies):
    """Studies with drawn fates, and what must come out: key -> (state, stage)."""
    plan, records, expected = [], {stage: {} for stage in stages_of(ALL)}, {}
    for number in range(n_studies):
        uid, keys = f"S{number:03}", [f"S{number:03}-{i}" for i in range(rng.randint(1, 5))]
        plan.append(study(uid, *keys))
        alive = list(keys)
        for stage in ("convert", "curate", "deface", "package-native"):
            entries, states = [], {}
            for key in alive:
                state = rng.choices(("accepted", "rejected", "failed"), (8, 1, 1))[0]
                reason = {"accepted": "", "rejected": "not_3d", "failed": "error"}[state]
                entries.append(no(key, reason, state=state))
                states[key] = state
            crash = rng.random() < 0.1
            outcome = Outcome("failed", "error") if crash else Outcome(series=entries)
            records[stage][uid] = Record(uid, "key", outcome)
            expected |= {k: ("failed" if crash else states[k], stage) for k in alive}
            if stage == "deface" and not crash:
                defaced = [key for key in alive if states[key] == "accepted"]
                spaces = [entry for key in defaced for entry in both(key)]
                records["register"][uid] = Record(uid, "key", Outcome(series=spaces))
                for package in PACKAGES[1:]:
                    done = Outcome(series=[ok(key) for key in defaced])
                    records[package][uid] = Record(uid, "key", done)
            alive = [] if crash else [key for key in alive if states[key] == "accepted"]
            if not alive:
                break
    return plan, records, expected
