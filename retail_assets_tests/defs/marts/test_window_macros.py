"""dbt's window macros: what is no window is refused, before a statement is made of it."""

import json

import pytest

from retail_assets.resources.dbt.project import dbt_build, run_dbt
from retail_assets.settings import Settings, load_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(home=tmp_path_factory.mktemp("home"))


def compiled(settings: Settings, capfd: pytest.CaptureFixture[str], inline: str) -> tuple[int, str]:
    """dbt's exit code and words, on one line, for an inline query; "days" and "others" are set."""
    windows = {"days": [["2020-12-31", "2020-12-31"], ["2019-01-01", "2019-01-03"]], "others": []}
    with dbt_build(settings, windows | {"one_day": [["2020-12-31", "2020-12-31"]]}):
        code = run_dbt(settings, ["--quiet", "compile", "--inline", inline])
    captured = capfd.readouterr()
    return code, " ".join((captured.out + captured.err).split())


def with_meta(window: dict[str, str], inline: str) -> str:
    """The inline query as of a model with this window; macros of a strategy run by it only."""
    config = f"{{{{ config(meta={{'window': {json.dumps(window)}}}) }}}}"
    return f"{config}{{% if execute %}}{inline}{{% endif %}}"


WINDOW = {"var": "days", "column": "day"}


REPLACED = "{{ window_predicate() }}, key {{ key_besides() }}, rebuilt {{ should_full_refresh() }}"


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (
            WINDOW | {"besides": "one_day", "key": "id"},
            "DBT_INTERNAL_DEST.day between date '2019-01-01' and date '2019-01-03' or"
            " DBT_INTERNAL_DEST.day between date '2020-12-31' and date '2020-12-31' )),"
            " key id, rebuilt False",
        ),
        (
            WINDOW | {"var": "others", "besides": "others", "key": "id"},
            "(false), key None, rebuilt False",
        ),
        (WINDOW | {"besides": "absent", "key": "id"}, "key None, rebuilt True"),
        ({"besides": "one_day", "key": "id"}, "(false), key id, rebuilt False"),
        ({"besides": "others", "key": "id"}, "(false), key id, rebuilt False"),
        ({"besides": "absent", "key": "id"}, "(false), key id, rebuilt True"),
    ],
)
def test_a_models_window_says_what_is_replaced(
    settings: Settings, capfd: pytest.CaptureFixture[str], window: dict[str, str], expected: str
) -> None:
    code, words = compiled(settings, capfd, with_meta(window, REPLACED))
    assert code == 0, words
    assert expected in words


@pytest.mark.parametrize(
    ("inline", "refusal"),
    [
        (
            with_meta({"var": "days"}, "{{ window_predicate() }}"),
            "expected meta.window with var and column",
        ),
        (with_meta({}, "{{ window_predicate() }}"), "expected meta.window with var and column"),
        (
            with_meta(WINDOW | {"besides": "one_day"}, "{{ key_besides() }}"),
            "expected meta.window with a key",
        ),
        (
            with_meta({"besides": "others"}, "{{ key_besides() }}"),
            "expected meta.window with a key",
        ),
    ],
)
def test_a_model_that_does_not_say_what_is_replaced_is_refused(
    settings: Settings, capfd: pytest.CaptureFixture[str], inline: str, refusal: str
) -> None:
    code, words = compiled(settings, capfd, inline)
    assert code != 0
    assert refusal in words


@pytest.mark.parametrize(
    ("window", "refusal"),
    [
        ("2020-12-31", "expected a list of [first_day, last_day] pairs"),
        (["2020-12-31"], "expected a [first_day, last_day] pair"),
        ([["2020-12-31", "2020-12-30"]], "first day after last day"),
        ([["2020-12-31", "2020-12-31' or true --"]], "Invalid isoformat string"),
    ],
)
def test_what_is_no_list_of_days_is_refused(
    settings: Settings,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    window: object,
    refusal: str,
) -> None:
    monkeypatch.setenv("DBT_BROKEN", json.dumps(window))
    code, words = compiled(settings, capfd, "{{ in_window('day', 'broken') }}")
    assert code != 0
    assert refusal in words
