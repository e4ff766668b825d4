"""What is at fault, what was told and what waits; and whether receivers take a message at all.

Here: questions to the outbox, and a message of trial. Not here: printing (tables.py), looking for
faults (defs/operations).
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from retail_assets.resources.notify import find_receivers, open_outbox
from retail_assets.resources.notify.outbox import Fault, Message, Standing
from retail_assets.settings import Settings

_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Alerts:
    """What is open and what was told, the latest first, and the settings' receivers."""

    faults: list[Fault]
    messages: list[Message]
    standings: list[Standing]

    def waits_for(self, message: Message) -> list[str]:
        """The receivers that have not had a message."""
        return [x.name for x in self.standings if x.done < message.id]

    def waiting(self, standing: Standing) -> int:
        """How many messages a receiver has not had."""
        return sum(message.id > standing.done for message in self.messages)

    def to_json(self) -> str:
        """One JSON document; times are seconds of the epoch."""
        faults = [
            {"title": x.alert.title, "since": x.opened, "last": x.last, "times": x.times}
            | {"cause": x.alert.cause, "what_to_do": x.alert.what_to_do, "link": x.alert.link}
            for x in self.faults
        ]
        messages = [asdict(x) | {"waits_for": self.waits_for(x)} for x in self.messages]
        receivers = [
            {"name": x.name, "waiting": self.waiting(x), "sent": x.sent_at, "error": x.error}
            for x in self.standings
        ]
        told = {"open": faults, "messages": messages, "receivers": receivers}
        return json.dumps(told, indent=2, ensure_ascii=False)


def read_alerts(settings: Settings) -> Alerts:
    """What the outbox of the home has."""
    with open_outbox(settings) as outbox:
        standings = outbox.standings()
        names = [receiver.name for receiver in find_receivers(settings)]
        return Alerts(
            list(outbox.faults().values()),
            outbox.messages()[::-1],
            [standings[name] for name in names],
        )


def try_receivers(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """Send each receiver a message of trial: its name, and why it was not taken, or None."""
    body = f"Alerts of {settings.ui_url} will come here."
    for receiver in find_receivers(settings):
        yield receiver.name, receiver.send("success", "[retail-assets] test", body, _PATIENCE_S)
