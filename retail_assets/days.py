"""Days, the keys of daily partitions, as ranges.

Here: arithmetic on ISO dates that both domains and warehouses need. Not here: SQL made of it.
"""

from collections.abc import Iterable, Mapping
from datetime import date


def contiguous_ranges(days: Iterable[str]) -> list[tuple[str, str]]:
    """Inclusive (first, last) ranges that cover exactly ``days`` (ISO dates), in order."""
    ranges: list[tuple[date, date]] = []
    for day in sorted({date.fromisoformat(d) for d in days}):
        if ranges and (day - ranges[-1][1]).days == 1:
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return [(first.isoformat(), last.isoformat()) for first, last in ranges]


def changed_window(landed: Mapping[str, str], built: Mapping[str, str]) -> list[list[str]]:
    """Inclusive [first, last] day ranges where the facts differ from the landed table.

    ``landed`` and ``built`` map a day to the fingerprint that the table, and the facts, were
    last built from. [] means that nothing changed.
    """
    changed = {day for day in landed.keys() | built.keys() if landed.get(day) != built.get(day)}
    return [list(pair) for pair in contiguous_ranges(changed)]


def ranges_within(days: Iterable[str], every: Iterable[str]) -> list[list[str]]:
    """Inclusive [first, last] ranges that hold exactly ``days`` of all that there are, in order.

    Days of no interest between two neighbours of ``every`` do not part a range: half-yearly drops
    that all changed are one.
    """
    chosen = set(days)
    ranges: list[list[str]] = []
    is_open = False
    for day in sorted(chosen.union(every)):
        if day not in chosen:
            is_open = False
        elif is_open:
            ranges[-1][1] = day
        else:
            ranges.append([day, day])
            is_open = True
    return ranges
