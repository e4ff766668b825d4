"""The files of a domain as text: contract, feed, models, tests, laid out as the formatters would.

Not here: what is to stand in them (proposing.py, making.py), dbt's sources (defs/marts).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from string import Template
from typing import Any

from retail_assets.commands.new.proposing import DROP_DATE, Proposal
from retail_assets.dataset import Column, Dataset
from retail_assets.moments import Order

_WIDTH = 100
_SUMMED_DIGITS = 18  # before the point of a sum
_DBT_TYPES = {"int64": "bigint", "bool": "boolean", "timestamp": "datetime"}
_FILES = {
    "retail_assets/defs/$name/__init__.py": '"""The domain $name."""\n',
    "retail_assets/defs/$name/contract.py": '''\
"""What the table of $name looks like: columns, types, keys, personal data."""

from retail_assets.dataset import Column, Dataset

$constant = Dataset(
    schema="$name",
    name="$name",
    description=$description,
    columns=(
$columns
    ),$partition
)
''',
    "retail_assets/defs/$name/feed.py": '''\
"""How the data of $name arrive: $how."""

${feed_import}from retail_assets.defs.$name.contract import $constant
from retail_assets.feeds.$feed

$made
''',
    "dbt_project/models/$name/staging/stg_$name.sql": """with source as (

    select * from {{ source('$name', '$name') }}

),

renamed as (

    select
$names
    from source

)

select * from renamed
""",
    "dbt_project/models/$name/staging/stg_$name.yml": """models:
  - name: stg_$name
    config:
      materialized: view
    description: The landed table, column by column.$unique
    columns:
$staged
""",
    "dbt_project/models/$name/core/${name}_daily.sql": """with $name as (

    select * from {{ ref('stg_$name') }}

),

daily as (

    select
        $day,
$sums
    from $name
    group by $day

)

select * from daily
""",
    "dbt_project/models/$name/core/${name}_daily.yml": """models:
  - name: ${name}_daily
    description: "Grain: one row a day ($day). Formula: sums over stg_$name."
    data_tests:
      - adds_up:
          name: ${name}_daily_adds_up
          arguments:
            to: ref('stg_$name')
            equal:
$equal
    columns:
$summed
""",
    "retail_assets_tests/defs/$name/__init__.py": "",
    "retail_assets_tests/defs/$name/test_$name.py": '''\
"""Tests of $name: a row of a file becomes what the contract says."""

from retail_assets.defs.$name.feed import FEED
from retail_assets_tests.feeds.typed import type_row

TEXTS = {
$texts
}
ROW = {
$row
}


def test_a_row_of_a_file_is_typed() -> None:
    assert type_row(FEED, TEXTS$options) == ROW
''',
}


@dataclass(frozen=True)
class Design:
    """A domain that is to be written.

    Attributes:
        by_day: the column that the mart is by.
        measures: the columns that it sums, the amount first.
        order: of days and months in the file's dates, where one has to be known.
        first_day: of the file's rows.
        texts: of a row of the file, by header.
        row: what becomes of it, as text.
    """

    proposal: Proposal
    dataset: Dataset
    is_snapshot: bool
    by_day: str
    measures: tuple[Column, ...]
    order: Order | None = None
    first_day: date | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    row: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def constants(self) -> dict[str, str]:
        """Columns that no file has."""
        is_dated = self.dataset.partition_by == DROP_DATE
        return {DROP_DATE: self.proposal.date} if is_dated else {}

    @property
    def raw_path(self) -> str:
        """Where its files lie in the lake."""
        name = self.proposal.name if self.constants else self.proposal.file.name
        return f"raw/{self.dataset.name}/{name}"


def render(design: Design) -> dict[str, str]:
    """The files by their path in the project."""
    dataset = design.dataset
    partition, keys = dataset.partition_by, [x.name for x in dataset.columns if x.key]
    keyed = {"columns": [*keys, *design.constants]}
    test = {"unique_combination": {"arguments": keyed}}
    sums = _sums(design)
    day = {"constraints": [{"type": "not_null"}], "data_tests": ["unique"]}
    summed = [{**_yml(design.by_day, "date", "The day."), **day}]
    summed += [_yml(name, kind, f"{text} of the day.") for name, kind, text in sums]
    options = {"delimiter": design.proposal.delimiter} | design.constants
    texts = {
        "name": dataset.name,
        "constant": dataset.name.upper(),
        "description": _literal(dataset.description),
        "columns": "\n".join(_call("Column", _arguments(x), 8) + "," for x in dataset.columns),
        "partition": f"\n    partition_by={_literal(partition)}," if partition else "",
        **_feed(design),
        "names": ",\n".join(f"        {name}" for name in dataset.column_names),
        "unique": f"\n    data_tests: {json.dumps([test])}" if keys else "",
        "staged": _items(_yml(x.name, _dbt_type(x), x.description) for x in dataset.columns),
        "day": design.by_day,
        "sums": ",\n".join(
            f"        {{{{ cast('{x}', '{t}') }}}} as {name}" for name, t, x in sums
        ),
        "equal": "\n".join(f"              {name}: {text}" for name, _, text in sums),
        "summed": _items(summed),
        "texts": _entries(design.texts),
        "row": _entries(design.row),
        "options": "".join(f', {x}="{y}"' for x, y in options.items() if y != ","),
    }
    return {
        Template(path).substitute(texts): Template(text).substitute(texts)
        for path, text in _FILES.items()
    }


def _feed(design: Design) -> dict[str, str]:
    name, constant = design.dataset.name, design.dataset.name.upper()
    order = [f"dates={_literal(design.order)}"] if design.order else []
    if design.is_snapshot:
        first_day = repr(design.first_day).removeprefix("datetime.")
        source = f"source=({_literal(str(design.proposal.file))},)"
        arguments = [constant, f"first_day={first_day}", source, *order]
        return {
            "how": "one source that is the whole truth for its days",
            "feed_import": "from datetime import date\n\n",
            "feed": "snapshot import SnapshotFeed",
            "made": _call("FEED = SnapshotFeed", [_literal(name), *arguments]),
        }
    table = _call("TABLE = FileTable", [constant, _literal(design.raw_path), *order])
    return {
        "how": "dated files" if design.constants else "one file, which replaces the one before",
        "feed_import": "",
        "feed": "files import FileFeed, FileTable",
        "made": f"{table}\nFEED = FileFeed({_literal(name)}, (TABLE,))",
    }


def _sums(design: Design) -> list[tuple[str, str, str]]:
    """Of each column of the mart but the day: name, type, aggregate; the amount first."""
    found = []
    for column in design.measures:
        kind = _dbt_type(column)
        if kind.startswith("decimal"):
            precision, scale = map(int, kind[len("decimal(") : -1].split(","))
            kind = f"decimal({max(precision, _SUMMED_DIGITS + scale)},{scale})"
        found.append((f"total_{column.name}", kind, f"sum({column.name})"))
    return [*found[:1], ("row_count", "bigint", "count(*)"), *found[1:]]


def _yml(name: str, kind: str, about: str) -> dict[str, Any]:
    return {"name": name, "data_type": kind, "description": about}


def _items(columns: Any) -> str:
    return "\n".join(f"      - {json.dumps(x, ensure_ascii=False)}" for x in columns)


def _dbt_type(column: Column) -> str:
    return _DBT_TYPES.get(column.type, column.type)


def _arguments(column: Column) -> list[str]:
    marks = [f"{x}=True" for x in ("nullable", "key", "pii") if getattr(column, x)]
    source = [f"source={_literal(column.source)}"] if column.source else []
    return [*map(_literal, (column.name, column.type, column.description)), *marks, *source]


def _entries(values: Mapping[str, str | None]) -> str:
    return "\n".join(
        f"    {_literal(key)}: {None if value is None else _literal(value)},"
        for key, value in values.items()
    )


def _literal(text: str) -> str:
    """A text as Python's source has it: in double quotes, unless only such are in it."""
    shown = "".join(c if c.isalpha() and ord(c) < 0x180 else ascii(c)[1:-1] for c in text)
    if '"' in text and "'" not in text:
        return f"'{shown}'"
    return '"' + shown.replace('"', '\\"') + '"'


def _call(function: str, arguments: list[str], indent: int = 0) -> str:
    """A call on one line, or its arguments on the next, or each on its own: what fits."""
    space, joined = " " * indent, ", ".join(arguments)
    if len(one := f"{space}{function}({joined})") < _WIDTH:
        return one
    if len(inner := f"{space}    {joined}") <= _WIDTH:
        return f"{space}{function}(\n{inner}\n{space})"
    each = "".join(f"{space}    {argument},\n" for argument in arguments)
    return f"{space}{function}(\n{each}{space})"
