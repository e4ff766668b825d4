"""Tests of retail_assets.commands.alerts, by the command."""

import json
from pathlib import Path

from retail_assets.resources.notify import Alert, Kind, find_receivers, open_outbox, send_waiting
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import Command
from retail_assets_tests.resources.alert_servers import alert_server


def test_what_is_at_fault_what_was_told_and_what_waits(
    tmp_path: Path, retail_assets: Command
) -> None:
    with alert_server() as server, alert_server() as down:
        down.stop()
        addresses = f"{server.address} {down.address}"
        settings = load_settings(home=tmp_path, notify=addresses)
        with open_outbox(settings) as outbox:
            for run in "12":
                alert = Alert(
                    kind=Kind.RUN_FAILED,
                    fault="run:a",
                    subject="shop/sales",
                    cause="a.csv: no header",
                    occurrence=run,
                    link="http://localhost:3000/runs/1",
                )
                with outbox.transaction():
                    outbox.tell(alert)
            send_waiting(outbox, find_receivers(settings))

        shown = retail_assets("alerts", home=tmp_path, notify=addresses)
        fault, cause, advice, link, message, one, two = shown.stdout.splitlines()
        assert fault.startswith("run failed: shop/sales, again once since 2")
        assert (cause, link) == ("  a.csv: no header", "  http://localhost:3000/runs/1")
        assert "Mend what the cause names" in advice
        assert message.startswith("told 2")
        assert message.endswith(": run failed: shop/sales (waits for 2. json)")
        assert one.startswith("receiver 1. json: 0 wait, last sent 2")
        assert two.startswith("receiver 2. json: 1 wait, last sent never, last error: A Connection")

        found = retail_assets("alerts", "--json", home=tmp_path, notify=addresses)
        told = json.loads(found.stdout)
        assert told["open"][0]["times"] == 2
        assert told["messages"][0]["waits_for"] == ["2. json"]
        assert [x["waiting"] for x in told["receivers"]] == [0, 1]

        tried = retail_assets("alerts", "--test", home=tmp_path, notify=addresses)
        assert tried.returncode == 1
        one, two = tried.stdout.splitlines()
        assert one == "1. json: sent"
        assert two.startswith("2. json: A Connection error occurred")
        assert server.titles == ["run failed: shop/sales", "test"]
        for command in (shown, found, tried):
            assert "hunter2" not in command.stdout + command.stderr


def test_a_home_without_alerts_has_none(tmp_path: Path, retail_assets: Command) -> None:
    shown = retail_assets("alerts", home=tmp_path)
    assert shown.stdout == "nothing is at fault\nreceiver log: 0 wait, last sent never\n"
