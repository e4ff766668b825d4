"""What watches over the runs of every domain.

Here: the sensors. By file: runs (what became of runs, checks and requests), conditions (what is at
fault for as long as it is so). Not here: how a lost run is known (runs.py), what is asked for again
(requests.py), how alerts are kept and sent (resources/notify).
"""

from collections.abc import Iterable

import dagster as dg

from retail_assets.defs.operations.conditions import Conditions
from retail_assets.defs.operations.runs import RunWatch
from retail_assets.domain import Domain
from retail_assets.resources.notify import find_receivers, open_outbox, send_waiting
from retail_assets.runs import end_left_processes, fail_lost_runs
from retail_assets.settings import Settings


def build_defs(settings: Settings, domains: Iterable[Domain]) -> dg.Definitions:
    """The sensors, which are on by default."""
    names = [domain.name for domain in domains]

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
        hung = end_left_processes(context.instance, settings.run_timeout_s)
        lost = fail_lost_runs(context.instance)
        told = [f"{run_id}: {why}" for run_id, why in hung.items()]
        told += [f"failed {run_id}: {why}" for run_id, why in lost.items()]
        return dg.SkipReason("; ".join(told) or "every run in progress has its process")

    @dg.sensor(
        name="alerts_sensor",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Looks for what failed, is late or is given up, and tells the addresses of"
            " RETAIL_NOTIFY, or the log; and again when it is well. It asks for no run."
        ),
    )
    def alerts_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return dg.SkipReason(look_and_tell(settings, context.instance, names, context))

    return dg.Definitions(sensors=[lost_runs_sensor, alerts_sensor])


def look_and_tell(
    settings: Settings,
    instance: dg.DagsterInstance,
    domains: Iterable[str],
    context: dg.SensorEvaluationContext | None = None,
) -> str:
    """Look for faults, keep what was found in the outbox, send what waits; returns that in words.

    A fault is kept before it is sent: who is killed in between has lost none.
    """
    with open_outbox(settings) as outbox:
        receivers = find_receivers(settings)
        try:
            found = Conditions(settings, instance).find(context.repository_def if context else None)
            with outbox.transaction():
                for scope, alerts in found.items():
                    outbox.reconcile(scope, alerts)
            runs = RunWatch(settings, instance, outbox, domains)
            runs.look()
            with outbox.transaction():
                runs.keep()
        finally:
            # Among it, that the last tick of this sensor failed, where it did.
            send_waiting(outbox, receivers)
        standings, told = outbox.standings(), [f"{len(outbox.faults()):,} at fault"]
        for standing in (standings[receiver.name] for receiver in receivers):
            if waiting := len(outbox.messages(standing.done)):
                why = f" ({standing.error})" if standing.error else ""
                told.append(f"{waiting:,} wait for {standing.name}{why}")
    return ", ".join(told)
