"""Tests of retail_assets.settings: every variable alone, valid and not."""

import os
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from retail_assets.commands.status import shown_settings
from retail_assets.settings import (
    BigQueryTarget,
    Settings,
    SettingsError,
    SourcePlace,
    load_settings,
    redacted,
    source_variables,
    unknown_variables,
    variable_name,
)

_OTHERS = ("DAGSTER_HOME", "JAVA_HOME", "STORAGE_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("RETAIL_") or name.upper() in _OTHERS:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_all_state_is_below_the_working_directory_by_default(tmp_path: Path) -> None:
    found = load_settings()

    home = tmp_path / ".retail"
    assert found.home == home
    assert found.instance_dir == home / "dagster"
    assert found.lake == str(home / "lake")
    assert found.warehouse == f"duckdb:{home / 'warehouse.duckdb'}"
    assert found.warehouse_path == home / "warehouse.duckdb"
    assert found.sample_path == home / "samples" / "online_retail.xlsx"
    assert found.http_timeout_s == 30
    assert found.http_max_bytes == 4 * 1024**3
    assert found.spark == "embedded"
    assert found.java_home is None


def test_home_moves_all_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETAIL_HOME", "elsewhere")
    found = load_settings()

    home = tmp_path / "elsewhere"
    assert found.home == home
    assert found.instance_dir == home / "dagster"
    assert found.lake == str(home / "lake")
    assert found.warehouse_path == home / "warehouse.duckdb"
    assert found.sample_path.is_relative_to(home)


VALID: list[tuple[str, str, str, Any]] = [
    ("RETAIL_HOME", "/srv/retail", "home", Path("/srv/retail")),
    ("RETAIL_HOME", "~/retail", "home", Path.home() / "retail"),
    ("DAGSTER_HOME", "/srv/dagster", "dagster_home", Path("/srv/dagster")),
    ("RETAIL_DAGSTER_STORAGE", "embedded", "dagster_storage", SecretStr("embedded")),
    (
        "RETAIL_DAGSTER_STORAGE",
        "postgresql+psycopg2://u:p@db:5432/dagster",
        "dagster_storage",
        SecretStr("postgresql+psycopg2://u:p@db:5432/dagster"),
    ),
    ("RETAIL_MOST_RUNS", "1", "most_runs", 1),
    ("RETAIL_RUN_TIMEOUT_S", "60", "run_timeout_s", 60),
    ("RETAIL_LAKE", "/srv/lake", "lake", "/srv/lake"),
    ("RETAIL_LAKE", "file:///srv/a lake", "lake", "/srv/a lake"),
    ("RETAIL_LAKE", "gs://shop-lake", "lake", "gs://shop-lake"),
    ("RETAIL_LAKE", "gs://shop-lake/retail/eu/", "lake", "gs://shop-lake/retail/eu"),
    ("RETAIL_LAKE", "gs://shop.example_1/retail", "lake", "gs://shop.example_1/retail"),
    ("RETAIL_LAKE_HISTORY_DAYS", "0", "lake_history_days", 0),
    ("RETAIL_LAKE_HISTORY_DAYS", "30.5", "lake_history_days", 30.5),
    ("RETAIL_WAREHOUSE", "duckdb:/srv/w.duckdb", "warehouse", "duckdb:/srv/w.duckdb"),
    ("RETAIL_SPARK", "embedded", "spark", "embedded"),
    ("RETAIL_SPARK", "local[*]", "spark", "local[*]"),
    ("RETAIL_SPARK", "local[12]", "spark", "local[12]"),
    ("RETAIL_SPARK", "spark://spark.shop.test:7077", "spark", "spark://spark.shop.test:7077"),
    ("RETAIL_SPARK", "spark://a:7077,b:7078", "spark", "spark://a:7077,b:7078"),
    ("RETAIL_SPARK", "sc://10.0.0.7:15002", "spark", "sc://10.0.0.7:15002"),
    ("RETAIL_POSTGRES", "embedded", "postgres", "embedded"),
    *(
        ("RETAIL_POSTGRES", value, "postgres", value)
        for value in (
            *("postgresql://db.shop.test/retail", "postgres://loader@db:5432/retail"),
            *("postgresql://loader:a:b%40c?d#e@10.0.0.7/retail", "postgresql://"),
            *("postgresql://[::1]:5432/retail?sslmode=require&application_name=a@b",),
            *("postgresql://a:5432,b:5433/retail", "postgresql:///retail?host=/run/postgresql"),
        )
    ),
    ("JAVA_HOME", "/srv/jdk", "java_home", "/srv/jdk"),
    ("JAVA_HOME", "", "java_home", None),
    ("RETAIL_BIGQUERY_MAX_BYTES_BILLED", "1", "bigquery_max_bytes_billed", 1),
    ("RETAIL_BIGQUERY_MAX_BYTES_BILLED", "", "bigquery_max_bytes_billed", None),
    (
        "STORAGE_EMULATOR_HOST",
        "http://localhost:4443",
        "storage_emulator_host",
        "http://localhost:4443",
    ),
    ("STORAGE_EMULATOR_HOST", "", "storage_emulator_host", None),
    (
        "BIGQUERY_EMULATOR_HOST",
        "http://localhost:9050",
        "bigquery_emulator_host",
        "http://localhost:9050",
    ),
    ("BIGQUERY_EMULATOR_HOST", "", "bigquery_emulator_host", None),
    ("RETAIL_ONLINE_RETAIL_SOURCE", "sample", "online_retail_source", ("sample",)),
    (
        "RETAIL_ONLINE_RETAIL_SOURCE",
        "/a.csv, https://x.test/b.zip?c=1,file:///d.xlsx",
        "online_retail_source",
        ("/a.csv", "https://x.test/b.zip?c=1", "file:///d.xlsx"),
    ),
    ("RETAIL_ONLINE_RETAIL_START", "2010-12-01", "online_retail_start", date(2010, 12, 1)),
    ("RETAIL_ONLINE_RETAIL_END", "2030-01-31", "online_retail_end", date(2030, 1, 31)),
    ("RETAIL_ONLINE_RETAIL_END", "", "online_retail_end", None),
    ("RETAIL_HTTP_TIMEOUT_S", "0.5", "http_timeout_s", 0.5),
    ("RETAIL_HTTP_MAX_BYTES", "1", "http_max_bytes", 1),
]


@pytest.mark.parametrize(("variable", "value", "field", "expected"), VALID)
def test_each_variable_stands_alone(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, expected: object
) -> None:
    before = load_settings().model_dump()
    monkeypatch.setenv(variable, value)

    after = load_settings().model_dump()

    assert after[field] == expected
    if variable != "RETAIL_HOME":
        assert {k: v for k, v in after.items() if k != field} == {
            k: v for k, v in before.items() if k != field
        }


def test_any_mix_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value, _, _ in VALID:
        monkeypatch.setenv(variable, value)
    found = load_settings()

    for field, expected in {field: expected for _, _, field, expected in VALID}.items():
        assert getattr(found, field) == expected


INVALID = [
    ("RETAIL_LAKE", "s3://bucket/x", "a path"),
    ("RETAIL_LAKE", "file://", "a path"),
    ("RETAIL_LAKE", "gs://", "gs://BUCKET"),
    ("RETAIL_LAKE", "gs:///retail", "gs://BUCKET"),
    ("RETAIL_LAKE", "gs://ab", "gs://BUCKET"),
    ("RETAIL_LAKE", "gs://Shop-Lake/retail", "gs://BUCKET"),
    ("RETAIL_LAKE", "gs://shop lake", "gs://BUCKET"),
    ("RETAIL_LAKE", "gs://-shop", "gs://BUCKET"),
    *(
        ("RETAIL_LAKE_HISTORY_DAYS", value, "days for which replaced files")
        for value in ("", "-1", "nan", "inf", "a week")
    ),
    ("STORAGE_EMULATOR_HOST", "localhost:4443", "http://HOST:PORT"),
    ("BIGQUERY_EMULATOR_HOST", "localhost:9050", "http://HOST:PORT"),
    ("RETAIL_WAREHOUSE", "bigquery://", "bigquery://PROJECT"),
    ("RETAIL_WAREHOUSE", "bigquery:shop-1234", "bigquery://PROJECT"),
    ("RETAIL_WAREHOUSE", "bigquery://shop", "bigquery://PROJECT"),
    ("RETAIL_WAREHOUSE", "bigquery://Shop-1234", "bigquery://PROJECT"),
    ("RETAIL_WAREHOUSE", "bigquery://1234-shop", "bigquery://PROJECT"),
    ("RETAIL_WAREHOUSE", "bigquery://shop-1234/sales", "bigquery://PROJECT"),
    ("RETAIL_WAREHOUSE", "bigquery://shop-1234?region=EU", "bigquery://PROJECT"),
    ("RETAIL_WAREHOUSE", "bigquery://shop-1234?location=EU&key=k.json", "bigquery://PROJECT"),
    *(
        ("RETAIL_SPARK", value, "local[*] (JVM), spark://HOST:PORT or sc://HOST:PORT")
        for value in (
            *("", "Embedded", "sail", "local", "local[]", "local[0]", "local[-1]", "local[2,3]"),
            *("yarn", "k8s://host:443", "spark://", "spark://host", "spark://host:", "sc://:15002"),
            *("sc://host:15002/;token=x", "sc://a:1,b:2", "spark://a:1,", "spark://a b:1"),
            *("sc://host:port", "sc://host:150020", "sc://host:15002/", " embedded", "embedded\n"),
        )
    ),
    ("RETAIL_BIGQUERY_MAX_BYTES_BILLED", "0", "most bytes"),
    ("RETAIL_BIGQUERY_MAX_BYTES_BILLED", "10GB", "most bytes"),
    ("RETAIL_WAREHOUSE", "sqlite:/x.db", "duckdb:PATH"),
    ("RETAIL_WAREHOUSE", "/srv/w.duckdb", "duckdb:PATH"),
    ("RETAIL_WAREHOUSE", "duckdb:", "duckdb:PATH"),
    ("RETAIL_WAREHOUSE", "duckdb://host/w", "duckdb:PATH"),
    ("RETAIL_WAREHOUSE", "duckdb::memory:", "duckdb:PATH"),
    ("RETAIL_ONLINE_RETAIL_SOURCE", "", "a path or http(s) URL"),
    ("RETAIL_ONLINE_RETAIL_SOURCE", "/a.csv,,/b.csv", "a path or http(s) URL"),
    ("RETAIL_ONLINE_RETAIL_SOURCE", "/a.csv,ftp://x/b", "a path or http(s) URL"),
    ("RETAIL_ONLINE_RETAIL_START", "", "YYYY-MM-DD"),
    ("RETAIL_ONLINE_RETAIL_START", "1/12/2010", "YYYY-MM-DD"),
    ("RETAIL_ONLINE_RETAIL_START", "0", "YYYY-MM-DD"),
    ("RETAIL_ONLINE_RETAIL_END", "2011-02-30", "YYYY-MM-DD"),
    ("RETAIL_ONLINE_RETAIL_END", "today", "YYYY-MM-DD"),
    ("RETAIL_ONLINE_RETAIL_DATES", "ymd", "iso, mdy or dmy"),
    ("RETAIL_FOOTFALL_START", "1/12/2010", "YYYY-MM-DD"),
    ("RETAIL_HTTP_TIMEOUT_S", "0", "seconds"),
    ("RETAIL_HTTP_TIMEOUT_S", "-1", "seconds"),
    ("RETAIL_HTTP_TIMEOUT_S", "3601", "seconds"),
    ("RETAIL_HTTP_TIMEOUT_S", "nan", "seconds"),
    ("RETAIL_HTTP_TIMEOUT_S", "soon", "seconds"),
    ("RETAIL_HTTP_MAX_BYTES", "0", "bytes"),
    ("RETAIL_HTTP_MAX_BYTES", "4GB", "bytes"),
    ("RETAIL_HTTP_MAX_BYTES", "1.5", "bytes"),
]


@pytest.mark.parametrize(("variable", "value", "form"), INVALID)
def test_an_invalid_value_is_named_with_its_variable_and_the_valid_forms(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, form: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as error:
        load_settings()

    message = str(error.value)
    assert message.startswith(f"{variable} is {value!r}, which is not valid: ")
    assert form in message.partition("Valid: ")[2]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bigquery://shop-1234", BigQueryTarget("shop-1234", "EU")),
        ("bigquery://shop-1234?location=US", BigQueryTarget("shop-1234", "US")),
        (
            "bigquery://shop-1234/?location=europe-west1",
            BigQueryTarget("shop-1234", "europe-west1"),
        ),
        ("bigquery://example.com:shop-1234", BigQueryTarget("example.com:shop-1234", "EU")),
    ],
)
def test_bigquery_is_a_project_and_a_location(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: BigQueryTarget
) -> None:
    monkeypatch.setenv("RETAIL_LAKE", "gs://shop-lake")
    monkeypatch.setenv("RETAIL_WAREHOUSE", value)
    found = load_settings()

    assert found.bigquery == expected
    assert found.warehouse == f"bigquery://{expected.project}?location={expected.location}"
    with pytest.raises(AssertionError, match="no file"):
        _ = found.warehouse_path


def test_a_duckdb_warehouse_is_no_bigquery() -> None:
    assert load_settings(lake="gs://shop-lake").bigquery is None


@pytest.mark.parametrize("lake", ["", "/srv/lake", "file:///srv/lake"])
def test_bigquery_with_a_local_lake_is_refused(monkeypatch: pytest.MonkeyPatch, lake: str) -> None:
    monkeypatch.setenv("RETAIL_LAKE", lake)
    monkeypatch.setenv("RETAIL_WAREHOUSE", "bigquery://shop-1234")

    with pytest.raises(SettingsError) as error:
        load_settings()

    message = str(error.value)
    assert message.startswith(f"RETAIL_LAKE is {lake!r}, which is not valid: ")
    assert "load jobs take gs:// files" in message
    assert "gs://BUCKET" in message.partition("Valid: ")[2]


def test_settings_hold_no_credential(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = load_settings(lake="gs://shop-lake", warehouse="bigquery://shop-1234")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("DBT_BIGQUERY_TOKEN", "secret-token")
    after = load_settings(lake="gs://shop-lake", warehouse="bigquery://shop-1234")

    assert after == before
    shown = str(shown_settings(after))
    assert "key.json" not in shown and "secret-token" not in shown
    assert ("RETAIL_LAKE", "gs://shop-lake") in shown_settings(after)
    assert ("RETAIL_WAREHOUSE", "bigquery://shop-1234?location=EU") in shown_settings(after)


def test_a_password_in_a_url_is_never_shown() -> None:
    found = load_settings(
        lake="gs://shop-lake",
        warehouse="bigquery://shop-1234",
        online_retail_source="https://me:secret@shop.test/a.csv",
    )

    assert "secret" not in str(shown_settings(found))


OPTIONS = '{"security.protocol": "SASL_SSL", "sasl.password": "hidden-word"}'


def test_kafka_options_are_read_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().kafka_options.get_secret_value() == ""
    monkeypatch.setenv("RETAIL_KAFKA_OPTIONS", OPTIONS)
    found = load_settings()

    assert found.kafka_options.get_secret_value() == OPTIONS
    assert "hidden-word" not in f"{found} {found!r} {found.model_dump()}"
    assert "hidden-word" not in str(shown_settings(found))


@pytest.mark.parametrize("empty", ["", "  ", "{}"])
def test_empty_kafka_options_are_none(monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    monkeypatch.setenv("RETAIL_KAFKA_OPTIONS", empty)

    assert load_settings().kafka_options.get_secret_value() in ("", "{}")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("hidden-word", "no JSON."),
        ('{"sasl.password": "hidden-word"', "no JSON."),
        ('["hidden-word"]', "no JSON object"),
        ('"hidden-word"', "no JSON object"),
        ('{"sasl.password": {"a": "hidden-word"}}', "value of 'sasl.password' is no text"),
        ('{"linger.ms": 20, "sasl.password": "hidden-word"}', "value of 'linger.ms' is no text"),
    ],
)
@pytest.mark.parametrize("is_override", [False, True])
def test_invalid_kafka_options_are_refused_without_a_word_of_them(
    monkeypatch: pytest.MonkeyPatch, value: str, found: str, is_override: bool
) -> None:
    overrides = {"kafka_options": value} if is_override else {}
    if not is_override:
        monkeypatch.setenv("RETAIL_KAFKA_OPTIONS", value)

    with pytest.raises(SettingsError) as error:
        load_settings(**overrides)

    message = str(error.value)
    assert message.startswith("RETAIL_KAFKA_OPTIONS is set, which is not valid: it is ") or (
        message.startswith("RETAIL_KAFKA_OPTIONS is set, which is not valid: the value of ")
    )
    assert found in message and "hidden-word" not in message
    assert "JSON object" in message.partition("Valid: ")[2]
    assert error.value.__cause__ is None and error.value.__suppress_context__


DECLARED = SourcePlace(("/declared.csv",), date(2010, 1, 1), date(2011, 12, 31))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("RETAIL_FOOTFALL_START", "2021-01-01"), ("RETAIL_FOOTFALL_END", "2001-01-01")],
)
def test_a_span_without_a_day_names_the_variable_that_was_set(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as error:
        load_settings().source_of("footfall", DECLARED)

    message = str(error.value)
    assert message.startswith(f"{variable} is {value!r}, which is not valid: the first day, ")
    assert "YYYY-MM-DD" in message.partition("Valid: ")[2]


def test_a_source_is_as_its_variables_say_and_else_as_declared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().source_of("footfall", DECLARED) == DECLARED

    monkeypatch.setenv("RETAIL_FOOTFALL_SOURCE", "/a.csv, https://x.test/b.csv")
    monkeypatch.setenv("RETAIL_FOOTFALL_END", "")
    monkeypatch.setenv("RETAIL_FOOTFALL_DATES", "dmy")

    found = load_settings().source_of("footfall", DECLARED)
    assert found == SourcePlace(("/a.csv", "https://x.test/b.csv"), date(2010, 1, 1), None, "dmy")
    assert load_settings(footfall_source="/c.csv").footfall_source == ("/c.csv",)  # type: ignore[attr-defined]


def test_a_span_without_an_end_reaches_to_today() -> None:
    place = SourcePlace((), date(2010, 1, 1))

    assert [place.has(day) for day in ("2009-12-31", "2010-01-01", "2999-01-01")] == [
        False,
        True,
        True,
    ]
    assert place.until == datetime.now(UTC).date()
    assert DECLARED.until == date(2011, 12, 31) and not DECLARED.has("2012-01-01")


@pytest.mark.parametrize("variable", ["RETAIL_HOME", "DAGSTER_HOME", "RETAIL_LAKE"])
def test_an_empty_location_is_the_default(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    before = load_settings()
    monkeypatch.setenv(variable, "")

    assert load_settings() == before


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("home", "/srv/x", Path("/srv/x")),
        ("lake", "/srv/x", "/srv/x"),
        ("dagster_home", "/srv/x", Path("/srv/x")),
        ("online_retail_source", ("/a.csv",), ("/a.csv",)),
        ("online_retail_end", None, None),
    ],
)
def test_an_override_stands_in_place_of_the_variable(
    monkeypatch: pytest.MonkeyPatch, field: str, value: object, expected: object
) -> None:
    monkeypatch.setenv("RETAIL_LAKE", "/srv/env")
    monkeypatch.setenv("DAGSTER_HOME", "/srv/env")

    assert getattr(load_settings(**{field: value}), field) == expected


def test_an_invalid_override_is_named() -> None:
    with pytest.raises(SettingsError, match="RETAIL_LAKE is 's3://x'"):
        load_settings(lake="s3://x")


def test_settings_cannot_be_changed() -> None:
    found = load_settings()

    with pytest.raises(ValueError, match="frozen"):
        found.lake = "/x"


def test_every_field_has_its_variable() -> None:
    names = {field: variable_name(field) for field in Settings.model_fields}

    for name in map(str.lower, _OTHERS):
        assert names.pop(name) == name.upper()
    assert all(name == f"RETAIL_{field.upper()}" for field, name in names.items())
    assert len(set(names.values())) == len(names)


def test_unknown_variables_come_with_the_nearest_known_name() -> None:
    environment = {
        "RETAIL_LAKE": "/x",
        "RETAIL_LAK": "/x",
        "RETAIL_ONLINE_RETAIL_SOURCES": "/x",
        "RETAIL_ZZZZQQQQ": "/x",
        "HOME": "/x",
        "DAGSTER_HOME": "/x",
    }

    assert unknown_variables(environment, source_variables("online_retail")) == {
        "RETAIL_LAK": "RETAIL_LAKE",
        "RETAIL_ONLINE_RETAIL_SOURCES": "RETAIL_ONLINE_RETAIL_SOURCE",
        "RETAIL_ZZZZQQQQ": "",
    }


def test_unknown_variables_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unknown_variables() == {}

    monkeypatch.setenv("RETAIL_HOMES", "/x")

    assert unknown_variables() == {"RETAIL_HOMES": "RETAIL_HOME"}


PASSWORD = "hidden-word"
INVALID_DATABASES = [
    ("", ""),
    ("Embedded", "Embedded"),
    ("localhost:5432", "localhost:5432"),
    ("mysql://localhost:3306/retail", "mysql://localhost:3306/retail"),
    ("postgresql://db:port/retail", "postgresql://db:***"),
    (f"postgresql+psycopg2://u:{PASSWORD}@h/d", "postgresql+psycopg2://u:***@h/d"),
    (f"u:{PASSWORD}@h/d", "u:***@h/d"),
    (f"postgresql://u:{PASSWORD}", "postgresql://u:***"),
    (f"postgresql://u:a/{PASSWORD}@h/d", "postgresql://u:***@h/d"),
    (f"postgresql://u:a@{PASSWORD}@h/d", "postgresql://u:***@h/d"),
    (f"postgresql://u:a {PASSWORD}@h/d", "postgresql://u:***@h/d"),
    (f"postgresql://u:{PASSWORD}@h:port/d", "postgresql://u:***@h:port/d"),
    (f"postgresql://h /d?password={PASSWORD}&x=1", "postgresql://h /d?password=***&x=1"),
    (f"host=h password={PASSWORD} user=u", "host=h password=*** user=u"),
    (f"host=h password = 'a \\' {PASSWORD}' user=u", "host=h password = *** user=u"),
]


@pytest.mark.parametrize(("value", "shown"), INVALID_DATABASES)
@pytest.mark.parametrize("is_override", [False, True])
def test_an_invalid_database_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, value: str, shown: str, is_override: bool
) -> None:
    if not is_override:
        monkeypatch.setenv("RETAIL_POSTGRES", value)
    with pytest.raises(SettingsError) as error:
        load_settings(**({"postgres": value} if is_override else {}))

    message = str(error.value)
    assert message.startswith(f"RETAIL_POSTGRES is {shown!r}, which is not valid: ")
    assert "postgresql://USER:PASSWORD@HOST:PORT/DATABASE" in message.partition("Valid: ")[2]
    assert PASSWORD not in message
    assert error.value.__cause__ is None and error.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://u:{PASSWORD}@h:5432/d?a=b", "postgresql://u:***@h:5432/d?a=b"),
        (f"postgresql://u:a:{PASSWORD}?#@h/d", "postgresql://u:***@h/d"),
        (f"postgresql://:{PASSWORD}@h", "postgresql://:***@h"),
        (f"postgresql:///d?Pass%57ord={PASSWORD}&x=1", "postgresql:///d?Pass%57ord=***&x=1"),
        (f"postgresql:///d?sslpassword={PASSWORD}", "postgresql:///d?sslpassword=***"),
        ("postgresql://u@[::1]:5432/d?", "postgresql://u@[::1]:5432/d?"),
        ("embedded", "embedded"),
    ],
)
def test_a_password_of_the_database_is_redacted(url: str, shown: str) -> None:
    assert redacted(url) == shown
    assert redacted(shown) == shown
    assert PASSWORD not in repr(load_settings(postgres=url))


@given(
    password=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    place=st.sampled_from(["h", "h:5432/d", "[::1]/d?a=b", "h:port", "h/d?application_name=a@b"]),
    scheme=st.sampled_from(["postgresql://", "postgres://", "postgresql+psycopg://", ""]),
)
def test_no_password_before_an_at_is_ever_shown(password: str, place: str, scheme: str) -> None:
    marked = f"<{password}>"

    assert marked not in redacted(f"{scheme}user:{marked}@{place}")
    assert redacted(f"{scheme}user:{marked}@{place}").startswith(f"{scheme}user:***@")
