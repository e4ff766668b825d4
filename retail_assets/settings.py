"""Settings: the only reader of environment variables, validated once.

Here: which variable names which outside system, and what a valid value is. Not here: talking to
those systems (resources/). There is no fallback: an invalid value is an error that names the
variable, the value and the valid forms.
"""

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

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
# As libpq reads it: the user goes to the first @, unless a / is before it.
_POSTGRES_HOST = r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:@/?#\[\],]*)(?::[0-9]{1,5})?"
_POSTGRES = re.compile(
    r"(?P<scheme>postgres(?:ql)?://)"
    r"(?:(?P<user>[^\s:@/]*)(?P<password>:[^\s@/]*)?@)?"
    rf"(?P<place>{_POSTGRES_HOST}(?:,{_POSTGRES_HOST})*(?:/[^\s?#]*)?)(?:\?(?P<query>[^\s#]*))?"
)
_HIDDEN = "***"
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")


class SettingsError(ValueError):
    """A variable has a value that is not valid; the message says which forms are."""


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
        env_prefix="RETAIL_", extra="ignore", frozen=True, env_ignore_empty=False
    )

    home: Path = Field(Path(".retail"), description="home of all local state: a path")
    dagster_home: Path | None = Field(
        None,
        validation_alias="DAGSTER_HOME",
        description="Dagster's instance: a path; default $RETAIL_HOME/dagster",
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
    warehouse: str = Field(
        "",
        description="duckdb:PATH or bigquery://PROJECT?location=EU;"
        " default duckdb:$RETAIL_HOME/warehouse.duckdb",
    )
    duckdb_memory_limit: str = Field(
        "1300MB",
        description="most memory that a DuckDB warehouse takes before it spills, such as 1500MB",
    )
    spark: str = Field(
        "embedded",
        description="embedded, local[CORES] or local[*] (JVM), spark://HOST:PORT or sc://HOST:PORT",
    )
    kafka: str = Field(
        "embedded", description="embedded, or HOST:PORT of brokers, several separated by commas"
    )
    kafka_options: SecretStr = Field(
        SecretStr(""),
        description="a JSON object of texts: librdkafka's settings for a login, such as"
        ' {"security.protocol": "SASL_SSL", ...}; empty: none',
    )
    postgres: str = Field(
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
    storage_emulator_host: str | None = Field(
        None,
        validation_alias="STORAGE_EMULATOR_HOST",
        description="http://HOST:PORT of a Cloud Storage emulator, for tests",
    )
    bigquery_emulator_host: str | None = Field(
        None,
        validation_alias="BIGQUERY_EMULATOR_HOST",
        description="http://HOST:PORT of a BigQuery emulator, for tests",
    )
    online_retail_source: Annotated[tuple[str, ...], NoDecode] = Field(
        (SAMPLE_SOURCE,),
        description="a path or http(s) URL, or several separated by commas; default the sample",
    )
    online_retail_start: date = Field(
        date(2009, 12, 1), description="first day of the partitions: YYYY-MM-DD"
    )
    online_retail_end: date | None = Field(
        date(2011, 12, 31), description="last day of the partitions: YYYY-MM-DD, empty for open"
    )
    online_retail_dates: Literal["auto", "iso", "mdy", "dmy"] = Field(
        "auto",
        description="order of days and months in the sources' dates: auto (by all values of a"
        " file), iso, mdy or dmy",
    )
    most_rows_lost: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of its rows that a table, or a drop of one, may lose by a new delivery",
    )
    supply_chain_most_lag: int = Field(
        100_000, gt=0, description="messages that may wait in the topic before a check warns"
    )
    supply_chain_most_age_s: float = Field(
        3600.0, gt=0, description="seconds that a message may wait before a check warns"
    )
    http_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="seconds without a byte before a download is retried"
    )
    http_max_bytes: int = Field(
        4 * 1024**3, gt=0, description="largest source that is downloaded, in bytes"
    )

    @field_validator("online_retail_source", mode="before")
    @classmethod
    def _split_sources(cls, value: object) -> object:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if isinstance(value, list | tuple):
            if not value or not all(value):
                raise ValueError("a source is empty")
            for part in value:
                scheme, found, _ = str(part).partition("://")
                if found and scheme.lower() not in ("http", "https", "file"):
                    raise ValueError(f"{scheme}:// is not a scheme that can be read")
        return value

    @field_validator("online_retail_start", "online_retail_end", mode="before")
    @classmethod
    def _iso_day(cls, value: object, info: ValidationInfo) -> object:
        if value == "" and info.field_name == "online_retail_end":
            return None
        # pydantic alone would read 0 as 1970-01-01.
        return date.fromisoformat(value) if isinstance(value, str) else value

    @field_validator("duckdb_memory_limit")
    @classmethod
    def _size(cls, value: str) -> str:
        if not _SIZE.fullmatch(value):
            raise ValueError("it is no size")
        return value

    @field_validator("spark")
    @classmethod
    def _known_spark(cls, value: str) -> str:
        if not _SPARK.fullmatch(value):
            raise ValueError("it names no Spark")
        return value

    @field_validator("kafka")
    @classmethod
    def _known_kafka(cls, value: str) -> str:
        if not _KAFKA.fullmatch(value):
            raise ValueError("it names no broker")
        return value

    @field_validator("kafka_options")
    @classmethod
    def _object_of_texts(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value().strip():
            try:
                options = json.loads(value.get_secret_value())
            except ValueError:
                raise ValueError("it is no JSON") from None
            if not isinstance(options, dict):
                raise ValueError("it is no JSON object")
            for name, text in options.items():
                if not isinstance(text, str):
                    raise ValueError(f"the value of {name!r} is no text")
            return value
        return SecretStr("")

    @field_validator("postgres")
    @classmethod
    def _known_postgres(cls, value: str) -> str:
        if value != "embedded" and not _POSTGRES.fullmatch(value):
            raise ValueError("it names no database")
        return value

    @field_validator("storage_emulator_host", "bigquery_emulator_host")
    @classmethod
    def _http_host(cls, value: str | None) -> str | None:
        # Some clients of Google's take a bare HOST:PORT; these do not.
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("it is no http:// URL")
        return value

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
        return values

    @model_validator(mode="after")
    def _start_before_end(self) -> Self:
        if self.online_retail_end is not None and self.online_retail_end < self.online_retail_start:
            end_was_set = "online_retail_end" in self.model_fields_set
            raise ValueError(
                f"{'online_retail_end' if end_was_set else 'online_retail_start'}: the first day,"
                f" {self.online_retail_start}, is after the last, {self.online_retail_end}"
            )
        return self

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
    def sample_path(self) -> Path:
        """Where the generated sample workbook of online retail stands."""
        return self.home / "samples" / "online_retail.xlsx"

    @property
    def sample_orders_path(self) -> Path:
        """Where the generated sample of the supply chain stands."""
        return self.home / "samples" / "supply_chain.csv"

    def orders_path(self, named: Path) -> Path:
        """A file of order lines as a person names it: ``sample`` is the generated one."""
        return self.sample_orders_path if str(named) == SAMPLE_SOURCE else named

    @property
    def online_retail_locations(self) -> tuple[str, ...]:
        """The sources of online retail as paths and URLs, the sample resolved."""
        return tuple(
            str(self.sample_path) if part == SAMPLE_SOURCE else part
            for part in self.online_retail_source
        )


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


def redacted(url: str) -> str:
    """The URL of a database, valid or not, with ``***`` where a password may stand.

    Of what is not valid, more is hidden than need be: nobody knows where its password ends.
    """
    valid = _POSTGRES.fullmatch(url)
    if valid is None:
        # A password may hold any of the characters that part the URL.
        scheme, parted, rest = url.partition("://")
        scheme, rest = (f"{scheme}://", rest) if parted else ("", url)
        user, at, after = rest.rpartition("@")
        if not at:
            user, after = rest, ""
        name, colon, secret = user.partition(":")
        if colon and (at or (scheme and not re.match(r"[0-9]{1,5}(/|$)", secret))):
            user = f"{name}:{_HIDDEN}"
        return _without_passwords(f"{scheme}{user}{at}{after}")
    user = valid["user"]
    if valid["password"]:
        user = f"{user}:{_HIDDEN}"
    parts = (valid["query"] or "").split("&")
    for position, part in enumerate(parts):
        key, equals, _ = part.partition("=")
        if equals and "password" in unquote(key).lower():
            parts[position] = f"{key}={_HIDDEN}"
    return (
        f"{valid['scheme']}{'' if user is None else f'{user}@'}{valid['place']}"
        f"{'' if valid['query'] is None else '?'}{'&'.join(parts)}"
    )


def _without_passwords(text: str) -> str:
    """As of ``password=... host=...``, which is libpq's other form."""
    return re.sub(r"(?i)(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", rf"\1{_HIDDEN}", text)


def variable_name(field: str) -> str:
    """The environment variable behind a field of Settings."""
    alias = Settings.model_fields[field].validation_alias
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
        variable = variable_name(field)
        found = overrides.get(field, os.environ.get(variable))
        if field == "postgres":
            found = redacted(str(found))
        shown = "set" if info is not None and info.annotation is SecretStr else repr(found)
        raise SettingsError(
            f"{variable} is {shown}, which is not valid: {message}."
            + (f" Valid: {info.description}." if info else "")
        ) from None


def unknown_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """RETAIL_ variables that no setting reads -> the nearest known name, or an empty text."""
    known = [variable_name(field) for field in Settings.model_fields]
    names = os.environ if environment is None else environment
    return {
        name: next(iter(difflib.get_close_matches(name, known, 1)), "")
        for name in names
        if name.startswith("RETAIL_") and name not in known
    }
