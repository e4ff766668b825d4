"""What is at fault for as long as it is so: each look finds all of it.

Here: ticks that fail, assets that are late, daemons that are dead, disks that are almost full. Not
here: what happened once (runs.py).
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from retail_assets.instance import LONGEST_SILENCE_S
from retail_assets.resources.notify import Alert, Kind
from retail_assets.resources.notify.alert import Words, named, shown_time
from retail_assets.settings import Settings

_LATEST_TICKS = 3


class Conditions:
    """One look at an instance and the disks."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self._settings = settings
        self._instance = instance
        self._words = Words(settings)

    def find(self, repository: dg.RepositoryDefinition | None) -> dict[str, list[Alert]]:
        """What is at fault now, by the beginning of its identity."""
        found = {"daemon:": self.daemons(), "disk:": list(self._disks())}
        if repository is not None:
            found |= {"tick:": list(self._ticks(repository)), "late:": self._late(repository)}
        return found

    def _ticks(self, repository: dg.RepositoryDefinition) -> Iterator[Alert]:
        """Sensors and schedules that are on, of which the last tick failed."""
        ours = {x.name for x in repository.sensor_defs}
        ours |= {x.name for x in repository.schedule_defs}
        for state in self._instance.all_instigator_state():
            if not state.is_running or state.instigator_name not in ours:
                continue
            ticks = self._instance.get_ticks(
                state.instigator_origin_id, state.selector_id, limit=_LATEST_TICKS
            )
            tick = next((x for x in ticks if x.status.value != "STARTED"), None)
            if tick is None or tick.status.value != "FAILURE":
                continue
            kind, at = state.instigator_type.value.lower(), state.repository_selector
            place = f"locations/{at.repository_name}@{at.location_name}"
            yield Alert(
                kind=Kind.TICK_FAILED,
                fault=f"tick:{state.instigator_name}",
                subject=f"{kind} {state.instigator_name}",
                cause=self._words.error(tick.error),
                occurrence=str(tick.tick_id),
                link=f"{self._settings.ui_url}/{place}/{kind}s/{state.instigator_name}",
            )

    def _late(self, repository: dg.RepositoryDefinition) -> list[Alert]:
        """Assets that their freshness policy calls failed: one alert a group, for one cause."""
        groups = {
            key: definition.specs_by_key[key].group_name
            for key, definition in repository.assets_defs_by_key.items()
            if definition.specs_by_key[key].freshness_policy is not None
        }
        states = self._instance.get_freshness_state_records(list(groups)) if groups else {}
        late: dict[str | None, list[dg.AssetKey]] = {}
        for key, state in sorted(states.items(), key=lambda x: x[0].to_user_string()):
            if state.freshness_state.value == "FAIL":
                late.setdefault(groups[key], []).append(key)
        return [
            Alert(
                kind=Kind.LATE,
                fault=f"late:{group}",
                subject=named(key.to_user_string() for key in keys),
                cause=f"{keys[0].to_user_string()} was {self._last_made(keys[0])};"
                " its freshness policy expects it more often",
                link=f"{self._settings.ui_url}/assets/{'/'.join(keys[0].path)}",
            )
            for group, keys in late.items()
        ]

    def _last_made(self, key: dg.AssetKey) -> str:
        event = self._instance.get_latest_materialization_event(key)
        return f"last materialized {shown_time(event.timestamp)}" if event else "never materialized"

    def daemons(self) -> list[Alert]:
        """Daemons that have had a heartbeat, and have none any more."""
        now, dead = time.time(), []
        for name, status in self._instance.get_daemon_statuses().items():
            heartbeat = status.last_heartbeat
            if heartbeat is None or now - heartbeat.timestamp < LONGEST_SILENCE_S:
                continue
            dead.append(
                Alert(
                    kind=Kind.NOT_RUNNING,
                    fault=f"daemon:{name}",
                    subject=f"daemon {name}",
                    cause=f"its last heartbeat was {shown_time(heartbeat.timestamp)}",
                    link=f"{self._settings.ui_url}/deployment/health",
                )
            )
        return dead

    def _disks(self) -> Iterator[Alert]:
        """Disks of ours with less free space than the settings ask for, each once."""
        settings, seen = self._settings, set()
        places = [settings.home, settings.instance_dir]
        places += [Path(settings.lake)] if not settings.lake.startswith("gs://") else []
        places += [settings.warehouse_path.parent] if settings.bigquery is None else []
        for place in places:
            folder = next(x for x in (place, *place.parents) if x.exists())
            device = os.stat(folder).st_dev
            free = shutil.disk_usage(folder).free
            if device in seen or free >= settings.least_free_bytes:
                continue
            seen.add(device)
            yield Alert(
                kind=Kind.DISK_LOW,
                fault=f"disk:{folder}",
                subject=str(folder),
                cause=f"{free / 1024**3:.1f} GiB free, expected"
                f" {settings.least_free_bytes / 1024**3:.1f} at least (RETAIL_LEAST_FREE_BYTES)",
            )
