"""The page that keeps what the fault tests found: docs/faults.md."""

import os
import shutil
import subprocess
import time
from importlib.metadata import version

import mrmill

HEAD = """\
# What was done to runs, and what came of it

Written by `make test-faults`: the tiny phantom goes through the workflow, on one machine and
through a real Slurm (two CPU nodes and one with two GPUs, all on one machine, the GPUs in name
only), and each fault comes in the middle of a run. *As undisturbed* says: the release has the same
bytes as that of a run nobody disturbed; nothing was unlocked or cleaned up by hand; what had been
recorded was not done twice; and, on Slurm, a lock of the kernel saw no shard in two hands at once.
"""


def page(rows):
    """Return the page for rows of place, fault, outcome and seconds."""
    slurmd = shutil.which("slurmd", path=f"{os.environ['PATH']}:/usr/sbin")
    said = subprocess.run([slurmd, "-V"], capture_output=True, text=True).stdout if slurmd else ""
    packages = ("snakemake", "snakemake-executor-plugin-slurm")
    versions = [f"mrmill {mrmill.__version__}", *said.split("\n", 1)[:1]]
    versions += [f"{package} {version(package)}" for package in packages]
    lines = [
        HEAD,
        f"Last run: {time.strftime('%Y-%m-%d')}, {', '.join(versions)}, {os.cpu_count()} cores.",
        "",
        "| where | fault | outcome | seconds |",
        "| --- | --- | --- | --- |",
        *(f"| {where} | {fault} | {end} | {seconds:.0f} |" for where, fault, end, seconds in rows),
    ]
    return "\n".join(lines) + "\n"
