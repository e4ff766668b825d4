"""The dbt executable that Dagster is given: dbt's own command, started lean.

Here: what makes its start-up cheaper. Not here: any behaviour of its own; dbt decides all.
"""

import gc
import sys
from importlib.metadata import version


def main() -> None:
    """Run dbt's command line; ``--version`` alone answers from the package's metadata.

    dagster-dbt asks for the version before every build: importing dbt for it takes seconds.
    """
    if sys.argv[1:] == ["--version"]:
        print(f"dbt-core {version('dbt-core')}")
        return
    # A build is a short process that makes objects to the end: collecting them takes a tenth of
    # its time and, measured, frees nothing.
    gc.disable()
    from dbt.cli.main import cli

    cli()


if __name__ == "__main__":
    main()
