"""Settings: the only reader of environment variables, validated once.

Here: which variable names which outside system, and what a valid value is. Not here: talking to
those systems (resources/). There is no fallback: an invalid value is an error that names the
variable, the value and the valid forms.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from retail_assets.database_url import POSTGRES, redacted

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DBT_PROJECT_DIR = PROJECT_ROOT / "dbt_project"

SAMPLE_SOURCE = "sample"

_DEFAULT_LOCATION = "EU"
_EMULATOR_HOSTS = ("STORAGE_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST")
# Source: "Bucket naming requirements" of Cloud Storage, "Creating projects" of Resource Manager.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_ADDRESS = r"[^\s/,:;]+:[0-9]{1,5}"
_SIZE = re.compile(r"[1-9]\d*(\.\d+)?\s*([KMGT]i?B)")
_SPARK = re.compile(
    rf"embedded|local\[(\*|[1-9][0-9]*)\]|spark://{_ADDRESS}(,{_ADDRESS})*|sc://{_ADDRESS}"
)
_KAFKA = re.compile(rf"embedded|{_ADDRESS}(,{_ADDRESS})*")
_DATABASE = re.compile(rf"embedded|{POSTGRES.pattern}")
# Dagster reads the variable itself, and writes what other drivers than this refuse.
_DAGSTER_SCHEME = "postgresql+psycopg2://"
_UI_URL = re.compile(r"https?://[^\s@]*[^\s@/]")
_HOUR = r"[a-z][a-z0-9_]*=[0-9]{1,5}(\.[0-9]+)?"
_HOURS = re.compile(rf"({_HOUR}(,{_HOUR})*)?")
_OWNER = r"(team:[\w-]+|[\w+-]+(\.[\w+-]+)*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+)"
_OWNERS = re.compile(rf"({_OWNER}(,{_OWNER})*)?")
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")


def _shaped(pattern: re.Pattern[str], otherwise: str) -> AfterValidator:
    """Refuse a text that has not the pattern's shape, in the words of ``otherwise``."""

    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(otherwise)
        return value

    return AfterValidator(check)


def split_addresses(text: str) -> list[str]:
    """The addresses of ``RETAIL_NOTIFY``, secrets included."""
    # A comma or space may be part of one: the next begins with its service.
    return [x for x in re.split(r"[\s,;]+(?=[A-Za-z][A-Za-z0-9+.-]*://)", text.strip()) if x]


def _read_addresses(value: SecretStr) -> SecretStr:
    addresses = split_addresses(value.get_secret_value())
    if not all(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", address) for address in addresses):
        raise ValueError("what it holds is no SERVICE://... address")
    return value


# Some clients of Google's take a bare HOST:PORT; these do not.
_HttpHost = Annotated[str, _shaped(re.compile(r"https?://.*", re.DOTALL), "it is no http:// URL")]


class SettingsError(ValueError):
    """A variable has a value that is not valid; the message says which forms are."""


Dates = Literal["auto", "iso", "mdy", "dmy"]
# What the variables of a domain say that is one source, by their endings.
_OF_A_SOURCE = {
    "source": "a path or http(s) URL, or several separated by commas",
    "start": "YYYY-MM-DD",
    "end": "YYYY-MM-DD, empty for open",
    "dates": "auto (by all values of a file), iso, mdy or dmy",
}


@dataclass(frozen=True)
class SourcePlace:
    """Where a domain's one source is, the days that it is asked for, how its dates are read.

    ``locations`` are paths and URLs. Without a ``last_day`` the days reach to today.
    """

    locations: tuple[str, ...]
    first_day: date
    last_day: date | None = None
    dates: Dates = "auto"

    @property
    def until(self) -> date:
        """The last day as of now: a row dated after today has no day to go to yet."""
        return self.last_day or datetime.now(UTC).date()

    def has(self, day: str) -> bool:
        """Whether an ISO date is inside the span."""
        return str(self.first_day) <= day and (self.last_day is None or day <= str(self.last_day))


@dataclass(frozen=True)
class BigQueryTarget:
    """Where BigQuery holds the warehouse."""

    project: str
    location: str


class Settings(BaseSettings):
    """Where every outside system is. Field names are the variables' without ``RETAIL_``.

    Raises:
        SettingsError: from ``load_settings``, for the first variable that is not valid.
    """

    model_config = SettingsConfigDict(
        env_prefix="RETAIL_", extra="allow", frozen=True, env_ignore_empty=False
    )

    home: Path = Field(Path(".retail"), description="home of all local state: a path")
    dagster_home: Path | None = Field(
        None,
        validation_alias="DAGSTER_HOME",
        description="Dagster's instance: a path; default $RETAIL_HOME/dagster",
    )
    dagster_storage: SecretStr = Field(
        SecretStr(""),
        description="where Dagster keeps its state: embedded (the embedded PostgreSQL), or"
        f" {_DAGSTER_SCHEME}USER:PASSWORD@HOST:PORT/DATABASE; empty: SQLite in DAGSTER_HOME",
    )
    most_runs: int = Field(
        4, ge=1, description="runs that Dagster's daemon has in progress at once"
    )
    run_timeout_s: int = Field(
        43_200, ge=60, description="seconds after which a run in progress is failed, and ended"
    )
    lake: str = Field(
        "", description="a path, file:// URL or gs://BUCKET[/PREFIX]; default $RETAIL_HOME/lake"
    )
    lake_history_days: float = Field(
        7,
        ge=0,
        le=36_500,
        description="days for which replaced files of the lake's tables are kept, so that history"
        " can be read and restored; 0: they go at once",
    )
    keep_runs_days: float = Field(
        30, ge=0, le=36_500, description="days for which `prune` leaves Dagster's runs; 0: for ever"
    )
    keep_raw_days: float = Field(
        0,
        ge=0,
        le=36_500,
        description="days for which `prune` leaves a source's old versions; 0: for ever",
    )
    keep_messages_days: float = Field(
        0,
        ge=0,
        le=36_500,
        description="days for which `prune` leaves PostgreSQL's messages; 0: for ever",
    )
    warehouse: str = Field(
        "",
        description="duckdb:PATH or bigquery://PROJECT?location=EU;"
        " default duckdb:$RETAIL_HOME/warehouse.duckdb",
    )
    duckdb_memory_limit: Annotated[str, _shaped(_SIZE, "it is no size")] = Field(
        "1300MB",
        description="most memory that a DuckDB warehouse takes before it spills, such as 1500MB",
    )
    spark: Annotated[str, _shaped(_SPARK, "it names no Spark")] = Field(
        "embedded",
        description="embedded, local[CORES] or local[*] (JVM), spark://HOST:PORT or sc://HOST:PORT",
    )
    kafka: Annotated[str, _shaped(_KAFKA, "it names no broker")] = Field(
        "embedded", description="embedded, or HOST:PORT of brokers, several separated by commas"
    )
    kafka_options: SecretStr = Field(
        SecretStr(""),
        description="a JSON object of texts: librdkafka's settings for a login, such as"
        ' {"security.protocol": "SASL_SSL", ...}; empty: none',
    )
    postgres: Annotated[str, _shaped(_DATABASE, "it names no database")] = Field(
        "embedded",
        repr=False,
        description="embedded, or postgresql://USER:PASSWORD@HOST:PORT/DATABASE, where the"
        " password's special characters are written as % and two digits",
    )
    java_home: str | None = Field(
        None, validation_alias="JAVA_HOME", description="Java for a JVM's Spark: a path"
    )
    bigquery_max_bytes_billed: int | None = Field(
        None, gt=0, description="most bytes that one BigQuery query may bill; empty: no limit"
    )
    storage_emulator_host: _HttpHost | None = Field(
        None,
        validation_alias="STORAGE_EMULATOR_HOST",
        description="http://HOST:PORT of a Cloud Storage emulator, for tests",
    )
    bigquery_emulator_host: _HttpHost | None = Field(
        None,
        validation_alias="BIGQUERY_EMULATOR_HOST",
        description="http://HOST:PORT of a BigQuery emulator, for tests",
    )
    most_rows_lost: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of its rows that a table, or a drop of one, may lose by a new delivery",
    )
    fresh_within_h: Annotated[str, _shaped(_HOURS, "it names no hours of a domain")] = Field(
        "",
        description="hours by domain, such as coffee_chain=26,supply_chain=1: landed tables and"
        " marts that are older are late; empty: nothing is",
    )
    owners: Annotated[str, _shaped(_OWNERS, "it names no owners")] = Field(
        "",
        description="who is asked about the assets: e-mail addresses and team:NAME, several"
        " separated by commas; empty: nobody",
    )
    supply_chain_most_lag: int = Field(
        100_000, gt=0, description="messages that may wait in the topic before a check warns"
    )
    supply_chain_most_age_s: float = Field(
        3600.0, gt=0, description="seconds that a message may wait before a check warns"
    )
    notify: Annotated[SecretStr, AfterValidator(_read_addresses)] = Field(
        SecretStr(""),
        description="addresses as apprise has them, such as slack://... or mailto://..., separated"
        " by spaces or commas; empty: alerts go to the log",
    )
    ui_url: Annotated[str, _shaped(_UI_URL, "it is no http:// URL without a login")] = Field(
        "http://localhost:3000",
        description="http(s)://HOST[:PORT] of the UI for who reads alerts, without a / at its end",
    )
    least_free_bytes: int = Field(
        2 * 1024**3, ge=0, description="free bytes of a disk below which an alert is sent; 0: never"
    )
    http_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="seconds without a byte before a download is retried"
    )
    http_max_bytes: int = Field(
        4 * 1024**3, gt=0, description="largest source that is downloaded, in bytes"
    )

    @field_validator("dagster_storage")
    @classmethod
    def _storage_of_dagster(cls, value: SecretStr) -> SecretStr:
        said = value.get_secret_value()
        url = said.replace(_DAGSTER_SCHEME, "postgresql://", 1)
        if said not in ("", "embedded") and (url == said or not POSTGRES.fullmatch(url)):
            raise ValueError("it names no storage")
        return value

    @field_validator("kafka_options")
    @classmethod
    def _object_of_texts(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value().strip()
        try:
            options = json.loads(text or "{}")
        except ValueError:
            raise ValueError("it is no JSON") from None
        if not isinstance(options, dict):
            raise ValueError("it is no JSON object")
        for name, option in options.items():
            if not isinstance(option, str):
                raise ValueError(f"the value of {name!r} is no text")
        return SecretStr(text)

    @model_validator(mode="before")
    @classmethod
    def _resolve_defaults(cls, values: dict[str, object]) -> dict[str, object]:
        home = Path(str(values.get("home") or ".retail")).expanduser().absolute()
        values["home"] = home
        values["DAGSTER_HOME"] = (
            Path(str(values.get("DAGSTER_HOME") or home / "dagster")).expanduser().absolute()
        )
        values["lake"] = _resolved_lake(str(values.get("lake") or home / "lake"))
        values["warehouse"] = _resolved_warehouse(
            str(values.get("warehouse") or f"duckdb:{home / 'warehouse.duckdb'}")
        )
        for name in ("bigquery_max_bytes_billed", "JAVA_HOME", *_EMULATOR_HOSTS):
            if values.get(name) == "":
                values[name] = None
        # Of domains that are one source; which there are, is not known here.
        said = {
            name.removeprefix("RETAIL_").lower(): text
            for name, text in os.environ.items()
            if name.startswith("RETAIL_")
        }
        for field, value in (said | values).items():
            ending = field.rpartition("_")[2]
            if ending in _OF_A_SOURCE and field not in cls.model_fields:
                try:
                    values[field] = _read_of_a_source(ending, value)
                except ValueError as error:
                    raise ValueError(f"{field}: {error}") from None
        return values

    @model_validator(mode="after")
    def _bigquery_loads_from_the_bucket(self) -> Self:
        if self.bigquery is not None and not self.lake.startswith("gs://"):
            raise ValueError(
                f"lake: {self.lake} cannot be read by BigQuery, which RETAIL_WAREHOUSE names:"
                " its load jobs take gs:// files"
            )
        return self

    @property
    def warehouse_path(self) -> Path:
        """The DuckDB file."""
        assert self.bigquery is None, "the warehouse is no file"
        return Path(self.warehouse.removeprefix("duckdb:"))

    @property
    def bigquery(self) -> BigQueryTarget | None:
        """The warehouse's project and location, where it is BigQuery."""
        if not self.warehouse.startswith("bigquery://"):
            return None
        url = urlsplit(self.warehouse)
        return BigQueryTarget(url.netloc, dict(parse_qsl(url.query))["location"])

    @property
    def instance_dir(self) -> Path:
        """The folder of Dagster's instance."""
        assert self.dagster_home is not None  # the validator sets it
        return self.dagster_home

    @property
    def fresh_within(self) -> dict[str, timedelta]:
        """How old data may be, by domain; without those that may be of any age."""
        pairs = (part.split("=") for part in self.fresh_within_h.split(",") if part)
        return {domain: timedelta(hours=float(hours)) for domain, hours in pairs}

    @property
    def sample_path(self) -> Path:
        """Where the generated sample workbook of online retail stands."""
        return self.home / "samples" / "online_retail.xlsx"

    def file_to_stream(self, domain: str, named: Path) -> Path:
        """A file for a domain's topic, as a person names it: ``sample`` is its generated one."""
        sample = self.home / "samples" / f"{domain}.csv"
        return sample if str(named) == SAMPLE_SOURCE else named

    def source_of(self, name: str, declared: SourcePlace) -> SourcePlace:
        """The one source of a domain: as RETAIL_<NAME>_SOURCE, _START, _END, _DATES say.

        What they do not say is as ``declared``.

        Raises:
            SettingsError: the last day is before the first.
        """

        def said(ending: str, otherwise: Any) -> Any:
            return getattr(self, f"{name}_{ending}", otherwise)

        place = SourcePlace(
            said("source", declared.locations),
            said("start", declared.first_day),
            said("end", declared.last_day),
            said("dates", declared.dates),
        )
        if place.last_day is not None and place.last_day < place.first_day:
            ending = "end" if hasattr(self, f"{name}_end") else "start"
            raise SettingsError(
                f"{variable_name(f'{name}_{ending}')} is {str(said(ending, None))!r}, which is not"
                f" valid: the first day, {place.first_day}, is after the last, {place.last_day}."
                f" Valid: {_OF_A_SOURCE[ending]}."
            )
        return place


def _locations(value: object) -> object:
    if isinstance(value, str):
        value = tuple(part.strip() for part in value.split(","))
    if isinstance(value, list | tuple):
        if not value or not all(value):
            raise ValueError("a source is empty")
        for part in value:
            scheme, found, _ = str(part).partition("://")
            if found and scheme.lower() not in ("http", "https", "file"):
                raise ValueError(f"{scheme}:// is not a scheme that can be read")
    return value


def _read_of_a_source(ending: str, value: Any) -> object:
    """What a domain's variable of that ending says, or an override in its place."""
    if ending == "source":
        return _locations(value)
    if ending == "dates" and value not in get_args(Dates):
        raise ValueError("it is no order of dates")
    if ending == "dates" or not isinstance(value, str):
        return value
    return date.fromisoformat(value) if value or ending == "start" else None


def _resolved_lake(lake: str) -> str:
    scheme, found, rest = lake.partition("://")
    if found and scheme == "gs":
        bucket, _, prefix = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise ValueError(f"lake: {bucket!r} is no bucket's name")
        return f"gs://{bucket}/{prefix.strip('/')}".rstrip("/")
    lake = lake.removeprefix("file://")
    if not lake:
        raise ValueError("lake: file:// names no folder")
    if "://" in lake:
        raise ValueError(f"lake: {scheme}:// is not a lake known here")
    return str(Path(lake).expanduser().absolute())


def _resolved_warehouse(warehouse: str) -> str:
    if warehouse.startswith("bigquery:"):
        url = urlsplit(warehouse)
        options = dict(parse_qsl(url.query))
        if not _PROJECT.fullmatch(url.netloc) or url.path.strip("/") or set(options) - {"location"}:
            raise ValueError(f"warehouse: {warehouse!r} is not bigquery://PROJECT?location=EU")
        return f"bigquery://{url.netloc}?location={options.get('location', _DEFAULT_LOCATION)}"
    kind, found, path = warehouse.partition(":")
    if not found or kind != "duckdb" or not path or path.startswith(("//", ":")):
        raise ValueError(f"warehouse: {warehouse!r} is not duckdb:PATH")
    return f"duckdb:{Path(path).expanduser().absolute()}"


def variable_name(field: str) -> str:
    """The environment variable behind a field of Settings."""
    known = Settings.model_fields.get(field)
    alias = known.validation_alias if known else None
    return alias if isinstance(alias, str) else f"RETAIL_{field.upper()}"


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, with ``overrides`` in place of variables.

    Raises:
        SettingsError: naming the variable, what was found and the valid forms.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        field = str(first["loc"][0]) if first["loc"] else message.partition(":")[0]
        field = field.lower() if field.lower() in Settings.model_fields else field
        info = Settings.model_fields.get(field)
        valid = info.description if info else _OF_A_SOURCE.get(field.rpartition("_")[2])
        variable = variable_name(field)
        found = overrides.get(field, os.environ.get(variable))
        if field == "postgres":
            found = redacted(str(found))
        shown = "set" if info is not None and info.annotation is SecretStr else repr(found)
        raise SettingsError(
            f"{variable} is {shown}, which is not valid: {message}."
            + (f" Valid: {valid}." if valid else "")
        ) from None


def source_variables(name: str) -> list[str]:
    """The variables of a domain that is one source (``Settings.source_of``)."""
    return [variable_name(f"{name}_{ending}") for ending in _OF_A_SOURCE]


def unknown_variables(
    environment: Mapping[str, str] | None = None, others: Iterable[str] = ()
) -> dict[str, str]:
    """RETAIL_ variables that no setting reads, nor ``others`` are -> the nearest known, or ""."""
    known = [*map(variable_name, Settings.model_fields), *others]
    names = os.environ if environment is None else environment
    return {
        name: next(iter(difflib.get_close_matches(name, known, 1)), "")
        for name in names
        if name.startswith("RETAIL_") and name not in known
    }
