"""Dagster's UI and daemon on localhost, over the instance of the settings.

Here: what `dagster dev` needs before it starts. Not here: definitions.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from retail_assets.defs.registry import domains
from retail_assets.instance import prepare_instance
from retail_assets.resources.dbt import prepare_project
from retail_assets.settings import PROJECT_ROOT, Settings


def serve(settings: Settings, port: int) -> NoReturn:
    """Become ``dagster dev``: signals then reach it, and it stops what it started."""
    prepare_instance(settings)
    prepare_project(settings)
    for domain in domains():
        domain.prepare(settings)
    if settings.kafka == "embedded":
        _keep_broker(settings)
    environment = os.environ | {
        "DAGSTER_HOME": str(settings.instance_dir),
        "RETAIL_HOME": str(settings.home),
    }
    dagster = str(Path(sys.executable).with_name("dagster"))
    os.chdir(PROJECT_ROOT)
    os.execve(  # noqa: S606  (no shell is wanted)
        dagster,
        [dagster, "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
        environment,
    )


def _keep_broker(settings: Settings) -> None:
    """Have a process own the embedded broker as long as this one, which becomes Dagster's, lives.

    The UI's runs, the sensor and commands in other terminals then share it.
    """
    keeper = [sys.executable, "-m", "retail_assets.resources.broker_keeper"]
    subprocess.Popen([*keeper, "--home", str(settings.home), "--parent", str(os.getpid())])
