"""``srr-stream init`` as a person types it: on files as they come, on topics, and on what it must refuse."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import PIL.Image
import polars as pl
import pytest
import yaml
from click.testing import CliRunner, Result

from srr_stream.cli import main
from srr_stream.data import DATASETS, load
from srr_stream.first_look.inference import infer
from srr_stream.first_look.sampling import Sample, sample_file
from srr_stream.first_look.settings import first_settings, missing_secrets, read_back, topic_of
from srr_stream.loading import load_settings
from srr_stream.settings import KafkaSettings

Stream = Any


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own as the one that the command works in."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SRR__")]:
        monkeypatch.delenv(name)
    return tmp_path


def settings_of(result: Result, path: Path) -> dict[str, Any]:
    """What was written, once it is known to be good."""
    assert result.exit_code == 0, result.output
    load_settings(path)
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def names(content: dict[str, Any]) -> list[str]:
    return [field["name"] for field in content["record"]["fields"]]


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "boards"])
def test_a_shipped_table_as_csv_becomes_settings_without_its_label(here: Path, name: str) -> None:
    dataset = load(name)
    rows = [orjson.loads(value) for value in dataset.values()]
    table = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.Series("label", dataset.kinds))
    table.write_csv(f"{name}.csv")
    result = call("init", f"{name}.csv")
    content = settings_of(result, here / "srr-stream.yaml")
    assert names(content) == [field.name for field in dataset.schema.fields]
    assert content["input"] == {"topics": [name], "group_id": f"srr-stream-{name}", "start": "earliest"}
    assert content["output"]["alerts_topic"] == f"{name}.alerts"
    assert content["labels"] == {"topic": f"{name}.labels"}
    n_sampled = min(2000, len(dataset))
    assert f"{n_sampled:,} of {n_sampled:,} records can be read" in result.stdout
    assert f"srr-stream backtest {name}.csv -c srr-stream.yaml" in result.stderr
    text = (here / "srr-stream.yaml").read_text()
    assert f"the newest {n_sampled:,} of {len(dataset):,} records" in text
    assert "# - {name: label, kind: categorical}" in text
    assert content["window"]["min_size"] == {"kdd": 2000, "thyroid": 940, "arrhythmia": 110}[name]


def test_shipped_pictures_in_a_folder_become_settings_for_pictures(here: Path) -> None:
    (here / "boards").mkdir()
    for i, value in zip(range(60), load("boards").values(), strict=False):
        (here / "boards" / f"{i:03}.png").write_bytes(value)
    content = settings_of(call("init", "boards"), here / "srr-stream.yaml")
    assert content["record"]["format"] == "image"
    assert content["record"]["fields"] == [
        {"name": "picture", "kind": "image", "size": [64, 64], "mode": "grey", "resize": "stretch"}
    ]
    assert content["training"] == {"representation": "cutpaste"}
    assert content["window"] == {"min_size": 50, "max_size": 10_000}


def test_large_pictures_raise_the_record_size_and_lower_the_window(here: Path, encode: Callable[..., bytes]) -> None:
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8))
    (here / "photos").mkdir()
    (here / "photos" / "a.png").write_bytes(encode(noise, "PNG"))
    content = settings_of(call("init", "photos"), here / "srr-stream.yaml")
    assert content["input"]["max_record_size"].endswith("MiB")
    assert content["record"]["fields"][0]["size"] == [256, 192]
    assert content["window"]["max_size"] == (1 << 30) // (256 * 192 * 3)


UGLY = {
    "bom": (b"\xef\xbb\xbfa,b\n" + b"".join(b"%d,%d\n" % (i % 7, i % 5) for i in range(99)), ["a", "b"]),
    "semicolons": (b"menge;ort\n" + b"3,5;Bern\n1,25;Ulm\n" * 30, ["menge", "ort"]),
    "quoted": (b'"a, b",c\n' + b'"1","x, ""y"""\n"2",z\n' * 30, ["a, b", "c"]),
    "mixed": (b"a,b\n" + b"5,1\n7,2\n" * 100 + b"broken,3\n", ["a", "b"]),
    "missing": (b"a,b\n" + b"5,1\n,NA\nn/a,2\n" * 30, ["a", "b"]),
    "unicode": (
        ("größe,日本,emoji 😀,on,'q': {\n" + "1,2,3,4,5\n2,3,4,5,6\n" * 20).encode(),
        ["größe", "日本", "emoji 😀", "on", "'q': {"],
    ),
    "one column": (b"only\n" + b"3\n1\n2\n" * 20, ["only"]),
    "few rows": (b"a,b\n3,1\n1,2\n", ["a", "b"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", UGLY)
def test_a_csv_as_people_have_it_becomes_settings(here: Path, kind: str) -> None:
    content, expected = UGLY[kind]
    (here / "ugly.csv").write_bytes(content)
    written = settings_of(call("init", "ugly.csv"), here / "srr-stream.yaml")
    assert names(written) == expected
    if kind == "missing":
        assert [field["required"] for field in written["record"]["fields"]] == [False, False]
    if kind == "semicolons":
        assert written["record"]["fields"][0] == {"name": "menge", "kind": "numeric"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "is no readable .csv file: empty CSV"),
        ("header.csv", b"a,b\n", "header.csv: holds no records"),
        ("header.ndjson", b"\n\n", "header.ndjson: holds no records"),
        ("gone.csv", None, "gone.csv: there is no such file"),
        ("notes.txt", b"hello", "files of kind '.txt' are not read"),
        ("ids.csv", b"id\n" + b"".join(b"id-%d\n" % i for i in range(50)), "no field is left"),
    ],
)
def test_a_file_that_gives_nothing_exits_3_and_nothing_is_written(
    here: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (here / name).write_bytes(content)
    result = call("init", name)
    assert (result.exit_code, message in result.stderr) == (3, True), result.stderr
    assert not (here / "srr-stream.yaml").exists()


def write_ndjson(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def nested_rows(n: int = 300) -> list[Any]:
    return [
        {
            "id": f"e{i}",
            "at": f"2024-05-01T12:{i // 60:02}:{i % 60:02}Z",
            "request": {"size": i % 50, "user": {"country": ["CH", "DE"][i % 2]}, "tags": ["a"]},
            "load": None if i % 3 else 0.5,
        }
        for i in range(n)
    ]


def test_nested_ndjson_gets_dotted_paths_and_a_time(here: Path) -> None:
    write_ndjson(here / "events.ndjson", nested_rows())
    content = settings_of(call("init", "events.ndjson"), here / "srr-stream.yaml")
    assert content["record"]["time_field"] == "at"
    assert content["record"]["fields"] == [
        {"name": "at", "kind": "timestamp"},
        {"name": "request.size", "kind": "numeric", "path": "request.size"},
        {"name": "request.user.country", "kind": "categorical", "path": "request.user.country"},
        {"name": "load", "kind": "numeric", "required": False},
    ]


def test_what_was_left_out_can_be_put_back_by_taking_its_mark_away(here: Path) -> None:
    write_ndjson(here / "events.ndjson", nested_rows())
    call("init", "events.ndjson")
    text = (here / "srr-stream.yaml").read_text()
    assert "#   request.tags: lists are no features" in text
    (here / "more.yaml").write_text(text.replace("    # - {name: id,", "    - {name: id,"))
    assert "id" in [field.name for field in load_settings(here / "more.yaml").record.fields]


def test_the_newest_records_are_looked_at(here: Path) -> None:
    write_ndjson(here / "late.ndjson", [{"old": i % 7} for i in range(50)] + [{"new": i % 7} for i in range(50)])
    content = settings_of(call("init", "late.ndjson", "-n", "50", "-o", "late.yaml"), here / "late.yaml")
    assert names(content) == ["new"]


def test_the_schema_is_one_json_document_on_standard_output(here: Path) -> None:
    write_ndjson(here / "events.ndjson", [*nested_rows(), "no json\n"])
    result = call("init", "events.ndjson", "--json")
    found = json.loads(result.stdout)
    assert (found["n_records"], found["n_unreadable"], found["time_field"]) == (301, 1, "at")
    assert found["decoded"] == {"n": 300, "of": 301, "bad": {"not_json": 1}}
    assert found["fields"][1] == {
        "name": "request.size",
        "path": ["request", "size"],
        "kind": "numeric",
        "is_required": True,
        "seen": "300 of 300, 0 … 49, median 24.5",
        "why_not": None,
        "note": "",
        "is_label": False,
    }
    assert [one["name"] for one in found["left_out"]] == ["id", "request.tags"]
    assert (here / found["settings"]).exists()


def test_records_that_too_often_cannot_be_read_exit_3_with_the_reasons(here: Path) -> None:
    write_ndjson(here / "events.ndjson", [*nested_rows(), *["no json\n"] * 12])
    result = call("init", "events.ndjson")
    assert result.exit_code == 3
    assert (
        "only 96.2% of the records looked at can be read: 12 not_json, such as: the record is no JSON" in result.stderr
    )
    assert (here / "srr-stream.yaml").exists()


def test_a_file_that_is_there_is_replaced_only_by_force(here: Path) -> None:
    write_ndjson(here / "events.ndjson", nested_rows())
    (here / "srr-stream.yaml").write_text("mine")
    refused = call("init", "events.ndjson")
    assert (refused.exit_code, "--force replaces it" in refused.stderr) == (2, True)
    assert (here / "srr-stream.yaml").read_text() == "mine"
    settings_of(call("init", "events.ndjson", "--force"), here / "srr-stream.yaml")


def test_a_folder_that_is_not_there_exits_3(here: Path) -> None:
    write_ndjson(here / "events.ndjson", nested_rows())
    result = call("init", "events.ndjson", "-o", "no/where.yaml")
    assert (result.exit_code, "No such file or directory" in result.stderr) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["requests"], "say where with --bootstrap-servers"),
        (["requests", "--topic", "other"], "--topic is for files"),
    ],
)
def test_a_topic_without_brokers_is_a_usage_error(here: Path, arguments: list[str], message: str) -> None:
    result = call("init", *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_the_topic_of_a_file_can_be_named(here: Path) -> None:
    write_ndjson(here / "a b.ndjson", nested_rows())
    content = settings_of(
        call("init", "a b.ndjson", "--topic", "orders", "--bootstrap-servers", "kafka-1:9092"), here / "srr-stream.yaml"
    )
    assert content["input"]["topics"] == ["orders"]
    assert content["kafka"] == {"bootstrap_servers": "kafka-1:9092"}
    assert topic_of("a b.ndjson") == "a-b"


# Topics


def test_a_topic_becomes_settings_that_read_it(
    here: Path, stream: Stream, make_values: Callable[..., list[bytes]]
) -> None:
    stream.produce(make_values(400))
    result = call("init", stream.topic, "--bootstrap-servers", stream.bootstrap_servers)
    content = settings_of(result, here / "srr-stream.yaml")
    assert content["record"]["fields"] == [
        {"name": "duration_ms", "kind": "numeric"},
        {"name": "bytes_sent", "kind": "numeric"},
        {"name": "load", "kind": "numeric"},
        {"name": "route", "kind": "categorical"},
    ]
    assert content["kafka"] == {"bootstrap_servers": stream.bootstrap_servers}
    assert content["window"]["min_size"] == 2000
    assert "the topic holds 400 by now" in (here / "srr-stream.yaml").read_text()
    assert "400 of 400 records can be read" in result.stdout
    assert f"--partitions 2 --topic {stream.topic}.labels --config cleanup.policy=compact" in result.stderr
    assert "srr-stream doctor -c srr-stream.yaml" in result.stderr


def test_brokers_come_from_another_settings_file(
    here: Path, stream: Stream, make_values: Callable[..., list[bytes]]
) -> None:
    stream.produce(make_values(100))
    (here / "kafka.yaml").write_text(f"kafka: {{bootstrap_servers: '{stream.bootstrap_servers}', client_id: me}}")
    content = settings_of(call("init", stream.topic, "-c", "kafka.yaml"), here / "srr-stream.yaml")
    assert content["kafka"] == {"bootstrap_servers": stream.bootstrap_servers, "client_id": "me"}


def test_an_empty_topic_and_a_missing_one_exit_3(here: Path, stream: Stream) -> None:
    empty = call("init", stream.topic, "--bootstrap-servers", stream.bootstrap_servers)
    assert (empty.exit_code, f"topic {stream.topic} holds no records; send some first" in empty.stderr) == (3, True)
    missing = call("init", "test-not-there", "--bootstrap-servers", stream.bootstrap_servers)
    assert (missing.exit_code, "there is no topic test-not-there" in missing.stderr) == (3, True)


def test_the_bytes_of_a_sample_have_a_limit(here: Path) -> None:
    write_ndjson(here / "events.ndjson", [{"x": i, "text": "a" * 1000} for i in range(300)])
    sample = sample_file(here / "events.ndjson", max_bytes=10_000)
    assert (len(sample.records), sample.n_total) == (9, 300)
    assert json.loads(sample.records[-1].value or b"")["x"] == 299


# Secrets


def kafka_with_password(**changes: Any) -> KafkaSettings:
    return KafkaSettings.model_validate(
        {
            "bootstrap_servers": "kafka-1:9094",
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "reader",
            **changes,
        }
    )


def test_a_password_is_never_written_but_where_it_may_stand(here: Path) -> None:
    write_ndjson(here / "events.ndjson", nested_rows())
    sample = sample_file(here / "events.ndjson")
    kafka = kafka_with_password(sasl_plain_password="hunter2")
    text = first_settings(
        Sample("t", sample.records, 300), infer(sample.records), topic="t", kafka=kafka, is_file=False,
        has_placeholder=False,
    )  # fmt: skip
    assert "hunter2" not in text
    assert "sasl_plain_password is not written here" in text
    assert "# or into the environment, SRR__KAFKA__SASL_PLAIN_PASSWORD." in text
    assert "sasl_plain_username: reader" in text
    assert read_back(text, kafka).kafka == kafka
    assert missing_secrets(kafka) == ["SRR__KAFKA__SASL_PLAIN_PASSWORD"]


def test_a_password_of_the_environment_or_of_a_file_stays_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ndjson(here / "events.ndjson", nested_rows())
    (here / "kafka.yaml").write_text(
        "kafka: {bootstrap_servers: 'k:1', security_protocol: SASL_PLAINTEXT, sasl_mechanism: PLAIN, "
        "sasl_plain_username: me}"
    )
    monkeypatch.setenv("SRR__KAFKA__SASL_PLAIN_PASSWORD", "hunter2")
    result = call("init", "events.ndjson", "-c", "kafka.yaml")
    settings_of(result, here / "srr-stream.yaml")
    assert "hunter2" not in result.output + (here / "srr-stream.yaml").read_text()
    assert "export SRR__KAFKA__SASL_PLAIN_PASSWORD=…" in result.stderr
    monkeypatch.delenv("SRR__KAFKA__SASL_PLAIN_PASSWORD")
    (here / "password").write_text("hunter2")
    (here / "password").chmod(stat.S_IRUSR)
    (here / "kafka.yaml").write_text(
        "kafka: {bootstrap_servers: 'k:1', security_protocol: SASL_PLAINTEXT, sasl_mechanism: PLAIN, "
        "sasl_plain_username: me, sasl_plain_password_file: password}"
    )
    content = settings_of(call("init", "events.ndjson", "-c", "kafka.yaml", "--force"), here / "srr-stream.yaml")
    assert content["kafka"]["sasl_plain_password_file"] == "password"


def test_a_wrong_settings_file_for_the_brokers_exits_2(here: Path) -> None:
    write_ndjson(here / "events.ndjson", nested_rows())
    (here / "kafka.yaml").write_text("kafka: {bootstrap_server: x}")
    result = call("init", "events.ndjson", "-c", "kafka.yaml")
    assert (result.exit_code, "did you mean 'bootstrap_servers'" in result.stderr) == (2, True)
