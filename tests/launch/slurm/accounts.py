"""Accounts for the SLURM of `cluster.py`, so that sacct answers: a database and slurmdbd, on loopback.

Debian's packages slurmdbd and mariadb-server-core; the database lies in the cluster's folder and is gone with it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.launch.slurm.cluster import Cluster, find, free_port, wait_for

PACKAGES = "slurmdbd mariadb-server-core"
SHARE = Path("/usr/share/mysql")
TABLES = ("mysql_system_tables", "mysql_performance_tables", "mysql_system_tables_data")

SLURMDBD = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
CommunicationParameters=NoInAddrAny
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
StorageLoc=slurm_acct_db
"""
SLURM = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
"""


class AccountedCluster(Cluster):
    """A SLURM that keeps accounts, and whose controller forgets a job seconds after its end."""

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        super().__init__(folder, cpus)
        self.port, self.database = free_port(), free_port()
        conf = folder / "slurm.conf"
        text = conf.read_text().replace("MinJobAge=86400", "MinJobAge=2")
        conf.write_text(text + SLURM.format(folder=folder, port=self.port))
        own = folder / "slurmdbd.conf"
        own.write_text(SLURMDBD.format(folder=folder, port=self.port, database=self.database))
        own.chmod(0o600)  # or slurmdbd refuses it

    @staticmethod
    def missing() -> str:
        absent = [program for program in ("slurmdbd", "mariadbd", "sacct") if find(program) is None]
        return Cluster.missing() or (f"no {', '.join(absent)} here: apt-get install {PACKAGES}" if absent else "")

    def before_the_controller(self) -> None:
        program = find("mariadbd")
        assert program is not None
        (self.folder / "db").mkdir()
        own = ["--no-defaults", "--user=root", f"--datadir={self.folder}/db", f"--log-error={self.folder}/mariadb.log"]
        script = "CREATE DATABASE mysql;\nUSE mysql;\n" + "".join(
            (SHARE / f"{name}.sql").read_text() for name in TABLES
        )
        script += "\nCREATE DATABASE slurm_acct_db;\n"
        boot = [program, *own, "--bootstrap"]  # its exit status says nothing: some tables are made twice
        subprocess.run(boot, input=script, text=True, capture_output=True, timeout=1200, check=False)
        place = [f"--port={self.database}", "--bind-address=127.0.0.1", f"--socket={self.folder}/db.socket"]
        self.launch("mariadbd", *own, *place, "--skip-grant-tables", "--skip-networking=0")
        wait_for((self.folder / "db.socket").exists, "mariadbd", 300)
        self.launch("slurmdbd", "-D")
        wait_for(lambda: "started" in self._log(), "slurmdbd", 300)

    def _log(self) -> str:
        path = self.folder / "slurmdbd.log"
        return path.read_text() if path.exists() else ""
