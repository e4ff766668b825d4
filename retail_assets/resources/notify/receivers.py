"""Who receives alerts: addresses of RETAIL_NOTIFY by the library apprise, or the log.

Here: one message to one receiver, in bounded time. Not here: what is sent again, and when
(sending.py).

apprise runs in a process of its own: a service that trickles bytes holds a thread for ever, and
only a process can be ended. What it prints names addresses, so none of it is shown as it is.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from retail_assets.resources.notify.alert import MASK, address_parts, longest_first
from retail_assets.settings import Settings, split_addresses

_CALL = Path(__file__).with_name("apprise_call.py")
_LONGEST_WHY = 200
_LOG = logging.getLogger("retail_assets.alerts")


@dataclass(frozen=True)
class Log:
    """Where alerts go without RETAIL_NOTIFY: the log of the process that watches."""

    name: str = "log"

    def send(self, level: str, title: str, body: str, timeout_s: float) -> str | None:
        """Write it; that does not fail."""
        _LOG.warning("%s\n%s", title, body)
        return None


@dataclass(frozen=True)
class Service:
    """An address that apprise knows; its name, place and service, shows no secret."""

    name: str
    address: str = field(repr=False)

    def send(self, level: str, title: str, body: str, timeout_s: float) -> str | None:
        """Send by apprise; None where it was taken, or why not.

        Of what is not answered in time nobody knows whether it was taken.
        """
        asked = {"address": self.address, "level": level, "title": title, "body": body}
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(_CALL)],
                input=json.dumps(asked),  # not an argument: these are seen by everybody
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {timeout_s:.0f} s"
        said = done.stdout.strip().rpartition("\n")[2]
        if done.returncode == 0 and said == "":
            return None
        why = said or f"apprise ended with exit code {done.returncode}"
        for part in longest_first(address_parts([self.address])):
            why = why.replace(part, MASK)
        return why[:_LONGEST_WHY]


Receiver: TypeAlias = Log | Service


def find_receivers(settings: Settings) -> Sequence[Receiver]:
    """Those of the settings, in their order."""
    addresses = split_addresses(settings.notify.get_secret_value())
    return [
        Service(f"{number}. {address.partition('://')[0]}", address)
        for number, address in enumerate(addresses, 1)
    ] or [Log()]
