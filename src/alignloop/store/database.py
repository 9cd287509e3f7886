"""Opening the database: engines, SQLite's settings, migrations, and errors that name the cure.

SQLite (WAL) is the embedded default, PostgreSQL the one for teams. Reads run in BEGIN, writes in BEGIN IMMEDIATE: a
read transaction is never upgraded to a write, which is what yields "database is locked". One lock per file round all
writes of this process keeps waiting threads out of SQLite's busy loop (702 to 1,218 judgements/s where measured).
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, InvalidatePoolError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from alignloop.core.errors import StoreError

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0006"
FIRST = "0001"
POOL, OVERFLOW = 40, 40  # connections that are kept, one for each thread of the studio, and further ones at need
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs"}
"""Filesystems of other machines, as Linux names them."""
REST_S = 1.0  # seconds after which a connection of the pool is asked whether it still works

_locks: dict[str, threading.Lock] = {}
_locks_guard = threading.Lock()


def parse_url(url: str | Path | URL) -> URL:
    """A database address: ``sqlite:///runs/tutor.db``, ``postgresql+psycopg://user@host/name``, or a file's path."""
    if isinstance(url, URL):
        return url
    address = str(url)
    if "://" not in address:
        address = f"sqlite:///{address}"
    try:
        parsed = make_url(address)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError):
        raise StoreError(f"store '{address}': not a database address; write sqlite:///folder/name.db") from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(f"store '{address}': only sqlite and postgresql are supported; write sqlite:///folder/name.db")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("store: a database in memory cannot be shared between threads; write sqlite:///folder/name.db")
    return parsed


def require(url: str | Path) -> URL:
    """An address at which there is a database; opening one that is missing would make it."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
        raise StoreError(f"store {parsed.database}: there is no database here; correct the path")
    return parsed


def schema_version(url: str | Path) -> str | None:
    """The schema a database is on, None where it is empty."""
    parsed = require(url)
    engine = open_engine(parsed)
    try:
        return _version(engine)
    except DatabaseError as error:
        raise explain(error, parsed) from error
    finally:
        engine.dispose()


def write_lock(url: URL) -> threading.Lock | None:
    """The lock of this process round writes to a SQLite file; PostgreSQL needs none."""
    if url.get_backend_name() != "sqlite":
        return None
    with _locks_guard:
        return _locks.setdefault(str(Path(str(url.database)).resolve()), threading.Lock())


def open_engine(url: URL, busy_ms: int = 30_000) -> Engine:
    """An engine with the settings of this module; `busy_ms` is how long SQLite waits for another process."""
    return _sqlite(url, busy_ms) if url.get_backend_name() == "sqlite" else _postgresql(url)


def single(engine: Engine) -> Engine:
    """The same database for statements that are a transaction of their own each: nothing is sent but the statement."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="AUTOCOMMIT")
    return engine.execution_options(alignloop_single=True)


def _postgresql(url: URL) -> Engine:
    try:
        engine = create_engine(url, pool_size=POOL, max_overflow=OVERFLOW)
    except ModuleNotFoundError as error:
        raise StoreError(
            f"store: driver {error.name} is not installed; pip install 'alignloop[postgres]' "
            "and write postgresql+psycopg://..."
        ) from None

    @event.listens_for(engine, "checkin")
    def _rests(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["resting_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _wakes(connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        """A connection that has rested is asked whether the server still holds it; one in steady use need not be."""
        if time.monotonic() - record.info.get("resting_since", math.inf) < REST_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error

    return engine


def _sqlite(url: URL, busy_ms: int) -> Engine:
    _check_file(Path(str(url.database)))
    engine = create_engine(url, pool_size=POOL, max_overflow=OVERFLOW, connect_args={"timeout": busy_ms / 1000})

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's begin event below opens the transactions, not the driver
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={busy_ms}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("alignloop_single", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("alignloop_write", False) else "BEGIN")

    return engine


def _check_file(path: Path) -> None:
    """Say what is wrong with a SQLite path before the driver says less."""
    folder = path.resolve().parent
    if path.is_dir():
        raise StoreError(f"store {path}: is a folder; name a file in it, such as {path / 'alignloop.db'}")
    if not folder.is_dir():
        raise StoreError(f"store {path}: folder {folder} does not exist; create it (mkdir -p {folder})")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"store {path}: folder {folder} is read-only; choose another place or change its rights")
    if path.exists() and not os.access(path, os.W_OK):
        raise StoreError(f"store {path}: the file is read-only; chmod u+w {path}")
    kind = filesystem_of(folder)
    if kind in NETWORK:
        log.warning(
            "store %s: lies on a network filesystem (%s), whose locks SQLite cannot trust; keep the file on a disk of "
            "this machine, or use PostgreSQL",
            path,
            kind,
        )


def filesystem_of(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of filesystem that a folder lies on, as the system names it; "" where the system does not tell."""
    if not mounts.is_file():
        return ""
    lines = (line.split() for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines())
    places = [(Path(place.replace("\\040", " ")), kind) for _, place, kind, *_ in lines]
    above = [(len(place.parts), n, kind) for n, (place, kind) in enumerate(places) if folder.is_relative_to(place)]
    return max(above)[2] if above else ""  # of two at one place the later one hides the other


def explain(error: DatabaseError, url: URL) -> StoreError:
    """A driver's error as one line with the cure."""
    place = f"store {url.database or url.render_as_string(hide_password=True)}"
    said = str(error.orig).splitlines()[0] if error.orig is not None else str(error)
    for sign, cure in (
        ("locked", "another process is writing to it; let it finish or stop it, then try again"),
        ("not a database", "the file is not an alignloop database; choose another name"),
        ("malformed", "the file is damaged; restore a backup"),
        ("readonly", "the file or its folder is read-only; change its rights or choose another place"),
        ("unable to open", "the file cannot be opened; check that its folder exists and can be written"),
        ("disk is full", "the disk is full; free space, nothing of this step was saved"),
        ("connection", "the server does not answer; check that it runs and the address is right"),
    ):
        if sign in said:
            return StoreError(f"{place}: {cure} ({said})")
    return StoreError(f"{place}: {said}; if this repeats, restore a backup or open another store")


def migrate(engine: Engine, target: str = "head") -> Path | None:
    """Create the tables or bring them to `target`; an older SQLite file is first copied beside itself: to this path."""
    version = _version(engine)
    if version == HEAD and target == "head":
        return None
    kept = _backup(engine, version) if engine.dialect.name == "sqlite" and version is not None else None
    from alembic import command
    from alembic.config import Config as AlembicConfig

    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect().execution_options(alignloop_write=True) as connection:
        config.attributes["connection"] = connection
        connection.begin()
        if target == "base" or (target != "head" and version is not None and target < version):
            command.downgrade(config, target)
        else:
            command.upgrade(config, target)
        connection.commit()
    return kept


def _version(engine: Engine) -> str | None:
    """The schema's version, None for an empty database; refuses what is not ours or is newer than we are."""
    place = engine.url.database
    with engine.connect() as connection:
        tables = set(inspect(connection).get_table_names())
        if not tables:
            return None
        found = None
        if "alembic_version" in tables:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if found is None and tables == {"alembic_version"}:
            return None  # migrated down to nothing
        if found is None or (found >= FIRST and not {"prompt", "judgement", "edge"} <= tables):
            raise StoreError(f"store {place}: this database was not made by alignloop; choose another name")
        if found > HEAD:
            raise StoreError(
                f"store {place}: made by a newer alignloop (schema {found}, here {HEAD}); upgrade alignloop"
            )
    return str(found)


def _backup(engine: Engine, version: str) -> Path:
    source = Path(str(engine.url.database))
    names = (f"{source.name}.schema-{version}.bak{'' if n == 1 else f'.{n}'}" for n in itertools.count(1))
    copy = next(path for path in map(source.with_name, names) if not path.exists())
    copy_file(source, copy)
    return copy


def copy_file(source: Path, copy: Path) -> None:
    """A consistent copy of a SQLite file, which may be in use. Errors: sqlite3.DatabaseError."""
    connection = sqlite3.connect(source)
    try:
        connection.execute("VACUUM INTO ?", (str(copy),))
    finally:
        connection.close()
