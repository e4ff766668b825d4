"""Where the rows of a table come from: mart, landed partition, version of the lake, run, file.

Here: following what the warehouse and the lake's log record. Not here: writing any of it (feeds/,
resources/), printing (tables.py).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from retail_assets.dataset import Dataset
from retail_assets.defs.registry import domains
from retail_assets.domain import MARTS_STAGE, Domain
from retail_assets.errors import PermanentError
from retail_assets.resources.lake import LakeResource, open_lake
from retail_assets.resources.lake.log import read_actions
from retail_assets.resources.lake.tables import Commit, Snapshot
from retail_assets.resources.warehouse import WarehouseResource, open_warehouse
from retail_assets.settings import Settings

# How keys of rows look, digests and numbers; nothing else goes into a query.
_ID = re.compile(r"[\w.:+-]{1,100}")
_RUN_DIGITS = 8
_AS_TOLD = {"run": "run_id", "asset": "asset", "code_version": "code_version"}


class NotTracedError(PermanentError):
    """There is no such table, partition or row; the message says what there is."""


@dataclass(frozen=True)
class Trace:
    """What a partition of a landed table is made of, and whether the marts are of it.

    ``is_landed`` and ``is_built`` say whether the warehouse's rows, and the marts, are of what the
    lake has now. ``version`` and what follows are of the commit that wrote it; None or empty where
    the log no longer has that commit. ``files`` are the source's, with their SHA-256.
    """

    table: str
    partition: str
    is_landed: bool
    is_built: bool
    read: int
    written: int
    duplicates: int
    quarantined: int
    version: int | None = None
    time: datetime | None = None
    run: str = ""
    asset: str = ""
    code_version: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


def trace(settings: Settings, table: str, partition: str | None, row: str | None) -> list[Trace]:
    """Each partition behind a table of the warehouse, or one, or that of a row by its key.

    ``table`` is a landed table, or one of the marts: then it is all landed tables behind it.

    Raises:
        NotTracedError: there is no such table, partition or row.
        WarehouseBusyError: another process kept the warehouse for too long.
    """
    domain, datasets = _behind(settings, table)
    lake, warehouse = open_lake(settings), open_warehouse(settings)
    found: list[Trace] = []
    with warehouse.kept_open():
        for dataset in datasets:
            landed, built = (
                warehouse.loaded_versions(dataset, stage) for stage in ("landed", MARTS_STAGE)
            )
            snapshot = lake.table(dataset).snapshot()
            keys = set(snapshot.ledgers)
            if row is not None:
                keys &= _partitions_of(warehouse, dataset, row) if landed else set()
            if partition is not None:
                keys &= {partition}
            versions = domain.lake_versions(lake, dataset, snapshot)
            commits = _commits(lake, dataset, snapshot) if keys else {}
            for key in sorted(keys):
                ledger, commit = snapshot.ledgers[key], commits.get(key)
                version = versions.get(key)
                of_commit = {} if commit is None else _told(commit, key)
                found.append(
                    Trace(
                        table=dataset.table,
                        partition=key,
                        is_landed=landed.get(key) == version,
                        is_built=built.get(key) == version,
                        read=ledger.read,
                        written=ledger.written,
                        duplicates=ledger.duplicates,
                        quarantined=ledger.quarantined,
                        **of_commit,
                    )
                )
    if not found:
        named = ", ".join(dataset.table for dataset in datasets)
        what = f"row {row!r}" if row is not None else f"partition {partition or 'any'!r}"
        raise NotTracedError(
            f"the lake knows nothing of {what} of {named}. A table without partitions takes no"
            " --partition; --row is the value of a landed table's key."
        )
    return found


def to_json(table: str, traces: Sequence[Trace]) -> str:
    """One JSON document of what ``trace`` found."""
    found = [
        asdict(x) | {"time": f"{x.time:%Y-%m-%dT%H:%M:%SZ}" if x.time else None} for x in traces
    ]
    return json.dumps({"table": table, "made_of": found}, indent=2, ensure_ascii=False)


def _behind(settings: Settings, table: str) -> tuple[Domain, list[Dataset]]:
    """The landed tables that a table is, or stands on."""
    known = [x.table for domain in domains() for x in domain.datasets]
    for domain in domains():
        if named := [dataset for dataset in domain.datasets if dataset.table == table]:
            return domain, named
    from retail_assets.defs.marts.dbt import landed_behind
    from retail_assets.resources.dbt.project import prepare_project

    manifest = json.loads(prepare_project(settings).read_bytes())
    models = {
        f"{node['schema']}.{node['alias']}": (name, node["fqn"][1])
        for name, node in manifest["nodes"].items()
        if node["resource_type"] == "model"
    }
    if table not in models:
        raise NotTracedError(
            f"{table!r} is no table of the warehouse; one of: {', '.join([*known, *models])}"
        )
    name, owner = models[table]
    (domain,) = (x for x in domains() if x.name == owner)
    behind = landed_behind(manifest, domain, name)
    return domain, [dataset for dataset in domain.datasets if dataset in behind]


def _partitions_of(warehouse: WarehouseResource, dataset: Dataset, row: str) -> set[str]:
    """The partitions of a landed table that have a row of that key."""
    keys = [column.name for column in dataset.columns if column.key]
    if len(keys) != 1 or not _ID.fullmatch(row):
        return set()
    by = f"cast({dataset.partition_by} as string)" if dataset.partition_by else "''"
    found = warehouse.query(
        f"select distinct {by} from {warehouse.name_of(dataset)}"
        f" where cast({keys[0]} as string) = '{row}'"
    )
    return {str(key) for (key,) in found}


def _commits(lake: LakeResource, dataset: Dataset, snapshot: Snapshot) -> dict[str, Commit]:
    """The commit that wrote each partition, of those that the log still has.

    The name of a file begins its token with that of its run; where a run committed to the table
    more than once, the log says which of its commits added the file.
    """
    told: dict[str, list[Commit]] = {}
    history = {commit.version: commit for commit in lake.table(dataset).history()}
    for commit in history.values():
        told.setdefault(commit.told.get("run_id", "")[:_RUN_DIGITS], []).append(commit)
    by_name, unsure = dict[str, Commit](), set[int]()
    for key, name in snapshot.names.items():
        of_run = told.get(name.rpartition("/")[2].split(".")[-2].partition("-")[0], [])
        if len(of_run) == 1:
            by_name[key] = of_run[0]
        unsure |= {commit.version for commit in of_run if len(of_run) > 1}
    for version, added in read_actions(lake, dataset.location, sorted(unsure), "add"):
        names = {f"{dataset.location}/{unquote(action['path'])}" for action in added}
        by_name |= {key: history[version] for key, x in snapshot.names.items() if x in names}
    return by_name


def _told(commit: Commit, key: str) -> dict[str, Any]:
    return {
        "version": commit.version,
        "time": commit.time,
        **{name: commit.told.get(as_told, "") for name, as_told in _AS_TOLD.items()},
        "files": _files(commit, key),
    }


def _files(commit: Commit, key: str) -> Mapping[str, str]:
    """The source's files and their SHA-256: of several, those of the partition's date."""
    try:
        files = json.loads(commit.told.get("source", ""))
    except ValueError:
        return {commit.told["source"]: ""} if "source" in commit.told else {}
    named = {name: digest for name, digest in files.items() if key and key in name}
    return named or files
