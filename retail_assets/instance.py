"""Dagster's instance: its folder, made with our dagster.yaml where there is none.

Here: what every command and make target shares of Dagster's own state. Not here: what
dagster.yaml says (instance_config.py), definitions.
"""

import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.instance_config import DATABASE, EMBEDDED, make_config
from retail_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

# Of a daemon: it gives a sign every half a minute, or after a tick, which may take a minute.
LONGEST_SILENCE_S = 300.0


def prepare_instance(settings: Settings) -> None:
    """Make the instance's folder with a dagster.yaml; one that is there is left as it is."""
    settings.instance_dir.mkdir(parents=True, exist_ok=True)
    make_config(settings)


def attach_storage(settings: Settings) -> None:
    """Have the embedded PostgreSQL run until this process ends, where Dagster's state is there.

    Raises:
        EmbeddedPostgresError: it cannot run here.
        EmbeddedPostgresBusyError: it was not ready in time.
    """
    if settings.dagster_storage.get_secret_value() != EMBEDDED:
        return
    import psycopg

    from retail_assets.resources.operational_db.embedded import (
        ADMINISTRATOR,
        EmbeddedPostgres,
        EmbeddedPostgresError,
    )

    host = EmbeddedPostgres.attach(settings.home)
    if Path(host).parent.parent != settings.home.resolve():
        raise EmbeddedPostgresError(
            f"RETAIL_DAGSTER_STORAGE is 'embedded', and the path of {settings.home} is too long for"
            " a socket, which dagster.yaml must name. Set RETAIL_HOME to a shorter path, or name a"
            " server: postgresql+psycopg2://USER@HOST:PORT/DATABASE"
        )
    with (
        psycopg.connect(host=host, user=ADMINISTRATOR, autocommit=True) as connection,
        suppress(psycopg.errors.DuplicateDatabase),
    ):
        connection.execute(f"create database {DATABASE}".encode())


_HELD_FILES = 4
_held: "OrderedDict[str, sqlite3.Connection]" = OrderedDict()


def ease_sqlite() -> None:
    """Make Dagster's many short SQLite connections cheap, in this process.

    Dagster connects anew for every event. Its files are in WAL mode, where
    ``synchronous=NORMAL`` cannot corrupt them: a power failure may lose the last events, not the
    data. And one idle connection kept per file (the last few used) spares the checkpoint that
    SQLite makes whenever a file's last connection closes.
    Source: sqlite.org, "PRAGMA synchronous" and "Write-Ahead Logging".
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "connect", _ease_connection):
        event.listen(Engine, "connect", _ease_connection)


def _ease_connection(connection: object, _record: object) -> None:
    if not isinstance(connection, sqlite3.Connection):
        return
    connection.execute("pragma synchronous = normal")
    (_, _, file), *_rest = connection.execute("pragma database_list").fetchall()
    if not file:
        return  # in memory
    if file not in _held:
        _held[file] = sqlite3.connect(file, check_same_thread=False)
        if len(_held) > _HELD_FILES:
            _held.popitem(last=False)[1].close()
    _held.move_to_end(file)
    # Only a connection that has read since the file went into WAL mode counts as one.
    with suppress(sqlite3.OperationalError):
        _held[file].execute("pragma schema_version").fetchone()


def _let_go() -> None:
    while _held:
        _held.popitem()[1].close()


@contextmanager
def open_instance(settings: Settings) -> Iterator["dg.DagsterInstance"]:
    """The instance of the settings, for the time of the block."""
    import dagster as dg

    prepare_instance(settings)
    attach_storage(settings)
    ease_sqlite()
    os.environ["DAGSTER_HOME"] = str(settings.instance_dir)
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    finally:
        _let_go()
