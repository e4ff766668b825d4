"""Fixtures that several test modules share: homes, commands, the real data set."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

if TYPE_CHECKING:
    import dagster as dg

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home for tests that name none: the working copy's has what its owner ran before."""
    with patch.dict(os.environ, RETAIL_HOME=str(tmp_path_factory.mktemp("home") / "of tests")):
        yield


@pytest.fixture(scope="session")
def real_source() -> Path:
    """The real data set, where it stands beside the project."""
    path = SHARED / "data" / "online_retail.csv.gz"
    if not path.exists():
        pytest.skip(f"the real data set is not here: {path}")
    return path


@pytest.fixture(scope="session")
def oracle() -> dict[str, Any]:
    """The real data set's known answers; money is text."""
    path = SHARED / "oracles" / "online_retail.json"
    if not path.exists():
        pytest.skip(f"the known answers are not here: {path}")
    return dict(json.loads(path.read_text()))


OLDEST_JAVA = 17


@pytest.fixture(scope="session")
def java() -> int:
    """Major version of the Java that a JVM's Spark starts on; skips where none would do."""
    home = os.environ.get("JAVA_HOME")
    command = shutil.which("java", path=f"{home}/bin" if home else None)
    if command is None:
        pytest.skip(f"Java {OLDEST_JAVA} or newer is not here: JAVA_HOME or PATH would name it")
    told = subprocess.run([command, "-version"], capture_output=True, text=True, check=True)
    found = re.search(r'version "(\d+)', told.stderr)
    version = int(found[1]) if found else 0
    if version < OLDEST_JAVA:
        pytest.skip(f"Java {OLDEST_JAVA} or newer is not here: {command} is Java {version}")
    return version


@contextmanager
def instance_of(home: Path) -> "Iterator[dg.DagsterInstance]":
    """The instance that the commands of a home have; the environment stays as it was."""
    import dagster as dg

    variables = {"DAGSTER_HOME": str(home / "dagster")}
    with patch.dict(os.environ, variables), dg.DagsterInstance.get() as instance:
        yield instance


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def retail_assets() -> Command:
    """Run the command retail-assets with RETAIL_ variables given by keyword."""

    def run(*arguments: str, timeout: float = 300, **variables: str | Path) -> Any:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RETAIL_", "DAG"))}
        environment |= {f"RETAIL_{name.upper()}": str(value) for name, value in variables.items()}
        return subprocess.run(
            [str(Path(sys.executable).with_name("retail-assets")), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
