"""Settings: what is refused, how paths are read, and that generated files are up to date."""

from pathlib import Path

import pytest
import yaml

from mrmill.config import ROOT, Config, ConfigError, checked, digest_of, load_config
from mrmill.generated import contents

ON_CPU = {"deface": {"backend": "deepbet", "device": "cpu"}}


@pytest.mark.parametrize("name", list(contents()))
def test_generated_files_are_up_to_date(name):
    assert (ROOT / name).read_text() == contents()[name], "run `mrmill docs`"


def test_the_default_config_file_holds_every_default():
    written = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    written["deface"] |= {"weights": "models"}
    as_written = checked(written, Path("/data"))
    by_default = checked({"deface": {"weights": "models"}}, Path("/data"))
    assert as_written == by_default


EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_is_accepted(example):
    assert load_config(example)


def test_relative_paths_start_at_the_config_file(tmp_path):
    config = checked(ON_CPU | {"work": "w", "input": {"path": "../export"}}, tmp_path)
    assert config.work == tmp_path / "w"
    assert config.release == tmp_path / "release"
    assert config.input.path == tmp_path / "../export"


def test_variables_and_the_home_folder_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/x")
    config = checked(ON_CPU | {"work": "$SCRATCH/work"}, tmp_path)
    assert config.work == Path("/scratch/x/work")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deface": {"backnd": "deepbet"}}, "deface.backnd: unknown key; did you mean `backend`?"),
        ({"zzz": 1}, "zzz: unknown key; known here: input, work,"),
        ({"identity": {"max_date_shift_days": 0}}, "max_date_shift_days: .* or equal to 1"),
        ({"deface": {"device": "gpu"}}, "deface.device: Input should be 'cuda', 'cpu' or 'mps'"),
        (ON_CPU | {"release": "work/release"}, "must not lie inside each other"),
        (ON_CPU | {"work": "export/work"}, "keep the export untouched"),
        (ON_CPU | {"identity": {"key_file": "release/key"}}, "must lie outside release"),
        (
            {"curate": {"limits": {"fov_out_of_range": {"minimun": 1}}}},
            "curate.limits.fov_out_of_range.minimun: unknown key; did you mean `minimum`",
        ),
        ({"dataset": {"name": "../x"}}, "dataset.name: String should match pattern"),
        (
            {"register": {"coreg_limits": {"stretch": [0.06, 0.05]}}},
            r"register.coreg_limits.stretch: the first limit \(waits for a person\) lies beyond "
            r"the second \(is refused\): it must be at most 0.05, or null \(found \[0.06, 0.05\]",
        ),
        (
            {"register": {"atlas_limits": {"brain_dice": [0.4, 0.5]}}},
            "register.atlas_limits.brain_dice: the first limit .* must be at least 0.5, or null",
        ),
        (
            {"register": {"coreg_limits": {"similarity": [float("nan"), None]}}},
            "register.coreg_limits.similarity.0: Input should be a finite number",
        ),
        ({"register": {"coreg_limits": {"stretchs": [1, 2]}}}, "did you mean `stretch`?"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_hint(values, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        checked(values, tmp_path)


@pytest.mark.parametrize(
    "limits", [{"stretch": [0.04, 0.04]}, {"stretch": [None, 0.01]}, {"brain_dice": [0.9, None]}]
)
def test_limits_may_be_equal_or_left_out(limits, tmp_path):
    found = checked(ON_CPU | {"register": {"coreg_limits": limits}}, tmp_path)
    assert all(getattr(found.register_.coreg_limits, n) == tuple(v) for n, v in limits.items())


def test_checked_settings_survive_the_way_through_snakemake(tmp_path):
    config = checked(ON_CPU, tmp_path)
    assert Config.model_validate(config.model_dump(mode="json", by_alias=True)) == config


def test_settings_that_change_no_voxel_are_not_in_the_key(tmp_path):
    on_cpu = checked(ON_CPU, tmp_path).deface
    on_gpu = checked({"deface": {"backend": "deepbet", "device": "cuda"}}, tmp_path).deface
    wider = checked({"deface": ON_CPU["deface"] | {"buffer_mm": 12}}, tmp_path).deface
    assert on_cpu.key_settings() == on_gpu.key_settings() != wider.key_settings()


def test_a_path_counts_in_the_key_by_what_it_holds(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("the same rules")
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b")
    (tmp_path / "b").write_text("other rules")
    assert digest_of(tmp_path / "a") != digest_of(tmp_path / "b")
