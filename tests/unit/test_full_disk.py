"""What a disk without room leaves behind: nothing half written, and a message."""

import errno
import os
import resource
import sys
from contextlib import suppress

import pytest

from mrmill import cli
from mrmill.lease import Lease
from mrmill.records import write_json


def without_room(act):
    """Call a function in a child process that cannot write one byte more; return its exit code."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    code = 0
    with suppress(OSError):
        act()
        code = 1  # it should not have gone well
    os._exit(code)


def test_no_half_lease_and_no_half_file_stay(tmp_path):
    assert without_room(lambda: Lease(tmp_path / "shard0000.lease").__enter__()) == 0
    assert without_room(lambda: write_json(tmp_path / "shard0000.json", {"a": 1})) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_command_says_that_the_disk_is_full_without_a_traceback(monkeypatch, capsys):
    def fill():
        raise OSError(errno.ENOSPC, "No space left on device", "/data/DOE^JANE/work")

    monkeypatch.setattr(cli, "app", fill)
    monkeypatch.setattr(sys, "argv", ["mrmill", "status"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert "DOE" not in said


def test_an_error_that_is_no_disks_fault_is_not_hidden(monkeypatch):
    def fail():
        raise FileNotFoundError(errno.ENOENT, "No such file")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(FileNotFoundError):
        cli.main()
