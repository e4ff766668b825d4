"""What is at fault now, and what of it still waits to be told: one SQLite file, in the home.

Here: the same fault once, then counted; messages until every receiver has had them. Not here: the
words (alert.py), the sending (sending.py).

A receiver has had all messages up to a number, and gets the next ones in order: what it could not
take waits, however long it is down. Each change is one transaction, whoever else is writing.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Self

from retail_assets.resources.notify.alert import Alert, shown_time
from retail_assets.resources.notify.receivers import find_receivers
from retail_assets.settings import Settings

_SCHEMA = """
create table if not exists faults (
    fault text primary key, alert text not null, opened real not null, last real not null,
    times integer not null, told real not null);
create table if not exists messages (
    id integer primary key autoincrement, at real not null, level text not null,
    title text not null, body text not null);
create table if not exists receivers (
    name text primary key, done integer not null, failures integer not null default 0,
    next_try real not null default 0, error text not null default '', sent_at real);
create table if not exists cursors (name text primary key, value text not null);
"""
_BUSY_S = 10.0
_TOLD_AGAIN_S = 24 * 3600.0
# What is not seen is well after so long: it may come and go, or a look may have been cut short.
_GRACE_S = 240.0
# A receiver that is down for longer gets no more of what was then.
_KEPT_S = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Fault:
    """What is at fault: times in seconds of the epoch, and how many times it was so."""

    alert: Alert
    opened: float
    last: float
    times: int
    told: float

    @property
    def again(self) -> str:
        """How often it was so again, in words; empty for once."""
        times = {1: "", 2: "once"}.get(self.times, f"{self.times - 1:,} times")
        return f"{times} since {shown_time(self.opened)}" if times else ""


@dataclass(frozen=True)
class Message:
    """What receivers are sent; ``level`` is failure, warning or success."""

    id: int
    at: float
    level: str
    title: str
    body: str


@dataclass(frozen=True)
class Standing:
    """Where a receiver stands: the last message that it had, and its failures since."""

    name: str
    done: int
    failures: int
    next_try: float
    error: str
    sent_at: float | None


def open_outbox(settings: Settings) -> "Outbox":
    """The outbox of the home, for the receivers of the settings."""
    settings.home.mkdir(parents=True, exist_ok=True)
    return Outbox(settings.home / "alerts.db", [x.name for x in find_receivers(settings)])


class Outbox:
    """A context manager over the file; made where there is none, for its owner's eyes only."""

    def __init__(
        self, path: Path, receivers: Sequence[str], clock: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self.now = clock
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        # Transactions are begun by hand: by the module's own, reading would be in none.
        self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        with self.transaction():
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            # A new receiver is told of what comes, not of what was.
            self._db.executemany(
                "insert or ignore into receivers (name, done)"
                " select ?, coalesce(max(seq), 0) from"
                " (select seq from sqlite_sequence where name = 'messages')",
                [(name,) for name in receivers],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes of the block, or none."""
        self._db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._db.execute("rollback")
            raise
        self._db.execute("commit")

    # ---- what is at fault

    def faults(self, scope: str = "") -> dict[str, Fault]:
        """Those that are open, of which the identity begins with ``scope``, the latest first."""
        rows = self._db.execute(
            "select alert, opened, last, times, told from faults"
            " where fault >= ?1 and fault < ?1 || char(0x10ffff) order by opened desc",
            (scope,),
        )
        found = (Fault(Alert.of_json(text), *numbers) for text, *numbers in rows)
        return {fault.alert.fault: fault for fault in found}

    def tell(self, alert: Alert) -> None:
        """A fault: a message where it is new or another kind; else one a day, and it is counted."""
        now = self.now()
        before = self.faults(alert.fault).get(alert.fault)
        if before is None:
            fault = Fault(alert, now, now, 1, now)
        else:
            is_again = before.alert.occurrence != alert.occurrence
            fault = Fault(alert, before.opened, now, before.times + is_again, before.told)
        if before is None or before.alert.kind is not alert.kind:  # it warned, and now it fails
            fault = replace(fault, told=now)
            self._post(alert.kind.level, alert.title, alert.body(fault.again))
        elif now - fault.told >= _TOLD_AGAIN_S:
            fault = replace(fault, told=now)
            again = fault.again or f"since {shown_time(fault.opened)}"
            self._post(alert.kind.level, f"still {alert.title}", alert.body(again))
        self._db.execute(
            "insert or replace into faults values (?, ?, ?, ?, ?, ?)",
            (alert.fault, alert.to_json(), *astuple(fault)[1:]),
        )

    def well(self, fault: str, how: str = "") -> None:
        """A fault is none any more: a message, where it was one. ``how`` is what tells so."""
        before = self.faults(fault).get(fault)
        if before is None:
            return
        self._db.execute("delete from faults where fault = ?", (fault,))
        lines = {"since": shown_time(before.opened), "again": before.again, "by": how}
        body = "\n".join(f"{name}: {text}" for name, text in lines.items() if text)
        self._post("success", f"well again: {before.alert.title}", body)

    def reconcile(self, scope: str, alerts: Iterable[Alert]) -> None:
        """Tell of ``alerts``, which are all faults of the scope: others are well after a while."""
        now, found = self.now(), {alert.fault: alert for alert in alerts}
        for alert in found.values():
            self.tell(alert)
        for fault, before in self.faults(scope).items():
            # A clock that was set back says nothing on how long it was.
            if fault not in found and not 0 <= now - before.last < _GRACE_S:
                self.well(fault)

    # ---- what waits to be told

    def _post(self, level: str, title: str, body: str) -> None:
        now = self.now()
        self._db.execute(
            "insert into messages (at, level, title, body) values (?, ?, ?, ?)",
            (now, level, title, body),
        )
        self._db.execute("delete from messages where at < ?", (now - _KEPT_S,))

    def messages(self, after: int = 0) -> list[Message]:
        """Those with a greater number, in order."""
        rows = self._db.execute("select * from messages where id > ? order by id", (after,))
        return [Message(*row) for row in rows]

    def standings(self) -> dict[str, Standing]:
        """Where each receiver stands, by name; those of other settings too."""
        return {row[0]: Standing(*row) for row in self._db.execute("select * from receivers")}

    def note(self, standing: Standing) -> None:
        """Where a receiver stands now."""
        with self.transaction():
            self._db.execute(
                "insert or replace into receivers values (?, ?, ?, ?, ?, ?)", astuple(standing)
            )

    # ---- how far the watching has come

    def cursors(self) -> Mapping[str, str]:
        """What ``move`` kept, by name."""
        return dict(self._db.execute("select name, value from cursors").fetchall())

    def move(self, cursors: Mapping[str, str]) -> None:
        """Keep where the watching is."""
        self._db.executemany("insert or replace into cursors values (?, ?)", cursors.items())
