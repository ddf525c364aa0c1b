"""Conda environments: all that a rule's script can import, at the pinned version."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

#: Distribution that brings a module, where it has another name.
DISTRIBUTIONS = {
    "ants": "antspyx",
    "HD_BET": "hd-bet",
    "nnunetv2": "hd-bet",  # brought along
    "SimpleITK": "simpleitk",
    "yaml": "pyyaml",
    "pynvml": "nvidia-ml-py",
}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines):
    """Distribution -> version of `name==version` lines."""
    parts = (line.split("#")[0].strip().split("==") for line in lines)
    return {normal(part[0]): part[1] for part in parts if len(part) == 2}


def environment(name):
    """Pins of the pip part of a conda environment."""
    content = yaml.safe_load((ROOT / "envs" / name).read_text())
    (pip,) = (d["pip"] for d in content["dependencies"] if isinstance(d, dict))
    return pins(pip)


REQUIREMENTS = pins((ROOT / "envs" / "requirements.txt").read_text().splitlines())


@cache
def imports_of(path):
    """Modules that a file imports anywhere, but for type checkers only."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in [n for n in ast.walk(tree) if isinstance(n, ast.If)]:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            siblings = path.parent.glob("*.py")  # whichever a setting names
            package = ".".join(path.parent.relative_to(ROOT / "scripts").parts)
            found |= {f"{package}.{sibling.stem}" for sibling in siblings}
    return found


def file_of(module):
    """File of one of this project's modules."""
    base = ROOT.joinpath("scripts", *module.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def reached_from(script):
    """Distributions that a script and the project's modules behind it import."""
    todo, seen, found = [script], set(), set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in imports_of(path):
            parts = module.split(".")
            if parts[0] == "mrmill":
                packages = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
                todo += [p for p in map(file_of, packages) if p]
            elif parts[0] not in sys.stdlib_module_names:
                found.add(normal(DISTRIBUTIONS.get(parts[0], parts[0])))
    return found - {"snakemake"}


def rules():
    """Script and environment of every rule."""
    for path in sorted((ROOT / "rules").glob("*.smk")):
        text = path.read_text()
        scripts = re.findall(r'script:\s+"\.\./(scripts/\w+\.py)"', text)
        environments = re.findall(r'conda:\s+"\.\./envs/(\w+\.yaml)"', text)
        assert len(scripts) == len(environments)
        yield from zip(scripts, environments, strict=True)


@pytest.mark.parametrize(("script", "name"), list(rules()))
def test_an_environment_has_all_that_its_rule_imports(script, name):
    assert reached_from(ROOT / script) - environment(name).keys() == set()


@pytest.mark.parametrize("name", ["cpu.yaml", "gpu.yaml"])
def test_environments_have_the_pinned_versions(name):
    found = environment(name)
    assert found
    assert found == {d: REQUIREMENTS[d] for d in found}


def test_scripts_reach_the_libraries_of_their_stage():
    """The search for imports finds what is known to be there."""
    assert {"torch", "hd-bet", "deepbet", "nibabel"} <= reached_from(ROOT / "scripts/deface.py")
    assert {"antspyx", "numba"} <= reached_from(ROOT / "scripts/register.py")
    assert "torch" not in reached_from(ROOT / "scripts/register.py")


def test_the_slurm_profile_sends_every_gpu_rule_to_the_gpu_partition():
    texts = [path.read_text() for path in (ROOT / "rules").glob("*.smk")]
    rules_with_gpu = {
        re.search(r"^rule (\w+):", text, re.MULTILINE).group(1)
        for text in texts
        if re.search(r"^\s+gpu=", text, re.MULTILINE)
    }
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    assert rules_with_gpu == profile["set-resources"].keys()
    for resources in profile["set-resources"].values():
        assert resources == {"slurm_partition": "gpu", "gpu": 1}


def test_the_container_copies_what_is_there_and_has_the_environments_python():
    recipe = (ROOT / "containers" / "Dockerfile").read_text()
    copied = [
        words[1:-1] for line in recipe.splitlines() if (words := line.split())[:1] == ["COPY"]
    ]
    names = {name for sources in copied for name in sources}
    assert names >= {"Snakefile", "rules", "config", "scripts", "envs/requirements.txt"}
    assert [name for name in names if not (ROOT / name).exists()] == []
    (python,) = re.findall(r"^FROM python:(\d+\.\d+)-", recipe, re.MULTILINE)
    for name in ("cpu.yaml", "gpu.yaml"):
        assert f"- python={python}\n" in (ROOT / "envs" / name).read_text()
