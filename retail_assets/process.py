"""How our short processes begin and end: without looking for garbage that is not there.

Here: what makes a command's own process cheaper. Not here: what a command does.
"""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


class QuickEnd:
    """Around all that a process does: it ends once its exit handlers ran, without teardown.

    The imports of Dagster or dbt leave 400,000 objects. Python looks through them for cycles
    several times at the end: most of a second. To be entered first, so that its handler runs
    last.
    """

    def __init__(self) -> None:
        self._status = 0

    def __enter__(self) -> Self:
        atexit.register(self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: object
    ) -> None:
        if isinstance(error, SystemExit):
            code = error.code
            self._status = code if isinstance(code, int) else int(code is not None)
        else:
            self._status = int(error is not None)

    def _end(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._status)


def spare_garbage_collection() -> None:
    """Look for cyclic garbage every million new objects, not every 700.

    The objects of the imports stay, and looking through them is a tenth of a run. A million is
    more than the imports of Dagster or dbt leave, and some 100 MB at most of what is garbage.
    """
    gc.set_threshold(1_000_000, 50, 100)


@contextmanager
def without_package(name: str) -> Iterator[None]:
    """Within the block a package cannot be imported, as if it were not installed.

    Around the import of what probes for it, and does without. Does nothing where the package was
    imported before.
    """
    if name in sys.modules:
        yield
        return
    # None is what the import system itself takes for "not to be found".
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
