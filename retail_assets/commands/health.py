"""Whether a running instance works: its webserver, its code, its daemon. For probes.

Here: what is asked of the webserver, and what is well. Not here: systems outside (doctor.py).
"""

import time
from dataclasses import dataclass
from typing import Any

from retail_assets.commands.webserver import WebserverError, ask

_TIMEOUT_S = 10.0
# A daemon gives a sign each half minute; what it does in between takes seconds.
_LONGEST_SILENCE_S = 300.0
_QUESTION = """{version
  instance {daemonHealth {allDaemonStatuses {
    daemonType required healthy lastHeartbeatTime lastHeartbeatErrors {message}}}}
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
        if age > _LONGEST_SILENCE_S:
            bad.append(f"{name} was last heard of {age:.0f} s ago")
        elif errors := status["lastHeartbeatErrors"]:
            bad.append(f"{name} failed: {_first_line(errors[0]['message'])}")
    well = f"{len(ages)} daemons, heard of within {max(ages, default=0):.0f} s"
    return Sign("daemon", not bad, "; ".join(bad) or well)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
