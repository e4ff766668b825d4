"""Tests of retail_assets.resources.notify: words, the outbox, and real servers that receive."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from aiosmtpd.controller import Controller
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.errors import PermanentError
from retail_assets.resources.notify import Alert, Kind, Outbox, find_receivers, send_waiting
from retail_assets.resources.notify.alert import Words
from retail_assets.resources.notify.receivers import Log
from retail_assets.settings import SettingsError, load_settings
from retail_assets_tests.resources.alert_servers import (
    OK,
    STALL,
    TRICKLE,
    AlertServer,
    alert_server,
)

HOUR, DAY = 3600.0, 86400.0


def alert(fault: str = "run:a", **changed: Any) -> Alert:
    told = Alert(
        kind=Kind.RUN_FAILED,
        fault=fault,
        subject=f"shop/{fault.partition(':')[2]}",
        cause="no header",
        occurrence="1",
        partitions="2011-04-04",
        link="http://localhost:3000/runs/1",
    )
    return replace(told, **changed)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Iterator[AlertServer]:
    with alert_server() as found:
        yield found


class Box:
    """An outbox for addresses, and sending what it has to them."""

    def __init__(self, folder: Path, clock: Clock, *addresses: str) -> None:
        settings = load_settings(home=folder, notify=", ".join(addresses))
        self.receivers = find_receivers(settings)
        names = [receiver.name for receiver in self.receivers]
        self.outbox = Outbox(folder / "alerts.db", names, clock)

    def tell(self, *alerts: Alert) -> None:
        with self.outbox.transaction():
            for told in alerts:
                self.outbox.tell(told)

    def send(self, **limits: float) -> None:
        send_waiting(self.outbox, self.receivers, **limits)

    def error(self, name: str = "1. json") -> str:
        return self.outbox.standings()[name].error

    def titles(self) -> list[str]:
        return [message.title for message in self.outbox.messages()]


MakeBox = Callable[..., Box]


@pytest.fixture
def box(tmp_path: Path, clock: Clock) -> Iterator[MakeBox]:
    made: list[Box] = []

    def make(*addresses: str) -> Box:
        made.append(Box(tmp_path, clock, *addresses))
        return made[-1]

    yield make
    for one in made:
        one.outbox.__exit__()


# ---- words

SECRETS = {
    "notify": "slack://TokenAAAA/TokenBBBB/TokenCCCC, mailto://me:pa%20ssw0rd@mail.example.com",
    "postgres": "postgresql://retail:s3cr3t-pg@db:5432/shop",
    "kafka_options": '{"sasl.password": "kafkapass", "security.protocol": "SASL_SSL"}',
}
HIDDEN = ("TokenAAAA", "TokenBBBB", "TokenCCCC", "pa%20ssw0rd", "pa ssw0rd", "s3cr3t-pg")


def recorded(name: str, message: str, cause: Any = None) -> Any:
    """An error as Dagster records it."""
    return SimpleNamespace(cls_name=name, message=f"x.{name}: {message}\n", cause=cause)


WORDS = Words(load_settings(home=Path("home")))


def test_no_secret_of_the_settings_is_told(tmp_path: Path) -> None:
    words = Words(load_settings(home=tmp_path, **SECRETS))
    for text in (
        *SECRETS.values(),
        *HIDDEN,
        "at https://me:other@host/path?sig=abcdef",
        "postgresql://retail:another@db/shop",
    ):
        for said in (words.clean(f"cannot reach {text}"), words.clean(f"x {text}", ours=False)):
            for secret in (*HIDDEN, "kafkapass", "other@", "abcdef", "another"):
                assert secret not in said


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
QUOTED = ["could not convert {!r} to int", "value '{}' in row", 'near "{}"', "Key (name)=({})"]


@pytest.mark.parametrize("shape", QUOTED)
def test_nor_one_of_which_only_the_beginning_is_read(shape: str) -> None:
    said = WORDS.error(recorded("ValueError", shape.format("JaneDoe " * 9_999)))
    assert said.endswith("***") and "JaneDoe" not in said


@given(st.lists(TEXTS, min_size=2, max_size=4), st.sampled_from(QUOTED))
def test_no_value_that_a_library_quotes_is_told(parts: list[str], shape: str) -> None:
    message = shape.format("JaneDoe".join(parts))
    said = WORDS.error(recorded("ValueError", message))
    assert said.startswith(f"ValueError: {shape.split()[0]}")
    assert "JaneDoe" not in said


@pytest.mark.parametrize(
    "value", ["jane.doe@example.com", "+44 20 7946 0958", "4111 1111 1111 1111"]
)
def test_nor_what_looks_personal_without_quotes(value: str) -> None:
    said = WORDS.error(recorded("ValueError", f"bad {value} here"))
    assert said == "ValueError: bad *** here"


def test_an_error_of_ours_is_told_as_it_is_and_only_its_first_lines() -> None:
    inner = recorded("ValueError", "'Jane'")
    ours = recorded(PermanentError.__name__, "a.csv: expected 'Date'.\nMend\tit.\n\n3\n4\n5", inner)
    assert WORDS.error(recorded("Outer", "x", ours)) == "a.csv: expected 'Date'. | Mend it. | 3 | 4"
    full = recorded("OSError", "[Errno 28] No space left on device: '/a'")
    assert WORDS.error(full) == "OSError: [Errno 28] No space left on device: '/a'"
    assert WORDS.error(None, "said\x1b[31m so") == "said [31m so"
    assert WORDS.error(None) == "no error was recorded"


# ---- settings


@pytest.mark.parametrize("text", ["hunter2secret", "json://ok hunter2secret, x://y", "://x"])
def test_an_address_that_is_none_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    if text.startswith("json"):
        receivers = find_receivers(load_settings(home=tmp_path, notify=text))
        assert [x.name for x in receivers] == ["1. json", "2. x"]
        assert "hunter2" not in repr(receivers)
        return
    with pytest.raises(SettingsError, match="RETAIL_NOTIFY is set, which is not valid") as refused:
        load_settings(home=tmp_path, notify=text)
    assert "hunter2" not in str(refused.value)


# ---- outbox


def test_a_fault_is_told_once_then_counted_then_told_to_be_well(box: MakeBox, clock: Clock) -> None:
    one = box()
    one.tell(alert(), alert())  # the same occurrence
    for number in range(2, 14):
        clock.now += HOUR
        one.tell(alert(occurrence=str(number)))
    assert one.titles() == ["run failed: shop/a, 2011-04-04"]
    assert one.outbox.faults()["run:a"].times == 13

    clock.now += DAY
    one.tell(alert(occurrence="14"))
    with one.outbox.transaction():
        one.outbox.well("run:a", "a later run made it")
        one.outbox.well("run:a")
    first, again, well = one.outbox.messages()
    assert first.body.splitlines() == [
        "asset: shop/a",
        "partitions: 2011-04-04",
        "cause: no header",
        "what to do: Mend what the cause names, then run it again. (docs/operations.md#run-failed)",
        "see: http://localhost:3000/runs/1",
    ]
    assert again.title == "still run failed: shop/a, 2011-04-04"
    assert "again: 13 times since " in again.body
    assert well.title == "well again: run failed: shop/a, 2011-04-04"
    assert "again: 13 times since " in well.body and "by: a later run made it" in well.body
    assert one.outbox.faults() == {}


def test_what_is_not_at_fault_any_more_is_well(box: MakeBox, clock: Clock) -> None:
    one = box()
    two = [alert("tick:a"), alert("tick:b")]
    with one.outbox.transaction():
        one.outbox.reconcile("tick:", two)
        one.outbox.reconcile("late:", [])
        one.outbox.reconcile("tick:", [])  # it comes and goes
    clock.now += 200
    with one.outbox.transaction():
        one.outbox.reconcile("tick:", two[:1])
    assert list(one.outbox.faults()) == ["tick:a", "tick:b"]
    clock.now += 41
    with one.outbox.transaction():
        one.outbox.reconcile("tick:", [])
    assert list(one.outbox.faults()) == ["tick:a"]
    clock.now -= HOUR
    with one.outbox.transaction():
        one.outbox.reconcile("tick:", [])
    assert len(one.titles()) == 4


def test_what_lasts_is_told_again_and_what_gets_worse_at_once(box: MakeBox, clock: Clock) -> None:
    one = box()
    low = alert("disk:a", kind=Kind.DISK_LOW)
    one.tell(low, alert("check:a", kind=Kind.CHECK_WARNS))
    one.tell(low, alert("check:a", kind=Kind.CHECK_FAILED, occurrence="2"))
    clock.now += DAY
    one.tell(low)
    assert [title.partition(",")[0] for title in one.titles()] == [
        "disk is almost full: shop/a",
        "check warns: shop/a",
        "check failed: shop/a",
        "still disk is almost full: shop/a",
    ]
    assert "again: since " in one.outbox.messages()[-1].body


def test_all_of_a_transaction_is_kept_or_nothing(box: MakeBox, tmp_path: Path) -> None:
    one = box()

    def fail() -> None:
        with one.outbox.transaction():
            one.outbox.tell(alert())
            one.outbox.move({"at": "7"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert one.outbox.faults() == {} == one.outbox.cursors()
    assert one.titles() == []
    assert (tmp_path / "alerts.db").stat().st_mode & 0o077 == 0


def test_several_processes_write_at_once(box: MakeBox, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from retail_assets.resources.notify import Alert, Kind, Outbox
for i in range(20):
    with Outbox(Path(sys.argv[1]), ["log"]) as outbox, outbox.transaction():
        outbox.tell(Alert(kind=Kind.LATE, fault="late:a", subject="a", cause="x",
                          occurrence=f"{sys.argv[2]} {i}"))
"""
    one = box()
    others = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "alerts.db"), str(i)])
        for i in range(4)
    ]
    assert [process.wait(60) for process in others] == [0] * 4
    assert one.outbox.faults()["late:a"].times == 80
    assert one.titles() == ["asset is late: a"]


# ---- receivers, and sending


def test_without_addresses_alerts_go_to_the_log(
    box: MakeBox, caplog: pytest.LogCaptureFixture
) -> None:
    one = box()
    assert one.receivers == [Log()]
    one.tell(alert())
    one.send()
    one.send()
    assert caplog.text.count("run failed: shop/a, 2011-04-04") == 1


SILENT = "no answer within"


@pytest.mark.parametrize(
    "answers", [{500: "error=500", 429: "error=429"}, {STALL: SILENT, TRICKLE: SILENT}]
)
def test_a_receiver_that_fails_loses_none_and_is_not_asked_all_the_time(
    box: MakeBox, clock: Clock, server: AlertServer, answers: dict[int, str]
) -> None:
    one = box(server.address)
    one.tell(alert(), alert("run:b"))
    began = time.monotonic()
    for times, (server.answer, why) in enumerate(answers.items(), 1):
        for _ in range(3):
            one.send(each_s=1)
        assert server.asked == times
        assert why in one.error() and "hunter2" not in one.error()
        clock.now += 31
    assert time.monotonic() - began < 5

    server.answer = OK
    one.send()  # the second wait is twice as long
    assert server.asked == 2
    clock.now += 31
    one.send()
    assert server.titles == ["run failed: shop/a, 2011-04-04", "run failed: shop/b, 2011-04-04"]
    assert server.taken[0]["type"] == "failure"
    assert "cause: no header" in server.taken[0]["message"]
    assert one.error() == ""


def test_one_that_refuses_keeps_no_other_waiting_and_gets_all_later(
    box: MakeBox, clock: Clock, server: AlertServer
) -> None:
    with alert_server() as down:
        one = box(down.address, "nosuchservice://hunter2secret", server.address)
        down.stop()
        one.tell(alert())
        one.send()
        assert server.titles == ["run failed: shop/a, 2011-04-04"]
        assert "Connection error" in one.error()
        assert "knows no such address" in one.error("2. nosuchservice")

        # The clock is set back by an hour: what waits is not kept waiting for that.
        clock.now -= HOUR
        down.start()
        one.send()
        assert down.titles == server.titles


def test_a_tick_is_bounded_however_many_receivers_stall(box: MakeBox, server: AlertServer) -> None:
    server.answer = STALL
    one = box(*[server.address] * 4)
    one.tell(alert())
    began = time.monotonic()
    one.send(most_s=1, each_s=0.8)
    assert time.monotonic() - began < 2.5
    assert len(one.outbox.messages()) == 1


def test_a_flood_is_one_summary_and_then_waits(
    box: MakeBox, clock: Clock, server: AlertServer
) -> None:
    one = box(server.address)
    one.tell(*(alert(f"run:{i}") for i in range(200)), alert("late:x", kind=Kind.LATE))
    one.send()
    one.tell(alert("run:more"))
    one.send()
    (summary,) = server.taken
    assert server.titles == ["201 alerts at once: 200 run failed, 1 asset is late"]
    assert "run failed: shop/0, 2011-04-04\n" in summary["message"]
    assert "and 186 more" in summary["message"]
    clock.now += 301
    one.send()
    assert server.titles[1:] == ["run failed: shop/more, 2011-04-04"]


def test_a_new_receiver_is_told_of_what_comes(
    box: MakeBox, clock: Clock, server: AlertServer
) -> None:
    before = box()
    before.tell(alert())
    one = box(server.address)
    one.tell(alert("run:b"))
    one.send()
    assert server.titles == ["run failed: shop/b, 2011-04-04"]


def test_a_sender_that_is_killed_after_sending_sends_again(
    box: MakeBox, clock: Clock, server: AlertServer, tmp_path: Path
) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from retail_assets.resources.notify import Outbox, find_receivers, send_waiting
from retail_assets.resources.notify.receivers import Service
from retail_assets.settings import load_settings

class Killed(Service):
    def send(self, *message):
        assert super().send(*message) is None
        os.kill(os.getpid(), signal.SIGKILL)

settings = load_settings(home=sys.argv[1], notify=sys.argv[2])
(receiver,) = find_receivers(settings)
with Outbox(Path(sys.argv[1]) / "alerts.db", [receiver.name]) as outbox:
    send_waiting(outbox, [Killed(receiver.name, receiver.address)])
"""
    one = box(server.address)
    one.tell(alert(), alert("run:b"))
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), server.address], timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    one.send()
    assert len(server.taken) == 1 and "ended" in one.error()
    clock.now += 60
    one.send()
    a, b = "run failed: shop/a, 2011-04-04", "run failed: shop/b, 2011-04-04"
    assert server.titles == [a, a, b]


def test_two_senders_at_once_send_once(box: MakeBox, server: AlertServer) -> None:
    from filelock import FileLock

    one = box(server.address)
    one.tell(alert())
    with FileLock(one.outbox.path.with_suffix(".lock")):
        one.send()
    assert server.taken == []
    one.send()
    assert len(server.taken) == 1


def test_mail_by_smtp(box: MakeBox) -> None:
    class Inbox:
        mails: list[tuple[list[str], str]] = []  # noqa: RUF012  (one for the test)

        async def handle_DATA(self, *of: Any) -> str:  # noqa: N802  (aiosmtpd's name)
            envelope = of[-1]
            self.mails.append((envelope.rcpt_tos, envelope.content.decode()))
            return "250 OK"

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inbox = Controller(Inbox(), hostname="127.0.0.1", port=port)
    inbox.start()
    try:
        one = box(
            f"mailto://127.0.0.1:{port}?mode=insecure&from=retail@example.com&to=me@example.com"
        )
        one.tell(alert())
        one.send()
        assert one.error("1. mailto") == ""
    finally:
        inbox.stop()
    ((to, mail),) = Inbox.mails
    assert to == ["me@example.com"]
    assert "Subject: [retail-assets] run failed: shop/a, 2011-04-04" in mail
    assert json.dumps("no header").strip('"') in mail


def test_an_address_is_no_argument_of_a_process(box: MakeBox, server: AlertServer) -> None:
    """Arguments are seen by everybody on the machine."""

    def look() -> list[str]:
        while not server.asked:
            time.sleep(0.02)
        me = psutil.Process()
        return [" ".join(child.cmdline()) for child in me.children(recursive=True)]

    server.answer = STALL
    one = box(server.address)
    one.tell(alert())
    with ThreadPoolExecutor(1) as other:
        seen = other.submit(look)
        one.send(each_s=1.5)
    assert any("apprise_call" in line for line in seen.result())
    assert not any("hunter2secret" in line for line in seen.result())
