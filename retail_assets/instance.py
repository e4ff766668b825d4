"""Dagster's instance: its folder, made with our dagster.yaml where there is none.

Here: what every command and make target shares of Dagster's own state. Not here: definitions.
"""

import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from retail_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

_DAGSTER_YAML = """\
# Made by retail-assets; yours to edit. Reference: Dagster's "dagster.yaml".
telemetry:
  enabled: false
nux:
  enabled: false
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
concurrency:
  runs:
    max_concurrent_runs: 4
"""


def prepare_instance(settings: Settings) -> None:
    """Make the instance's folder with a dagster.yaml; one that is there is left as it is."""
    folder = settings.instance_dir
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "dagster.yaml"
    if not config.exists():  # as a whole or not: half of it would be kept, and obeyed
        partial = config.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(_DAGSTER_YAML)
        partial.replace(config)


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
    ease_sqlite()
    os.environ["DAGSTER_HOME"] = str(settings.instance_dir)
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    finally:
        _let_go()
