"""retail-assets new, end to end: in a copy of the project two files become domains that run."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from retail_assets_tests.commands.own_files import DATED, MESSY
from retail_assets_tests.conftest import PROJECT

Run = Callable[..., str]
_COPIED = ("retail_assets", "retail_assets_tests", "dbt_project", "pyproject.toml")
_BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    for name in _COPIED:
        source = PROJECT / name
        ignored = shutil.ignore_patterns("__pycache__", "target", "logs")
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignored)
        else:
            shutil.copy(source, root / name)
    (root / "visits_2024-01-05.csv").write_text(DATED.replace("many", "95"), "utf-8")
    (root / "visits_2024-01-06.csv").write_text(DATED.replace("01-05", "01-06"), "utf-8")
    (root / "articles.csv").write_text(MESSY, "utf-8")
    return root


@pytest.fixture(scope="module")
def run(copy: Path) -> Run:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RETAIL_", "DAG"))}
    environment |= {"PYTHONPATH": str(copy), "RETAIL_HOME": str(copy / "home")}

    def run(*command: str | Path, where: str = ".") -> str:
        done = subprocess.run(
            list(map(str, command)),
            cwd=copy / where,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def made(copy: Path, run: Run) -> list[str]:
    """Both domains; what was told of each."""
    new = (sys.executable, "-m", "retail_assets.cli", "new")
    return [
        run(*new, "visits", "--from", "visits_2024-01-05.csv", "--key", "store"),
        run(*new, "articles", "--from", "articles.csv", "--feed", "snapshot"),
    ]


def test_a_domain_is_few_lines_and_its_making_says_what_to_do(made: list[str], copy: Path) -> None:
    for told in made:
        count = re.search(r"(\d+) files, (\d+) lines", told)
        assert count is not None and int(count[2]) <= 150
        files = re.findall(r"^  ((?:retail_assets|dbt_project)\S+/\S+\.\w+)$", told, re.MULTILINE)
        assert len(files) == int(count[1])
        assert sum((copy / file).read_text().count("\n") for file in files) == int(count[2])
        assert "retail-assets run" in told


def test_a_domain_passes_lint_and_its_own_tests(made: list[str], run: Run) -> None:
    python = sys.executable
    run(_BIN / "ruff", "check", ".")
    run(_BIN / "ruff", "format", "--check", ".")
    run(_BIN / "mypy")
    run(_BIN / "lint-imports")
    run(python, "-m", "retail_assets.defs.marts.sources", "--check")
    run(_BIN / "sqlfluff", "lint", "models/visits", "models/articles", where="dbt_project")
    tests = [f"retail_assets_tests/defs/{name}" for name in ("visits", "articles")]
    assert "2 passed" in run(python, "-m", "pytest", "-q", "-n", "0", *tests)


def test_a_domain_runs_to_its_mart(made: list[str], copy: Path, run: Run) -> None:
    raw = copy / "home" / "lake" / "raw" / "visits"
    raw.mkdir(parents=True)
    for file in copy.glob("visits_*.csv"):
        shutil.copy(file, raw)

    told = run(sys.executable, "-m", "retail_assets.cli", "run", "visits")
    run(sys.executable, "-m", "retail_assets.cli", "run", "articles")

    assert "1 rows; visitors_in: expected a whole number, found 'many'" in told
    with duckdb.connect(str(copy / "home" / "warehouse.duckdb"), read_only=True) as warehouse:
        days = warehouse.sql("from visits_core.visits_daily order by day").fetchall()
        articles = warehouse.sql("from articles_core.articles_daily order by 1").fetchall()
    assert days == [
        (date(2024, 1, 5), Decimal("3710.75"), 3, 295, 292),
        (date(2024, 1, 6), Decimal("2510.50"), 2, 200, 198),
    ]
    assert articles == [
        (date(2024, 1, 13), Decimal("12.50"), 1, 5),
        (date(2024, 1, 14), Decimal("1200.00"), 2, 7),
    ]


def test_a_name_that_is_taken_is_refused(made: list[str], run: Run) -> None:
    with pytest.raises(AssertionError, match="retail_assets/defs/visits is there"):
        run(
            *(sys.executable, "-m", "retail_assets.cli", "new", "visits"),
            *("--from", "visits_2024-01-05.csv"),
        )
