"""backtest, replay, explain and plot as a person types them, and what they say when it cannot be."""

from __future__ import annotations

import importlib
import json
import re
import signal
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from consumers.logs import KafkaLog, OffsetRange
from srr_stream import explaining, training_record
from srr_stream.cli import main
from srr_stream.cli.sources import moment_ms
from srr_stream.errors import ModelRefused, NoRecord
from srr_stream.labels import Label, LabelTopic
from srr_stream.registry import Registry
from srr_stream.training_record import Excluded, Neighbours, RefinementRecord

Stream = Any
cli_explain = importlib.import_module("srr_stream.cli.explain")  # the package has the command by this name
cli_replay = importlib.import_module("srr_stream.cli.replay")
QUIET = ("--log-level", "error")


def call(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(main, [*QUIET, *map(str, arguments)], catch_exceptions=False, input=input)


FIELDS = [
    {"name": "duration_ms"},
    {"name": "bytes_sent"},
    {"name": "load", "required": False},
    {"name": "route", "kind": "categorical"},
]


def write_settings(folder: Path, servers: str = "127.0.0.1:1", topic: str = "events", **overrides: Any) -> Path:
    """Settings of a file; by default nobody is where the brokers should be."""
    content: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap_servers": servers, "connect_timeout": "2s"},
        "input": {"topics": [topic], "start": "earliest", "session_timeout": "2s"},
        "record": {"fields": FIELDS},
        "output": {"scores_topic": f"{topic}-scores", "dead_letter_topic": f"{topic}-dead", "flush_timeout": "10s"},
        "window": {"min_size": 200, "max_size": 1000},
        "training": {"representation": "identity", "every": None, "on_drift": False},
        "registry": {"url": str(folder / "registry")},
    }
    for section, values in overrides.items():
        content[section] = content.get(section, {}) | values
    path = folder / "settings.yaml"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def file(tmp_path: Path, make_values: Callable[..., list[bytes]]) -> Path:
    """Records with labels: next to no bytes is an anomaly; the first field of one wants to be markup."""
    path = tmp_path / "requests.ndjson"
    lines = []
    for i, value in enumerate(make_values(500)):
        record = json.loads(value)
        is_anomaly = record["bytes_sent"] < 20
        route = "<script>alert(1)</script>" if i == 450 else record["route"]
        lines.append(json.dumps({**record, "route": route, "kind": "odd" if is_anomaly else "usual"}))
    path.write_text("\n".join(lines))
    return path


# --- backtest of a file


def test_a_file_is_backtested_and_the_first_flagged_records_have_reasons_in_words(tmp_path: Path, file: Path) -> None:
    result = call(
        "backtest", file, "-c", write_settings(tmp_path), "--labels", "kind", "--normal", "usual", "--top", "3"
    )
    assert result.exit_code == 0, result.output
    assert "scored 500, dead letters 0; the first 200 waited for the first model" in result.stdout
    assert "the first 3 flagged records" in result.stdout
    assert re.search(
        r"^requests\.ndjson-0-\d+ +\S+ +severity \d+\.\d+, version 1, labelled anomaly$", result.stdout, re.M
    )
    assert re.search(r"^  \w+ \S+ where \S+ was expected", result.stdout, re.M)
    assert re.search(r"against 500 labels, which no model saw: \d+ anomalies: AUC 0\.\d+", result.stdout)
    assert re.search(r"^in use +0\.005 ", result.stdout, re.M)
    assert "100 a second are supposed" in result.stdout
    assert "\x1b" not in result.output


def test_the_document_of_a_backtest_has_everything_and_nothing_else_is_on_standard_output(
    tmp_path: Path, file: Path
) -> None:
    verdicts, kept = tmp_path / "verdicts.ndjson", tmp_path / "models"
    verdicts.write_text("of another run\n")
    result = call(
        *("backtest", file, "-c", write_settings(tmp_path), "--json", "--alpha", "0.001,0.1", "--alpha", "0.2"),
        *("--verdicts", verdicts, "--registry", kept, "--rate", "5", "--labels", "kind", "--anomaly", "odd"),
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["records"] == document["scored"] == 500
    assert document["supposed_rate"] == 5.0
    assert [each["false_alarm_rate"] for each in document["at_rates"]] == [0.001, 0.005, 0.1, 0.2]
    assert document["quality"]["auc"] > 0.9
    assert len(document["first_flagged"]) == min(10, document["flagged"])
    assert document["first_flagged"][0]["reasons"][0]["field"]
    bodies = [json.loads(line) for line in verdicts.read_text().splitlines()]
    assert [body["offset"] for body in bodies] == list(range(500))
    assert sum(body["flagged"] for body in bodies) == document["flagged"]
    assert Registry(str(kept)).pointer().champion == document["versions"][-1]["version"]
    assert not (tmp_path / "registry").exists()


def test_a_part_of_a_file_is_backtested(tmp_path: Path, file: Path) -> None:
    result = call("backtest", file, "-c", write_settings(tmp_path), "--last", "300", "--json")
    assert json.loads(result.stdout)["records"] == 300
    result = call("backtest", file, "-c", write_settings(tmp_path), "--since", "2024-01-01")
    assert result.exit_code == 2
    assert "record.time_field" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "problem"),
    [
        (["nowhere.csv"], 3, "nowhere.csv: there is no such file"),
        (["nowhere/at-all"], 3, "files of kind '' are not read"),
        (["FILE", "--topic", "events"], 2, "allowed: one of them"),
        (["FILE", "--alpha", "1.5"], 2, "'1.5'; allowed: above 0 and below 1"),
        (["FILE", "--training-lag", "soon"], 2, "or a number of records"),
        (["FILE", "--since", "yesterday"], 2, "'yesterday' is no moment"),
        (["FILE", "--since", "2024-02-01", "--until", "2024-01-01"], 2, "nothing lies between"),
        (["FILE", "--labels", "bytes_sent"], 2, "the models learn from this field"),
        (["FILE", "--labels", "kind"], 2, "'odd', 'usual' are no labels"),
        (["FILE", "--labels", "kind", "--anomaly", "odd", "--normal", "usual"], 2, "one of them"),
        (["FILE", "--anomaly", "odd"], 2, "they need --labels"),
        (["FILE", "--registry", "FOLDER"], 2, "is not empty"),
        (["FILE", "--report", "FOLDER/none/r.html"], 3, "there is no folder"),
        (["FILE", "--verdicts", "FOLDER/none/v.ndjson"], 3, "there is no folder"),
        (["FILE", "--last", "100"], 3, "100 of 200 (window.min_size)"),
        ([], 3, "check kafka.bootstrap_servers"),
    ],
)
def test_a_backtest_that_cannot_be_says_why(
    tmp_path: Path, file: Path, arguments: list[str], exit_code: int, problem: str
) -> None:
    named = [each.replace("FILE", str(file)).replace("FOLDER", str(tmp_path)) for each in arguments]
    result = call("backtest", *named, "-c", write_settings(tmp_path))
    assert result.exit_code == exit_code, result.output
    assert problem in re.sub(r"\s+", " ", result.stderr)
    assert result.stdout == ""


def test_a_rate_is_for_files_only(tmp_path: Path) -> None:
    result = call("backtest", "events", "-c", write_settings(tmp_path), "--rate", "5")
    assert result.exit_code == 2
    assert "those of a topic have one" in result.stderr


def test_a_moment_is_a_time_or_how_long_ago_it_was() -> None:
    assert moment_ms("--since", "2024-05-01T06:00:00+02:00") == 1714536000000
    assert moment_ms("--since", "2024-05-01") == moment_ms("--since", "2024-05-01T00:00:00Z")
    assert moment_ms("--since", "1h30m", now=lambda: 10_000.0) == 4_600_000
    assert moment_ms("--since", None) is None


def test_a_folder_of_pictures_is_backtested_with_labels_by_their_paths(tmp_path: Path) -> None:
    from PIL import Image

    rng, folder = np.random.default_rng(0), tmp_path / "parts"
    (folder / "a").mkdir(parents=True)
    rows = ["id,label"]
    for i in range(80):
        pixels = rng.normal(128, 8, (8, 8))
        if i in (60, 70):
            pixels[:, ::2] += 100
        name = f"a/{i:03d}.png"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
        rows.append(f"{name},{'anomaly' if i in (60, 70) else 'normal'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    settings = write_settings(
        tmp_path,
        record={"format": "image", "fields": [{"name": "part", "kind": "image", "size": [8, 8], "mode": "grey"}]},
        window={"min_size": 50, "max_size": 100},
        training={"representation": "pixels", "every": None, "on_drift": False},
    )
    report = tmp_path / "report.html"
    result = call("backtest", folder, "-c", settings, "--labels", tmp_path / "labels.csv", "--json", "--report", report)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["scored"] == 80
    assert document["quality"]["auc"] == 1.0
    assert {each["key"] for each in document["first_flagged"]} >= {"a/060.png", "a/070.png"}
    assert all(each["why"] for each in document["first_flagged"])
    assert "a/060.png" in report.read_text(encoding="utf-8")


# --- the report


class Page(HTMLParser):
    """What an HTML file has in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        self.text += data


def test_the_report_is_one_file_that_fetches_nothing_and_runs_nothing(tmp_path: Path, file: Path) -> None:
    report = tmp_path / "report.html"
    result = call(
        *(
            "backtest",
            file,
            "-c",
            write_settings(tmp_path),
            "--report",
            report,
            "--labels",
            "kind",
            "--normal",
            "usual",
        ),
        *("--top", "0"),
    )
    assert result.exit_code == 0, result.output
    assert f"report: {report}" in result.stderr
    html = report.read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags.count("svg") == 2
    assert {"script", "link", "img", "iframe", "object"} & set(page.tags) == set()
    assert all(link.startswith("#") for link in page.links)
    assert "url(http" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert "currentColor" in html
    for heading in ("Models", "With another false alarm rate", "What was unusual", "Severities", "Notes"):
        assert heading in page.headings
    assert "<script>alert(1)</script>" in page.text  # as text: the route of a flagged record
    assert "precision of flags" in page.text


def test_without_matplotlib_the_report_names_the_extra_before_any_work_is_done(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = tmp_path / "report.html"
    result = call("backtest", file, "-c", write_settings(tmp_path), "--report", report)
    assert result.exit_code == 3
    assert "pip install 'srr-stream[plots]'" in result.stderr
    assert not report.exists()


@pytest.mark.operate
def test_the_report_opens_in_a_browser_in_the_light_and_in_the_dark(tmp_path: Path, file: Path) -> None:
    import shutil

    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    report, asked, said = tmp_path / "report.html", [], []
    assert call("backtest", file, "-c", write_settings(tmp_path), "--report", report).exit_code == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_context(color_scheme=scheme, bypass_csp=True).new_page()  # axe is a script
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            page.goto(report.as_uri())
            violations = Axe().run(page).response["violations"]
            assert [each["id"] for each in violations] == [], scheme
        browser.close()
    assert set(asked) == {report.as_uri()}
    assert said == []


# --- topics


@dataclass(frozen=True)
class Served:
    """A topic with records, a model that was trained on them, and settings for both."""

    servers: str
    topic: str
    folder: Path
    settings: Path

    def read(self, topic: str) -> list[Any]:
        log = KafkaLog([topic], connection={"bootstrap_servers": [self.servers]})
        try:
            begins = log.beginnings()
            return [
                record
                for position, end in sorted(log.ends().items())
                for record in log.read(OffsetRange(*position, begins[position], end))
            ]
        finally:
            log.close()


@pytest.fixture(scope="module")
def served(embedded_broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Served:
    from kafka import KafkaProducer

    topic, folder = f"past-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("served")
    servers = embedded_broker.bootstrap_servers
    embedded_broker.create_topics({topic: 2, f"{topic}-scores": 1, f"{topic}-dead": 1, f"{topic}-to": 3})
    rng = np.random.default_rng(0)
    producer = KafkaProducer(bootstrap_servers=servers, acks="all")
    for i in range(400):
        duration = float(rng.lognormal(3.0, 0.4))
        size = 50_000.0 if i in (390, 391) else duration * 20 * float(rng.lognormal(0.0, 0.1))
        record = {"duration_ms": duration, "bytes_sent": size, "load": None if i == 391 else 0.5, "route": "/"}
        value = b"{torn" if i == 399 else json.dumps(record).encode()
        at_ms = 1_700_000_000_000 + 10 * i  # the order of the window is by time, and the model depends on it
        key = f"k{i}".encode()
        producer.send(topic, value, key=key, partition=i % 2, timestamp_ms=at_ms, headers=[("trace", b"t")])
    producer.flush(30)
    producer.close()
    settings = write_settings(folder, servers, topic)
    trained = call("train", "--once", "-c", settings)
    assert trained.exit_code == 0, trained.output
    return Served(servers, topic, folder, settings)


def test_a_topic_is_backtested_and_nothing_is_written(served: Served) -> None:
    before = {topic: len(served.read(topic)) for topic in (served.topic, f"{served.topic}-scores")}
    result = call("backtest", served.topic, "-c", served.settings, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["scored"] == 399
    assert document["dead_lettered"] == {"not_json": 1}
    assert document["supposed_rate"] is None
    assert {each["id"] for each in document["first_flagged"]} >= {f"{served.topic}-0-195", f"{served.topic}-1-195"}
    assert {topic: len(served.read(topic)) for topic in before} == before
    assert Registry(str(served.folder / "registry")).versions() == (1,)  # the service's own registry is not touched
    whole = call("backtest", "-c", served.settings, "--json", "--last", "300")
    assert json.loads(whole.stdout)["records"] == 300  # input.topics, if none is named


def test_a_topic_that_does_not_exist_is_named(served: Served) -> None:
    result = call("backtest", "no-such-topic", "-c", served.settings)
    assert result.exit_code == 3
    assert "there is no topic no-such-topic" in result.stderr


# --- replay


def test_a_file_is_replayed_at_a_rate_into_an_empty_topic(served: Served, file: Path, embedded_broker: Any) -> None:
    to = f"{served.topic}-file"
    embedded_broker.create_topics({to: 1})
    result = call("replay", file, "-c", served.settings, "--to", to, "--rate", "1000", "--limit", "100", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["topic"], document["n_records"], document["n_sent"], document["is_whole"]) == (to, 100, 100, True)
    assert document["seconds"] >= 0.099
    assert [record.value for record in served.read(to)] == file.read_bytes().splitlines()[:100]


def test_a_topics_records_keep_key_headers_and_order_and_a_topic_that_is_not_empty_is_asked_about(
    served: Served,
) -> None:
    to = f"{served.topic}-to"
    result = call("replay", served.topic, "-c", served.settings, "--to", to, "--last", "50")
    assert result.exit_code == 0, result.output
    assert f"sent 50 of 50 records to {to}" in result.stdout
    sent = served.read(to)
    assert {record.key.decode() for record in sent} == {f"k{i}" for i in range(350, 400)}
    assert all(record.headers == [("trace", b"t")] for record in sent)
    again = call("replay", served.topic, "-c", served.settings, "--to", to, "--last", "5")
    assert again.exit_code == 2
    assert "is not empty, it holds 50 records" in again.stderr
    assert "--yes" in again.stderr
    assert len(served.read(to)) == 50
    assert call("replay", served.topic, "-c", served.settings, "--to", to, "--last", "5", "--yes").exit_code == 0
    assert len(served.read(to)) == 55


@pytest.mark.parametrize("answer", [True, False])
def test_whoever_sits_at_a_terminal_is_asked(
    served: Served, answer: bool, monkeypatch: pytest.MonkeyPatch, embedded_broker: Any
) -> None:
    to, asked = f"{served.topic}-asked-{answer}", []
    embedded_broker.create_topics({to: 1})
    arguments = ("replay", served.topic, "-c", served.settings, "--to", to, "--last", "2")
    assert call(*arguments).exit_code == 0

    def confirm(text: str, *, err: bool) -> bool:
        asked.append((text, err))
        return answer

    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    monkeypatch.setattr("click.confirm", confirm)
    monkeypatch.setattr(cli_replay, "sys", type("sys", (), {"stdin": Terminal}))
    result = call(*arguments)
    assert result.exit_code == 0
    assert asked == [(f"{to} is not empty, it holds 2 records; whoever reads it gets 2 more. Write to it?", True)]
    assert ("nothing was sent" in result.stderr) is not answer
    assert len(served.read(to)) == (4 if answer else 2)


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(served: Served, file: Path) -> None:
    result = call("replay", file, "-c", served.settings, "--dry-run", "--rate", "50")
    assert result.stdout == f"would send 500 records of {file.name} to {served.topic} in 10.0 s\n"
    result = call("replay", served.topic, "-c", served.settings, "--dry-run", "--speed", "2", "--json")
    assert json.loads(result.stdout)["n_records"] == 400
    assert len(served.read(served.topic)) == 400


@pytest.mark.parametrize(
    ("arguments", "exit_code", "problem"),
    [
        ([], 2, "Name a file or a topic"),
        (["FILE", "--rate", "5", "--speed", "2"], 2, "allowed: one of them"),
        (["FILE", "--speed", "2", "--to", "x"], 2, "have no time"),
        (["FILE", "--to", "no-such-topic"], 3, "there is no topic no-such-topic"),
    ],
)
def test_a_replay_that_cannot_be_says_why(
    served: Served, file: Path, arguments: list[str], exit_code: int, problem: str
) -> None:
    result = call("replay", *[each.replace("FILE", str(file)) for each in arguments], "-c", served.settings)
    assert result.exit_code == exit_code, result.output
    assert problem in re.sub(r"\s+", " ", result.stderr)


def test_of_several_input_topics_one_must_be_named(tmp_path: Path, file: Path) -> None:
    settings = write_settings(tmp_path, input={"topics": ["a", "b"]})
    result = call("replay", file, "-c", settings)
    assert result.exit_code == 2
    assert "input.topics are a, b" in result.stderr


def test_a_signal_ends_a_replay_cleanly_and_it_says_how_many_were_sent(
    served: Served, file: Path, embedded_broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = f"{served.topic}-stopped"
    embedded_broker.create_topics({to: 1})
    import srr_stream.replay as replay_module

    of_replay, n_asked = replay_module.Sender.send, []

    def send(self: Any, record: Any) -> None:
        of_replay(self, record)
        n_asked.append(1)
        if len(n_asked) == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(replay_module.Sender, "send", send)
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        result = call("replay", file, "-c", served.settings, "--to", to, "--rate", "500")
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert result.exit_code == 0, result.output
    assert f"sent 20 of 500 records to {to}" in result.stdout
    assert "stopped before the end" in result.stdout
    assert len(served.read(to)) == 20


def test_a_record_that_is_too_large_ends_a_replay_with_what_was_sent(
    served: Served, tmp_path: Path, embedded_broker: Any
) -> None:
    to, path = f"{served.topic}-large", tmp_path / "large.ndjson"
    embedded_broker.create_topics({to: 1})
    path.write_text('{"x":1}\n{"x":"' + "y" * 3_000_000 + '"}\n')
    result = call("replay", path, "-c", served.settings, "--to", to)
    assert result.exit_code == 3
    assert "did not take large.ndjson-0-1" in result.stderr
    assert "max.message.bytes" in result.stderr


# --- explain


def test_a_record_is_explained_field_by_field_as_it_was_judged(served: Served) -> None:
    id = f"{served.topic}-0-195"
    result = call("explain", id, "-c", served.settings)
    assert result.exit_code == 0, result.output
    assert f"{id}, " in result.stdout
    assert ", key k390" in result.stdout
    assert "flagged by version 1 (identity), the live one" in result.stdout
    assert re.search(r"^bytes_sent +\+\S+ +█+ +50,000 +\S+$", result.stdout, re.M)
    assert "it was in the window that version 1 was trained on" in result.stdout
    document = json.loads(call("explain", id, "-c", served.settings, "--json").stdout)
    assert sum(part["contribution"] for part in document["contributions"]) + document["base_score"] == pytest.approx(
        document["score"]
    )
    assert {part["field"] for part in document["contributions"]} == {field["name"] for field in FIELDS}
    (again,) = [
        each
        for each in json.loads(call("backtest", served.topic, "-c", served.settings, "--json").stdout)["first_flagged"]
        if each["id"] == id
    ]
    assert again["severity"] > 1
    assert document["severity"] > 1
    assert document["label"] is None


def test_an_explanation_has_the_nearest_normal_records_and_what_refinement_did(served: Served) -> None:
    document = json.loads(call("explain", f"{served.topic}-0-195", "-c", served.settings, "--json").stdout)
    if document["nearest"]:
        distances = [near["distance"] for near in document["nearest"]]
        assert distances == sorted(distances)
        assert all(near["record"] for near in document["nearest"])
    else:
        assert "kept no normal records" in document["why_no_nearest"]
    assert document["window"]["was_in"]
    missing = call("explain", f"{served.topic}-1-195", "-c", served.settings).stdout
    assert re.search(r"^load .* none ", missing, re.M)


def test_an_explanation_tells_what_people_said(served: Served, embedded_broker: Any, tmp_path: Path) -> None:
    id, topic = f"{served.topic}-0-195", f"{served.topic}-labels"
    embedded_broker.create_topics({topic: 1})
    labels = LabelTopic({"bootstrap_servers": [served.servers]}, topic)
    labels.write([make_label(id, note="a known\x1b[2J export")])
    labels.close()
    settings = write_settings(
        tmp_path,
        served.servers,
        served.topic,
        labels={"topic": topic},
        registry={"url": str(served.folder / "registry")},
    )
    result = call("explain", id, "-c", settings)
    assert "labelled anomaly by ana: a known\ufffd[2J export" in result.stdout
    document = json.loads(call("explain", id, "-c", settings, "--json").stdout)
    assert (document["label"]["label"], document["label"]["author"]) == ("anomaly", "ana")
    assert json.loads(call("explain", f"{served.topic}-0-1", "-c", settings, "--json").stdout)["label"] is None


def make_label(id: str, *, note: str) -> Label:
    topic, partition, offset = id.rsplit("-", 2)
    return Label(
        id=id,
        label="anomaly",
        note=note,
        author="ana",
        at="2024-05-01T00:00:00.000+00:00",
        version=1,
        p_value=1e-6,
        severity=2.0,
        topic=topic,
        partition=int(partition),
        offset=int(offset),
        record=b"{}",
    )


EXCLUDED = Excluded("t", 0, 5, 4)


@pytest.mark.parametrize(
    ("offset", "record", "expected"),
    [
        (50, RefinementRecord(0.1, 5, 20, (19, 1), 1, (EXCLUDED,)), "was not trained on it"),
        (
            5,
            RefinementRecord(0.1, 5, 20, (19, 1), 1, (EXCLUDED,)),
            "refined out: 4 of 5 members of the ensemble rejected it",
        ),
        (6, RefinementRecord(0.1, 5, 20, (19, 1), 1, (EXCLUDED,)), "and refinement kept it"),
        (6, RefinementRecord(0.1, 5, 20, (19, 1), 2, (EXCLUDED,)), "whether refinement kept it is not told"),
        (6, None, "whether refinement kept it is not told"),
    ],
)
def test_what_the_training_did_with_a_record_is_said_as_far_as_it_is_known(
    offset: int, record: RefinementRecord | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "load_refinement", lambda registry, version: record)
    window = {"ranges": [{"topic": "t", "partition": 0, "start": 0, "stop": 20}]}
    live: Any = SimpleNamespace(version=3, manifest=SimpleNamespace(window=window))
    registry: Any = None
    assert expected in cli_explain._in_window(explaining._in_window(registry, live, ("t", 0, offset)), 3)


def test_why_there_is_nothing_to_compare_with_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(coordinates=lambda columns: np.zeros((1, 2), dtype=np.float32))
    live: Any = SimpleNamespace(version=3, model=model)
    batch: Any = SimpleNamespace(features={})
    unused: Any = None
    for neighbours, why in (
        (None, "has kept no normal records"),
        (Neighbours(np.zeros((0, 0), dtype=np.float32), (), ()), "has kept no normal records"),
        (Neighbours(np.zeros((1, 3), dtype=np.float32), ("t-0-1",), (("t", 0, 1),)), "does not fit its model"),
    ):
        monkeypatch.setattr(training_record, "load_neighbours", lambda registry, version, found=neighbours: found)
        nearest, said = explaining._nearest(unused, live, batch, unused)
        assert nearest == ()
        assert why in str(said)

    def altered(registry: object, version: int) -> None:
        raise ModelRefused("neighbours.safetensors is altered", reason="hash")

    monkeypatch.setattr(training_record, "load_neighbours", altered)
    assert explaining._nearest(unused, live, batch, unused) == ((), "neighbours.safetensors is altered")


def test_a_normal_record_that_is_gone_is_named_without_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Neighbours(np.zeros((1, 2), dtype=np.float32), ("t-0-1",), (("t", 0, 1),))
    monkeypatch.setattr(training_record, "load_neighbours", lambda registry, version: found)
    live: Any = SimpleNamespace(version=3, model=SimpleNamespace(coordinates=lambda columns: np.zeros((1, 2))))
    batch: Any = SimpleNamespace(features={})

    def gone(topic: str, partition: int, offset: int) -> None:
        raise NoRecord("no record at offset 1 any more")

    reader: Any = SimpleNamespace(read=gone)
    unused: Any = None
    assert explaining._nearest(unused, live, batch, reader) == ((explaining.Near("t-0-1", 0.0, None),), None)


@pytest.mark.parametrize(
    ("id", "arguments", "problem"),
    [
        ("TOPIC-0-99999", [], "ends at offset 200; 99999 is not there"),
        ("TOPIC-7-0", [], "has no partition 7"),
        ("TOPIC-1-199", [], "is a dead letter, no model has judged it: not_json"),
        ("other-0-1", [], "topic 'other' is not read here"),
        ("nonsense", [], "is no event id; ids are topic-partition-offset"),
        ("TOPIC-0-1", ["--version", "9"], "version 9 is not in the registry"),
    ],
)
def test_what_cannot_be_explained_says_why(served: Served, id: str, arguments: list[str], problem: str) -> None:
    result = call("explain", id.replace("TOPIC", served.topic), "-c", served.settings, *arguments)
    assert result.exit_code == 3, result.output
    assert problem in result.stderr
    assert result.stdout == ""


def test_without_a_model_nothing_can_be_explained(served: Served, tmp_path: Path) -> None:
    settings = write_settings(tmp_path, served.servers, served.topic)
    result = call("explain", f"{served.topic}-0-1", "-c", settings)
    assert result.exit_code == 3
    assert "there is no model yet" in result.stderr


# --- plot


def scores(n: int, *, version: int = 1, start_s: int = 0) -> list[bytes]:
    return [
        json.dumps(
            {"time": f"2024-05-01T00:{(start_s + i) // 60:02d}:{(start_s + i) % 60:02d}.000Z", "severity": i / n * 1.5,
             "flagged": i / n * 1.5 >= 1, "version": version}
        ).encode()
        for i in range(n)
    ]  # fmt: skip


def test_the_scores_topic_is_drawn_with_its_models(served: Served, tmp_path: Path, embedded_broker: Any) -> None:
    from kafka import KafkaProducer

    topic, output = f"{served.topic}-drawn", tmp_path / "plot.png"
    embedded_broker.create_topics({topic: 1})
    producer = KafkaProducer(bootstrap_servers=served.servers, acks="all")
    for value in [*scores(90), *scores(90, version=2, start_s=90), b"{torn", b'{"time": 1}']:
        producer.send(topic, value)
    producer.flush(30)
    producer.close()
    settings = write_settings(tmp_path, served.servers, served.topic, output={"scores_topic": topic})
    registry = Registry(str(served.folder / "registry"))
    assert registry.versions() == (1,)
    result = call("plot", "-c", settings, "-o", output, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["verdicts"], document["flagged"]) == (180, 60)
    assert [each["version"] for each in document["versions"]] == [1, 2]
    assert "2 entries" in result.stderr
    assert output.read_bytes().startswith(b"\x89PNG")
    last = call("plot", "-c", settings, "-o", output, "--last", "50")
    assert "48 verdicts by 1 models" in last.stdout
    assert call("plot", "-c", settings, "-o", tmp_path / "none" / "p.png").exit_code == 3


def test_a_plot_of_nothing_says_so(served: Served, tmp_path: Path) -> None:
    result = call("plot", "-c", served.settings, "-o", tmp_path / "p.png", "--since", "1h")
    assert result.exit_code == 3
    assert "holds no verdicts since then; nothing was drawn" in result.stderr


def test_without_a_scores_topic_there_is_nothing_to_draw(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, output={"scores_topic": None, "alerts_topic": "alerts"})
    result = call("plot", "-c", settings)
    assert result.exit_code == 2
    assert "needs output.scores_topic" in result.stderr


def test_without_matplotlib_a_plot_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = call("plot", "-c", write_settings(tmp_path))
    assert result.exit_code == 3
    assert "pip install 'srr-stream[plots]'" in result.stderr
