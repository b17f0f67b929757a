"""Pages that are written from the code are as the code would write them now."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from docs import commands_page, generate, routes_page, settings_page
from docs.markdown import anchor
from srr_stream.reload import RELOADABLE
from srr_stream.settings import Settings


@pytest.mark.parametrize("name", generate.PAGES)
def test_the_committed_page_is_what_the_code_writes(name: str) -> None:
    committed = (generate.DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert committed == generate.PAGES[name](), f"run python -m docs.generate {name}"


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pages that are none of ours: `same` is up to date, `old` is not, `new` is not there."""
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    monkeypatch.setattr(generate, "PAGES", {"same": lambda: "A.\n", "old": lambda: "B.\n", "new": lambda: "C.\n"})
    (tmp_path / "same.md").write_text("A.\n")
    (tmp_path / "old.md").write_text("Z.\n")
    return tmp_path


def test_check_names_what_differs_writes_nothing_and_fails(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out.split() == [
        word for name in ("old", "new") for word in f"{pages / name}.md: differs from the code".split()
    ]
    assert (pages / "old.md").read_text() == "Z.\n"


def test_what_is_named_is_written_and_then_good(pages: Path) -> None:
    assert generate.main(["old"]) == 0
    assert (pages / "old.md").read_text() == "B.\n"
    assert not (pages / "new.md").exists()
    assert generate.main(["--check", "old", "same"]) == 0


def test_an_unknown_page_is_refused_with_those_there_are(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        generate.main(["odl"])
    assert "there are same, old, new" in capsys.readouterr().err


def test_a_bar_in_a_cell_does_not_make_a_column() -> None:
    assert generate.table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |\n"


@pytest.mark.parametrize(
    ("section", "key", "words", "default"),
    [
        ("input", "max_batch", "whole number at least 1, or `null`", "`null`"),
        ("input", "topics", "list of text, 1 or more", "must be given"),
        ("input", "poll_timeout", "duration", "`200ms`"),
        ("input", "max_record_size", "size", "`1MiB`"),
        ("http", "live_timeout", "duration", "`1m`"),
        ("http", "scorer_port", "whole number at least 0, at most 65,535", "`9108`"),
        ("api", "scorer_urls", "list of http(s) address", "`[]`"),
        ("api", "token", "secret text, or `null`", "`null`"),
        ("gate", "mode", "`automatic`, `manual`, `off`", "`automatic`"),
        ("gate", "max_forgotten_ratio", "number above 0, below 1, or `null`", "`0.02`"),
        ("training", "classifier_options", "mapping", "`{}`"),
        ("tracing", "enabled", "`true`, `false`", "`false`"),
        ("registry", "url", "text", "`var/registry`"),
    ],
)
def test_a_setting_is_told_in_words(section: str, key: str, words: str, default: str) -> None:
    kind = Settings.model_fields[section].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, BaseModel)
    info = kind.model_fields[key]
    assert (settings_page.values(info), settings_page.default(info)) == (words, default)


def test_a_reloadable_setting_is_told_from_one_that_needs_a_restart() -> None:
    page = settings_page.settings("")
    told = dict(re.findall(r"^\| `(\w+\.\w+)` \|.*?\| (now|restart) \|", page, flags=re.M))
    assert {key for key, change in told.items() if change == "now"} == set(RELOADABLE)


def test_a_command_is_told_with_its_arguments_options_and_own_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.group(epilog="\b\nExit codes:\n0 well")
    def program() -> None:
        """Do things."""

    @program.command()
    @click.argument("ids", nargs=-1)
    @click.option("--kind", type=click.Choice(["a", "b"]), default="a", help="Which|what.")
    @click.option("-n", "n", type=click.IntRange(min=1), required=True, help="How many.")
    @click.option("--hidden", is_flag=True, hidden=True)
    def go(ids: tuple[str, ...], kind: str, n: int, hidden: bool) -> None:
        """Go there."""

    monkeypatch.setattr(commands_page, "main", program)
    page = commands_page.commands("")
    assert "```\nExit codes:\n0 well\n```" in page
    assert "## srr-stream go\n```\nsrr-stream go [OPTIONS] [IDS]...\n```\nGo there.\n" in page
    assert "| `[IDS]...` | text; more than once |  |  |" in page
    assert "| `--kind` | `a`, `b` | `a` | Which\\|what. |" in page
    assert "| `-n` | whole number at least 1 | must be given | How many. |" in page
    assert "hidden" not in page


def test_a_route_is_told_with_parameters_body_answers_and_whether_it_needs_the_token() -> None:
    page = routes_page.routes("")
    overview = dict(re.findall(r"^\| ([A-Z]+ \| \[`\S+`\])\(\S+ \| (\w+) \|", page, flags=re.M))
    assert overview["GET | [`/v1/flagged`]"] == "elsewhere"
    assert overview["POST | [`/v1/rollback`]"] == "always"
    assert overview["GET | [`/livez`]"] == "never"
    flagged = page.split("### GET `/v1/flagged`\n")[1].split("\n### ")[0]
    assert "| `limit` | query | whole number at least 1, at most 500 | `50` |" in flagged
    assert "| 200 | [FlaggedPage](#flaggedpage) as `application/json` |" in flagged
    label = page.split("### POST `/v1/labels`\n")[1].split("\n### ")[0]
    assert "Body: [LabelBody](#labelbody) as `application/json`" in label
    assert "| 401 | The token is missing or wrong |" in label


def test_where_reading_needs_the_token_the_api_says_so_of_every_route() -> None:
    document = routes_page.openapi(is_open=False)
    unguarded = [path for _, path, operation in routes_page.operations(document) if not operation.get("security")]
    assert {path for path in unguarded if path.startswith("/v1/")} == set()


def test_anchors_are_those_of_the_forge() -> None:
    assert [anchor(text) for text in ("GET `/v1/labels/{id}`", "What it costs", "A, b: c")] == [
        "get-v1labelsid",
        "what-it-costs",
        "a-b-c",
    ]
