"""What is said of an error where people outside the work tree may read it."""

import errno
import subprocess
import sys

import pytest
from conftest import environment

from mrmill.errors import UserError, public_words

SECRET = "/export/CANARY^NAME"


def caught(error):
    try:
        raise error
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("give another key"), "give another key"),
        (OSError(errno.ENOSPC, "No space left on device", SECRET), "No space left on device (OS"),
        (ValueError(f"cannot read {SECRET}"), "(ValueError test_logs.py:"),
    ],
)
def test_words_for_the_console_help_and_carry_no_path(error, words):
    found = public_words(caught(error))
    assert found.startswith(words)
    assert SECRET not in found


def job(code, folder):
    """Run code as a job of its own, for a job takes the whole process's log."""
    command = [sys.executable, "-c", f"from mrmill.logs import *; log_to('job.log')\n{code}"]
    return subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True)


def test_an_uncaught_error_is_whole_in_the_log_and_bare_on_the_console(tmp_path):
    result = job(f"raise ValueError('{SECRET}')", tmp_path)
    assert result.returncode == 1
    assert SECRET in (tmp_path / "job.log").read_text()
    assert "ValueError" in result.stderr
    assert SECRET not in result.stderr


TWO_STUDIES = """
with collected() as first:
    logging.info("one")
    with collected() as second:
        logging.info("two")
    logging.info("three")
for text in (first, second):
    write_collected(text.getvalue())
"""


def test_the_lines_of_a_study_stay_together(tmp_path):
    assert job(TWO_STUDIES, tmp_path).returncode == 0
    lines = (tmp_path / "job.log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["one", "three", "two"]
