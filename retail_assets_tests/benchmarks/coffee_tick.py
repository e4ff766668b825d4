"""What one tick of the drops' sensor costs over a lake of many drops of which none is new.

A lake of small sales drops is made, one a day from 1700 on, with the ledgers and the warehouse's
records that processing them would have left, through the product's own functions. Then Dagster
evaluates the sensor, some times over, and one drop is committed, some times over. Not here: any
run.

    python -m retail_assets_tests.benchmarks.coffee_tick FILES

The last line it prints is a JSON object, see ``Told``.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg

    from retail_assets.resources.lake import LakeResource
    from retail_assets.settings import Settings

FIRST_DAY = date(1700, 1, 1)
SENSOR = "coffee_chain_drops_sensor"
_WARM_UPS, _TICKS, _COMMITS = 1, 7, 5


@dataclass(frozen=True)
class Told:
    """What is printed: files and dates of the lake, seconds of each tick and of each commit.

    ``ticks_cpu_s`` are the seconds that the cores worked, which other processes change little.

    ``first_tick_s`` is of the process's first tick, ``new_drop_s`` of one that finds a new drop
    and asks for ``new_drop_requests`` runs. ``commits_s`` are of one drop's partition, replaced;
    ``log_bytes`` are of the table's log before them.
    """

    files: int
    last_day: str
    log_bytes: int
    first_tick_s: float
    ticks_s: list[float]
    ticks_cpu_s: list[float]
    cursor_bytes: int
    new_drop_s: float
    new_drop_requests: int
    commits_s: list[float]


def write_drops(lake: Path, files: int) -> list[str]:
    """Write ``files`` drops of one sales line each; returns their dates."""
    from retail_assets.defs.coffee_chain.contract import RAW_SALES

    header = ",".join(RAW_SALES.header) + "\n"
    (lake / RAW_SALES.prefix).parent.mkdir(parents=True, exist_ok=True)
    keys = [(FIRST_DAY + timedelta(days=day)).isoformat() for day in range(files)]
    for key in keys:
        line = f"0,INV-1,{key} 10:00:00,c-{key},MY001,PD001,1\n"
        (lake / RAW_SALES.name(key)).write_text(header + line)
    return keys


def remember(settings: "Settings", lake: "LakeResource") -> None:
    """Leave what processing, loading and building all raw files of the lake would leave."""
    from retail_assets.defs.coffee_chain.feed import FEED
    from retail_assets.domain import MARTS_STAGE
    from retail_assets.feeds.files.listing import Look, fingerprint_of, hash_file
    from retail_assets.resources.lake.ledger import Ledger
    from retail_assets.resources.lake.staging import partition_folder
    from retail_assets.resources.lake.tables import NewFile
    from retail_assets.resources.warehouse import open_warehouse

    warehouse = open_warehouse(settings)
    look = Look(lake, FEED.tables)
    for table in FEED.tables:
        dataset, files = table.dataset, []
        for number, (key, entry) in enumerate(look.files[dataset.name].items()):
            fingerprint = fingerprint_of(hash_file(lake.local_file(entry.name)), table.version)
            ledger = Ledger(fingerprint, 1, stamp=entry.version, size=entry.size)
            name = f"{partition_folder(dataset, key)}/{ledger.file_name(f'remember-{number}')}"
            files.append(NewFile(name.lstrip("/"), key, 1, 1000))
        lake.table(dataset).commit(files)  # which nobody reads: they need not be there
    for dataset in FEED.datasets:
        versions = FEED.lake_versions(lake, dataset)
        warehouse.replace_partitions(dataset, [], versions)
        warehouse.record_versions(dataset, MARTS_STAGE, versions)


def tick(
    settings: "Settings",
    definitions: "dg.Definitions",
    instance: "dg.DagsterInstance",
    cursor: str | None,
) -> tuple[float, float, str | None, int, str]:
    """Evaluate the sensor: seconds, those of CPU, its new cursor, runs asked for, or why none."""
    import dagster as dg

    from retail_assets.definitions import build_resources

    repository = definitions.get_repository_def()
    sensor = repository.get_sensor_def(SENSOR)
    resources = {name: build_resources(settings)[name] for name in sensor.required_resource_keys}
    started, worked = time.perf_counter(), time.process_time()
    context = dg.build_sensor_context(
        instance=instance,
        repository_def=repository,
        sensor_name=SENSOR,
        cursor=cursor,
        resources=resources,
    )
    with context:
        result = sensor.evaluate_tick(context)
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    return seconds, cpu, result.cursor, len(result.run_requests or []), result.skip_message or ""


def commit_again(lake: "LakeResource", key: str) -> float:
    """Replace the partition of a drop, which has the same ledger: the seconds of its commit."""
    from retail_assets.defs.coffee_chain.contract import SALES

    ledger = lake.table(SALES).snapshot().ledgers[key]
    with lake.staging("again") as stage:
        started = time.perf_counter()
        stage.publish(SALES, [key], {key: ledger})
        return time.perf_counter() - started


def measure(files: int) -> Told:
    """Make the lake, then look at it; the settings are the environment's.

    Raises:
        AssertionError: a tick asked for work although nothing is new, or for none when it is.
    """
    from retail_assets.definitions import build_defs
    from retail_assets.defs.coffee_chain.contract import (
        RAW_OUTLET,
        RAW_PRODUCT,
        RAW_SALES,
        SALES,
    )
    from retail_assets.defs.coffee_chain.feed import FEED
    from retail_assets.instance import open_instance
    from retail_assets.resources.lake import open_lake
    from retail_assets.settings import load_settings

    settings = load_settings()
    root, lake = Path(settings.lake), open_lake(settings)
    keys = write_drops(root, files)
    for raw in (RAW_OUTLET, RAW_PRODUCT):
        (root / raw.path).parent.mkdir(parents=True)
        (root / raw.path).write_text(",".join(raw.header) + "\n")
    remember(settings, lake)
    definitions = build_defs(settings, domains=[FEED])
    with open_instance(settings) as instance:
        instance.add_dynamic_partitions(FEED.partitions, keys)
        cursor: str | None = None
        seconds, cpu = [], []
        for _ in range(_WARM_UPS + _TICKS):
            took, worked, cursor, requests, why = tick(settings, definitions, instance, cursor)
            assert not requests and why == "nothing has changed", (requests, why)
            seconds.append(took)
            cpu.append(worked)
        after = date.fromisoformat(keys[-1]) + timedelta(days=1)
        new = root / RAW_SALES.name(after.isoformat())
        new.write_text((root / RAW_SALES.name(keys[-1])).read_text())
        new_s, _, cursor, requests, why = tick(settings, definitions, instance, cursor)
        assert requests, why
    log = sum(entry.size for entry in lake.list_objects(f"{SALES.location}/_delta_log/"))
    commits = [commit_again(lake, keys[place]) for place in range(_COMMITS)]
    return Told(
        files=files,
        last_day=keys[-1],
        log_bytes=log,
        first_tick_s=seconds[0],
        ticks_s=seconds[_WARM_UPS:],
        ticks_cpu_s=cpu[_WARM_UPS:],
        cursor_bytes=len((cursor or "").encode()),
        new_drop_s=new_s,
        new_drop_requests=requests,
        commits_s=commits,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1])))))
