"""A real Slurm on this machine, private to one test session.

munged, MariaDB, slurmdbd, slurmctld and one slurmd per node, with their own folder, keys, sockets
and ports. All of them are children of a guard process that ends them when its standard input
closes, so also when the tests die. By hand:

    python tests/slurm/cluster.py /tmp/my-slurm

prints what to export, and runs until Ctrl-D.
"""

import ctypes
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Daemons live where an ordinary user's PATH does not lead.
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

DAEMONS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd")
COMMANDS = (
    *("sbatch", "srun", "scancel", "squeue", "sinfo"),
    *("scontrol", "sacct", "sacctmgr", "sshare"),
)

#: Node -> what is generic about it. Two CPU nodes, so that a job has somewhere else to go.
NODES = {"cpu1": "", "cpu2": "", "gpu1": "Gres=gpu:2"}
PARTITIONS = {"cpu": "cpu1,cpu2", "gpu": "gpu1"}

SLURM_CONF = """\
ClusterName=mrmilltest
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[slurmctld]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ReturnToService=1
MpiDefault=none
SwitchType=switch/none
TaskPlugin=task/none
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=1,sched_interval=5
GresTypes=gpu
JobRequeue=1
KillWait=10
MinJobAge=600
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=30
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[slurmdbd]}
AccountingStoragePass={folder}/munge.socket
AccountingStoreFlags=job_comment
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
JobCompType=jobcomp/none
{nodes}
{partitions}
"""

DBD_CONF = """\
DbdHost=localhost
DbdPort={ports[slurmdbd]}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm
"""


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in DAEMONS + COMMANDS if not shutil.which(name, path=PATH)]


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Have a cluster for the length of a `with` block; give the environment its commands need."""
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as guard:
        said = guard.stdout.readline()
        if not said.startswith("export PATH="):
            raise RuntimeError(f"Slurm did not start, see {folder}: {said}{guard.stdout.read()}")
        try:
            yield {"PATH": f"{folder}/bin:{PATH}"}
        finally:
            guard.stdin.close()
            guard.wait(60)


class Guard:
    """Starts the daemons and ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
            "PATH": PATH,
            "SLURM_CONF": str(self.conf),
            "MYSQL_UNIX_PORT": str(folder / "db.socket"),
        }
        self.daemons: list[subprocess.Popen] = []

    def write_files(self) -> None:
        """Write keys and configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        ports = dict(
            zip(("slurmctld", "slurmdbd", *NODES), free_ports(2 + len(NODES)), strict=True)
        )
        nodes = [
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 "
            f"Port={ports[name]} CPUs=8 RealMemory=64000 State=UNKNOWN {gres}"
            for name, gres in NODES.items()
        ]
        partitions = [
            f"PartitionName={name} Nodes={nodes} Default={'YES' if name == 'cpu' else 'NO'} "
            "MaxTime=INFINITE State=UP"
            for name, nodes in PARTITIONS.items()
        ]
        values = {
            "folder": self.folder,
            "user": getpass.getuser(),
            "host": socket.gethostname(),
            "ports": ports,
            "nodes": "\n".join(nodes),
            "partitions": "\n".join(partitions),
        }
        self.conf.write_text(SLURM_CONF.format(**values))
        devices = ("/dev/null", "/dev/zero")  # in place of GPUs: any devices will do
        gres = "".join(f"NodeName=gpu1 Name=gpu File={device}\n" for device in devices)
        (self.folder / "gres.conf").write_text(gres)
        self.write_private("slurmdbd.conf", DBD_CONF.format(**values).encode())
        self.write_private("munge.key", secrets.token_bytes(128))
        (self.folder / "state").mkdir()

    def write_commands(self) -> None:
        """Write commands that know this cluster by themselves, as those of a real site do.

        The executor's jobs drop SLURM_CONF from the environment.
        """
        (self.folder / "bin").mkdir()
        for name in COMMANDS:
            path = self.folder / "bin" / name
            real = shutil.which(name, path=PATH)
            path.write_text(f'#!/bin/sh\nSLURM_CONF={self.conf} exec {real} "$@"\n')
            path.chmod(0o755)

    def write_private(self, name: str, content: bytes) -> None:
        """Write a file that its owner alone may read, as the daemons insist."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)

    def start(self) -> None:
        """Start everything, each once what it needs is there."""
        self.write_files()
        self.write_commands()
        folder = self.folder
        self.daemon(
            *("munged", "--foreground", f"--key-file={folder}/munge.key"),
            *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
            *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed", "--force"),
        )
        self.until("munge", (folder / "munge.socket").exists)
        user = getpass.getuser()
        subprocess.run(
            [
                *("mariadb-install-db", "--no-defaults", f"--datadir={folder}/db"),
                *(f"--user={user}", "--skip-test-db"),
                *("--auth-root-authentication-method=socket", f"--auth-root-socket-user={user}"),
            ],
            env=self.environment,
            stdout=(folder / "mariadb-install.log").open("wb"),
            stderr=subprocess.STDOUT,
            check=True,
        )
        self.daemon(
            *("mariadbd", "--no-defaults", f"--datadir={folder}/db", f"--user={user}"),
            *("--skip-networking", f"--socket={folder}/db.socket", f"--pid-file={folder}/db.pid"),
            *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M"),
        )
        self.until("MariaDB", (folder / "db.socket").exists)
        self.daemon("slurmdbd", "-D")
        self.until("slurmdbd", self.answers("sacctmgr", "--noheader", "show", "cluster"))
        self.call("sacctmgr", "--immediate", "add", "cluster", "mrmilltest")
        self.call("sacctmgr", "--immediate", "add", "account", "mri")
        self.call("sacctmgr", "--immediate", "add", "user", user, "account=mri")
        self.daemon("slurmctld", "-D")
        self.until("slurmctld", self.answers("scontrol", "ping"))
        for node in NODES:
            self.daemon("slurmd", "-D", "-N", node)
        self.until("the nodes", self.all_idle)

    def daemon(self, *command: str) -> None:
        """Start a daemon that dies with this process."""
        log = (self.folder / f"{command[0]}.out").open("ab")
        daemon = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
        self.daemons.append(daemon)

    def call(self, *command: str) -> str:
        """Run a Slurm command and return what it says."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def answers(self, *command: str) -> Callable[[], bool]:
        """Return a question: does a command end well?"""

        def ask() -> bool:
            with suppress(RuntimeError, subprocess.SubprocessError):
                self.call(*command)
                return True
            return False

        return ask

    def all_idle(self) -> bool:
        """Say whether every node is ready for jobs."""
        states = self.call("sinfo", "--noheader", "--Node", "--format=%N %t").splitlines()
        return sorted(set(states)) == sorted(f"{node} idle" for node in NODES)

    def until(self, what: str, true: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something is true; say which daemon ended when it cannot become so."""
        deadline = time.monotonic() + seconds
        while not true():
            ended = [d.args[0] for d in self.daemons if d.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not come up; ended: {ended}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End every job and daemon, last started first."""
        with suppress(subprocess.SubprocessError):
            subprocess.run(
                ["scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}"],
                env=self.environment,
                timeout=10,
                check=False,
            )
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for pid in self.processes():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> Iterator[int]:
        """Yield what is left of the jobs: processes with this cluster's folder in their PATH."""
        mark = f"{self.folder}/bin:".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                ours = mark in (entry / "environ").read_bytes()
                if ours and int(entry.name) not in (os.getpid(), os.getppid()):
                    yield int(entry.name)


def die_with_parent() -> None:
    """Have the kernel end this process when the guard ends, however that comes."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def free_ports(n: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
    finally:
        for free in sockets:
            free.close()


def main(folder: Path) -> None:
    """Run a cluster until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard = Guard(folder)
    try:
        guard.start()
        print(f"export PATH={folder}/bin:$PATH", flush=True)
        sys.stdin.read()
    finally:
        guard.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
