"""Tests of doctor's questions to Google, put by the real clients to a server on localhost."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retail_assets.commands import doctor
from retail_assets.commands.doctor import Finding, examine
from retail_assets.defs.coffee_chain import feed as coffee_chain
from retail_assets.resources import cloud_checks
from retail_assets.resources.cloud_checks import (
    BUCKET_PERMISSIONS,
    TABLE_PERMISSIONS,
    CloudChecks,
    may_load,
)
from retail_assets.resources.operational_db import OperationalDbResource
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.google_server import ACCOUNT, Google, running

DATASETS = (
    "malaysian_coffee_chain",
    "coffee_chain_staging",
    "coffee_chain_core",
    "online_retail",
    "online_retail_staging",
    "online_retail_core",
    "supply_chain",
    "supply_chain_staging",
    "supply_chain_core",
    "retail_operations",
)


@pytest.fixture
def google() -> Iterator[Google]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_checks, "_TIMEOUT_S", 3.0)
    for name in list(os.environ):
        if name.startswith(("RETAIL_", "DAGSTER_", "GOOGLE_", "GCE_")):
            monkeypatch.delenv(name)


def settings_of(google: Google, home: Path, **changes: object) -> Settings:
    values: dict[str, object] = {
        "home": home,
        "lake": "gs://shop-lake/retail",
        "warehouse": "bigquery://shop-1234?location=EU",
        "STORAGE_EMULATOR_HOST": google.url,
        "BIGQUERY_EMULATOR_HOST": google.url,
    }
    return load_settings(**(values | changes))


def findings_of(settings: Settings) -> dict[str, Finding]:
    """Doctor's findings on Google, in order; the rest is local and has tests of its own."""
    asked = {
        question.system for question in CloudChecks(settings, dict.fromkeys(DATASETS)).questions()
    }
    return {found.system: found for found in examine(settings) if found.system in asked}


def failed(findings: dict[str, Finding]) -> list[str]:
    return [system for system, finding in findings.items() if not finding.ok]


@pytest.fixture(autouse=True)
def without_local_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Parsing dbt's project for each test would take seconds, and so would a Spark.
    for name in ("_dbt", "_dagster"):
        monkeypatch.setattr(doctor, name, lambda _: "left out")
    monkeypatch.setattr(coffee_chain, "_probe_spark", lambda _: "left out")
    monkeypatch.setattr(OperationalDbResource, "probe", lambda _: "left out")


def test_all_is_well_in_an_empty_project(google: Google, tmp_path: Path) -> None:
    found = findings_of(settings_of(google, tmp_path, bigquery_max_bytes_billed=5_000_000))

    assert failed(found) == []
    assert list(found) == [
        "lake bucket",
        "lake permissions",
        "warehouse query",
        *(f"warehouse dataset {name}" for name in DATASETS),
        "warehouse location",
    ]
    assert found["lake bucket"].found == "gs://shop-lake, EU (multi-region)"
    assert "at most 5,000,000 bytes" in found["warehouse query"].found
    assert "may be created in EU" in found["warehouse dataset online_retail_core"].found


def test_all_is_well_after_the_first_load(google: Google, tmp_path: Path) -> None:
    google.datasets = dict.fromkeys(DATASETS, "EU")
    google.tables = {"online_retail.online_retail_data"}
    google.table_permissions = set(TABLE_PERMISSIONS)

    found = findings_of(settings_of(google, tmp_path))

    assert failed(found) == []
    for name in DATASETS:
        assert found[f"warehouse dataset {name}"].found == f"shop-1234.{name}, EU, may be written"
    assert google.bodies("online_retail_data:testIamPermissions") == [
        {"permissions": list(TABLE_PERMISSIONS)}
    ]
    # Of a table that is not there BigQuery says that nothing is granted: it must not be asked.
    assert google.bodies("loaded_partitions:testIamPermissions") == []


def test_the_datasets_of_every_domain_are_asked_for(google: Google, tmp_path: Path) -> None:
    asked = [found.system for found in examine(settings_of(google, tmp_path))]

    prefix = "warehouse dataset "
    assert [x.removeprefix(prefix) for x in asked if x.startswith(prefix)] == list(DATASETS)
    assert {"spark", "online_retail source", "kafka", "postgres"} <= set(asked)


def test_nothing_runs_and_nothing_is_written(google: Google, tmp_path: Path) -> None:
    google.datasets = {"online_retail": "EU"}

    findings_of(settings_of(google, tmp_path))

    jobs = google.bodies("/jobs")
    assert jobs and all(job["configuration"]["dryRun"] is True for job in jobs)
    assert {job["jobReference"]["location"] for job in jobs} == {"EU"}
    assert {job["configuration"]["query"]["query"] for job in jobs} == {
        "select 1",
        "create table `shop-1234`.online_retail.retail_doctor_probe (x int64)",
        *(
            f"create schema `shop-1234`.{name} options (location = 'EU')"
            for name in DATASETS
            if name != "online_retail"
        ),
    }
    posts = {path for method, path, _, _ in google.requests if method == "POST"}
    assert posts == {"/bigquery/v2/projects/shop-1234/jobs"}


@pytest.mark.parametrize(("permission", "role"), BUCKET_PERMISSIONS.items())
def test_each_missing_permission_of_the_bucket_is_named_with_its_role(
    google: Google, tmp_path: Path, permission: str, role: str
) -> None:
    google.bucket_permissions.remove(permission)

    found = findings_of(settings_of(google, tmp_path))

    assert failed(found) == ["lake permissions"]
    assert found["lake permissions"].found == f"gs://shop-lake lacks {permission}"
    assert found["lake permissions"].fix == (
        f"grant {role} on the bucket: gcloud storage buckets add-iam-policy-binding"
        f" gs://shop-lake --member=MEMBER --role={role}"
    )


def test_a_bucket_that_grants_nothing_names_every_role(google: Google, tmp_path: Path) -> None:
    google.bucket_permissions.clear()
    google.refused.add("storage.buckets.get")

    found = findings_of(settings_of(google, tmp_path))

    assert failed(found) == ["lake bucket", "lake permissions", "warehouse location"]
    assert "refuses storage.buckets.get" in found["lake bucket"].found
    assert "--role=roles/storage.legacyBucketReader" in found["lake bucket"].fix
    for role in set(BUCKET_PERMISSIONS.values()):
        assert f"--role={role}" in found["lake permissions"].fix
    assert found["warehouse location"].fix == "mend what lake bucket says"


def test_a_bucket_that_could_be_made_public_is_noted(google: Google, tmp_path: Path) -> None:
    google.public = True

    found = findings_of(settings_of(google, tmp_path))

    assert failed(found) == []
    assert "without uniform bucket-level access" in found["lake bucket"].found
    assert "without public access prevention" in found["lake bucket"].found


def test_a_bucket_that_is_not_there_comes_with_the_command_that_makes_it(
    google: Google, tmp_path: Path
) -> None:
    google.buckets.clear()

    found = findings_of(
        settings_of(google, tmp_path, warehouse="bigquery://shop-1234?location=europe-west1")
    )

    assert failed(found) == ["lake bucket", "lake permissions", "warehouse location"]
    assert found["lake bucket"].found == "there is no bucket gs://shop-lake"
    assert "buckets create gs://shop-lake --location=europe-west1 " in found["lake bucket"].fix


@pytest.mark.parametrize("api", ["storage", "bigquery"])
def test_an_api_that_is_off_comes_with_the_command_that_enables_it(
    google: Google, tmp_path: Path, api: str
) -> None:
    google.disabled.add(api)

    found = findings_of(settings_of(google, tmp_path))

    system = "lake bucket" if api == "storage" else "warehouse query"
    assert system in failed(found)
    expected = f"gcloud services enable {api}.googleapis.com --project=shop-1234"
    assert found[system].fix == expected


def test_a_bucket_elsewhere_is_refused_with_both_places(google: Google, tmp_path: Path) -> None:
    google.buckets["shop-lake"] = "US-EAST1"

    found = findings_of(settings_of(google, tmp_path))

    assert failed(found) == ["warehouse location"]
    assert "is in US-EAST1, the datasets in EU" in found["warehouse location"].found
    assert "make a bucket in EU" in found["warehouse location"].fix
    assert "bigquery://shop-1234?location=us-east1" in found["warehouse location"].fix


@pytest.mark.parametrize(
    ("bucket", "dataset", "expected"),
    [
        ("EU", "EU", True),
        ("eu", "EU", True),
        ("EUROPE-WEST1", "EU", True),
        ("EUR4", "EU", True),
        ("EUROPE-WEST1", "europe-west1", True),
        ("US-CENTRAL1", "US", True),
        ("NAM4", "US", True),
        ("EU", "europe-west1", False),
        ("EUROPE-WEST4", "europe-west1", False),
        ("EUROPE-WEST2", "EU", False),
        ("EUROPE-WEST6", "EU", False),
        ("US", "EU", False),
        ("EU", "US", False),
        ("ASIA", "asia-northeast1", False),
    ],
)
def test_load_jobs_take_a_bucket_of_the_same_place(
    bucket: str, dataset: str, expected: bool
) -> None:
    assert may_load(bucket, dataset) is expected


def test_a_project_that_refuses_queries_names_the_role(google: Google, tmp_path: Path) -> None:
    google.refused.add("bigquery.jobs.create")

    found = findings_of(settings_of(google, tmp_path))

    assert "warehouse query" in failed(found)
    assert "lake bucket" not in failed(found)
    assert "refuses bigquery.jobs.create: Permission bigquery.jobs.create denied" in (
        found["warehouse query"].found
    )
    assert found["warehouse query"].fix == (
        "grant roles/bigquery.jobUser on the project: gcloud projects add-iam-policy-binding"
        " shop-1234 --member=MEMBER --role=roles/bigquery.jobUser"
    )


def test_a_project_that_is_not_there_is_said(google: Google, tmp_path: Path) -> None:
    found = findings_of(settings_of(google, tmp_path, warehouse="bigquery://no-such-project"))

    assert "Not found: Project no-such-project" in found["warehouse query"].found
    assert "correct the project" in found["warehouse query"].fix


def test_a_dataset_elsewhere_is_refused_with_both_places(google: Google, tmp_path: Path) -> None:
    google.datasets = {"online_retail_core": "US"}

    found = findings_of(settings_of(google, tmp_path))

    assert failed(found) == ["warehouse dataset online_retail_core"]
    finding = found["warehouse dataset online_retail_core"]
    assert "is in US, but RETAIL_WAREHOUSE asks for EU" in finding.found
    assert "RETAIL_WAREHOUSE=bigquery://shop-1234?location=US" in finding.fix
    assert "if nothing in it is needed" in finding.fix


def test_a_missing_dataset_that_may_not_be_created_names_both_ways(
    google: Google, tmp_path: Path
) -> None:
    google.refused.add("bigquery.datasets.create")
    google.datasets = dict.fromkeys((x for x in DATASETS if x != "online_retail"), "EU")

    found = findings_of(settings_of(google, tmp_path))

    assert failed(found) == ["warehouse dataset online_retail"]
    finding = found["warehouse dataset online_retail"]
    assert "bigquery.datasets.create is refused" in finding.found
    assert "--role=roles/bigquery.user" in finding.fix
    assert "bq mk --dataset --location=EU shop-1234:online_retail" in finding.fix
    assert "GRANT `roles/bigquery.dataEditor` ON SCHEMA `shop-1234`.online_retail" in finding.fix


def test_a_dataset_that_refuses_itself_names_the_role(google: Google, tmp_path: Path) -> None:
    google.datasets = dict.fromkeys(DATASETS, "EU")
    google.refused.add("bigquery.datasets.get")

    found = findings_of(settings_of(google, tmp_path))

    assert failed(found) == [f"warehouse dataset {name}" for name in DATASETS]
    finding = found["warehouse dataset retail_operations"]
    assert "refuses bigquery.datasets.get" in finding.found
    assert "GRANT `roles/bigquery.dataEditor`" in finding.fix


@pytest.mark.parametrize("permission", [*TABLE_PERMISSIONS, "bigquery.tables.create"])
def test_each_missing_permission_of_a_table_is_named(
    google: Google, tmp_path: Path, permission: str
) -> None:
    google.datasets = {"online_retail": "EU"}
    google.tables = {"online_retail.online_retail_data"}
    google.table_permissions = set(TABLE_PERMISSIONS) - {permission}
    google.refused.add(permission)

    found = findings_of(settings_of(google, tmp_path))

    assert failed(found) == ["warehouse dataset online_retail"]
    finding = found["warehouse dataset online_retail"]
    assert finding.found == f"shop-1234.online_retail lacks {permission}"
    assert "GRANT `roles/bigquery.dataEditor`" in finding.fix


def test_a_service_that_is_busy_is_asked_again(google: Google, tmp_path: Path) -> None:
    google.busy = 1

    found = findings_of(settings_of(google, tmp_path))

    assert failed(found) == []


def test_a_service_that_does_not_answer_is_a_finding_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running() as gone:
        settings = settings_of(gone, tmp_path)
    monkeypatch.setattr(cloud_checks, "_TIMEOUT_S", 0.2)

    found = findings_of(settings)

    assert failed(found) == list(found)
    assert "reaches storage.googleapis.com" in found["lake bucket"].fix
    assert "reaches bigquery.googleapis.com" in found["warehouse query"].fix


def test_a_bucket_with_a_local_warehouse_asks_nothing_of_bigquery(
    google: Google, tmp_path: Path
) -> None:
    found = findings_of(settings_of(google, tmp_path, warehouse=f"duckdb:{tmp_path}/w.duckdb"))

    assert failed(found) == []
    assert list(found) == ["lake bucket", "lake permissions"]


def in_a_new_process(code: str, **environment: str) -> str:
    """What ``code`` prints where no variable of this process tells of an account."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_ASK = """
from retail_assets.resources.cloud_checks import CloudChecks, CheckFailedError
from retail_assets.settings import load_settings
for question in CloudChecks(load_settings(), {"online_retail": None}).questions():
    try:
        print("ok", question.system, "|", question.ask())
    except CheckFailedError as failed:
        print("FAIL", question.system, "|", failed, "|", failed.fix)
"""


def test_without_credentials_every_question_says_so_and_asks_for_no_key(tmp_path: Path) -> None:
    lines = in_a_new_process(
        _ASK,
        HOME=str(tmp_path),
        NO_GCE_CHECK="true",
        RETAIL_HOME=str(tmp_path),
        RETAIL_LAKE="gs://shop-lake",
        RETAIL_WAREHOUSE="bigquery://shop-1234",
    ).splitlines()

    first = lines[0]
    assert first.startswith("FAIL google credentials | no application default credentials")
    assert "attach a service account" in first and "no key file is needed" in first
    assert len(lines) == 6
    for line in lines[1:5]:
        assert line.startswith("FAIL") and "not asked: there are no credentials" in line
    assert lines[5].startswith("FAIL warehouse location | the bucket's location is not known")


def test_an_attached_service_account_is_found_and_named(google: Google, tmp_path: Path) -> None:
    google.bucket_permissions.remove("storage.objects.delete")
    lines = in_a_new_process(
        _ASK,
        HOME=str(tmp_path),
        GCE_METADATA_HOST=google.url.removeprefix("http://"),
        GCE_METADATA_IP=google.url.removeprefix("http://"),
        # The client's own variable, for which it keeps its credentials.
        API_ENDPOINT_OVERRIDE=google.url,
        RETAIL_HOME=str(tmp_path),
        RETAIL_LAKE="gs://shop-lake",
    ).splitlines()

    assert lines[0] == (
        f"ok google credentials | serviceAccount:{ACCOUNT}, attached to this machine,"
        " project shop-1234"
    )
    assert lines[1] == "ok lake bucket | gs://shop-lake, EU (multi-region)"
    assert f"--member=serviceAccount:{ACCOUNT} --role=roles/storage.objectUser" in lines[2]
    asked = {sent for _, path, _, sent in google.requests if path.startswith("/storage")}
    assert asked == {"Bearer the-token"}


def test_credentials_that_give_no_token_are_a_finding(google: Google, tmp_path: Path) -> None:
    # What gcloud leaves behind, and its session has ended.
    folder = tmp_path / ".config" / "gcloud"
    folder.mkdir(parents=True)
    (folder / "application_default_credentials.json").write_text(
        '{"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}'
    )
    code = "import google.oauth2.credentials as c\n"
    code += f"c._GOOGLE_OAUTH2_TOKEN_ENDPOINT = {google.url + '/computeMetadata/v1/no'!r}\n"
    lines = in_a_new_process(
        code + _ASK,
        HOME=str(tmp_path),
        NO_GCE_CHECK="true",
        RETAIL_HOME=str(tmp_path),
        RETAIL_LAKE="gs://shop-lake",
    ).splitlines()

    assert lines[0].startswith("FAIL google credentials | application default credentials were")
    assert "give no token" in lines[0]
    assert "gcloud auth application-default login" in lines[0]


def test_local_settings_import_nothing_of_google(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)  # packages of Google's may leave empty namespaces there at start-up
from retail_assets.commands.doctor import examine
from retail_assets.settings import load_settings
found = list(examine(load_settings()))
for system in ("warehouse", "spark"):
    assert any(finding.system == system and finding.ok for finding in found), found
# Spark's client talks in Google's formats: no account, no request.
formats = ("google.protobuf", "google._upb", "google.rpc")
new = set(sys.modules) - before - {"google"}
print(sorted(x for x in new if x.startswith("google.") and not x.startswith(formats)))
"""
    environment = {"HOME": str(tmp_path), "RETAIL_HOME": str(tmp_path / "home")}

    assert in_a_new_process(code, **environment).strip() == "[]"
