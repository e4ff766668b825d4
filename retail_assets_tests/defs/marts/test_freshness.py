"""Tests of retail_assets.defs.marts.freshness: looks at a real warehouse, as the daemon's."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from retail_assets.defs.marts.freshness import (
    BUILT_CHECK,
    GRACE,
    RECENT_CHECK,
    Watch,
    build_defs,
    describe_behind,
)
from retail_assets.domain import MARTS_STAGE
from retail_assets.feeds.landing import landed_key
from retail_assets.settings import SettingsError, load_settings
from retail_assets_tests.feeds.shop import D1, D2, D3, SALES, SHOPS, Shop, Shops

MART, OTHER = dg.AssetKey(["shop_core", "mart"]), dg.AssetKey(["shop_core", "of_shops"])


class Daemon:
    """Looks of the sensor, each with the cursor that the one before left."""

    def __init__(self, shop: Shop, within: timedelta | None = None) -> None:
        self.shop = shop
        watch = Watch(Shops(), {MART: [SALES], OTHER: [SHOPS]}, within)
        self.defs = build_defs(load_settings(home=shop.root), [watch])
        self.cursor: str | None = None

    def look(self) -> dict[str, str | None]:
        """What is told: of each asset that there is news of, why, or None where it is well."""
        (sensor,) = self.defs.sensors or ()
        assert isinstance(sensor, dg.SensorDefinition)
        with dg.build_sensor_context(
            self.shop.instance, cursor=self.cursor, resources={"warehouse": self.shop.warehouse}
        ) as context:
            data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        told = {}
        for event in data.asset_events:
            assert isinstance(event, dg.AssetCheckEvaluation)
            assert event.passed is (event.description is None)
            assert event.severity is dg.AssetCheckSeverity.WARN
            self.shop.instance.report_runless_asset_event(event)
            told[event.asset_key.path[-1]] = event.description
        return told

    def wait(self) -> None:
        """Let the grace pass, as if the marts had been behind for longer."""
        since = json.loads(self.cursor or "{}")
        earlier = (datetime.now(UTC) - GRACE).isoformat()
        self.cursor = json.dumps({name: [built, earlier] for name, (built, _) in since.items()})


@pytest.fixture
def sales(tmp_path: Path) -> Iterator[Shop]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Shop(tmp_path, SALES, instance)


def build_marts(shop: Shop) -> None:
    shop.warehouse.record_versions(SALES, MARTS_STAGE, shop.warehouse.loaded_versions(SALES))


def test_marts_on_stale_facts_are_told_until_they_are_built(sales: Shop) -> None:
    daemon = Daemon(sales)
    sales.put(D1, 1, version="a1")
    sales.put(D2, 2, version="a2")
    sales.land()
    build_marts(sales)
    assert daemon.look() == {"mart": None, "of_shops": None}
    assert daemon.look() == {}  # told once

    sales.put(D3, 3, version="a3")
    sales.land()
    assert daemon.look() == {}  # the marts may follow
    daemon.wait()

    told = (
        f"landed_shop.sales is landed until {D3}, the marts are of {D2}; 1 of 3 partitions differ."
        " Run: the job shop_marts"
    )
    assert daemon.look() == {"mart": told}
    assert daemon.look() == {}
    build_marts(sales)
    assert daemon.look() == {"mart": None}


def test_a_check_that_is_asked_for_looks_at_once(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.land()
    (check,) = Daemon(sales).defs.asset_checks or ()

    result = dg.materialize(
        [dg.AssetSpec(MART), dg.AssetSpec(OTHER), check],
        instance=sales.instance,
        resources={"warehouse": sales.warehouse},
        selection=dg.AssetSelection.checks(dg.AssetCheckKey(MART, BUILT_CHECK)),
    )

    (found,) = result.get_asset_check_evaluations()
    assert (found.asset_key, found.passed) == (MART, False)
    assert "the marts are of nothing" in str(found.description)


def test_data_that_are_older_than_the_setting_allows_are_told(sales: Shop) -> None:
    today = datetime.now(UTC).date()
    recent = Daemon(sales, timedelta(hours=48))
    sales.put(D1, 1, version="a1")
    sales.put(str(today), version="empty")  # a day of no rows is no news
    sales.land()
    build_marts(sales)

    assert recent.look()["sales"] == (
        f"landed_shop.sales has data until {D1}; expected of the last 48 hours"
        " (RETAIL_FRESH_WITHIN_H). Look whether the source delivers, and whether the domain's"
        " sensor is on."
    )
    sales.put(str(today), 2, version="b1")
    sales.land()
    build_marts(sales)
    assert recent.look() == {"sales": None}
    key = dg.AssetCheckKey(landed_key(SALES), RECENT_CHECK)
    record = sales.instance.get_latest_asset_check_evaluation_record(key)
    assert record is not None and record.status.value == "SUCCEEDED"


def test_a_warehouse_that_is_held_is_looked_at_later(sales: Shop) -> None:
    sales.put(D1, 1, version="a1")
    sales.land()
    daemon = Daemon(sales)
    with sales.warehouse.exclusive():
        assert daemon.look() == {}
    assert daemon.look() == {"of_shops": None}


@pytest.mark.parametrize(
    ("landed", "built", "told"),
    [
        ({"": "v1"}, {"": "v1"}, ""),
        ({"": "v2"}, {"": "v1"}, "landed_shop.shops was landed since the marts were built"),
    ],
)
def test_a_table_of_one_file_is_behind_or_not(
    landed: dict[str, str], built: dict[str, str], told: str
) -> None:
    assert describe_behind(SHOPS, landed, built) == told


def test_hours_of_a_domain_that_is_none_are_refused(tmp_path: Path) -> None:
    from retail_assets.definitions import build_defs as all_defs

    with pytest.raises(SettingsError, match="RETAIL_FRESH_WITHIN_H is 'soon', which is not valid"):
        load_settings(fresh_within_h="soon")
    settings = load_settings(home=tmp_path, fresh_within_h="coffee_shop=26")
    with pytest.raises(SettingsError, match="names coffee_shop, which is no domain"):
        all_defs(settings)
