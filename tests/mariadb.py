"""A MariaDB for tests: the machine's own, or Debian's packages unpacked into a folder; nothing is installed.

Its data lie in memory where there is room, and a database is copied by its statements: making MLflow's tables takes
MLflow twenty seconds.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pymysql

from mlflow_artifact_gc.demo.servers import HOST, _dies_with_parent, free_ports

WITHOUT: Final = "TESTS_WITHOUT_MARIADB"
"""Set in the environment, it leaves out the tests that need a MariaDB."""
_PACKAGES: Final = ("mariadb-server-core",)
_START_S: Final = 60.0
_ROOM: Final = 1_000_000_000
_SHORT: Final = "mlflow-gc-mariadb-"
# What MySQL 8 has by default: statements that MariaDB's own mode lets pass would fail there.
_SQL_MODE: Final = (
    "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,"
    "NO_ENGINE_SUBSTITUTION"
)
_ZONE: Final = "CET-1CEST,M3.5.0,M10.5.0/3"
"""Central Europe's time, without its file: one with a summer, as servers often have."""
USER: Final = "mlflow"
PASSWORD: Final = "not-a-secret"


class MariaDbMissingError(Exception):
    """There is no MariaDB, and none could be had."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"No MariaDB for the tests ({why}): install Debian's mariadb-server-core, or let apt-get download it, or "
            f"set {WITHOUT}=1 to leave these tests out"
        )


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Where MariaDB's files are."""

    server: Path
    share: Path
    libraries: Path | None = None

    def argv(self, *options: str) -> list[str]:
        """The server's command line."""
        common = (
            "--no-defaults",
            f"--lc-messages-dir={self.share}",
            f"--character-sets-dir={self.share / 'charsets'}",
            "--innodb-log-file-size=16M",
            "--innodb-buffer-pool-size=64M",
            *(["--user=root"] if os.geteuid() == 0 else []),
        )
        return [str(self.server), *common, *options]

    @property
    def environ(self) -> dict[str, str]:
        found = [str(self.libraries)] if self.libraries else []
        found += filter(None, [os.environ.get("LD_LIBRARY_PATH")])
        return {**os.environ, "TZ": _ZONE, **({"LD_LIBRARY_PATH": ":".join(found)} if found else {})}


@dataclass(frozen=True, kw_only=True)
class MariaDbServer:
    """A running MariaDB. Its user may do everything in the databases of the tests, and nothing beside them."""

    port: int
    version: str

    def uri(self, database: str, *, user: str = USER, password: str = PASSWORD) -> str:
        """The SQLAlchemy URI."""
        return f"mysql+pymysql://{user}:{password}@{HOST}:{self.port}/{database}"

    def create_database(self, name: str | None = None, *, template: Template | None = None) -> str:
        """Makes a database, as a copy of ``template`` or empty; returns its URI."""
        name = name or f"t_{uuid.uuid4().hex[:16]}"
        with self.connected() as cursor:
            cursor.execute(f"CREATE DATABASE `{name}`")
            if template:
                cursor.execute(f"USE `{name}`")
                # MLflow's first experiment has the id 0.
                cursor.execute("SET foreign_key_checks = 0, sql_mode = 'NO_AUTO_VALUE_ON_ZERO'")
                for statement in template.statements:
                    cursor.execute(statement)
                for table, rows in template.rows.items():
                    cursor.executemany(f"INSERT INTO `{table}` VALUES ({', '.join(['%s'] * len(rows[0]))})", rows)
        return self.uri(name)

    def drop_database(self, name: str) -> None:
        """Removes a database, and disconnects whoever still uses it."""
        with self.connected() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
            for (thread,) in cursor.fetchall():
                with suppress(pymysql.MySQLError):  # it has gone meanwhile
                    cursor.execute(f"KILL {thread}")
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Runs a statement as the administrator; its rows."""
        with self.connected() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """The administrator's cursor; each statement is committed."""
        connection = pymysql.connect(host=HOST, port=self.port, user="root", autocommit=True, charset="utf8mb4")
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()


@dataclass(frozen=True, kw_only=True)
class Template:
    """A database as statements and rows."""

    statements: Sequence[str]
    rows: dict[str, list[list[Any]]]

    @classmethod
    def read(cls, file: Path) -> Template:
        """What ``write`` wrote."""
        return cls(**json.loads(file.read_text()))

    @classmethod
    def of(cls, server: MariaDbServer, name: str) -> Template:
        """Of a database that is small."""
        statements: list[str] = []
        rows: dict[str, list[list[Any]]] = {}
        with server.connected() as cursor:
            cursor.execute(f"USE `{name}`")
            cursor.execute("SHOW TABLES")
            for (table,) in cursor.fetchall():
                cursor.execute(f"SHOW CREATE TABLE `{table}`")
                statements.append(re.sub(r" AUTO_INCREMENT=\d+", "", cursor.fetchone()[1]))
                cursor.execute(f"SELECT * FROM `{table}`")
                found = [list(row) for row in cursor.fetchall()]
                if found:
                    rows[table] = found
        return cls(statements=statements, rows=rows)

    def write(self, file: Path) -> None:
        """Keep it."""
        unfinished = file.with_suffix(f".{uuid.uuid4().hex}.tmp")
        unfinished.write_text(json.dumps({"statements": list(self.statements), "rows": self.rows}))
        unfinished.replace(file)  # at once: another pytest process may look for it


def programs(cache: Path) -> Programs:
    """The machine's MariaDB, or Debian's packages, unpacked below ``cache`` once.

    Raises:
        MariaDbMissingError: neither can be had.
    """
    for name in ("mariadbd", "/usr/sbin/mariadbd"):
        if found := shutil.which(name):
            return _programs_at(Path(found).resolve().parents[1], Path(found))
    root = cache / f"debian-{_debian()}-{platform.machine()}"
    if not root.is_dir():
        unfinished = cache / f"{root.name}.{uuid.uuid4().hex}.tmp"
        unfinished.mkdir(parents=True)
        _unpack(unfinished)
        with suppress(OSError):  # another pytest process was faster
            unfinished.replace(root)
    return _programs_at(root / "usr", root / "usr/sbin/mariadbd")


def _programs_at(prefix: Path, server: Path) -> Programs:
    shares = [prefix / "share" / name for name in ("mariadb", "mysql")]
    share = next((folder for folder in shares if (folder / "mysql_system_tables.sql").is_file()), None)
    if share is None or not server.is_file():
        raise MariaDbMissingError(f"{prefix} holds no complete one")
    own = sorted(prefix.glob("lib/*-linux-gnu"))
    return Programs(server=server, share=share, libraries=None if prefix == Path("/usr") or not own else own[0])


def _debian() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise MariaDbMissingError("no mariadbd on this machine, which has no apt-get either")
    return re.sub(r"\W", "", release.get("VERSION_CODENAME") or release.get("VERSION_ID") or "unknown")


def _unpack(folder: Path) -> None:
    """Debian's package of the server, and the libraries that it needs and this machine has not."""
    _download(folder, _PACKAGES)
    (server,) = folder.glob("mariadb-server-core*.deb")
    needs = _ran(["dpkg-deb", "-f", str(server), "Depends"])
    names = [part.split("|")[0].split("(")[0].strip() for part in needs.split(",")]
    _download(folder, [name for name in names if name.startswith("lib") and not _is_installed(name)])
    for package in folder.glob("*.deb"):
        _ran(["dpkg-deb", "-x", str(package), str(folder)])
        package.unlink()
    shutil.rmtree(folder / "apt", ignore_errors=True)


def _is_installed(package: str) -> bool:
    asked = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
    return "installed" in subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()


def _download(folder: Path, packages: Sequence[str]) -> None:
    if not packages:
        return
    try:
        _ran(["apt-get", "-q", "download", *packages], cwd=folder)
    except MariaDbMissingError:
        # The machine's lists are absent, as in a fresh container, or too old: lists of our own, which need no rights.
        state = folder / "apt"
        for part in ("state/lists/partial", "cache/archives/partial"):
            (state / part).mkdir(parents=True, exist_ok=True)
        own = [
            f"-oDir::State::Lists={state / 'state/lists'}",
            f"-oDir::Cache={state / 'cache'}",
            "-oDebug::NoLocking=1",
            "-oAPT::Sandbox::User=",
        ]
        _ran(["apt-get", "-q", *own, "update"], cwd=folder)
        _ran(["apt-get", "-q", *own, "download", *packages], cwd=folder)


def _ran(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise MariaDbMissingError(f"{command[0]} said: {said}")
    return done.stdout


@contextmanager
def mariadb(found: Programs) -> Iterator[MariaDbServer]:
    """A MariaDB on 127.0.0.1, for throw-away data; gone at the end, with what it holds."""
    folder = _folder()
    try:
        data = folder / "data"
        data.mkdir()
        _bootstrap(found, folder)
        (port,) = free_ports(1)
        options = (
            f"--datadir={data}",
            f"--tmpdir={folder}",
            f"--bind-address={HOST}",
            f"--port={port}",
            f"--socket={folder / 's'}",
            f"--pid-file={folder / 'pid'}",
            "--skip-name-resolve",
            "--max-connections=500",
            "--character-set-server=utf8mb4",
            "--collation-server=utf8mb4_general_ci",
            f"--sql-mode={_SQL_MODE}",
            # A crash of the machine may take the data: that makes copies of databases fast.
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-doublewrite=0",
            "--sync-frm=0",
        )
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                found.argv(*options),
                env=found.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_dies_with_parent(9),  # type: ignore[arg-type]  # noqa: PLW1509 (the prctl call alone)
            )
        try:
            yield _prepared(process, port, folder / "log")
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    # In memory: there a database is copied in 0.04 s, on a disk in 0.3 s. (Docker's own is too small.)
    memory = Path("/dev/shm")  # noqa: S108
    usable = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM
    if usable:
        for left in memory.glob(f"{_SHORT}*"):  # by a pytest that was killed
            owner = left.name.removeprefix(_SHORT).partition("-")[0]
            if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_SHORT}{os.getpid()}-", dir=memory if usable else None))


def _bootstrap(found: Programs, folder: Path) -> None:
    """What mariadb-install-db does, of which the tests need little: the tables that hold users."""
    # One statement a line.
    start = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\n"
    files = (found.share / name for name in ("mysql_system_tables.sql", "mysql_system_tables_data.sql"))
    script = start + "".join(file.read_text() for file in files)
    command = found.argv("--bootstrap", f"--datadir={folder / 'data'}", f"--tmpdir={folder}")
    done = subprocess.run(command, env=found.environ, input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MariaDbMissingError(f"its tables could not be made: {done.stderr[-500:]}")


def _prepared(process: subprocess.Popen[bytes], port: int, log: Path) -> MariaDbServer:
    server = MariaDbServer(port=port, version="")
    give_up = time.monotonic() + _START_S
    while True:
        try:
            (version,) = server.execute("SELECT VERSION()")[0]
            break
        except pymysql.MySQLError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise MariaDbMissingError(f"it did not start: {log.read_text()[-500:]}") from None
            time.sleep(0.05)
    server.execute(f"CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'")
    server.execute(rf"GRANT ALL ON `t\_%`.* TO {USER}@'%'")
    return MariaDbServer(port=port, version=version)
