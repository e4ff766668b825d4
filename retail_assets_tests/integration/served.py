"""A running `retail-assets dev`, asked by GraphQL: what the tests of the UI and daemon share.

Not here: tests.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

REPOSITORY = {
    "repositoryName": "__repository__",
    "repositoryLocationName": "retail_assets",
}
COMMAND = str(Path(sys.executable).with_name("retail-assets"))


def wait_for(what: str, question: Callable[[], Any], seconds: float = 120) -> Any:
    """The first true answer; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(1)
    raise AssertionError(f"{what} did not happen within {seconds:.0f} s")


def tag(run: dict[str, Any], key: str) -> str | None:
    """The value of a run's tag."""
    return next((t["value"] for t in run["tags"] if t["key"] == key), None)


class Dev:
    """The command over a home, on a port of its own; its settings are given by keyword."""

    def __init__(self, home: Path, **variables: str | Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        others = {k: v for k, v in os.environ.items() if not k.startswith(("RETAIL_", "DAG"))}
        ours = {f"RETAIL_{name.upper()}": str(value) for name, value in variables.items()}
        self.environment = others | ours | {"RETAIL_HOME": str(home)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of its webserver."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        with (self.home / "dev.log").open("a") as log:
            self._process = subprocess.Popen(
                [COMMAND, "dev", "--port", str(self.port)],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for("the UI", self._answers)
        return self

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command with the same settings."""
        return subprocess.run(
            [COMMAND, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to it and to every process below it, as when the machine stops."""
        assert self._process is not None
        top = psutil.Process(self._process.pid)
        tree = [top, *top.children(recursive=True)]
        for process in tree:
            process.suspend()  # or one would see another end, and say so
        for process in tree:
            process.kill()
        self._process.wait(20)
        psutil.wait_procs(tree, 20)
        self._process = None

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        request = urllib.request.Request(
            f"{self.url}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer)["data"])

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "see dev.log"
        try:
            found = self.ask("{repositoriesOrError {... on RepositoryConnection {nodes {name}}}}")
        except OSError:
            return False
        return bool(found["repositoriesOrError"].get("nodes"))

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """Runs that carry these tags, latest first; all without."""
        found = self.ask(
            "query($filter: RunsFilter) {runsOrError(filter: $filter) {... on Runs {results"
            " {id status jobName tags {key value} stepStats {stepKey status}}}}}",
            filter={"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        )
        return list(found["runsOrError"]["results"])

    def start_sensor(self, name: str) -> None:
        """Switch a sensor on."""
        self.ask(
            "mutation($selector: SensorSelector!)"
            " {startSensor(sensorSelector: $selector) {__typename}}",
            selector=REPOSITORY | {"sensorName": name},
        )

    def backfill(self, target: dict[str, Any], partitions: list[str]) -> str:
        """Backfill partitions of assets or of a job, as a person does; the backfill's id."""
        launched = self.ask(
            "mutation($parameters: LaunchBackfillParams!) {launchPartitionBackfill("
            "backfillParams: $parameters) {... on LaunchBackfillSuccess {backfillId}"
            " ... on PythonError {message}}}",
            parameters=target | {"partitionNames": partitions},
        )["launchPartitionBackfill"]
        return str(launched["backfillId"])

    def backfill_status(self, backfill: str) -> str | None:
        """How a backfill ended; None while it goes on."""
        found = self.ask(
            "query($id: String!) {partitionBackfillOrError(backfillId: $id)"
            " {... on PartitionBackfill {status}}}",
            id=backfill,
        )["partitionBackfillOrError"]["status"]
        over = found not in ("REQUESTED", "COMPLETING", "FAILING", "CANCELING")
        return str(found) if over else None

    def launch(self, job: str, **tags: str) -> str:
        """Launch a job, as its schedule does; the run's id."""
        launched = self.ask(
            "mutation($parameters: ExecutionParams!) {launchRun(executionParams: $parameters)"
            " {__typename ... on LaunchRunSuccess {run {id}} ... on PythonError {message}}}",
            parameters={
                "selector": REPOSITORY | {"jobName": job},
                "runConfigData": {},
                "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
            },
        )["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["id"])

    def terminate(self, run_id: str) -> str:
        """What the UI's Terminate is answered; raises where it is an HTTP error."""
        found = self.ask(
            "mutation($run: String!) {terminateRun(runId: $run) {__typename}}", run=run_id
        )
        return str(found["terminateRun"]["__typename"])


@contextmanager
def served(home: Path, **variables: str | Path) -> Iterator[Dev]:
    """A running one, stopped at the end."""
    dev = Dev(home, **variables)
    try:
        yield dev.start()
    finally:
        dev.stop()
