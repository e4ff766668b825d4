"""The embedded broker's keeper: a process that owns it for as long as its parent lives.

Here: `python -m retail_assets.resources.broker.keeper --home HOME --parent PID`, so that the UI's
runs, the sensor and commands in other terminals share one broker. Not here: what the broker is
(embedded.py).
"""

import argparse
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from retail_assets.resources.broker import embedded

_LOOK_S = 0.2


def keep(home: Path, parent: int, stop: threading.Event, told: Callable[[str], None]) -> None:
    """Own the home's broker until ``stop`` is set or the process ``parent`` is gone.

    While another process owns it, wait to take its place. ``told`` is given the address of each
    broker that it knows of, once.
    """
    is_child = os.getppid() == parent
    known = ""
    while not stop.is_set() and _is_there(parent, is_child):
        found = embedded.find(home) or embedded.try_own(home)
        if found is not None and found.address != known:
            known = found.address
            told(known)
        stop.wait(_LOOK_S)
    embedded.let_go(home)


def _is_there(parent: int, is_child: bool) -> bool:
    import psutil

    # Of a child's also where the parent ended and nobody has asked how.
    return os.getppid() == parent if is_child else psutil.pid_exists(parent)


def main() -> None:
    """Keep the broker; prints ``broker ADDRESS`` as soon as one is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="RETAIL_HOME")
    parser.add_argument("--parent", type=int, required=True, help="it ends when this process has")
    arguments = parser.parse_args()
    stop = threading.Event()
    # Ctrl-C reaches the parent too, whose runs need the broker until they have ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    keep(
        arguments.home.absolute(),
        arguments.parent,
        stop,
        _tell,
    )


def _tell(address: str) -> None:
    with suppress(BrokenPipeError):  # whoever started this need not listen for ever
        print(f"broker {address}", flush=True)


if __name__ == "__main__":
    main()
