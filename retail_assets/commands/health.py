"""Whether a running instance works: its webserver, its code, its daemon. For probes, and cron.

Here: what is asked of the webserver, what is well, and telling of it from outside: where the daemon
is gone, no sensor tells. Not here: systems outside (doctor.py).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retail_assets.commands.webserver import WebserverError, ask
from retail_assets.instance import LONGEST_SILENCE_S
from retail_assets.settings import Settings

_TIMEOUT_S = 10.0
_QUESTION = """{version
  instance {daemonHealth {allDaemonStatuses {
    daemonType required lastHeartbeatTime lastHeartbeatErrors {message}}}}
  workspaceOrError {__typename
    ... on Workspace {locationEntries {name loadStatus locationOrLoadError {
      __typename ... on PythonError {message}}}}
    ... on PythonError {message}}}"""


@dataclass(frozen=True)
class Sign:
    """One part of a running instance: whether it is well, and what was found."""

    part: str
    ok: bool
    found: str


def look(url: str) -> list[Sign]:
    """Each part of the instance whose webserver is at ``url``."""
    try:
        told = ask(url, _QUESTION, timeout_s=_TIMEOUT_S)
    except WebserverError as error:
        unknown = "unknown: the webserver would tell"
        return [
            Sign("webserver", False, str(error)),
            Sign("code location", False, unknown),
            Sign("daemon", False, unknown),
        ]
    return [
        Sign("webserver", True, f"{url}, Dagster {told['version']}"),
        _code(told["workspaceOrError"]),
        _daemon(told["instance"]["daemonHealth"]["allDaemonStatuses"]),
    ]


def tell(settings: Settings, signs: Sequence[Sign]) -> None:
    """Tell RETAIL_NOTIFY which part is not well, once, and when it is again.

    What is unknown is left as it was told.
    """
    from retail_assets.defs.operations.conditions import Conditions
    from retail_assets.instance import open_instance
    from retail_assets.resources.notify import (
        Alert,
        Kind,
        find_receivers,
        open_outbox,
        send_waiting,
    )
    from retail_assets.resources.notify.alert import Words

    found: dict[str, list[Alert]] = {}

    def note(part: str, why: str) -> None:
        alert = Alert(kind=Kind.NOT_RUNNING, fault=f"health:{part}", subject=part, cause=why)
        found[alert.fault] = [alert] if why else []

    storage, words = "Dagster's storage", Words(settings)
    try:
        # By the instance, for the webserver may be away; and in the words of the alerts' sensor.
        with open_instance(settings) as instance:
            found["daemon:"] = Conditions(settings, instance).daemons()
        note(storage, "")
    except Exception as error:  # whatever keeps it from being read is what to tell
        note(storage, words.clean(f"{type(error).__name__}: {error}", ours=False))
    for sign in signs if signs[0].ok else signs[:1]:
        if sign.part != "daemon" or not found.get("daemon:"):
            note(sign.part, "" if sign.ok else words.clean(sign.found))
    with open_outbox(settings) as outbox:
        with outbox.transaction():
            for scope, alerts in found.items():
                outbox.reconcile(scope, alerts)
        send_waiting(outbox, find_receivers(settings))


def _code(workspace: dict[str, Any]) -> Sign:
    bad = [str(workspace["message"])] if "message" in workspace else []
    entries = workspace.get("locationEntries", ())
    for entry in entries:
        state = entry["locationOrLoadError"] or {"__typename": "nothing"}
        if entry["loadStatus"] != "LOADED" or state["__typename"] != "RepositoryLocation":
            why = _first_line(state.get("message") or entry["loadStatus"].lower())
            bad.append(f"{entry['name']} is not loaded: {why}")
    if not entries and not bad:
        bad.append("expected a code location, found none")
    names = ", ".join(entry["name"] for entry in entries)
    return Sign("code location", not bad, "; ".join(bad) or f"{names} loaded")


def _daemon(statuses: list[dict[str, Any]]) -> Sign:
    bad, ages = [], []
    for status in (status for status in statuses if status["required"]):
        name, at = status["daemonType"].lower(), status["lastHeartbeatTime"]
        if at is None:
            bad.append(f"{name} was never heard of")
            continue
        ages.append(age := max(0.0, time.time() - at))
        if age > LONGEST_SILENCE_S:
            bad.append(f"{name} was last heard of {age:.0f} s ago")
        elif errors := status["lastHeartbeatErrors"]:
            bad.append(f"{name} failed: {_first_line(errors[0]['message'])}")
    well = f"{len(ages)} daemons, heard of within {max(ages, default=0):.0f} s"
    return Sign("daemon", not bad, "; ".join(bad) or well)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
