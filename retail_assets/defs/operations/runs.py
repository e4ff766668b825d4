"""What became of runs, of the checks in them, and of what sensors asked for.

Here: which of it a person is told, and by what it is well again. Not here: what is at fault for as
long as it is so (conditions.py), whether a request is made again (feeds/requests.py).

Events are read once each, in the order of Dagster's log; how far, is kept with what they told. A
failed run is held back while another one takes its place.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import dagster as dg

from retail_assets.domain import range_of
from retail_assets.feeds.requests import REQUEST_TAG, given_up
from retail_assets.resources.notify import Alert, Kind, Outbox
from retail_assets.resources.notify.alert import Words, named
from retail_assets.settings import Settings

# As Dagster tags a failed run: that it will be executed again, and the run that did so.
_WILL_RETRY_TAG, _RETRIED_TAG = "dagster/will_retry", "dagster/auto_retry_run_id"
_EVENT = dg.DagsterEventType
_Ended: TypeAlias = Literal[
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.RUN_CANCELED,
]
_OF_NO_RUN = ""
_BLOCKED = "DagsterAssetCheckFailedError"
_MOST_RUNS = 200
# Retries and sensors have begun another run by then, or will not.
_PATIENCE_S = 900.0
_INSTANCE_KEY = "retail_assets/instance"
_HELD, _OF = "held", "instance"


class RunWatch:
    """One look: ``look`` reads, and ``keep`` writes what it found in the outbox's transaction."""

    def __init__(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        outbox: Outbox,
        domains: Iterable[str],
    ) -> None:
        self._ui_url = settings.ui_url
        self._instance = instance
        self._outbox = outbox
        self._words = Words(settings)
        self._before = outbox.cursors()
        self._id = _identity(instance)
        # Of another instance, whose events have other numbers, nothing was seen yet.
        is_known = self._before.get(_OF, self._id) == self._id
        self._cursors = {**(self._before if is_known else {}), _OF: self._id}
        self._held: dict[str, int] = json.loads(self._cursors.get(_HELD, "{}"))
        self._checks = {x: f.alert.partitions for x, f in outbox.faults("check:").items()}
        self._given_up = {name: given_up(instance, name) for name in domains}
        self._requests = outbox.faults("request:")
        self._changes: list[Callable[[], None]] = []

    def look(self) -> None:
        """Read what happened since the last look."""
        for record in self._ended_runs():
            self._look_at_checks(record.run_id)
            if record.event_log_entry.get_dagster_event().event_type is _EVENT.RUN_FAILURE:
                self._held[record.run_id] = record.storage_id
        self._look_at_checks_of_no_run()
        for run_id, storage_id in list(self._held.items()):
            if self._is_decided(run_id, storage_id):
                del self._held[run_id]
        for fault, found in self._outbox.faults("run:").items():
            if self._is_made_again(found.alert.memo):
                self._changes.append(partial(self._outbox.well, fault, "a later run made it"))
        for domain, stages in self._given_up.items():
            for stage, told in stages.items():
                scope = f"request:{domain}:{stage}:"
                alerts = [self._request_alert(scope, *pair) for pair in told.items()]
                self._changes.append(partial(self._outbox.reconcile, scope, alerts))

    def keep(self) -> None:
        """Write what was found, and how far the look came; unless another look was quicker."""
        if self._outbox.cursors() != self._before:
            return
        for change in self._changes:
            change()
        self._outbox.move(self._cursors | {_HELD: json.dumps(self._held)})

    def _ended_runs(self) -> list[dg.EventLogRecord]:
        """The events of runs that ended; at the very first look none, for these are history."""
        ended: list[dg.EventLogRecord] = []
        kind: _Ended
        for kind in get_args(_Ended):
            if (known := self._cursors.get(kind.value)) is None:
                latest = self._instance.fetch_run_status_changes(kind, limit=1).records
                self._cursors[kind.value] = str(latest[0].storage_id if latest else 0)
                continue
            asked = dg.RunStatusChangeRecordsFilter(kind, after_storage_id=int(known))
            found = self._instance.fetch_run_status_changes(asked, _MOST_RUNS, ascending=True)
            ended += found.records
            for record in found.records[-1:]:
                self._cursors[kind.value] = str(record.storage_id)
        return sorted(ended, key=lambda record: record.storage_id)

    # ---- checks

    def _look_at_checks(self, run_id: str) -> None:
        logs = self._instance.all_logs(run_id, of_type=_EVENT.ASSET_CHECK_EVALUATION)
        run = self._instance.get_run_by_id(run_id) if logs else None
        # A step that was tried again evaluates again: the last counts.
        last = {(x.asset_check_key, x.partition): x for x in map(_evaluation, logs)}
        for evaluation in last.values():
            link = f"{self._ui_url}/runs/{run_id}"
            self._judge(evaluation, run_id, evaluation.partition or _partitions(run), link)

    def _look_at_checks_of_no_run(self) -> None:
        """Those that a sensor reported, or somebody through Dagster's API."""
        kind = _EVENT.ASSET_CHECK_EVALUATION
        records = partial(self._instance.get_records_for_run, _OF_NO_RUN, of_type=kind)
        if (cursor := self._cursors.get(kind.value)) is None:
            self._cursors[kind.value] = records(limit=1, ascending=False).cursor
            return
        found = records(cursor=cursor, limit=_MOST_RUNS)
        for record in found.records:
            evaluation = _evaluation(record.event_log_entry)
            link = f"{self._ui_url}/assets/{'/'.join(evaluation.asset_key.path)}?view=checks"
            self._judge(evaluation, str(record.storage_id), evaluation.partition or "", link)
        self._cursors[kind.value] = found.cursor

    def _judge(
        self, evaluation: dg.AssetCheckEvaluation, of: str, partitions: str, link: str
    ) -> None:
        subject = f"{evaluation.asset_key.to_user_string()}: {evaluation.check_name}"
        scope = f"check:{subject}:"
        if evaluation.passed:
            for fault, told in list(self._checks.items()):
                if fault.startswith(scope) and _overlap(told, partitions):
                    how = f"the check passed ({link})"
                    self._changes.append(partial(self._outbox.well, fault, how))
                    del self._checks[fault]
            return
        is_error = evaluation.severity is dg.AssetCheckSeverity.ERROR
        alert = Alert(
            kind=Kind.CHECK_FAILED if is_error else Kind.CHECK_WARNS,
            fault=f"{scope}{partitions}",
            subject=subject,
            cause=self._words.clean(evaluation.description or "it did not pass"),
            occurrence=of,
            partitions=partitions,
            link=link,
        )
        self._checks[alert.fault] = partitions
        self._changes.append(partial(self._outbox.tell, alert))

    # ---- runs

    def _is_decided(self, run_id: str, storage_id: int) -> bool:
        """Whether a failed run was told of, or needs not be; else it is looked at again."""
        record = next(iter(self._instance.get_run_records(dg.RunsFilter([run_id]), limit=1)), None)
        if record is None or _RETRIED_TAG in record.dagster_run.tags:
            return True
        run = record.dagster_run
        # In both directions: a clock that was set back keeps nobody waiting.
        is_old = abs(time.time() - (record.end_time or 0)) > _PATIENCE_S
        will_retry = run.tags.get(_WILL_RETRY_TAG, str(self._instance.run_retries_enabled).lower())
        waits = will_retry == "true"
        if identity := run.tags.get(REQUEST_TAG):
            latest = self._instance.get_runs(dg.RunsFilter(tags={REQUEST_TAG: identity}), limit=1)
            stages = [stage for of in self._given_up.values() for stage in of.values()]
            if latest[0].run_id != run_id or any(identity in stage for stage in stages):
                return True
            waits = True
        if waits and not is_old:
            return False
        alert = self._run_alert(run, storage_id)
        # After a check that blocks, the check was told.
        if not (alert.memo["blocked"] or self._is_made_again(alert.memo)):
            self._changes.append(partial(self._outbox.tell, alert))
        return True

    def _request_alert(self, scope: str, identity: str, told: str) -> Alert:
        runs = self._instance.get_runs(dg.RunsFilter(tags={REQUEST_TAG: identity}), limit=1)
        why = self._words.clean(told.removeprefix(identity))
        kind, fault = Kind.REQUEST_GIVEN_UP, scope + identity
        if not runs or runs[0].is_success:
            return Alert(kind=kind, fault=fault, subject=identity, cause=f"it {why}")
        known = self._requests.get(fault)
        if known and known.alert.occurrence == runs[0].run_id:
            return known.alert  # a run's log is long
        return replace(self._run_alert(runs[0]), kind=kind, fault=fault, advice=f"It {why}.")

    def _run_alert(self, run: dg.DagsterRun, storage_id: int = 0) -> Alert:
        """What a failed run tells."""
        planned: dict[dg.AssetKey, str | None] = {}
        made: set[dg.AssetKey | None] = set()
        failed: dict[str | None, dg.DagsterEvent] = {}
        cause = "no error was recorded"
        kinds = {
            _EVENT.ASSET_MATERIALIZATION_PLANNED,
            _EVENT.ASSET_MATERIALIZATION,
            _EVENT.STEP_FAILURE,
            _EVENT.RUN_FAILURE,
        }
        for entry in self._instance.all_logs(run.run_id, of_type=kinds):
            event = entry.get_dagster_event()
            if event.is_asset_materialization_planned and event.asset_key is not None:
                planned[event.asset_key] = event.step_key
            elif event.is_step_materialization:
                made.add(event.asset_key)
            elif event.is_step_failure:
                failed[event.step_key] = event
            elif event.is_run_failure:
                error = event.job_failure_data.error if event.event_specific_data else None
                cause = self._words.error(error, None if error else event.message)
        data = [event.step_failure_data for event in failed.values()]
        if data:
            said = data[0].user_failure_data
            cause = self._words.error(data[0].error, said.description if said else None)
        keys = [
            key for key, step in planned.items() if (step in failed if failed else key not in made)
        ] or list(planned)
        names = [key.to_user_string() for key in keys]
        partitions = _partitions(run)
        return Alert(
            kind=Kind.RUN_FAILED,
            fault=f"run:{run.job_name}:{','.join(names)}:{partitions}",
            subject=named(names) or f"job {run.job_name}",
            cause=cause,
            occurrence=run.run_id,
            partitions=partitions,
            link=f"{self._ui_url}/runs/{run.run_id}",
            memo={
                "instance": self._id,
                "after": storage_id,
                "job": run.job_name,
                "assets": names,
                "partitions": partitions,
                "blocked": bool(data)
                and all(x.error and x.error.cls_name == _BLOCKED for x in data),
            },
        )

    def _is_made_again(self, memo: Mapping[str, Any]) -> bool:
        """Whether each asset of a failed run was materialized since, or its job succeeded."""
        after = memo["after"] if memo.get("instance", self._id) == self._id else 0
        partitions = memo["partitions"]
        if not memo["assets"]:
            asked = dg.RunStatusChangeRecordsFilter(
                _EVENT.RUN_SUCCESS, after_storage_id=after, job_names=[memo["job"]]
            )
            return bool(self._instance.fetch_run_status_changes(asked, limit=1).records)
        of: list[dict[str, Any]] = [{}]
        if partitions and "..." not in partitions:
            # A later range may have made it, and very many others after it.
            of.append({"asset_partitions": [partitions]})
        return all(
            any(
                _overlap(partitions, record.partition_key or "")
                for only in of
                for record in self._instance.fetch_materializations(
                    dg.AssetRecordsFilter(
                        dg.AssetKey.from_user_string(name), after_storage_id=after, **only
                    ),
                    limit=_MOST_RUNS,
                ).records
            )
            for name in memo["assets"]
        )


def _identity(instance: dg.DagsterInstance) -> str:
    """What tells an instance from one that is made anew in its place; kept in it."""
    storage = instance.daemon_cursor_storage
    known = storage.get_cursor_values({_INSTANCE_KEY}).get(_INSTANCE_KEY)
    if known is None:
        known = uuid.uuid4().hex
        storage.set_cursor_values({_INSTANCE_KEY: known})
    return known


def _evaluation(entry: dg.EventLogEntry) -> dg.AssetCheckEvaluation:
    return entry.get_dagster_event().asset_check_evaluation_data


def _partitions(run: dg.DagsterRun | None) -> str:
    """The partition of a run, or its range A...B; empty where it has none."""
    first, last = range_of(run.tags if run is not None else {})
    return first if first == last else f"{first}...{last}"


def _overlap(one: str, other: str) -> bool:
    """Whether two keys or ranges have a key in common, by the alphabet; none is all."""
    (a, dots_a, z), (b, dots_b, y) = one.partition("..."), other.partition("...")
    return not one or not other or (a <= (y if dots_b else b) and b <= (z if dots_a else a))
