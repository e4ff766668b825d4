"""The embedded server's keeper: a process that holds it for as long as its parent lives.

Here: `python -m retail_assets.resources.operational_db.keeper HOME PARENT`, for programs that are
not ours and have their state there. Not here: what the server is (embedded.py).
"""

import os
import signal
import sys
import time

from retail_assets.resources.operational_db.embedded import EmbeddedPostgres

_LOOK_S = 0.2


def main() -> None:
    """Hold the server of HOME until the process PARENT, which started this one, has ended."""
    home, parent = sys.argv[1], int(sys.argv[2])
    # These reach the parent too, which has events to write until it has ended.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    EmbeddedPostgres.attach(home)
    print("held", flush=True)
    while os.getppid() == parent:
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
