"""A SLURM cluster of two nodes on this host, for tests: the real daemons, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.patient import until

CONFIG = """
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=20
MaxArraySize={largest_array}
SlurmdParameters=config_overrides
SlurmdTimeout=5
SlurmctldTimeout=5
NodeName=n1 NodeHostName={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory=10000
NodeName=n2 NodeHostName={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory=10000
PartitionName=toy Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""
LARGEST_ARRAY = 2  # tasks of one array


class Cluster:
    """Its daemons and its nodes, `n1` and `n2`, which can be killed and started again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start munged, slurmctld and both nodes, and wait until they are idle."""
        self.folder.chmod(0o755)  # munge's user has to reach its part
        (self.folder / "state").mkdir()
        ports = dict(zip(("controller", "first", "second"), _free_ports(3), strict=True))
        text = CONFIG.format(folder=self.folder, host=socket.gethostname(), largest_array=LARGEST_ARRAY, **ports)
        (self.folder / "slurm.conf").write_text(text)
        self._start_munge()
        self._daemon("slurmctld", "slurmctld", "-D", "-i")
        self.start_nodes()
        idle = ["n1", "idle", "n2", "idle"]
        until(lambda: self.call("sinfo", "-h", "-N", "-o", "%N %T").split() == idle, self.logs, 60)

    def _start_munge(self) -> None:
        place = self.folder / "munge"  # of its own user, and open to nobody else's writing, or munged refuses
        place.mkdir()
        (place / "key").write_bytes(os.urandom(1024))
        (place / "key").chmod(0o600)
        for path in (place, place / "key"):
            shutil.chown(path, "munge", "munge")
        files = [f"--{name}-file={place}/{name}" for name in ("key", "pid", "log", "seed")]
        user = ["--reuid=munge", "--regid=munge", "--clear-groups"]
        self._daemon("munged", *user, "munged", "--foreground", f"--socket={place}/socket", *files)
        until((place / "socket").exists, self.logs, 60)

    def _daemon(self, name: str, *command: str) -> None:
        """One that ends with these tests, however they end: two controllers of one folder would fight."""
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig=TERM", *command],
                env={**os.environ, **self.environment}, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def start_nodes(self) -> None:
        """Those that do not run."""
        for node in ("n1", "n2"):
            if node not in self.daemons:
                (self.folder / f"spool-{node}").mkdir(exist_ok=True)
                self._daemon(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """As a power cut does: the daemon and all that it started, before any of them can report that another ended."""
        daemon = self.daemons.pop(node)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in self._processes(node):
                os.kill(process, number)
        daemon.wait()

    def _processes(self, node: str) -> list[int]:
        """Those that write the node's log or run in its jobs; the nodes of another cluster have the same names."""
        log, found = str(self.folder / f"slurmd-{node}.log"), []
        marks = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()}
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                job = marks <= set((place / "environ").read_bytes().split(b"\0"))
                if job or any(os.readlink(file) == log for file in (place / "fd").iterdir()):
                    found.append(int(place.name))
        return found

    def call(self, *command: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        return done.stdout

    def logs(self) -> str:
        """The last that the daemons wrote."""
        return "".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        """End everything."""
        self.call("scancel", "--user=root")
        for name, daemon in reversed(list(self.daemons.items())):
            if name in ("n1", "n2"):
                self.kill_node(name)
            else:
                daemon.terminate()
                daemon.wait(timeout=60)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def why_not() -> str:
    """Why SLURM cannot be started here; nothing where it can."""
    if os.geteuid():
        return "SLURM's daemons are started by root only"
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "setpriv") if not shutil.which(name)]
    return f"not installed: {', '.join(missing)} (apt-get install slurm-wlm munge)" if missing else ""
