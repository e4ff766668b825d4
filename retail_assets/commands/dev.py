"""Dagster's UI and daemon on localhost, over the instance of the settings.

Here: starting and stopping Dagster's own processes. Not here: definitions.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from retail_assets.commands.run import make_sample
from retail_assets.instance import prepare_instance
from retail_assets.resources.dbt import prepare_project
from retail_assets.settings import PROJECT_ROOT, Settings


def serve(settings: Settings, port: int) -> int:
    """Run ``dagster dev`` until it ends or is interrupted; returns its exit code."""
    prepare_instance(settings)
    prepare_project(settings)
    make_sample(settings)
    environment = os.environ | {
        "DAGSTER_HOME": str(settings.instance_dir),
        "RETAIL_HOME": str(settings.home),
    }
    dagster = Path(sys.executable).with_name("dagster")
    command = [str(dagster), "dev", "-w", str(PROJECT_ROOT / "workspace.yaml")]
    process = subprocess.Popen(
        [*command, "-h", "127.0.0.1", "-p", str(port)], env=environment, cwd=PROJECT_ROOT
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        return process.wait()
