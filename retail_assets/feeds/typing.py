"""Raw files' tables of text -> rows of a Dataset, by what its columns declare.

A text's shape is tested first, then it is cast. A column that is not nullable decides whether a row
stands; what cannot be read of another is left out and told. Here: types, copies, keys, in DuckDB.
Not here: which text is which column's (reading.py), what becomes of good and bad rows (the feeds).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retail_assets.dataset import MISSING_WORDS, Column, Dataset
from retail_assets.feeds.reading import Dates, Fields, ReadFiles, ReadTable, read_files
from retail_assets.resources.tabular import CELL_MARKS, ROW

if TYPE_CHECKING:
    import duckdb

# To be raised when the same bytes would become other rows: what was typed before is typed again.
TYPING_VERSION = "1"
_WHOLE = r"[+-]?[0-9]+(\.0*)?"
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")
_TRUE, _FALSE = ("true", "t", "yes", "y", "1", "1.0"), ("false", "f", "no", "n", "0", "0.0")
_EXPECTED = {
    "string": "a text",
    "int32": "a whole number of 32 bits",
    "int64": "a whole number",
    "bool": "true or false",
    "date": "a day",
    "timestamp": "a day and time",
}
# Of texts two words less stand for no value, but in a key: NA is Namibia as well.
_TEXTS = ("NA", "N/A")
# A spreadsheet's 5.36E+05 was 536365 or another number of six digits: nobody knows.
_LOST = r"[0-9]([.,][0-9]+)?[eE]\+[0-9]+"
# That, columns that were too narrow (####), formulas (="536365"), NUL, cells' errors; patterns only
# where a look says that they may fit: most texts cost nothing.
_NO_TEXT = f"""
    contains({{text}}, '+') and regexp_full_match({{text}}, '{_LOST}')
    or starts_with({{text}}, '#')
    and (regexp_full_match({{text}}, '#+') or {{text}} in ({{marks}}))
    or starts_with({{text}}, '="') or contains({{text}}, chr(0))
"""


@dataclass(frozen=True)
class _Typing:
    """How the text of a column, the SQL expression ``text``, becomes its value."""

    column: Column
    text: str
    at: str

    @property
    def digits(self) -> tuple[int, int] | None:
        """Of a decimal, the most digits before the point, and behind it."""
        match = _DECIMAL.fullmatch(self.column.type)
        return (int(match[1]) - int(match[2]), int(match[2])) if match else None

    @property
    def is_missing(self) -> str:
        words: tuple[str, ...] = MISSING_WORDS
        if self.column.type == "string" and not self.column.key:
            words = tuple(word for word in words if word not in _TEXTS)
        return f"coalesce({self.text} in ({_texts(words)}), true)"

    @property
    def value(self) -> str:
        """Null where the text is missing or in no shape of the type."""
        text, kind = self.text, self.column.type
        if kind == "string":
            is_none = _NO_TEXT.format(text=text, marks=_texts(sorted(CELL_MARKS)))
            return f"case when not ({self.is_missing} or {is_none}) then {text} end"
        if kind in ("date", "timestamp"):
            return f"{self.at}::{self.column.duckdb_type}"
        if kind == "bool":
            lower = f"lower({text})"
            is_true = f"when {lower} in ({_texts(_TRUE)}) then true"
            return f"case {is_true} when {lower} in ({_texts(_FALSE)}) then false end"
        shape, number = _WHOLE, f"split_part({text}, '.', 1)"
        if self.digits:
            whole, scale = self.digits
            shape, number = rf"[+-]?0*[0-9]{{0,{whole}}}(\.[0-9]{{0,{scale}}}0*)?", text
        cast = f"try_cast({number} as {self.column.duckdb_type})"
        return f"case when {_matches(text, shape)} then {cast} end"

    @property
    def told(self) -> str:
        """Why there is no value where one is expected: "column: expected ..., found '...'"."""
        column, text = self.column, self.text
        whole, scale = self.digits or (0, 0)
        expected = _EXPECTED.get(
            column.type, f"a number of at most {whole} digits and {scale} decimals"
        )
        expected += " or nothing" if column.nullable else ""
        told = f"'{column.name}: expected {expected}, found ' || shown({text})"
        lost = f"case when {_matches(text, _LOST)} then ', which has lost digits' else '' end"
        return f"{told} || {lost}" if column.type == "string" else told


def _texts(words: Iterable[str]) -> str:
    return ", ".join("'" + word.replace("'", "''") + "'" for word in words)


def _matches(text: str, pattern: str) -> str:
    return f"regexp_full_match({text}, '{pattern}')"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def type_files(
    connection: "duckdb.DuckDBPyConnection",
    files: Sequence[Path],
    dataset: Dataset,
    target: Path,
    scratch: Path,
    *,
    dates: Dates = "auto",
    setting: str = "dates in its feed.py",
    constants: Mapping[str, object] | None = None,
) -> ReadFiles:
    """Type all tables of the files into ``target``, a Parquet file of their rows.

    They are in the order of the dataset's partitions, with its columns (of a bad row those that
    could be read) and beside them:
        _source, _row: the table's label, and the row in it.
        _reason: why the row is none of the dataset's; null for a good one.
        _left_out: why values of nullable columns are missing, a list; null where none was left out.
        _text: the texts of the row's fields, as ``fields_of`` has them, as a JSON array; null where
            both of these are.
        _copies: how often the row stood in the files; it is kept once, the first.
    What never became fields is in the result's ``rejected``.

    ``constants`` are columns that no file has, with their value; ``setting`` is what a person sets
    where nothing says whether days or months come first.

    Raises:
        UnreadableFileError, SchemaDriftError: a file is not the table that it should be.
        AmbiguousDatesError: the order of days and months is not known.
    """
    fixed = {name: str(value) for name, value in (constants or {}).items()}
    # Reasons are printed: nothing in them may act on a terminal.
    connection.execute(
        "create or replace temp macro shown(x) as"
        " coalesce('''' || regexp_replace(x[:40], '[[:cntrl:]\x80-\x9f]', '?', 'g') || '''',"
        " 'nothing')"
    )

    def write(tables: Sequence[ReadTable]) -> None:
        selects = []
        for number, table in enumerate(tables):
            view = f"text_rows_{number}"
            connection.register(view, table.batches)
            selects.append(_select(table, dataset, fixed, number, view))
        typed = _distinct(dataset, fixed, " union all ".join(selects))
        # Read once or twice, then replaced: quick to write rather than small.
        connection.sql(typed).write_parquet(str(target), compression="snappy")

    return read_files(files, scratch, fields_of(dataset, setting, fixed), dates, write)


def fields_of(dataset: Dataset, setting: str, fixed: Iterable[str] = ()) -> Fields:
    """The raw fields that a dataset's columns are made of; of one for several, the first's name."""
    firsts: dict[str, str] = {}
    for column in _of_files(dataset, fixed):
        firsts.setdefault(column.source or column.name, column.name)
    kinds: dict[str, set[str]] = {name: set() for name in firsts.values()}
    for column in _of_files(dataset, fixed):
        kinds[firsts[column.source or column.name]].add(column.type.partition("(")[0])

    def having(*wanted: str) -> tuple[str, ...]:
        return tuple(name for name, found in kinds.items() if found.intersection(wanted))

    return Fields(
        {name: (source,) for source, name in firsts.items()},
        f"Rename the columns at the origin, or change their source in the contract of"
        f" {dataset.table}.",
        setting=setting,
        moments=having("date", "timestamp"),
        numbers=having("int32", "int64", "decimal"),
        decimals=having("decimal") or having("int32", "int64"),
        texts=having("string"),
    )


def _of_files(dataset: Dataset, fixed: Iterable[str]) -> list[Column]:
    return [column for column in dataset.columns if column.name not in fixed]


def _select(
    table: ReadTable,
    dataset: Dataset,
    fixed: Mapping[str, str],
    number: int,
    view: str,
) -> str:
    """The typed rows of one table. Names with a blank are ours: no column has one."""
    fields = table.fields
    raw = [f'"raw {name}"' for name in fields.spellings]
    texts = [
        f'"{ROW}" as _row',
        *(f'{table.raw(name)} as "raw {name}"' for name in fields.spellings),
        *(f'{table.text(name)} as "text {name}"' for name in fields.spellings),
        *(f'{table.at(name)} as "at {name}"' for name in fields.moments),
    ]
    firsts = {sources[0]: name for name, sources in fields.spellings.items()}
    typings = [
        _Typing(column, f'"text {name}"', f'"at {name}"')
        for column in _of_files(dataset, fixed)
        for name in (firsts[column.source or column.name],)
    ]
    values = [f'{x.value} as "{x.column.name}"' for x in typings]
    values += [
        f'{_texts([fixed[column.name]])}::{column.duckdb_type} as "{column.name}"'
        for column in dataset.columns
        if column.name in fixed
    ]
    must = [
        f'when "{x.column.name}" is null then {x.told}' for x in typings if not x.column.nullable
    ]
    may = [
        f'case when "{x.column.name}" is null and not {x.is_missing} then {x.told} end'
        for x in typings
        if x.column.nullable
    ]
    reason = f"case {' '.join(must)} end" if must else "null::varchar"
    left_out = f"list_filter([{', '.join(may)}], lambda x: x is not null)" if may else "[]"
    # A row with a key may still turn out to be one too many.
    is_told = "true" if _keys(dataset) else "_reason is not null or _left_out is not null"
    return f"""
        select
            {number}::integer as "table no", {_texts([table.table.label])} as _source,
            _row, {_quoted(dataset.column_names)}, _reason, _left_out,
            case when {is_told} then to_json([{", ".join(raw)}])::varchar end as _text
        from (
            select
                *, {reason} as _reason, nullif({left_out}, [])::varchar[] as _left_out
            from (select *, {", ".join(values)} from (select {", ".join(texts)} from {view}))
        )
    """


def _keys(dataset: Dataset) -> list[str]:
    return [column.name for column in dataset.columns if column.key]


def _distinct(dataset: Dataset, fixed: Mapping[str, str], rows: str) -> str:
    """Each distinct row once, each key once, in order."""
    values = ", ".join(f'"{column.name}"::varchar' for column in _of_files(dataset, fixed))
    order = '"table no", "_row"'
    personal = [name for name in _keys(dataset) if name in dataset.personal]
    keys = personal + [name for name in _keys(dataset) if name not in personal]
    reason = "_reason"
    if keys:
        # It begins with the name by which a value that is personal is masked.
        with_others = f" with {', '.join(keys[1:])}" if keys[1:] else ""
        reason = f"""
            case
                when _reason is not null then _reason
                when {" and ".join(f'"{key}" is not null' for key in keys)} and row_number() over (
                    partition by {_quoted(keys)}, _reason is null order by {order}
                ) > 1
                then '{keys[0]}: expected once{with_others}, found '
                    || shown("{keys[0]}"::varchar) || ' again'
            end"""
    by = f'"{dataset.partition_by}" nulls first, ' if dataset.partition_by else ""
    return f"""
        with typed as ({rows}),

        identified as (
            select *, case
                when _reason is not null then concat("table no", ' ', _row)
                else sha256(to_json([{values}, _left_out::varchar])::varchar)
            end as "row identity"
            from typed
        ),

        counted as (
            select *, count(*) over same as _copies
            from identified
            window same as (partition by "row identity")
            qualify row_number() over (partition by "row identity" order by {order}) = 1
        ),

        keyed as (select * replace ({reason} as _reason) from counted)

        select
            {_quoted(dataset.column_names)}, _source, _row, _reason, _left_out,
            case when _reason is not null or _left_out is not null then _text end
                as _text,
            _copies
        from keyed
        order by {by}{order}
    """
