"""Sending what waits: each receiver in its own time, and all of them in a bounded one.

Here: who is sent what now, waits after failures, a flood as one summary. Not here: how a message
is sent (receivers.py).

At least once: a receiver that took a message just before the sender was killed gets it again.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from retail_assets.resources.notify.outbox import Message, Outbox, Standing
from retail_assets.resources.notify.receivers import Receiver

_FIRST_WAIT_S = 30.0
_LONGEST_WAIT_S = 900.0
# As many at a time, and then one for all; and the next not at once.
_MOST_MESSAGES = 5
_MOST_TITLES = 15
_FLOOD_WAIT_S = 300.0
_ENDED = "the sender was ended meanwhile"
PREFIX = "[retail-assets]"


def send_waiting(
    outbox: Outbox, receivers: Sequence[Receiver], *, most_s: float = 20.0, each_s: float = 8.0
) -> None:
    """Send each receiver what it has not had, unless another process is sending now.

    None is begun after ``most_s`` seconds, and none takes more than ``each_s``.
    """
    from time import monotonic

    from filelock import FileLock, Timeout

    end = monotonic() + most_s
    try:
        with FileLock(outbox.path.with_suffix(".lock"), timeout=0):
            standings = outbox.standings()
            # First those that answer: one that stalls keeps no other waiting.
            for receiver in sorted(receivers, key=lambda x: standings[x.name].failures):
                standing = standings[receiver.name]
                if not _is_due(standing, outbox.now()):
                    continue
                waiting = outbox.messages(standing.done)
                for told in _as_sent(waiting):
                    if monotonic() > end:
                        return
                    standing = _send(outbox, receiver, standing, told, each_s)
                    if standing.failures:
                        break
                if len(waiting) > _MOST_MESSAGES and not standing.failures:
                    outbox.note(replace(standing, next_try=outbox.now() + _FLOOD_WAIT_S))
    except Timeout:
        return


def _is_due(standing: Standing, now: float) -> bool:
    # Further off than the longest wait: the clock was set back meanwhile.
    return not now < standing.next_try <= now + _LONGEST_WAIT_S


def _send(
    outbox: Outbox, receiver: Receiver, standing: Standing, told: Message, each_s: float
) -> Standing:
    """Send one; where the receiver stands then."""
    failures = standing.failures + 1
    wait = min(_FIRST_WAIT_S * 2 ** (failures - 1), _LONGEST_WAIT_S)
    # Noted as failed before: else a sender that cannot write, or is killed, would send for ever.
    failed = replace(standing, failures=failures, next_try=outbox.now() + wait, error=_ENDED)
    outbox.note(failed)
    why = receiver.send(told.level, f"{PREFIX} {told.title}", told.body, each_s)
    now = outbox.now()
    done = (
        replace(standing, done=told.id, failures=0, next_try=0.0, error="", sent_at=now)
        if why is None
        else replace(failed, error=why)
    )
    outbox.note(done)
    return done


def _as_sent(waiting: list[Message]) -> list[Message]:
    """The messages; or, where these are many, one that tells of them all."""
    if len(waiting) <= _MOST_MESSAGES:
        return waiting
    kinds = Counter(message.title.partition(":")[0] for message in waiting)
    counted = ", ".join(f"{times:,} {kind}" for kind, times in kinds.most_common())
    lines = [message.title for message in waiting[:_MOST_TITLES]]
    more = len(waiting) - len(lines)
    if more > 0:
        lines.append(f"and {more:,} more")
    is_bad = any(message.level == "failure" for message in waiting)
    return [
        replace(
            waiting[-1],
            level="failure" if is_bad else "warning",
            title=f"{len(waiting):,} alerts at once: {counted}",
            body="\n".join([*lines, "all of them: retail-assets alerts"]),
        )
    ]
