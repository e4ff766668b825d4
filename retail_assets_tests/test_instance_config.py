"""Tests of retail_assets.instance_config: a dagster.yaml of an earlier version, and its mending."""

from itertools import islice
from pathlib import Path

import pytest
import yaml

from retail_assets.commands.doctor import examine, mend
from retail_assets.errors import PermanentError
from retail_assets.instance import prepare_instance
from retail_assets.instance_config import differences, our_config
from retail_assets.settings import Settings, load_settings
from retail_assets_tests.conftest import Command, instance_of

# As made before there was run monitoring; what follows is its owner's.
OLD = """\
telemetry:
  enabled: false
nux:
  enabled: false
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
concurrency:
  runs:
    max_concurrent_runs: 9
    tag_concurrency_limits: [{key: mine, limit: 1}]
python_logs: {python_log_level: WARNING}
"""


@pytest.fixture(autouse=True)
def no_other_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")  # which what opens an instance sets


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path, most_runs=3, run_timeout_s=600)


def config_of(settings: Settings) -> Path:
    return settings.instance_dir / "dagster.yaml"


def test_a_new_one_is_ours_and_dagster_takes_it(settings: Settings) -> None:
    prepare_instance(settings)

    assert differences(settings) == []
    with instance_of(settings.home) as instance:
        assert instance.run_monitoring_enabled and instance.run_retries_enabled
        assert instance.run_monitoring_max_runtime_seconds == 900
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None and queue.max_concurrent_runs == 3


def test_an_old_one_is_obeyed_and_told_line_by_line(settings: Settings) -> None:
    settings.instance_dir.mkdir()
    config_of(settings).write_text(OLD)

    prepare_instance(settings)

    assert config_of(settings).read_text() == OLD
    told = differences(settings)
    assert "concurrency.runs.max_concurrent_runs: 3 (found: 9)" in told
    assert "run_monitoring.enabled: True (found: nothing)" in told
    assert not any(line.startswith(("telemetry", "nux", "python_logs")) for line in told)


def test_mending_keeps_a_copy_and_what_is_its_owner_s(settings: Settings) -> None:
    settings.instance_dir.mkdir()
    config_of(settings).write_text(OLD)

    told = mend(settings)

    (copy,) = settings.instance_dir.glob("dagster.yaml.*")
    assert copy.read_text() == OLD and str(copy) in told
    assert "concurrency.runs.max_concurrent_runs: 3 (found: 9)" in told
    mended = yaml.safe_load(config_of(settings).read_text())
    assert mended["python_logs"] == {"python_log_level": "WARNING"}
    assert mended["concurrency"]["runs"]["tag_concurrency_limits"] == [{"key": "mine", "limit": 1}]
    assert mended.items() >= {"run_monitoring": our_config(settings)["run_monitoring"]}.items()
    assert differences(settings) == []
    with instance_of(settings.home) as instance:
        assert instance.run_monitoring_enabled
    assert mend(settings) == "dagster.yaml is as ours"


def test_one_that_is_no_yaml_is_told_and_left(settings: Settings) -> None:
    settings.instance_dir.mkdir()
    config_of(settings).write_text("telemetry: [")

    with pytest.raises(PermanentError, match=r"dagster\.yaml is no YAML: .* Mend it, or delete it"):
        mend(settings)

    assert config_of(settings).read_text() == "telemetry: ["


def test_a_password_stays_in_the_environment(tmp_path: Path) -> None:
    url = "postgresql+psycopg2://dagster:s3cret@db/dagster"
    remote = load_settings(home=tmp_path, dagster_storage=url)

    prepare_instance(remote)

    assert "s3cret" not in config_of(remote).read_text() + repr(remote)
    told = yaml.safe_load(config_of(remote).read_text())["storage"]
    assert told == {"postgres": {"postgres_url": {"env": "RETAIL_DAGSTER_STORAGE"}}}

    config_of(remote).write_text(f"storage: {{postgres: {{postgres_url: '{url}'}}}}")
    shown = mend(load_settings(home=tmp_path, dagster_storage="embedded"))
    assert "dagster:***@db/dagster" in shown and "s3cret" not in shown

    config_of(remote).write_text("storage: {sqlite: {base_dir: /old}}")
    mend(remote)
    assert yaml.safe_load(config_of(remote).read_text())["storage"] == told


def test_doctor_finds_what_is_behind_and_mends_it(tmp_path: Path, retail_assets: Command) -> None:
    settings = load_settings(home=tmp_path)
    settings.instance_dir.mkdir()
    config_of(settings).write_text(OLD)

    (found,) = islice((x for x in examine(settings) if x.system == "dagster.yaml"), 1)
    assert not found.ok and "max_concurrent_runs: 4 (found: 9)" in found.found
    assert "doctor --fix" in found.fix
    assert config_of(settings).read_text() == OLD

    mended = retail_assets("doctor", "--fix", home=settings.home)
    assert "dagster.yaml: run_monitoring.enabled: True (found: nothing)\n" in mended.stdout
    assert "ok   dagster.yaml: as ours" in mended.stdout
