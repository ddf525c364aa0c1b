"""Classification: what vendors write, what the table must not allow, how good it is."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from benchmarks.classification.__main__ import PUBLISHED, Series, confusion, scores, six

from mrmill.curate.classify import (
    SERIES_TABLE,
    TABLE,
    WRITTEN,
    RulesError,
    classify,
    classify_file,
    load_rules,
    trace,
)
from mrmill.errors import UserError
from mrmill.headers import sidecar_header

RULES = load_rules()
WRITTEN_CASES = yaml.safe_load(
    Path(__file__).with_name("classification_cases.yaml").read_text(encoding="utf-8")
)
RULE_CASES = WRITTEN_CASES["rules"]
FLAG_CASES = [
    (flag, row, case)
    for flag, cases in WRITTEN_CASES["flags"].items()
    for row, case in enumerate(cases)
]
DATA = Path(os.environ.get("MRMILL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
HEADERS = DATA / "series_headers" / "dev.jsonl"
ACCEPTED = ("T1w", "T2w", "T2-FLAIR", "SWI", "MRA")
NAMES = ("SequenceName", "PulseSequenceName", "PulseSequenceDetails", "InternalPulseSequenceName")
WORDS = ("ProtocolName", "SeriesDescription")


def header(**values):
    return {"MRAcquisitionType": None, "ScanningSequence": None} | values


def se(te, tr, **values):
    return header(TE_ms=te, TR_ms=tr, ScanningSequence="SE", **values)


def gr3d(te, tr, angle, **values):
    common = {"ScanningSequence": "GR", "MRAcquisitionType": "3D", "SequenceVariant": "SP"}
    return header(**common | {"TE_ms": te, "TR_ms": tr, "FlipAngle": angle} | values)


def gr2d(te, tr, angle, **values):
    return gr3d(te, tr, angle, MRAcquisitionType="2D", **values)


# typical clinical protocols: what the scanner writes -> what it is
CASES = {
    # defects of the published rules that must not come back
    "siemens_tof": (gr3d(3.4, 21, 18, SequenceName="*fl3d1r_t70"), "MRA"),
    "siemens_tof_without_tone": (
        gr3d(3.6, 22, 18, SequenceName="*fl3d1r", SeriesDescription="TOF_3D_multi-slab"),
        "MRA",
    ),
    "ge_tof": (gr3d(2.7, 23, 15, ScanOptions="FAST_GEMS\\FC\\VASCTOF_GEMS"), "MRA"),
    "philips_tof": (gr3d(3.45, 25, 20, SeriesDescription="s3DI_MC_HR"), "MRA"),
    "enhanced_tof": (gr3d(3.4, 21, 18, TimeofFlightContrast="YES"), "MRA"),
    "siemens_field_map": (gr2d(4.92, 500, 60, SequenceName="*fm2d2r"), "fieldmap"),
    "field_map_by_physics": (gr2d(4.92, 500, 60), "fieldmap"),
    "philips_spin_echo_diffusion": (
        se(
            70, 10600, FlipAngle=90, MRAcquisitionType="2D", EchoTrainLength=55, PixelBandwidth=2973
        ),
        "DWI",
    ),
    "ge_flair_without_ir": (se(150, 11000, TI_ms=2250, FlipAngle=125), "T2-FLAIR"),
    # T1w
    "mprage": (gr3d(2.98, 2300, 9, TI_ms=900, ScanningSequence="GR\\IR"), "T1w"),
    "ge_bravo": (gr3d(2.9, 6.6, 12, TI_ms=450, SequenceVariant="SS\\SP\\SK"), "T1w"),
    "philips_t1_tfe": (gr3d(3.2, 7, 8, SequenceVariant="MP"), "T1w"),
    "old_spgr_with_a_large_angle": (gr3d(6, 30, 35), "T1w"),
    "vibe": (gr3d(2.4, 5.2, 12), "T1w"),
    "t1_spin_echo": (se(12, 550, FlipAngle=90), "T1w"),
    "t1_flair": (se(24, 2500, TI_ms=860), "T1w"),
    "t1_flash_2d": (gr2d(2.5, 250, 70), "T1w"),
    "mp2rage_uni": (gr3d(3.1, 5000, None, ScanningSequence="GR\\IR"), "T1w"),
    "mp2rage_part": (
        gr3d(3.1, 5000, 4, TI_ms=700, SeriesDescription="t1_mp2rage_sag_INV1"),
        "other",
    ),
    # T2w and its neighbours
    "t2_tse": (se(98, 4500, FlipAngle=150, EchoTrainLength=15), "T2w"),
    "t2_single_shot": (
        se(
            90, 1600, FlipAngle=150, EchoTrainLength=120, PixelBandwidth=650, MRAcquisitionType="2D"
        ),
        "T2w",
    ),
    "t2_space": (se(408, 3200, FlipAngle=120, SequenceName="*spc_314ns"), "T2w"),
    "ge_cube_research_mode": (
        header(TE_ms=66, TR_ms=3200, ScanningSequence="RM", EchoTrainLength=140, FlipAngle=90),
        "T2w",
    ),
    "proton_density": (se(15, 3000), "PDw"),
    "stir": (se(60, 4500, TI_ms=160), "STIR"),
    "flair_2d": (se(90, 9000, TI_ms=2500), "T2-FLAIR"),
    "flair_3d": (se(388, 5000, TI_ms=1800, SequenceName="*spcir_278ns"), "T2-FLAIR"),
    "double_inversion": (se(325, 7500, TI_ms=3000, SeriesDescription="t2_spc_dir"), "other"),
    # susceptibility
    "swi_3t": (gr3d(20, 28, 15), "SWI"),
    "swi_1_5t": (gr3d(40, 49, 15, SequenceName="*swi3d1r"), "SWI"),
    "ge_swan": (gr3d(17.3, 42, 15, ScanOptions="FAST_GEMS\\FC\\PFP"), "SWI"),
    "t2star_2d": (gr2d(20, 650, 20), "T2star"),
    # the rest
    "diffusion": (header(ImageType="ORIGINAL\\PRIMARY\\DIFFUSION", TE_ms=90, TR_ms=6000), "DWI"),
    "diffusion_b_value": (header(**{"Diffusionb-value": 1000.0, "TE_ms": 80}), "DWI"),
    "bold": (header(TE_ms=30, TR_ms=2000, ScanningSequence="EP", FlipAngle=75), "BOLD"),
    "philips_bold": (gr2d(30, 2000, 75, SequenceVariant="SK", EchoTrainLength=63), "BOLD"),
    "asl": (header(TE_ms=10.5, TR_ms=4800, TI_ms=2025, ScanOptions="SPIRAL_GEMS"), "ASL"),
    "ciss": (gr3d(2.4, 5.5, 50, SequenceVariant="SS"), "other"),
    "flash_localizer": (gr2d(4, 8.6, 20), "localizer"),
    "nothing": (header(), "UNKNOWN"),
}


@pytest.mark.parametrize("case", CASES)
def test_typical_protocols_are_told(case):
    values, modality = CASES[case]
    assert classify(values, RULES).classified_modality == modality


@pytest.mark.parametrize(
    ("words", "modality"),
    [
        ("T1 AKSIYEL KONTRASTLI", "T1w"),
        ("t2_tse_tra_320", "T2w"),
        ("Ax T2* GRE", "T2star"),
        ("t2_tirm_tra_dark-fluid_320", "T2-FLAIR"),
        ("T1 FLAIR sag", "T1w"),
        ("Beyin Difüzyon", "DWI"),
        ("Suszeptibilität 3D", "SWI"),
        ("ARM anjiyo 3D TOF", "MRA"),
        ("MR Anjiografi", "MRA"),
        ("Repérage", "localizer"),
        ("Lokalizer", "localizer"),
        ("perfusión DSC", "other"),
    ],
)
def test_words_of_five_languages_are_told(words, modality):
    assert classify({"SeriesDescription": words}, RULES).classified_modality == modality


def test_the_description_counts_before_the_name_of_the_whole_exam():
    of_ge = {"SeriesDescription": "Sag T1 BRAVO", "ProtocolName": "fMRI research protocol"}
    assert classify(of_ge, RULES).classified_modality == "T1w"


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"ImageType": "DERIVED\\SECONDARY\\MPR"}, "is_derived"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\MIN IP"}, "is_derived"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\P\\ND"}, "is_derived"),
        ({"SeriesDescription": "mIP_Images(SW)"}, "is_derived"),
        ({"SeriesDescription": "<MPR Range>"}, "is_derived"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "is_localizer"),
        ({"SeriesDescription": "AAHead_Scout"}, "is_localizer"),
        ({"ImageType": "DERIVED\\PRIMARY\\SUBTRACTION"}, "is_subtraction"),
        ({"SeriesDescription": "T1 çıkarma"}, "is_subtraction"),
    ],
)
def test_derived_localizer_and_subtraction_images_are_flagged(values, flag):
    assert getattr(classify(values, RULES), flag)


@pytest.mark.parametrize(
    "values",
    [
        {
            "ImageType": "ORIGINAL\\PRIMARY\\M\\ND\\NORM",
            "SeriesDescription": "t1_mpr_ns_sag_p2_iso",
        },
        {"SeriesDescription": "sub-01 T1w"},
        {"ScanningSequence": "EP", "SeriesDescription": "task-localizer"},
    ],
)
def test_plain_acquisitions_carry_no_flag(values):
    found = classify(values, RULES)
    assert (found.is_derived, found.is_localizer, found.is_subtraction) == (False, False, False)


@pytest.mark.parametrize("words", ["AX T1 POST PERFUSION", "sT1W_3D before ASL"])
def test_an_anatomical_series_is_not_called_after_what_it_is_for(words):
    assert classify(se(12, 550, SeriesDescription=words), RULES).classified_modality == "T1w"


def test_what_a_person_wrote_wins():
    table = {"modality": "flair", "is_derived": False}
    found = classify(CASES["mprage"][0] | table | {"ImageType": "DERIVED\\SECONDARY"}, RULES)
    assert (found.classified_modality, found.classification_rule) == ("T2-FLAIR", SERIES_TABLE)
    assert (found.is_derived, found.confidence) == (False, 1.0)


def test_a_modality_that_nobody_knows_is_refused_without_repeating_it():
    with pytest.raises(ValueError, match="none of T1w, T2w") as refused:
        classify({"modality": "Mr Smith"}, RULES)
    assert "Smith" not in str(refused.value)


def test_the_release_writes_flair_as_mr_rate_does():
    assert (RULES.released("T2-FLAIR"), RULES.released("T1w")) == ("FLAIR", "T1w")


def test_surer_evidence_gives_more_confidence():
    sure = classify(CASES["diffusion"][0], RULES).confidence
    assert sure > classify(CASES["t2_tse"][0], RULES).confidence > 0.5
    assert classify({}, RULES).confidence == 0


def header_of(case):
    """The header in a case, its numbers as they are read."""
    numbers = {key: float(value) for key, value in case.items() if isinstance(value, int)}
    return {k: v for k, v in case.items() if k not in ("rule", "is", "vendor")} | numbers


@pytest.mark.parametrize("case", RULE_CASES, ids=lambda case: f"{case['rule']}-{case['vendor']}")
def test_each_rule_decides_what_it_is_there_for(case):
    found = classify(header_of(case), RULES)
    assert found.classification_rule.split(":")[1] == case["rule"]
    assert found.classified_modality == case["is"]


def test_no_rule_is_without_a_case():
    assert {rule.name for rule in RULES.rules} == {case["rule"] for case in RULE_CASES}


@pytest.mark.parametrize(("flag", "row", "case"), FLAG_CASES)
def test_each_row_of_a_flag_raises_it_and_spares_what_is_plain(flag, row, case):
    conditions = getattr(RULES.flags, flag)[row]
    assert conditions.hold(RULES.evidence(case["flagged"]))
    assert getattr(classify(case["flagged"], RULES), flag)
    assert not getattr(classify(case["plain"], RULES), flag)


def test_no_row_of_a_flag_is_without_a_case():
    cases = {flag: len(rows) for flag, rows in WRITTEN_CASES["flags"].items()}
    assert cases == {flag: len(getattr(RULES.flags, flag)) for flag in cases}


def test_a_trace_tells_every_rule_that_was_tried_and_why_it_failed():
    flash = gr2d(4.0, 8.6, 20.0)
    tried = trace(flash, RULES)
    *failed, fired = tried
    assert [one.rule for one in tried] == [rule.name for rule in RULES.rules][: len(tried)]
    assert f"{fired.tier}:{fired.rule}" == classify(flash, RULES).classification_rule
    assert fired.fired
    assert all(condition.held for condition in fired.conditions)
    assert not any(one.fired for one in failed)
    assert all([condition.held for condition in one.conditions] == [False] for one in failed)
    angle = next(one for one in failed if one.rule == "t1_flash_2d").conditions[0]
    assert (angle.column, angle.test, angle.value) == ("TR_ms", "60 .. 380", 8.6)


def test_an_exception_that_stood_in_the_way_is_told_as_one():
    tried = trace({"SequenceName": "*tfl3d1_16ns", "SeriesDescription": "pd_mprage"}, RULES)
    broken = next(one for one in tried if one.rule == "mprage_sequence").conditions[0]
    assert (broken.column, broken.value) == ("words", ["pd mprage"])
    assert broken.test.startswith("not ~ ")


def test_nothing_is_traced_where_a_person_gave_the_modality():
    assert trace({"modality": "T1w"}, RULES) == []


def test_a_time_of_zero_is_no_time():
    flair = {"ScanningSequence": "SE\\IR", "TE_ms": 90.0, "TR_ms": 9000.0}
    found = classify(flair | {"TI_ms": 0.0}, RULES)
    assert found == classify(flair, RULES)
    assert found.classified_modality == "T2-FLAIR"


@pytest.mark.parametrize("times", [(0.09, 9, 2.5), (90, 9000, 2500)])
def test_a_sidecar_in_milliseconds_is_read_as_one(times):
    echo, repetition, inversion = times
    sidecar = {"EchoTime": echo, "RepetitionTime": repetition, "InversionTime": inversion}
    found = classify(sidecar_header(sidecar, {}), RULES)
    assert found.classification_rule == "physics:flair"


@pytest.mark.parametrize(
    "codes",
    [
        {"ScanningSequence": "SE_IR", "ImageType": "ORIGINAL/PRIMARY/M/ND"},
        {"ScanningSequence": "SE\\IR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]},
        {"ScanningSequence": ["SE", "IR"], "ImageType": "ORIGINAL\\PRIMARY\\M\\ND"},
    ],
)
def test_codes_are_read_however_they_are_joined(codes):
    sidecar = codes | {"EchoTime": 0.09, "RepetitionTime": 9, "FlipAngle": 150}
    found = classify(sidecar_header(sidecar, {}), RULES)
    assert found.classification_rule == "physics:flair_without_inversion_time"


def changed(tmp_path, change):
    """The shipped table with one change, as a file."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    change(table)
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("whenn", {}, "rule diffusion_adc: no key called `whenn`; did you mean `when`"),
        ("modality", "T3w", "rule diffusion_adc: no modality called `T3w`; did you mean `T2w`"),
        ("tier", 9, "tier 9 is not in tiers"),
        ("tier", 4, "order of their tiers"),
        ("when", {"TE": "< 5"}, "no column or text called `TE`; did you mean `TE_ms`"),
        ("when", {"TE_ms": "below 5"}, "rule diffusion_adc: not a test: 'below 5'"),
        ("when", {"words": "~ (t1"}, "not a regular expression"),
        ("when", {}, "without conditions it would take every series"),
        ("name", "swi", "named twice"),
    ],
)
def test_a_mistake_in_the_table_is_named(tmp_path, key, value, problem):
    path = changed(tmp_path, lambda table: table["rules"][0].update({key: value}))
    with pytest.raises(RulesError, match=problem):
        load_rules(path)


def site_file(tmp_path, text):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return path


def test_a_site_adds_rules_that_are_tried_before_all_others(tmp_path):
    rules = load_rules(
        site_rules=site_file(
            tmp_path,
            "rules:\n"
            '  - {name: our_angio, modality: MRA, when: {words: "~ ^kopf 7"}}\n'
            "  - {name: our_guess, modality: T2w, confidence: 0.4,"
            '     when: {sequence: "~ ^our_tse"}}\n',
        )
    )
    angio = classify(CASES["mprage"][0] | {"SeriesDescription": "Kopf_7"}, rules)
    guess = classify({"SequenceName": "*our_TSE"}, rules)
    assert (angio.classified_modality, angio.classification_rule) == ("MRA", "site:our_angio")
    assert (angio.confidence, guess.confidence) == (1.0, 0.4)
    assert classify(CASES["mprage"][0], rules) == classify(CASES["mprage"][0], RULES)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rule: []", "site.yaml cannot be used: no key called `rule`; did you mean `rules`"),
        ("rules: {name: x}", "must be a list of rules"),
        ("- 3", "must hold `rules:`"),
        ("rules: [{name: x, tier: 3, modality: T1w, when: {TE_ms: known}}]", "has no tier"),
        ("rules: [{name: x, modality: T1, when: {TE_ms: known}}]", "did you mean `T1w`"),
        ("rules: [{name: x, modality: T1w, when: {EchoTime: known}}]", "called `EchoTime`"),
        ("rules: [{name: x, modality: T1w, wen: {TE_ms: known}}]", "did you mean `when`"),
        ("rules: [{name: x, modality: T1w}]", "would take every series"),
        ("rules: [{name: swi, modality: SWI, when: {TE_ms: known}}]", "named twice: .'swi'"),
    ],
)
def test_a_mistake_in_a_sites_rules_is_named(tmp_path, text, problem):
    with pytest.raises(RulesError, match=problem):
        load_rules(site_rules=site_file(tmp_path, text))


def test_a_file_of_headers_becomes_a_table_with_a_row_per_series(tmp_path):
    lines = [
        {"id": "a", "sidecar": {"SequenceName": "*fl3d1r_t70", "EchoTime": 0.0037}},
        {"id": 2, "sidecar": {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}},
    ]
    headers, out = tmp_path / "in.jsonl", tmp_path / "out.csv"
    headers.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
    assert classify_file(headers, out, RULES) == 2
    assert out.read_text().splitlines() == [
        ",".join(("id", *WRITTEN)),
        "a,MRA,vendor_sequence:tof_sequence,TOF,False,False,False,0.95",
        "2,DWI,tags:diffusion_adc,EPI,True,False,False,0.99",
    ]


def test_a_sidecar_of_null_says_nothing_and_a_byte_order_mark_is_no_letter(tmp_path):
    headers, out = tmp_path / "in.jsonl", tmp_path / "out.csv"
    headers.write_text('\ufeff{"id": "a", "sidecar": null}\r\n', encoding="utf-8")
    assert classify_file(headers, out, RULES) == 1
    assert out.read_text().splitlines()[1].startswith("a,UNKNOWN,")


DEEP = '{"id": "a", "sidecar": ' + "[" * 100_000


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"id": "a"}', '{"id": "a", "sidecar": []}', "null", DEEP],
    ids=lambda line: line[:30],
)
def test_a_bad_line_is_named_and_nothing_is_left_behind(tmp_path, line):
    headers, out = tmp_path / "in.jsonl", tmp_path / "out.csv"
    headers.write_text('{"id": "a", "sidecar": {}}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        classify_file(headers, out, RULES)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_series_takes_less_than_a_millisecond():
    start = time.process_time()
    for _ in range(20):
        for values, _ in CASES.values():
            classify(values, RULES)
    assert (time.process_time() - start) / (20 * len(CASES)) < 1e-3


def recalls(kept=lambda key: True):
    """Share of each class that is found, of the accepted modalities and `reject`."""
    right, seen = dict.fromkeys((*ACCEPTED, "reject"), 0), {}
    for line in HEADERS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        sidecar = {key: value for key, value in record["sidecar"].items() if kept(key)}
        found = classify(sidecar_header(sidecar, {}), RULES).classified_modality
        label = record["label"] if record["label"] in ACCEPTED else "reject"
        seen[label] = seen.get(label, 0) + 1
        right[label] += (found if found in ACCEPTED else "reject") == label
    return {label: right[label] / seen[label] for label in seen}


@pytest.mark.skipif(not HEADERS.exists(), reason="no labelled headers: set MRMILL_TEST_DATA")
@pytest.mark.parametrize(
    ("kept", "least", "least_balanced"),
    [
        (lambda key: True, 0.97, 0.97),
        (lambda key: key not in (*NAMES, *WORDS), 0.93, 0.97),
        (lambda key: key in ("SequenceName", *WORDS), 0.6, 0.85),
    ],
    ids=["everything", "physics", "names"],
)
def test_real_headers_are_told_with_everything_by_physics_and_by_names(kept, least, least_balanced):
    found = recalls(kept)
    assert min(found.values()) >= least
    assert sum(found.values()) / len(found) >= least_balanced


def test_the_published_rules_call_every_time_of_flight_t1w():
    published = load_rules(PUBLISHED)
    tof = CASES["siemens_tof"][0]
    assert classify(tof, published).classified_modality == "T1w"
    assert classify(tof, RULES).classified_modality == "MRA"


def test_the_benchmark_counts_rare_classes_as_much_as_common_ones():
    pairs = [(Series("T1w", "GE", {}), "T1w")] * 9 + [(Series("MRA", "GE", {}), "T1w")]
    found = scores(pairs)
    assert (found["raw"], found["balanced"]) == (0.9, 0.5)
    assert found["recalls"] == {"T1w": 1.0, "MRA": 0.0}


def test_the_benchmark_takes_all_that_is_rejected_for_one_class():
    pairs = [(Series("BOLD", "GE", {}), "DWI"), (Series("DWI", "GE", {}), "T2w")]
    assert scores(pairs)["raw"] == 0.5
    assert confusion(pairs, six) == {"reject": {"T2w": 1, "reject": 1}}
    assert confusion(pairs, str) == {"BOLD": {"DWI": 1}, "DWI": {"T2w": 1}}
