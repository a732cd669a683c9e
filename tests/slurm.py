"""A SLURM cluster of one node on loopback, for tests: Debian's daemons, started and stopped by process."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def is_installed() -> bool:
    """Return whether the daemons can be started: they are installed, and this is root."""
    return os.geteuid() == 0 and all(shutil.which(daemon) for daemon in DAEMONS)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextlib.contextmanager
def cluster(folder: Path, slots: int = 2) -> Iterator[None]:
    """Start a cluster with one partition, `main`, in which so many jobs run at once.

    Args:
        folder: Holds its config, state and logs.
        slots: CPUs of its node; a job takes one.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(
        CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder, ports=_free_ports(2), cpus=slots)
    )
    files = {name: str(folder / f"munge.{name}") for name in ("socket", "pid", "log", "seed")}
    munge = [f"--{option}-file={files[option]}" for option in ("pid", "log", "seed")]
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    running: list[subprocess.Popen[bytes]] = []
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={files['socket']}", *munge],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D", "-c"],
    ]
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("wb") as out:
                running.append(subprocess.Popen(command, stdout=out, stderr=out))
            time.sleep(0.5)
        _wait_until_idle(folder)
        yield
    finally:
        subprocess.run(["scancel", "--full", "--user=root"], check=False, capture_output=True)
        for process in reversed(running):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _wait_until_idle(folder: Path, seconds: float = 30) -> None:
    """Wait until the node takes jobs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False).stdout.strip()
        if state == "idle":
            return
        time.sleep(0.2)
    logs = {
        path.name: path.read_text(errors="replace")[-500:] for path in [*folder.glob("*.log"), *folder.glob("*.out")]
    }
    raise RuntimeError(f"the node does not take jobs: {state!r}; {logs}")
