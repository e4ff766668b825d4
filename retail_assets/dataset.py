"""Dataset and Column: one declaration of a table, from which every schema derives.

Here: the translation of a declaration to Arrow, DuckDB, BigQuery and Dagster's UI, and the
comparison of a declaration with what a table really has. Not here: which tables exist (each
domain's contract.py), reading or writing them (resources/).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg
    import pyarrow as pa

# Whole texts that are no value where a number, a date or a code is expected.
MISSING_WORDS = ("", "NULL", "null", "nan", "NaN", "None", "NA", "N/A", r"\N")
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")
_DUCKDB_TYPES = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "bool": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
}
# A timestamp of ours has no zone: BigQuery's TIMESTAMP is an instant, its DATETIME is not.
_BIGQUERY_TYPES = {
    "string": "STRING",
    "int32": "INT64",
    "int64": "INT64",
    "bool": "BOOL",
    "date": "DATE",
    "timestamp": "DATETIME",
}
# The names that BigQuery's REST reference gives to the types of SQL, where they differ.
_BIGQUERY_API_TYPES = {"INT64": "INTEGER", "BOOL": "BOOLEAN", "FLOAT64": "FLOAT"}
_BIGQUERY_SQL_TYPES = {api: sql for sql, api in _BIGQUERY_API_TYPES.items()}
# Source: "Parameterized decimal types", BigQuery's reference of data types: NUMERIC(p, s) has
# s <= 9 and p <= s + 29; what is larger is BIGNUMERIC.
_NUMERIC_SCALE = 9
_NUMERIC_WHOLE_DIGITS = 29


@dataclass(frozen=True)
class Column:
    """One column: its name, logical type, meaning and duties.

    ``type`` is one of string, int32, int64, bool, date, timestamp (naive, microseconds) or
    ``decimal(precision,scale)``. ``pii`` marks personal data, which stops at the dimensions.
    ``source`` is the header in the raw file, where it is not the name; two columns may have one.
    """

    name: str
    type: str
    description: str
    nullable: bool = False
    key: bool = False
    pii: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        if self.type not in _DUCKDB_TYPES and not _DECIMAL.fullmatch(self.type):
            known = ", ".join([*_DUCKDB_TYPES, "decimal(p,s)"])
            raise ValueError(f"column {self.name}: unknown type {self.type!r}; one of {known}")

    @property
    def duckdb_type(self) -> str:
        """The column's type as DuckDB spells it."""
        if match := _DECIMAL.fullmatch(self.type):
            return f"DECIMAL({match[1]},{match[2]})"
        return _DUCKDB_TYPES[self.type]

    @property
    def bigquery_type(self) -> str:
        """The column's type as BigQuery's SQL spells it."""
        if match := _DECIMAL.fullmatch(self.type):
            precision, scale = int(match[1]), int(match[2])
            small = scale <= _NUMERIC_SCALE and precision - scale <= _NUMERIC_WHOLE_DIGITS
            return f"{'NUMERIC' if small else 'BIGNUMERIC'}({precision},{scale})"
        return _BIGQUERY_TYPES[self.type]

    @property
    def bigquery_field(self) -> dict[str, str]:
        """The column as a TableFieldSchema of BigQuery's REST reference."""
        kind, _, arguments = self.bigquery_type.rstrip(")").partition("(")
        field = {
            "name": self.name,
            "type": _BIGQUERY_API_TYPES.get(kind, kind),
            "mode": "NULLABLE" if self.nullable else "REQUIRED",
            "description": self.description,
        }
        if arguments:
            field["precision"], field["scale"] = arguments.split(",")
        return field

    @property
    def arrow_type(self) -> "pa.DataType":
        """The column's type in Arrow, and so in Parquet."""
        import pyarrow as pa

        if match := _DECIMAL.fullmatch(self.type):
            return pa.decimal128(int(match[1]), int(match[2]))
        return {
            "string": pa.string(),
            "int32": pa.int32(),
            "int64": pa.int64(),
            "bool": pa.bool_(),
            "date": pa.date32(),
            "timestamp": pa.timestamp("us"),
        }[self.type]


@dataclass(frozen=True)
class SchemaDrift:
    """How a table's columns differ from its declaration; falsy where they do not."""

    missing: tuple[Column, ...] = ()
    unexpected: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.retyped)

    @property
    def only_adds_nullable(self) -> bool:
        """True where adding nullable columns is all that the table needs."""
        return not (self.unexpected or self.retyped) and all(c.nullable for c in self.missing)

    def describe(self) -> str:
        """One line: what is missing, unexpected or of another type."""
        parts = []
        if self.missing:
            parts.append("missing " + ", ".join(f"{c.name} {c.type}" for c in self.missing))
        if self.unexpected:
            parts.append("unexpected " + ", ".join(self.unexpected))
        if self.retyped:
            parts.append("other type: " + ", ".join(self.retyped))
        return "; ".join(parts)


@dataclass(frozen=True)
class Dataset:
    """One table: where it belongs, its columns in order, how it is partitioned and clustered.

    ``schema`` is the warehouse's; ``domain`` the folder in the lake, where it is another, and
    ``zone`` the lake's zone that its files are in, if any. ``folder_by`` is a column that the files
    do not have: a folder's name alone says it, by which the table is partitioned in the lake.
    ``ordered`` says that the rows of its files are in an order worth keeping.
    """

    schema: str
    name: str
    description: str
    columns: tuple[Column, ...]
    partition_by: str | None = None
    cluster_by: tuple[str, ...] = ()
    domain: str = ""
    ordered: bool = True
    zone: str = "processed"
    folder_by: Column | None = None

    def __post_init__(self) -> None:
        names = [c.name for c in self.columns]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.table}: a column is declared twice")
        for name in (self.partition_by, *self.cluster_by):
            if name is not None and name not in names:
                raise ValueError(f"{self.table}: {name} is not one of its columns")

    @property
    def table(self) -> str:
        """``schema.name``, as the warehouse knows it."""
        return f"{self.schema}.{self.name}"

    @property
    def folder(self) -> str:
        """``domain/name``, as each zone of the lake knows it."""
        return f"{self.domain or self.schema}/{self.name}"

    @property
    def location(self) -> str:
        """``zone/domain/name``: where its table lies, below the lake's root."""
        return f"{self.zone}/{self.folder}" if self.zone else self.folder

    @property
    def lake_partition(self) -> Column | None:
        """The column by which the lake's table is partitioned, if any."""
        return self.folder_by or next(
            (c for c in self.columns if c.name == self.partition_by), None
        )

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(c.name for c in self.columns)

    @cached_property
    def personal(self) -> frozenset[str]:
        """The names of the columns that hold personal data."""
        return frozenset(c.name for c in self.columns if c.pii)

    @cached_property
    def arrow_schema(self) -> "pa.Schema":
        """The Arrow (and Parquet) schema, nullability included."""
        import pyarrow as pa

        return pa.schema(
            [pa.field(c.name, c.arrow_type, nullable=c.nullable) for c in self.columns]
        )

    @cached_property
    def lake_schema(self) -> "pa.Schema":
        """The Arrow schema of the lake's table: what the files have, and what their folders say."""
        import pyarrow as pa

        column = self.folder_by
        if column is None:
            return self.arrow_schema
        return self.arrow_schema.append(pa.field(column.name, column.arrow_type, nullable=False))

    @cached_property
    def duckdb_columns(self) -> dict[str, str]:
        """Name to DuckDB type, in order."""
        return {c.name: c.duckdb_type for c in self.columns}

    def duckdb_ddl(self) -> str:
        """The column list of a DuckDB CREATE TABLE."""
        return ", ".join(
            f'"{c.name}" {c.duckdb_type}{"" if c.nullable else " NOT NULL"}' for c in self.columns
        )

    @property
    def bigquery_schema(self) -> list[dict[str, str]]:
        """The columns as BigQuery's REST reference has them: a TableSchema's fields."""
        return [c.bigquery_field for c in self.columns]

    def compare(self, found: Mapping[str, str]) -> SchemaDrift:
        """Hold DuckDB's name-to-type mapping ``found`` against the declaration."""
        return self._compare(found, self.duckdb_columns)

    def compare_bigquery(self, fields: Iterable[Mapping[str, Any]]) -> SchemaDrift:
        """Hold the ``fields`` of a BigQuery table against the declaration, modes included."""
        return self._compare(
            {field["name"]: bigquery_type(field) for field in fields},
            {field["name"]: bigquery_type(field) for field in self.bigquery_schema},
        )

    def _compare(self, found: Mapping[str, str], declared: Mapping[str, str]) -> SchemaDrift:
        return SchemaDrift(
            missing=tuple(c for c in self.columns if c.name not in found),
            unexpected=tuple(name for name in found if name not in declared),
            retyped=tuple(
                f"{name} is {found[name]}, declared {kind}"
                for name, kind in declared.items()
                if name in found and found[name] != kind
            ),
        )

    def table_schema(self) -> "dg.TableSchema":
        """The columns as Dagster's UI shows them; personal ones are tagged ``pii``."""
        import dagster as dg

        return dg.TableSchema(
            columns=[
                dg.TableColumn(
                    c.name,
                    c.type,
                    description=c.description,
                    constraints=dg.TableColumnConstraints(nullable=c.nullable, unique=c.key),
                    tags={"pii": "true"} if c.pii else {},
                )
                for c in self.columns
            ]
        )


def bigquery_type(field: Mapping[str, Any]) -> str:
    """SQL type of a TableFieldSchema, with its mode: such as ``NUMERIC(12,3) NOT NULL``."""
    kind = str(field["type"]).upper()
    kind = _BIGQUERY_SQL_TYPES.get(kind, kind)
    if field.get("precision"):
        kind += f"({field['precision']},{field.get('scale') or 0})"
    mode = str(field.get("mode") or "NULLABLE").upper()
    return kind + {"NULLABLE": "", "REQUIRED": " NOT NULL"}.get(mode, f" {mode}")
