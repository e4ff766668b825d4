"""The ledger of a partition: what it was made of, and what became of the rows that were read.

It stands in the names of the partition's files. So it is of the very commit that adds them, goes
and comes back with them when a version is restored, and stays for as long as they do: no state
beside the table has to agree with it. A partition without rows has a file of no rows, for its
ledger.
"""

import re
from typing import NamedTuple, Self

from retail_assets.errors import PermanentError

_FORMAT = "v1"
_NAME = re.compile(
    # "-" for nothing; then size, read, duplicates, quarantined and left_out.
    rf"{_FORMAT}\.(?:-|([0-9A-Za-z_-]+))\.(?:-|([0-9A-Za-z_-]+))"
    r"\.(\d+)\.(\d+)\.(\d+)\.(\d+)\.(\d+)\.[^.]+\.parquet"
)
_NOTHING = "-"
_PLAIN = re.compile(r"[0-9A-Za-z_-]*")


class UnbalancedError(PermanentError):
    """Rows were lost or made up on the way; nothing was written."""


class Ledger(NamedTuple):
    """What a partition was made of, and what became of its rows.

    ``fingerprint`` differs where the partition's content does. ``stamp`` and ``size`` are of the
    raw object that it was made of: its version and its bytes, by which a glance tells it from
    another. ``left_out`` counts values that could not be read, of rows that were written.
    """

    fingerprint: str
    read: int
    duplicates: int = 0
    quarantined: int = 0
    left_out: int = 0
    stamp: str = ""
    size: int = 0

    @property
    def written(self) -> int:
        """Rows that are in the table."""
        return self.read - self.duplicates - self.quarantined

    def file_name(self, token: str) -> str:
        """The name of a file of the partition; ``token`` tells it from all others.

        Raises:
            ValueError: fingerprint, stamp or token have characters that no name can have here.
        """
        for text in (self.fingerprint, self.stamp, token):
            if text == _NOTHING or not _PLAIN.fullmatch(text):
                raise ValueError(f"{text!r}: expected letters, digits, - and _, and not - alone")
        values = (
            *(text or _NOTHING for text in (self.fingerprint, self.stamp)),
            *(self.size, self.read, self.duplicates, self.quarantined, self.left_out),
        )
        return ".".join([_FORMAT, *map(str, values), token, "parquet"])

    @staticmethod
    def fingerprint_in(name: str) -> str | None:
        """The fingerprint that a file's name says; None where it says none."""
        parts = name.rpartition("/")[2].split(".", 2)
        if len(parts) < 3 or parts[0] != _FORMAT:
            return None
        return "" if parts[1] == _NOTHING else parts[1]

    @staticmethod
    def has_stamp(name: str, stamp: str, ending: str) -> bool:
        """Whether a file's name says that stamp, after a fingerprint that ends so.

        Without reading all of the name: a sensor's tick asks it of 100,000.
        """
        return f"{ending}.{stamp}." in name

    @classmethod
    def of_file(cls, name: str) -> Self | None:
        """The ledger that a file's name says; None where it says none."""
        found = _NAME.fullmatch(name.rpartition("/")[2])
        if found is None:
            return None
        fingerprint, stamp, *counts = found.groups("")
        size, read, duplicates, quarantined, left_out = map(int, counts)
        return cls(fingerprint, read, duplicates, quarantined, left_out, stamp, size)
