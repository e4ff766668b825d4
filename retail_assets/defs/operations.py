"""What watches over the runs of every domain.

Here: the sensor that fails runs whose process is gone, and ends processes that hang. Not here:
how that is known (runs.py), what is asked for again (requests.py).
"""

import dagster as dg

from retail_assets.runs import end_left_processes, fail_lost_runs
from retail_assets.settings import load_settings


def build_defs() -> dg.Definitions:
    """The sensor, which is on by default."""

    @dg.sensor(
        name="lost_runs_sensor",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Fails the runs whose process was killed, so that they are tried again, and kills"
            " processes that hang, in their run or after it. It asks for no run itself."
        ),
    )
    def lost_runs_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        hung = end_left_processes(context.instance, load_settings().run_timeout_s)
        lost = fail_lost_runs(context.instance)
        told = [f"{run_id}: {why}" for run_id, why in hung.items()]
        told += [f"failed {run_id}: {why}" for run_id, why in lost.items()]
        return dg.SkipReason("; ".join(told) or "every run in progress has its process")

    return dg.Definitions(sensors=[lost_runs_sensor])
