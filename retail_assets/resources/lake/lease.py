"""A lock in a bucket: a lease that its holder renews.

Here: holding it, and judging whether another holder lives. Not here: locks of a folder
(resources/waiting.py).
"""

import json
import logging
import socket
import threading
import time
import uuid
from typing import Any, Protocol

from retail_assets.errors import PermanentError, TransientError
from retail_assets.resources.lake.exchange import LakeObject
from retail_assets.resources.lake.objects import LakeBusyError
from retail_assets.resources.waiting import Wait, this_process

_log = logging.getLogger(__name__)

_CLOCK_SKEW_SECONDS = 300


class Leaseholder(Protocol):
    """What a lease asks of the lake that it lies in."""

    lease_s: float

    def uri(self, name: str) -> str:
        """A location as other programs know it."""
        ...

    def clock(self) -> float:
        """Seconds since 1970."""
        ...

    def stat(self, name: str) -> LakeObject | None:
        """An object's generation, and when it was made."""
        ...

    def read_version(self, name: str) -> tuple[bytes | None, int]:
        """An object's bytes and their generation; (None, 0) where there is none."""
        ...

    def write_bytes(
        self, name: str, content: bytes, expected: int | None = None, retry_s: float | None = None
    ) -> int | None:
        """Replace an object, if ``expected`` is its generation; its new one, or None."""
        ...

    def delete_generation(self, name: str, generation: int) -> None:
        """Remove an object, if that is its generation."""
        ...


class Lease:
    """A lock that its holder renews: one object, replaced only on condition of its generation.

    Whether a holder is alive is judged by whether its object changes while we watch, so that
    clocks that differ do no harm.
    """

    def __init__(self, lake: Leaseholder, name: str) -> None:
        self._lake = lake
        self._name = name
        self._owner = f"{this_process()} on {socket.gethostname()}, {uuid.uuid4().hex}"
        self._generation = 0
        self._stop = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)
        self.lost = False

    def acquire(self, timeout_s: float) -> None:
        """Wait for the lease.

        Raises:
            LakeBusyError: others held it for ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        told = Wait(self._lake.uri(self._name))
        watched, since, wait = 0, time.monotonic(), 0.1
        while True:
            found = self._lake.stat(self._name)
            generation = int(found.version) if found else 0
            if generation != watched:
                watched, since = generation, time.monotonic()
            if found is None or self._expired(found, since):
                if self._write(generation):
                    self._renewal.start()
                    return
            elif time.monotonic() >= deadline:
                raise LakeBusyError(
                    f"{self._lake.uri(self._name)} was held by another run for {timeout_s:.0f} s:"
                    f" {self._holder()}. See the runs in progress in the UI; end the one that hangs"
                    " and run this again."
                )
            told.tell(self._holder)
            time.sleep(min(wait, max(0.01, deadline - time.monotonic())))
            wait = min(wait * 1.5, self._lake.lease_s / 4, 5)

    def _holder(self) -> str:
        return str(self._read()[0].get("owner", "an unknown run"))

    def _expired(self, found: LakeObject, since: float) -> bool:
        lease_s = self._lake.lease_s
        # A renewal is a new object: this is when it last gave a sign.
        silent = self._lake.clock() - found.modified
        return time.monotonic() - since > lease_s or silent > lease_s + _CLOCK_SKEW_SECONDS

    def _write(self, expected: int) -> bool:
        body = {"owner": self._owner, "expires": self._lake.clock() + self._lake.lease_s}
        content = json.dumps(body).encode()
        written = self._lake.write_bytes(self._name, content, expected, self._lake.lease_s / 3)
        if written is None:
            state, generation = self._read()
            if state.get("owner") == self._owner:  # ours: the answer to a first try was lost
                written = generation
        self._generation = written or self._generation
        return written is not None

    def _read(self) -> tuple[dict[str, Any], int]:
        text, generation = self._lake.read_version(self._name)
        try:
            state = json.loads(text or b"{}")
        except ValueError:
            state = {}
        return (state if isinstance(state, dict) else {}), generation

    def _renew(self) -> None:
        while not self._stop.wait(self._lake.lease_s / 3):
            try:
                self.lost = not self._write(self._generation)
            except (TransientError, PermanentError) as error:  # the next turn tries again
                _log.warning("the lock %s could not be renewed: %s", self._name, error)
            if self.lost:
                return

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._stop.set()
        self._renewal.join()
        try:
            if not self.lost:
                self._lake.delete_generation(self._name, self._generation)
        except TransientError as error:  # it ends by itself
            _log.warning("the lock %s was not given back: %s", self._name, error)
