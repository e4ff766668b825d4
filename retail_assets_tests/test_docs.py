"""The documentation against what it tells of: links, settings, commands, what runs by itself."""

import re
from pathlib import Path

import pytest
import typer

from retail_assets.cli import app
from retail_assets.definitions import build_defs
from retail_assets.defs.registry import load_domain
from retail_assets.resources.notify.alert import RUNBOOK, Kind
from retail_assets.settings import Settings, load_settings, variable_name
from retail_assets_tests.conftest import PROJECT

OURS = ("coffee_chain", "online_retail", "supply_chain")

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    text = _FENCED.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def column(page: str, header: str) -> list[str]:
    """The names in the first column of the table of a page that has ``header`` there."""
    text = (PROJECT / "docs" / page).read_text()
    rows = text[text.index(f"\n| {header} |") :].strip().split("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`(.+?)`", row.split("|")[1])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """A page of ours, or an anchor in one, is there."""
    lost = []
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


def test_every_page_is_linked_to_from_the_readme() -> None:
    """Whoever begins with the README finds each of them."""
    links = set(_LINK.findall(PAGES[0].read_text()))
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= {x.partition("#")[0] for x in links}


def test_every_setting_is_told_once() -> None:
    """Each variable, but for those that only tests set."""
    for_tests = {"STORAGE_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST"}
    told = column("settings.md", "variable")
    known = {variable_name(field) for field in Settings.model_fields} - for_tests
    known.update(*(load_domain(name).variables() for name in OURS))
    assert sorted(told) == sorted(known)


def test_every_command_is_told() -> None:
    """And none that is not there, on any page."""
    group = typer.main.get_command(app)
    commands = set(group.list_commands(typer.Context(group)))  # type: ignore[attr-defined]
    rows = [row.split() for row in column("commands.md", "command") if row.startswith("retail-")]
    assert {words[1] for words in rows} == commands
    named = {x for p in PAGES for x in re.findall(r"`retail-assets ([a-z]+)", p.read_text())}
    assert named <= commands


def test_every_alert_is_told() -> None:
    """By the heading that the alert itself names."""
    told = anchors(PROJECT / RUNBOOK)
    assert {kind.title.replace(" ", "-") for kind in Kind} <= told


def test_everything_that_runs_is_told(tmp_path: Path) -> None:
    """Each job, sensor and schedule of the domains that come with the project, by its name."""
    ours = [load_domain(name) for name in OURS]
    repository = build_defs(load_settings(home=tmp_path), ours).get_repository_def()
    jobs = {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")}
    watching = {"lost_runs_sensor", "alerts_sensor", "freshness_sensor"}
    sensors = {sensor.name for sensor in repository.sensor_defs} - watching
    assert set(column("automation.md", "job")) == jobs
    assert set(column("automation.md", "sensor")) == sensors
    assert set(column("automation.md", "schedule")) == {x.name for x in repository.schedule_defs}
