"""Our dagster.yaml: what it says for the settings, and how an instance's own differs from it.

Here: the file's content, the pools that it limits, what an existing one lacks, writing that into
it. Not here: the instance (instance.py), what Dagster makes of the file.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from retail_assets.database_url import redacted
from retail_assets.errors import PermanentError
from retail_assets.settings import Settings, variable_name

EMBEDDED = "embedded"
_LATER_S = 300
# Dagster's, in the embedded PostgreSQL.
DATABASE = "dagster"
_HEADING = """\
# Made by retail-assets, which compares it with its settings: retail-assets doctor.
# Reference: Dagster's "dagster.yaml".
"""


class UnreadableConfigError(PermanentError):
    """An instance's dagster.yaml cannot be read; nothing was changed."""


def our_config(settings: Settings) -> dict[str, Any]:
    """What our dagster.yaml says."""
    return {
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
        # By run: what waits for a pool is queued, and not a process that holds memory. A limit of
        # one pool is set in the UI.
        "concurrency": {
            "runs": {"max_concurrent_runs": settings.most_runs},
            "pools": {"granularity": "run", "default_limit": 1},
        },
        # Of a run that does not start (in 180 s), or not end when it was told to (180 s). One that
        # hangs is ended before, without the signal by which Dagster does it: a process that is
        # stopped does not hear that, and the code server waits for it to hear.
        "run_monitoring": {
            "enabled": True,
            "poll_interval_seconds": 30,
            "max_runtime_seconds": settings.run_timeout_s + _LATER_S,
        },
        # Of those whose process died. What a step fails of, its error says whether to try again.
        "run_retries": {
            "enabled": True,
            "max_retries": 2,
            "retry_on_asset_or_op_failure": False,
        },
        # In days. A sensor's tick is a row, and most ask for nothing.
        "retention": {
            "sensor": {
                "purge_after_days": {"skipped": 2, "success": 30, "failure": 30, "started": 30}
            },
            "schedule": {"purge_after_days": 90},
        },
        **_storage(settings),
    }


def _storage(settings: Settings) -> dict[str, Any]:
    """Where Dagster keeps its state; a password stays in the environment."""
    said = settings.dagster_storage.get_secret_value()
    if not said:
        return {}
    url: Any = {"env": variable_name("dagster_storage")}
    if said == EMBEDDED:
        folder = quote(str(settings.home / "postgres/run"))
        url = f"postgresql+psycopg2://postgres@/{DATABASE}?host={folder}"
    return {"storage": {"postgres": {"postgres_url": url}}}


def warehouse_pool(settings: Settings) -> str | None:
    """Dagster's pool of what writes to the warehouse; None where many may at once."""
    return "warehouse" if settings.bigquery is None else None


def spark_pool(settings: Settings) -> str | None:
    """Dagster's pool of Spark on this machine; None where it is a cluster's."""
    return "spark" if settings.spark.startswith(("embedded", "local")) else None


def make_config(settings: Settings) -> None:
    """Write dagster.yaml where there is none; one that is there is left as it is."""
    config = _path(settings)
    if not config.exists():
        _write(config, our_config(settings))


def differences(settings: Settings) -> list[str]:
    """Where the instance's dagster.yaml is not as ours, a line a key; others are its owner's.

    Raises:
        UnreadableConfigError: it is no YAML.
    """
    return list(_differences(our_config(settings), _read(_path(settings))))


def mend_config(settings: Settings) -> Path | None:
    """Write what differs into dagster.yaml; the copy of what it was, None where nothing differs."""
    config = _path(settings)
    found = _read(config)
    if not differences(settings):
        return None
    copy = config.with_name(f"dagster.yaml.{datetime.now(UTC):%Y%m%dT%H%M%S}")
    shutil.copy2(config, copy)
    _write(config, _merged(our_config(settings), found))
    return copy


def _path(settings: Settings) -> Path:
    return settings.instance_dir / "dagster.yaml"


def _read(config: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(config.read_text()) if config.exists() else None
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise UnreadableConfigError(
            f"{config} is no YAML: {told}. Mend it, or delete it; it is then made anew."
        ) from None
    return found if isinstance(found, dict) else {}


def _write(config: Path, content: Mapping[str, Any]) -> None:
    import yaml

    # As a whole or not: half of it would be kept, and obeyed.
    partial = config.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(_HEADING + yaml.safe_dump(dict(content), sort_keys=False))
    partial.replace(config)


def _differences(ours: Mapping[str, Any], found: Any, path: str = "") -> Iterator[str]:
    for key, value in ours.items():
        other = found.get(key) if isinstance(found, dict) else None
        if isinstance(value, dict):
            yield from _differences(value, other, f"{path}{key}.")
        elif other != value:
            shown = "nothing" if other is None else redacted(str(other))
            yield f"{path}{key}: {value} (found: {shown})"


def _merged(ours: Mapping[str, Any], found: Any) -> dict[str, Any]:
    merged = dict(found) if isinstance(found, dict) else {}
    for key, value in ours.items():
        # Dagster takes one storage: another beside ours would be an error.
        is_part = isinstance(value, dict) and key != "storage"
        merged[key] = _merged(value, merged.get(key)) if is_part else value
    return merged
