"""The documents say what is true: every metric, setting, command, route and link, and nothing else."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import click
import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from consumers.reasons import REASONS
from docs.commands_page import walk
from docs.markdown import anchor
from docs.routes_page import ENDPOINT, PAGES, openapi, operations
from srr_stream import SRRDetector, cli
from srr_stream.api import HttpEndpoint
from srr_stream.errors import SettingsError
from srr_stream.health import Health
from srr_stream.heat_maps import HeatMaps
from srr_stream.loading import check_settings
from srr_stream.metrics import ROLES
from srr_stream.settings import ENV_PREFIX, FieldSettings, Settings
from srr_stream.web.access import Access
from srr_stream.web.app import make_app
from srr_stream.web.desk import Desk
from srr_stream.web.page import make_page
from srr_stream.web.sign_in import make_sign_in

ROOT = Path(__file__).parents[1]
PAGES_OF_PEOPLE = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
"""Everything that is read by people; what is generated too."""
NOBODY = cast("Desk", None)


def _metric_names(registry: CollectorRegistry) -> set[str]:
    return {
        family.name + ("_total" if family.type == "counter" else "") for family in registry.collect() if family.name
    }


def _documented(section: str) -> set[str]:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `((?:srr|process)_\w+)`", page.split(f"## {section}")[1].split("\n## ")[0], flags=re.M))


def test_the_metrics_page_and_the_endpoints_are_equal() -> None:
    everywhere = _documented("Of each process")
    for role, kind in ROLES.items():
        registry = CollectorRegistry()
        kind(registry)
        assert _documented(role) | everywhere == _metric_names(registry)


def _leaves(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= _leaves(kind, f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found


def _keys(content: dict[str, Any]) -> set[str]:
    return {f"{section}.{key}" for section, values in content.items() for key in values}


def test_the_reference_settings_have_every_key_with_its_default() -> None:
    content = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text(encoding="utf-8"))
    assert _keys(content) == _leaves(Settings)
    given = Settings(**content)
    for section, info in Settings.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        for key, setting in kind.model_fields.items():
            if not setting.is_required() and f"{section}.{key}" not in ("output.alerts_topic",):
                assert getattr(getattr(given, section), key) == setting.get_default(call_default_factory=True), key


def test_every_reason_for_a_dead_letter_is_on_the_page_of_pictures() -> None:
    page = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    assert set(REASONS) <= set(re.findall(r"`(\w+)`", page))


def test_the_exit_codes_of_the_design_are_those_of_the_program() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for code, words in ((2, "settings are wrong"), (3, "something outside is wrong"), (4, "the gate rejected")):
        assert re.search(rf"{code} [^·]*{words}", design.replace("\n", " "))
        assert re.search(rf"{code} [^·]*{words}", (cli.__doc__ or "").replace("\n", " "))


# --- what a page says, in pieces


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and content of every fenced block."""
    for _, language, content in re.findall(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", text, flags=re.M | re.S):
        yield language, content


def _without_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)


def _spans(text: str) -> list[str]:
    """Return what stands in backticks within a line."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", _without_blocks(text))


def _pages(*names: str) -> list[Any]:
    """Return one parameter a page, the pages' names as ids."""
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES_OF_PEOPLE if page.name not in names]


# --- commands

_SHELLS = {"sh", "bash", "console", "ini", "systemd", "cron"}
_CALL = re.compile(r"(?:^|[\s=(\"'$]|bin/)(?<!docker build -t )(?<!exec )srr-stream((?:\s+|$).*)")


def _calls(text: str) -> Iterator[str]:
    """Yield what follows the program's name in every command line of a page."""
    for language, content in _blocks(text):
        for line in content.replace("\\\n", " ").splitlines():
            is_command = language in _SHELLS or line.startswith("$ ")
            found = _CALL.search(re.split(r"\s#\s|\s#$", line)[0]) if is_command else None
            if found is not None and not line.lstrip().startswith("#"):
                yield re.split(r"\s(?:\||>|2>|&&|;|&)(?:\s|$)", found[1])[0].strip()
    for span in _spans(text):
        if span.startswith("srr-stream "):
            yield span.removeprefix("srr-stream ").strip()


def _problem_of_call(call: str) -> str | None:
    """Return what is wrong with a command line: a command, option, choice or number of arguments there is not."""
    words = shlex.split(re.sub(r"[\[\]]", " ", call))
    command: click.Command = cli.main
    arguments: list[str] = []
    while words:
        word = words.pop(0)
        if word.startswith("-") and word != "-":
            name, _, value = word.partition("=")
            option = _option(command, name)
            if option is None:
                return f"{command.name} has no option {name}"
            if not option.is_flag and name == word:
                if not words:
                    return f"{name} has no value"
                value = words.pop(0)
            if isinstance(option.type, click.Choice) and value not in option.type.choices and not value.isupper():
                return f"{name} {value}; allowed: {', '.join(option.type.choices)}"
        elif isinstance(command, click.Group) and not arguments:
            if word in ("…", "..."):
                return None
            if word not in command.commands:
                return f"{command.name} has no command {word}"
            command = command.commands[word]
        else:
            arguments.append(word)
    return _problem_of_arguments(command, [word for word in arguments if word not in ("…", "...")])


def _option(command: click.Command, name: str) -> click.Option | None:
    if name in ("--help", "-h"):
        return click.Option(["--help"], is_flag=True)
    options = [each for each in command.params if isinstance(each, click.Option)]
    return next((each for each in options if name in (*each.opts, *each.secondary_opts)), None)


def _problem_of_arguments(command: click.Command, arguments: Sequence[str]) -> str | None:
    taken = [each for each in command.params if isinstance(each, click.Argument)]
    is_open = any(each.nargs == -1 for each in taken)
    if len(arguments) > len(taken) and not is_open:
        return f"{command.name} takes {len(taken)} arguments, not {' '.join(arguments)}"
    return None


def test_the_command_lines_that_are_looked_for_are_found() -> None:
    text = """
```sh
KAFKA=a srr-stream run -c a.yaml   # scores
kubectl exec srr-0 -- srr-stream audit -c a.yaml --last 5 | tail
srr-stream dlq show \\
  -c a.yaml ID
```
```
$ srr-stream models list -c a.yaml
group srr-stream on kafka
```
```ini
ExecStart=/opt/bin/srr-stream score -c a.yaml
```
Say `srr-stream retrain -c FILE`; `srr-stream` is the program.
"""
    assert [" ".join(call.split()) for call in _calls(text)] == [
        "run -c a.yaml",
        "audit -c a.yaml --last 5",
        "dlq show -c a.yaml ID",
        "models list -c a.yaml",
        "score -c a.yaml",
        "retrain -c FILE",
    ]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("rum -c FILE", "main has no command rum"),
        ("models lost", "models has no command lost"),
        ("run --once -c FILE", "run has no option --once"),
        ("demo --dataset kdp", "--dataset kdp; allowed: kdd"),
        ("run -c", "-c has no value"),
        ("retrain -c FILE now", "retrain takes 0 arguments, not now"),
    ],
)
def test_a_wrong_command_line_is_told(call: str, problem: str) -> None:
    assert (_problem_of_call(call) or "").startswith(problem)


@pytest.mark.parametrize("page", _pages("commands.md"))
def test_every_command_line_of_a_page_can_be_given(page: Path) -> None:
    problems = {call: _problem_of_call(call) for call in _calls(_text(page))}
    assert not {call: problem for call, problem in problems.items() if problem}


def test_every_command_is_in_the_reference() -> None:
    headings = re.findall(r"^##+ srr-stream (.+)$", _text(ROOT / "docs" / "reference" / "commands.md"), flags=re.M)
    assert headings == [" ".join(words) for words, _ in walk(cli.main) if words]


def test_the_commands_of_the_readme_exist_and_it_leads_to_all() -> None:
    named = re.findall(r"^\| `srr-stream ([a-z-]+)", _text(ROOT / "README.md"), flags=re.M)
    assert {"run", "init", "doctor", "backtest"} <= set(named) <= set(cli.main.commands)
    assert "(docs/reference/commands.md)" in _text(ROOT / "README.md")


# --- settings

_KEYS = _leaves(Settings)
_SETTING = re.compile(rf"({'|'.join(Settings.model_fields)})\.([a-z_]\w*)(?::.*)?")
_FILE_ENDINGS = {"md", "py", "yaml", "yml", "json", "sh", "html"}


@pytest.mark.parametrize("page", _pages())
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    named = {
        f"{found[1]}.{found[2]}"
        for span in _spans(_text(page))
        if (found := _SETTING.fullmatch(span)) and found[2] not in _FILE_ENDINGS
    }
    assert named <= _KEYS


@pytest.mark.parametrize("page", _pages())
def test_every_variable_that_a_page_names_is_that_of_a_setting(page: Path) -> None:
    named = set(re.findall(rf"\b{ENV_PREFIX}([A-Z0-9_]+)", _text(page)))
    known = {key.upper().replace(".", "__") for key in _KEYS} | {"SECTION__KEY", "KAFKA__KEY"}
    assert named <= known


def _settings_blocks(page: Path) -> list[dict[str, Any]]:
    """Return the YAML of a page that can only be settings: its outer keys are sections, and hold mappings."""
    parts = (yaml.safe_load_all(content) for language, content in _blocks(_text(page)) if language == "yaml")
    sections = set(Settings.model_fields)
    return [part for each in parts for part in each if isinstance(part, dict) and part and set(part) <= sections]


@pytest.mark.parametrize("page", _pages())
def test_settings_that_a_page_shows_are_good(page: Path) -> None:
    for shown in _settings_blocks(page):
        least: dict[str, Any] = {
            "kafka": {"bootstrap_servers": "localhost:9092"},
            "input": {"topics": ["requests"], "start": "earliest"},
            "record": {"fields": [{"name": "duration_ms"}]},
            "output": {"alerts_topic": "requests-alerts", "dead_letter_topic": "requests-dead-letters"},
        }
        if any(each.get("kind") == "image" for each in shown.get("record", {}).get("fields", ())):
            least["training"] = {"representation": "pixels"}
        whole = {name: {**least.get(name, {}), **shown.get(name, {})} for name in {**least, **shown}}
        try:
            check_settings(whole, use_environment=False)
        except SettingsError as error:
            problems = [each for each in error.problems if "there is no file" not in each]
            assert not problems, (page.name, shown)


def test_every_setting_is_described_and_in_the_reference() -> None:
    page = _text(ROOT / "docs" / "reference" / "settings.md")
    assert re.findall(r"^\| `(\w+\.\w+)`", page, flags=re.M) == [
        f"{section}.{key}"
        for section, info in Settings.model_fields.items()
        for key in _model(info.annotation).model_fields
    ]
    models = [_model(info.annotation) for info in Settings.model_fields.values()]
    undescribed = [
        key for model in (*models, FieldSettings) for key, info in model.model_fields.items() if not info.description
    ]
    assert not undescribed


def _model(kind: object) -> type[BaseModel]:
    assert isinstance(kind, type)
    assert issubclass(kind, BaseModel)
    return kind


# --- metrics


@cache
def _known_metrics() -> set[str]:
    registry = CollectorRegistry()
    make_app(NOBODY, token="x", is_open=True, metrics=registry)
    registries = [registry]
    for metrics in ROLES.values():
        registries.append(CollectorRegistry())
        metrics(registries[-1])
    families = [family for each in registries for family in each.collect()]
    suffixes = {"counter": ("_total",), "histogram": ("", "_bucket", "_sum", "_count")}
    return {family.name + suffix for family in families for suffix in suffixes.get(family.type, ("",))}


@pytest.mark.parametrize("page", _pages("results.md"))  # its srr_unrefined is a detector
def test_every_metric_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"(?<![\w./:])srr_(?!stream\b|session\b)[a-z0-9_]+\b(?![/*]|\.py)", _text(page)))
    assert named <= {*_known_metrics(), *_external_labels(), "srr_"}


def _external_labels() -> set[str]:
    configs = [yaml.safe_load(_text(path)) for path in (ROOT / "deploy" / "prometheus").glob("prometheus*.yml")]
    return {label for config in configs for label in config["global"].get("external_labels", {})}


@pytest.mark.parametrize("page", _pages())
def test_every_recording_rule_that_a_page_names_exists(page: Path) -> None:
    rules = yaml.safe_load(_text(ROOT / "deploy" / "prometheus" / "rules.yml"))["groups"]
    known = {rule["record"] for group in rules for rule in group["rules"] if "record" in rule}
    assert set(re.findall(r"\b\w+:srr\w*:\w+|\bsrr:\w+:\w+", _text(page))) <= known


@pytest.mark.parametrize("page", _pages())
def test_every_alert_that_a_page_names_exists(page: Path) -> None:
    rules = yaml.safe_load(_text(ROOT / "deploy" / "prometheus" / "rules.yml"))["groups"]
    known = {rule["alert"] for group in rules for rule in group["rules"] if "alert" in rule}
    assert set(re.findall(r"\bSrr[A-Z]\w+", _text(page))) <= known


# --- routes


@cache
def _known_routes() -> set[str]:
    paths = {path for _, path, _ in operations(openapi())} | ENDPOINT.keys()
    return paths | {cast("Any", route).path for route in make_sign_in(Access("x", is_open=True)).routes}


@pytest.mark.parametrize("page", _pages())
def test_every_route_that_a_page_names_exists(page: Path) -> None:
    known = [re.sub(r"\\\{\w+\\\}", r"[^/]+", re.escape(path)) for path in _known_routes()]
    named = {path.rstrip("./") for path in re.findall(r"(?<![\w.])/v1/[\w{}./$-]+", _text(page))}
    others = {"/v1/traces", "/v1/metrics", "/v1/logs"}  # of OpenTelemetry's protocol
    unknown = {path for path in named - others if not any(re.fullmatch(each, path) for each in known)}
    assert not {path for path in unknown if not any(each.startswith(re.escape(path) + "/") for each in known)}


def test_the_reference_has_every_route_of_the_api_and_of_the_page() -> None:
    page = _text(ROOT / "docs" / "reference" / "routes.md")
    made = {(method, path) for method, path, _ in operations(openapi())}
    assert set(re.findall(r"^### ([A-Z]+) `(\S+)`$", page, flags=re.M)) == made
    paths = {
        cast("Any", route).path
        for router in (make_page(NOBODY), make_sign_in(Access("x", is_open=True)))
        for route in router.routes
    }
    parts = {path for path in paths if path.startswith(("/fragments/", "/static/", "/sign-in.", "/v1/"))}
    assert paths - parts == set(PAGES)
    assert all(f"| `{path}` |" in page for path in (*PAGES, *ENDPOINT))


def test_the_routes_of_scorer_and_trainer_are_those_of_their_endpoint() -> None:
    health = Health(live_timeout_s=60)
    endpoint = HttpEndpoint(
        "127.0.0.1",
        0,
        registry=CollectorRegistry(),
        health=health,
        heat_maps=cast("HeatMaps", object()),
        statusz=lambda with_history: {},
    )
    said: list[str] = []
    answer = endpoint._answer({"PATH_INFO": "/nothing"}, lambda status, headers: said.append(status))
    endpoint.close()
    assert said == ["404 Not Found"]
    assert set(re.findall(r"/[\w/-]+", b"".join(answer).decode())) == {path.split("{")[0] for path in ENDPOINT}


# --- links


def _anchors(text: str) -> set[str]:
    """Return the anchors of a page as GitHub makes them: of equal headings the second one gets -1."""
    seen: Counter[str] = Counter()
    found = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#+ (.+?) *$", _without_blocks(text), flags=re.M):
        name = anchor(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading))
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


@pytest.mark.parametrize("page", [*_pages(), ROOT / "CHANGELOG.md", ROOT / "srr_stream" / "data" / "README.md"])
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", _without_blocks(_text(page))):
        file, _, place = target.partition("#")
        leads_to = page.parent / file if file else page
        if not leads_to.exists() or (place and place not in _anchors(_text(leads_to))):
            broken.append(target)
    assert not broken


def test_equal_headings_get_anchors_of_their_own() -> None:
    assert _anchors("# A\n## GET `/v1/x`\n## A\n```\n# no\n```\n") == {"a", "get-v1x", "a-1"}


def test_the_index_leads_to_every_page() -> None:
    index = _text(ROOT / "docs" / "index.md")
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert set(re.findall(r"\]\(([\w/-]+\.md)\)", index)) == pages


# --- design


def test_every_module_of_the_application_has_a_room_in_the_design() -> None:
    table = _text(ROOT / "docs" / "design.md").split("The rooms of `srr_stream`:")[1].split("\n## ")[0]
    rooms = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")][1:]
    named = [name.rstrip("/") for row in rooms for name in re.findall(r"`(\w+/?)`", re.sub(r"\([^)]*\)", "", row))]
    there = {
        path.stem
        for path in (ROOT / "srr_stream").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert sorted(named) == sorted(there)


def test_the_names_of_the_page_on_the_library_exist() -> None:
    page = _text(ROOT / "docs" / "library.md")
    assert set(re.findall(r"\b(?:detector|of_pictures)\.(\w+)\(", page)) <= set(dir(SRRDetector))
    assert set(re.findall(r"python -m (benchmarks\.\w+)", page)) <= {
        f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").iterdir()
    }
