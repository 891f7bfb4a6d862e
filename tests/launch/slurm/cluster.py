"""A real SLURM on this machine, on loopback, for tests and the demo: munged, slurmctld and one slurmd, stopped by pid.

`python tests/launch/slurm/cluster.py FOLDER COMMAND...` starts it, runs a command in it and stops it. It installs
nothing and needs root (Debian's packages munge, slurmctld, slurmd and slurm-client).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = "munge slurmctld slurmd slurm-client"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")

CONF = """
ClusterName={name}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
JobRequeue=1
MaxArraySize=101
MinJobAge=86400
KillWait=5
# a minute, so that a late warning before the limit still comes before the end
OverTimeLimit=1
InactiveLimit=0
SchedulerParameters=bf_interval=2,sched_interval=5,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
DefMemPerCPU=1000
{nodes}
PartitionName=low  Nodes=ALL PriorityTier=1  PreemptMode=REQUEUE GraceTime=20 Default=YES
PartitionName=hard Nodes=ALL PriorityTier=1  PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""

NODE = (
    "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=20000 State=UNKNOWN"
)


class Cluster:
    """One machine's SLURM in a folder of its own.

    Args:
        folder: for its files; a short path, since sockets lie in it.
        cpus: that each node claims to have.
        nodes: how many, all of them on this machine.
        name: of the cluster.
    """

    def __init__(self, folder: Path, cpus: int = 2, nodes: int = 1, name: str = "bench") -> None:
        self.folder = folder
        self.nodes = [f"n{number + 1}" for number in range(nodes)]
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state").mkdir(exist_ok=True)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        lines = [NODE.format(name=node, port=free_port(), cpus=cpus) for node in self.nodes]
        conf = CONF.format(name=name, folder=folder, port=free_port(), nodes="\n".join(lines))
        (folder / "slurm.conf").write_text(conf)

    @staticmethod
    def missing() -> str:
        """Why it cannot be started here; empty if it can."""
        absent = [program for program in PROGRAMS if find(program) is None]
        if absent:
            return f"no {', '.join(absent)} here: apt-get install {PACKAGES}"
        return "" if os.geteuid() == 0 else "munged, slurmctld and slurmd are started as root here"

    def start(self) -> None:
        own = {name: f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "log", "pid", "seed")}
        self.launch("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *own.values())
        wait_for(lambda: (self.folder / "munge.socket").exists(), "munged")
        self.before_the_controller()
        self.launch("slurmctld", "-D", "-c")
        wait_for(lambda: "is UP" in self.call("scontrol", "ping", check=False), "slurmctld")
        for name in self.nodes:
            self.launch("slurmd", "-D", "-N", name, called=f"slurmd {name}")
        idle = f"idle {len(self.nodes)}"
        wait_for(lambda: idle in self.call("sinfo", "--noheader", "--format=%T %D", check=False), "slurmd")

    def before_the_controller(self) -> None:
        """Start what it needs beside munged: nothing."""

    def stop(self) -> None:
        if "slurmctld" in self.daemons:
            self.call("scancel", "--user=root", check=False)
            deadline = time.monotonic() + 60
            while self.call("squeue", "--noheader", check=False).strip() and time.monotonic() < deadline:
                time.sleep(0.1)
        for name in reversed(list(self.daemons)):
            self.kill(name)

    def launch(self, name: str, *arguments: str, called: str = "") -> None:
        program = find(name)
        assert program is not None, name
        with open(self.folder / f"{name}.out", "ab") as output:
            self.daemons[called or name] = subprocess.Popen(
                [program, *arguments], env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    def kill(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        daemon = self.daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(timeout=60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def restart_controller(self) -> None:
        """Kill it and start it again; it finds its state."""
        self.kill("slurmctld", signal.SIGKILL)
        self.launch("slurmctld", "-D")
        wait_for(lambda: "is UP" in self.call("scontrol", "ping", check=False), "slurmctld")

    def call(self, *command: str, check: bool = True) -> str:
        """What a command prints."""
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(ready: Callable[[], bool], what: str, seconds: float = 1200) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not get ready in {seconds} s")
        time.sleep(0.05)


def main() -> int:
    if reason := Cluster.missing():
        print(f"Error: {reason}", file=sys.stderr)
        return 2
    with Cluster(Path(sys.argv[1]).resolve()) as cluster:
        return subprocess.run(sys.argv[2:], env=cluster.environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
