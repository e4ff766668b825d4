"""The operational database on Debian's PostgreSQL, over TCP, by a user that is no superuser."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from retail_assets.database_url import redacted
from retail_assets.resources.operational_db import (
    OperationalDbRefusedError,
    OperationalDbResource,
    OperationalDbUnreachableError,
    UnstorableValueError,
    ensure_table,
    insert_new,
)
from retail_assets.settings import load_settings
from retail_assets_tests.conftest import PROJECT
from retail_assets_tests.live.conftest import Servers

pytestmark = pytest.mark.live

COLUMNS = {"partition": "integer", "offset": "bigint", "payload": "jsonb not null"}
KEY = ("partition", "offset")
TABLE = "live_streaming.messages"


@pytest.fixture
def url(servers: Servers) -> str:
    return servers.address("POSTGRES_URL", "postgres")


@pytest.fixture
def database(url: str) -> Iterator[OperationalDbResource]:
    resource = OperationalDbResource.of(load_settings(postgres=url))
    with resource.connect() as connection:
        ensure_table(connection, TABLE, COLUMNS, KEY)
    yield resource
    with resource.connect() as connection:
        connection.execute("drop schema live_streaming cascade")


def restart(servers: Servers, mode: str) -> None:
    command = [str(PROJECT / ".ci" / "postgres"), "restart", str(servers.folder), mode]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def messages(start: int, stop: int) -> pa.Table:
    numbers = range(start, stop)
    payloads = [json.dumps({"Order Id": n, "Order City": "Águas\tLindas \\ \n"}) for n in numbers]
    return pa.table(
        {
            "partition": pa.array([n % 4 for n in numbers], pa.int32()),
            "offset": pa.array([n // 4 for n in numbers], pa.int64()),
            "payload": payloads,
        }
    )


def landed(database: OperationalDbResource) -> tuple[int, int]:
    """Rows, and the sum of what they say."""
    with database.connect() as connection:
        row = connection.execute(
            "select count(*), coalesce(sum((payload ->> 'Order Id')::int), 0)"
            " from live_streaming.messages"
        ).fetchone()
    assert row is not None
    return row[0], row[1]


def test_the_probe_tells_the_server_without_the_password(
    database: OperationalDbResource, url: str
) -> None:
    told = database.probe()

    assert told.startswith(f"{redacted(url)}, PostgreSQL ") and "Debian" in told
    assert url.partition("://")[2].partition("@")[0] not in told


def test_a_server_that_restarts_between_two_transactions_loses_nothing(
    servers: Servers, database: OperationalDbResource
) -> None:
    with database.connect() as connection:
        assert insert_new(connection, TABLE, COLUMNS, messages(0, 5000), KEY) == 5000
    for mode, already in (("fast", 0), ("immediate", 2500)):
        restart(servers, mode)
        with database.connect() as connection:
            rows = messages(0, 10_000 - already)
            insert_new(connection, TABLE, COLUMNS, rows, KEY)

    assert landed(database) == (10_000, sum(range(10_000)))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_restarts_within_a_transaction_has_none_of_it(
    servers: Servers, database: OperationalDbResource, mode: str
) -> None:
    def rows() -> Iterator[tuple[int, int, str]]:
        for number in range(30_000):
            if number == 20_000:
                restart(servers, mode)
            yield number % 4, number // 4, json.dumps({"Order Id": number})

    with pytest.raises(OperationalDbUnreachableError) as error, database.connect() as connection:
        insert_new(connection, TABLE, COLUMNS, rows(), KEY)
    assert "the transaction was lost" in str(error.value)
    assert landed(database) == (0, 0)
    with database.connect() as connection:
        assert insert_new(connection, TABLE, COLUMNS, messages(0, 30_000), KEY) == 30_000


def test_a_connection_that_outlived_its_server_is_told_at_the_next_transaction(
    servers: Servers, database: OperationalDbResource
) -> None:
    def two(connection: "psycopg.Connection[Any]") -> None:
        insert_new(connection, TABLE, COLUMNS, messages(0, 10), KEY)
        connection.commit()
        restart(servers, "fast")
        insert_new(connection, TABLE, COLUMNS, messages(10, 20), KEY)

    with pytest.raises(OperationalDbUnreachableError), database.connect() as connection:
        two(connection)

    assert landed(database) == (10, sum(range(10)))


def test_wrong_passwords_and_databases_are_refused_and_never_shown(url: str) -> None:
    start, _, place = url.rpartition("@")
    wrong = f"{start}-no@{place}"
    with pytest.raises(OperationalDbRefusedError) as error:
        OperationalDbResource(url=wrong, home="").probe()
    assert "password authentication failed" in str(error.value)
    assert redacted(wrong) in str(error.value)
    assert start.rpartition(":")[2] not in f"{error.value} {error.value.__cause__}"

    without = f"{start.rpartition(':')[0]}@{place}"
    with pytest.raises(OperationalDbRefusedError, match="no password supplied"):
        OperationalDbResource(url=without, home="").probe()
    with pytest.raises(OperationalDbRefusedError, match='database "absent" does not exist'):
        OperationalDbResource(url=f"{start}@{place.replace('/retail', '/absent')}", home="").probe()


def test_a_server_without_tls_is_refused_where_tls_is_asked_for(url: str) -> None:
    with pytest.raises(OperationalDbRefusedError, match="does not support SSL"):
        OperationalDbResource(url=f"{url}?sslmode=require", home="").probe()


def test_what_the_user_may_not_do_is_refused(database: OperationalDbResource) -> None:
    with (
        pytest.raises(OperationalDbRefusedError, match="permission denied"),
        database.connect() as connection,
    ):
        connection.execute("select * from pg_authid")


def test_values_that_it_cannot_hold_are_named(database: OperationalDbResource) -> None:
    bad = messages(0, 3).set_column(2, "payload", pa.array(["{}", '"\\u0000"', "{}"]))
    with (
        pytest.raises(UnstorableValueError, match="row 2, column payload"),
        database.connect() as connection,
    ):
        insert_new(connection, TABLE, COLUMNS, bad, KEY)

    assert landed(database) == (0, 0)
