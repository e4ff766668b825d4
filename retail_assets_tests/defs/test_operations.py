"""Tests of retail_assets.defs.operations: the sensor, evaluated as the daemon does."""

from pathlib import Path

import dagster as dg

from retail_assets.defs.operations import build_defs
from retail_assets.runs import PROCESS_TAG, process_tags


def test_the_sensor_fails_runs_whose_process_is_gone_and_says_so(tmp_path: Path) -> None:
    (sensor,) = build_defs().sensors or ()
    assert isinstance(sensor, dg.SensorDefinition)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def add(run_id: str, tags: dict[str, str]) -> None:
            started = dg.DagsterRunStatus.STARTED
            instance.add_run(dg.DagsterRun("job", run_id=run_id, tags=tags, status=started))

        def look() -> str | None:
            with dg.build_sensor_context(instance) as context:
                return sensor.evaluate_tick(context).skip_message

        add("alive", process_tags("alive"))
        assert look() == "every run in progress has its process"

        _, pid, _, host = process_tags("killed")[PROCESS_TAG].split(" ", 3)
        add("killed", {PROCESS_TAG: f"killed {pid} earlier {host}"})
        told = look()

        assert told is not None and told.startswith("failed killed: The process of this run (")
        statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses == {
        "alive": dg.DagsterRunStatus.STARTED,
        "killed": dg.DagsterRunStatus.FAILURE,
    }
