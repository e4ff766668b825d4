"""An alert in words: what is at fault, why, and what to do; without secrets, and without values.

Here: the kinds of alert, and what of an error may be shown. Not here: which faults there are.

Whoever receives alerts may not be allowed to see data. Errors of ours name no personal value; those
of libraries quote whatever they stumbled over, so of these what they quote is masked.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

from pydantic import SecretStr

from retail_assets.database_url import redacted
from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.http import redact
from retail_assets.settings import Settings, split_addresses

_MOST_LINES = 4
_LONGEST_CAUSE = 600
_MOST_NAMES = 3
_LONGEST_READ = 10_000
_SHORTEST_SECRET = 4
MASK = "***"
_SECRET_OPTION = re.compile(r"pass|secret|token|key|jaas|credential", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
# From the first quote to the last: a value may hold quotes, and lines.
_QUOTED = re.compile(r"(['\"`]).*['\"`]|\(.*\)|\[[^\]]*,.*\]|\{.*\}", re.DOTALL)
_UNCLOSED = re.compile(r"['\"`({].*", re.DOTALL)
_PERSONAL_SHAPE = re.compile(r"\S+@\S+|\+?\d[\d ().-]{4,}\d")
RUNBOOK = "docs/operations.md"


class Kind(Enum):
    """What may be at fault, and what to do about it."""

    RUN_FAILED = "run failed", "Mend what the cause names, then run it again."
    REQUEST_GIVEN_UP = "request given up", "Mend what the cause names, then run it by hand."
    CHECK_FAILED = "check failed", "Look at the check in the UI; what it blocks waits for it."
    CHECK_WARNS = "check warns", "Look at what it found; nothing is kept back."
    TICK_FAILED = "tick failed", "Mend what the cause names; it is tried again by itself."
    LATE = "asset is late", "Look whether its source delivers, and its sensor is on."
    NOT_RUNNING = "not running", "Start retail-assets dev, or this part of it, again."
    DISK_LOW = "disk is almost full", "Free space, or raise it: runs will fail without."

    def __init__(self, title: str, advice: str) -> None:
        self.title = title
        self.advice = advice

    @property
    def level(self) -> str:
        """``warning`` where nothing was kept back or lost yet, or ``failure``."""
        return "warning" if self in (Kind.CHECK_WARNS, Kind.LATE, Kind.DISK_LOW) else "failure"


_OF_NO_ASSET = (Kind.TICK_FAILED, Kind.NOT_RUNNING, Kind.DISK_LOW)


@dataclass(frozen=True, kw_only=True)
class Alert:
    """A fault as a person is told of it. Texts are clean already (``Words``).

    Attributes:
        fault: its identity: the same one is told once, and then counted.
        occurrence: what tells one time from the next, such as a run's id: the same is not counted.
        subject: the asset or assets, or what else it is about.
        partitions: a key, or a range A...B; empty where there are none.
        memo: by what the watcher will know that it is well again; never told.
    """

    kind: Kind
    fault: str
    subject: str
    cause: str
    occurrence: str = ""
    partitions: str = ""
    advice: str = ""
    link: str = ""
    memo: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """One line: kind, subject, partitions."""
        return f"{self.kind.title}: {self.subject}" + (
            f", {self.partitions}" if self.partitions else ""
        )

    @property
    def what_to_do(self) -> str:
        """In a line, with the place that says more."""
        anchor = self.kind.title.replace(" ", "-")
        return f"{self.advice or self.kind.advice} ({RUNBOOK}#{anchor})"

    def body(self, again: str = "") -> str:
        """What a receiver is sent under the title; ``again`` says how often it was so."""
        lines = {
            "what" if self.kind in _OF_NO_ASSET else "asset": self.subject,
            "partitions": self.partitions,
            "again": again,
            "cause": self.cause,
            "what to do": self.what_to_do,
            "see": self.link,
        }
        return "\n".join(f"{name}: {text}" for name, text in lines.items() if text)

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self) | {"kind": self.kind.name})

    @classmethod
    def of_json(cls, text: str) -> Self:
        """What ``to_json`` wrote."""
        told = json.loads(text)
        return cls(**told | {"kind": Kind[told["kind"]]})


def shown_time(seconds: float) -> str:
    """A time of the epoch, for people."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def named(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    found = list(names)
    more = len(found) - _MOST_NAMES
    return ", ".join(found[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


class Words:
    """What of a text may be told: never one of the settings' secrets."""

    def __init__(self, settings: Settings) -> None:
        self._secrets = _secrets(settings)

    def clean(self, text: str, *, ours: bool = True) -> str:
        """The first lines of a text, one beside the other; values are masked if it is not ``ours``.

        Secrets go first: a mask might part one.
        """
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        text = text[:_LONGEST_READ]  # an error of a library may be megabytes of values
        text = _URL.sub(lambda url: redact(redacted(url[0])), text)
        if not ours:
            text = _PERSONAL_SHAPE.sub(MASK, _UNCLOSED.sub(MASK, _QUOTED.sub(MASK, text)))
        lines = [" ".join(line.split()) for line in text.strip().splitlines()]
        shown = " | ".join([line for line in lines if line][:_MOST_LINES])
        shown = "".join(c if c.isprintable() else " " for c in shown)
        return shown if len(shown) <= _LONGEST_CAUSE else f"{shown[:_LONGEST_CAUSE]}..."

    def error(self, error: Any, said: str | None = None) -> str:
        """The cause of a failure: what we ``said``, the error that is ours, or the innermost.

        ``error`` is Dagster's SerializableErrorInfo, or None.
        """
        if said:
            return self.clean(said)
        known = _names(PermanentError) | _names(TransientError)
        while error is not None and error.cause is not None and error.cls_name not in known:
            error = error.cause
        if error is None:
            return "no error was recorded"
        # Dagster writes the module's and class's name before it.
        message = error.message.partition(": ")[2] if ": " in error.message else error.message
        if error.cls_name in known:
            return self.clean(message)
        # The system's own errors quote paths only.
        text = self.clean(message, ours=message.startswith("[Errno "))
        return f"{error.cls_name}: {text}"


def _names(kind: type[BaseException]) -> set[str]:
    """The class's name, and those of all that derive from it and are loaded."""
    return {kind.__name__}.union(*(_names(x) for x in kind.__subclasses__()))


def _secrets(settings: Settings) -> list[str]:
    """What no message may hold, the longest first: passwords, and receivers' addresses."""
    options = json.loads(settings.kafka_options.get_secret_value() or "{}")
    found = {text for name, text in options.items() if _SECRET_OPTION.search(name)}
    for value in dict(settings).values():
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        if text.startswith("postgres"):
            # A password may hold what parts a URL: the last @ ends it.
            found.add(text.partition("://")[2].rpartition("@")[0].partition(":")[2])
            query = parse_qsl(text.partition("?")[2])
            found |= {told for name, told in query if _SECRET_OPTION.search(name)}
    found |= set(address_parts(split_addresses(settings.notify.get_secret_value())))
    return longest_first(found | {unquote(text) for text in found})


def address_parts(addresses: Iterable[str]) -> Iterable[str]:
    """The addresses, and what they are made of: which part is the secret differs by service."""
    for address in addresses:
        yield from (address, *re.split(r"[/:@?&=,;\s]+", address.partition("://")[2]))


def longest_first(texts: Iterable[str]) -> list[str]:
    """Those that are long enough to be a secret, so that none is replaced in part."""
    return sorted((x for x in texts if len(x) >= _SHORTEST_SECRET), key=len, reverse=True)
