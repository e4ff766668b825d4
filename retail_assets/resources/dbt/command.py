"""The dbt executable that Dagster is given: dbt's own command, started lean.

Here: what makes its start-up cheaper. Not here: any behaviour of its own; dbt decides all.
"""

import sys
from importlib.metadata import version

from retail_assets.process import QuickEnd, spare_garbage_collection
from retail_assets.resources.dbt.worker import WAIT_OPTION, hand_over, wait_for_command


def main() -> None:
    """Run dbt's command line; ``--version`` alone answers from the package's metadata.

    dagster-dbt asks for the version before a build: importing dbt for it takes seconds. A
    command goes to the dbt process that waits for it, where there is one.
    """
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"dbt-core {version('dbt-core')}")
        return
    with QuickEnd():
        spare_garbage_collection()
        if arguments[:1] == [WAIT_OPTION]:
            wait_for_command(arguments[1], arguments[2:])
        code = hand_over(arguments)
        if code is not None:
            sys.exit(code)
        from dbt.cli.main import cli

        cli()


if __name__ == "__main__":
    main()
