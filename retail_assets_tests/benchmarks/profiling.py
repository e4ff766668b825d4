"""The product under cProfile: where one run's time goes, by package and by function.

Here: running it and reading the profile. Not here: figures to be held against a limit, for the
profiler slows Python down and not what C does.
"""

import pstats
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retail_assets.settings import PROJECT_ROOT

_TOP = 25
# A function that leaves nearly all of its time to one other tells nothing by itself.
_PASSES_ON = 0.95
_GROUPS = (
    ("retail_assets", ("retail_assets/",)),
    ("dagster-dbt", ("dagster_dbt/",)),
    ("dbt, in process", ("dbt/", "dbt_common/", "dbt_semantic_interfaces/", "mashumaro/")),
    ("dagster", ("dagster/", "dagster_shared/", "dagster_pipes/")),
    ("SQLAlchemy", ("sqlalchemy/", "alembic/")),
    ("imports", ("<frozen importlib", "marshal")),
)

Function = tuple[str, int, str]


@dataclass(frozen=True)
class Line:
    """One function of the profile; seconds inclusive and exclusive of what it called."""

    group: str
    name: str
    calls: int
    cumulative_s: float
    own_s: float


def profile_command(target: Path, domain: str) -> list[str]:
    """Runs a domain in one process under cProfile, its profile to ``target``."""
    return [
        *(sys.executable, "-m", "cProfile", "-o", str(target)),
        *("-m", "retail_assets.cli", "run", domain),
    ]


def group_of(function: Function) -> str:
    """The package that a function belongs to, as a reader would name it."""
    file, _, name = function
    if file == "~":
        for word, group in (
            ("sqlite3", "SQLite"),
            ("duckdb", "DuckDB"),
            ("pyarrow", "Arrow"),
            ("marshal", "imports"),
            ("_imp.", "imports"),
            ("read' of '_io", "reading pipes and files"),
            ("readline", "reading pipes and files"),
            ("_thread", "waiting"),
            ("posix.waitpid", "waiting"),
        ):
            if word in name:
                return group
        return "other built-ins"
    relative = _relative(file)
    for group, prefixes in _GROUPS:
        if relative.startswith(prefixes):
            return group
    if relative.startswith(("lib:", "<frozen")):
        return "standard library"
    return relative.split("/", 1)[0]


def _relative(file: str) -> str:
    paths = sysconfig.get_paths()
    for folder in (paths["purelib"], paths["platlib"], str(PROJECT_ROOT)):
        if file.startswith(f"{folder}/"):
            return file[len(folder) + 1 :]
    if file.startswith(paths["stdlib"]):
        return "lib:" + file[len(paths["stdlib"]) + 1 :]
    return file


def read_profile(profile: Path) -> tuple[list[tuple[str, float]], list[Line]]:
    """Own seconds by group, and the top functions by cumulative time without mere wrappers."""
    stats: dict[Function, tuple[int, int, float, float, dict[Function, tuple[float, ...]]]]
    stats = pstats.Stats(str(profile)).stats  # type: ignore[attr-defined]
    own: dict[str, float] = {}
    largest_callee: dict[Function, float] = {}
    for function, (_, _, own_s, _, callers) in stats.items():
        own[group_of(function)] = own.get(group_of(function), 0.0) + own_s
        for caller, figures in callers.items():
            largest_callee[caller] = max(largest_callee.get(caller, 0.0), figures[3])
    lines = [
        Line(group_of(function), _shown(function), calls, cumulative, own_s)
        for function, (_, calls, own_s, cumulative, _) in stats.items()
        if largest_callee.get(function, 0.0) < _PASSES_ON * cumulative
        and not (function[0] == "~" and own_s < (1 - _PASSES_ON) * cumulative)  # next, exec, ...
    ]
    lines.sort(key=lambda line: -line.cumulative_s)
    return sorted(own.items(), key=lambda item: -item[1]), by_group(lines[:_TOP])


def by_group(lines: Sequence[Line]) -> list[Line]:
    """The lines with each group's together, the group of the largest line first."""
    order = list(dict.fromkeys(line.group for line in lines))
    return sorted(lines, key=lambda line: (order.index(line.group), -line.cumulative_s))


def _shown(function: Function) -> str:
    file, number, name = function
    return name if file == "~" else f"{_relative(file)}:{number} {name}"
