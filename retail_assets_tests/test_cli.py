"""Tests of retail_assets.cli: how arguments are read, and what is refused before any work."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from retail_assets.cli import app
from retail_assets.errors import PermanentError


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in list(os.environ):
        if name.startswith(("RETAIL_", "DAGSTER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RETAIL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def retail_assets(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_help_lists_the_commands_of_the_domains_too() -> None:
    listed = retail_assets("--help").output, retail_assets("sample", "--help").output

    assert all(f" {name} " in listed[0] for name in ("run", "status", "sample", "stream"))
    assert all(f" {name} " in listed[1] for name in ("online_retail", "supply_chain"))
    assert "Produce a file's lines" in retail_assets("stream", "--help").output
    assert "No such command 'smaple'" in retail_assets("smaple").output


def test_a_run_imports_no_domains_commands() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from retail_assets.cli import app\n"
        "done = CliRunner().invoke(app, ['run', '--help'])\n"
        "assert done.exit_code == 0, done.output\n"
        "print([name for name in sys.modules if name.endswith('.commands')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "['retail_assets.commands']\n" or done.stdout == "[]\n"


@pytest.mark.parametrize("command", ["run", "sample"])
def test_an_unknown_domain_is_refused_with_the_known_ones(home: Path, command: str) -> None:
    done = retail_assets(command, "online")

    assert done.exit_code == 1
    assert isinstance(done.exception, PermanentError)
    assert str(done.exception).startswith("'online' is no domain; one of: coffee_chain")
    assert not home.exists()


def test_the_sample_of_online_retail_is_written_where_it_is_wanted(
    home: Path, tmp_path: Path
) -> None:
    options = ("--days", "3", "--lines", "20", "--seed", "11")
    to = tmp_path / "own" / "name.xlsx"

    default, other = (
        retail_assets("sample", "online_retail", *options, *where)
        for where in ((), ("--to", str(to)))
    )

    assert (default.exit_code, other.exit_code) == (0, 0)
    path = home / "samples" / "online_retail.xlsx"
    assert default.output.startswith(f"{path}: ")
    assert default.output.endswith(f" rows, {path.stat().st_size:,} bytes\n")
    assert other.output.startswith(f"{to}: ")
    digests = {hashlib.sha256(x.read_bytes()).hexdigest() for x in (path, to)}
    assert len(digests) == 1


@pytest.mark.parametrize("option", ["--days", "--lines"])
def test_a_sample_of_nothing_is_refused(home: Path, option: str) -> None:
    done = retail_assets("sample", "online_retail", option, "0")

    assert done.exit_code == 2
    assert not home.exists()


def test_the_sample_of_the_coffee_chain_is_written_to_the_lake_or_a_folder(
    home: Path, tmp_path: Path
) -> None:
    options = ("--sales", "1_000", "--customers", "300", "--drops", "2", "--seed", "11")

    default = retail_assets("sample", "coffee_chain", *options)
    other = retail_assets("sample", "coffee_chain", *options, "--to", str(tmp_path / "own"))

    assert (default.exit_code, other.exit_code) == (0, 0), default.output + other.output
    told = "1,000 sales lines (4 twice, 9 that cannot be read), 303 customer rows, 2 drops\n"
    assert default.output == f"{home / 'lake'}: {told}"
    assert other.output == f"{tmp_path / 'own'}: {told}"
    made = {
        folder: {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.csv")}
        for folder in (home / "lake", tmp_path / "own")
    }
    assert len(made[home / "lake"]) == 6
    assert made[home / "lake"] == made[tmp_path / "own"]


def test_the_sample_of_the_supply_chain_is_written_where_it_is_wanted(
    home: Path, tmp_path: Path
) -> None:
    options = ("--orders", "200", "--seed", "11")
    to = tmp_path / "own" / "name.csv"

    default, other = (
        retail_assets("sample", "supply_chain", *options, *where)
        for where in ((), ("--to", str(to)))
    )

    assert (default.exit_code, other.exit_code) == (0, 0), default.output + other.output
    path = home / "samples" / "supply_chain.csv"
    lines = len(path.read_bytes().splitlines()) - 1
    assert default.output.startswith(f"{path}: {lines:,} lines of ")
    assert other.output == default.output.replace(str(path), str(to))
    assert path.read_bytes() == to.read_bytes()
    assert retail_assets("sample", "supply_chain", "--orders", "0").exit_code == 2


def test_a_bucket_takes_no_sample(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIL_LAKE", "gs://shop-lake/retail")

    done = retail_assets("sample", "coffee_chain")

    assert done.exit_code == 1
    assert "error: RETAIL_LAKE is gs://shop-lake/retail" in done.output
    assert "--to FOLDER" in done.output
    assert not home.exists()
