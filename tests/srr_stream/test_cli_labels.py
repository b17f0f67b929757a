"""``srr-stream labels``: what is asked for is written whole or not at all, and each mistake is told with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from consumers.decoding import JsonDecoder
from consumers.logs import MemoryLog
from consumers.records import Field, RecordSchema
from srr_stream.cli import main
from srr_stream.labels import LabelTopic
from srr_stream.labels.labelling import Asked, WrongLabels, make_labels, read_file, to_plain
from srr_stream.record_reader import RecordReader

AT = "2026-01-01T00:00:00.000Z"


def file(folder: Path, content: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        'id,label,note\nin-0-1,normal,"ours, again"\nin-0-2,anomaly,\n',
        '\ufefflabel,note,id\r\nnormal,"ours, again",in-0-1\r\n anomaly ,,in-0-2\r\n',
        '{"id": "in-0-1", "label": "normal", "note": "ours, again"}\n\n{"label": "anomaly", "id": "in-0-2"}',
        '\n{"id": "in-0-1","label": "normal","note": "ours, again"}\n{"id": "in-0-2","label": "anomaly","note": null}',
    ],
)
def test_csv_and_ndjson_say_the_same(content: str, tmp_path: Path) -> None:
    found = read_file(file(tmp_path, content))
    assert [(one.id, one.label, one.note) for one in found] == [
        ("in-0-1", "normal", "ours, again"),
        ("in-0-2", "anomaly", ""),
    ]


def test_a_csv_without_notes_is_fine_and_each_label_knows_its_line(tmp_path: Path) -> None:
    path = file(tmp_path, 'label,id,note\nnormal,in-0-1,"two\nlines"\nunsure,in-0-2,\n')
    assert [one.where for one in read_file(path)] == [f"{path}:3", f"{path}:4"]
    assert read_file(file(tmp_path, "id,label\nin-0-1,normal\n"))[0].note == ""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "has no labels; needed: a CSV with the columns id, label, note, or NDJSON"),
        ("id,label\n", "has no labels"),
        ("id;label\nin-0-1;normal\n", ":1: columns are id;label; allowed: id, label"),
        ("id,label,who\nin-0-1,normal,me\n", ":1: columns are id, label, who"),
        ("id,label\nin-0-1,normal\nin-0-2\n", ":3: has not as many values"),
        ("id,label\nin-0-1,normal,x\n", ":2: has not as many values"),
        ('id,label\n"in-0-1,normal\n', ":2: unexpected end of data"),
        ('{"id": "in-0-1", "label": "normal"}\n{torn\n', ":2: is no JSON"),
        ('{"id": "in-0-1", "label": "normal"}\n[]\n', ":2: is no JSON object"),
        ('{"id": 1, "label": null}\n', ":1: id, label is no text; allowed: id, label, note, all texts"),
        ('{"id": "in-0-1", "label": "normal", "note": 1}\n', ":1: note is no text"),
        ('{"id": "in-0-1", "label": "normal", "who": "me"}\n', ":1: who is not known"),
    ],
)
def test_a_file_that_is_wrong_is_told_by_line(content: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(WrongLabels) as error:
        read_file(file(tmp_path, content))
    assert len(error.value.problems) == 1
    assert told in error.value.problems[0]


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WrongLabels, match="is no UTF-8 text"):
        read_file(path)


# --- the labels -------------------------------------------------------------------------------------------------------


@pytest.fixture
def make() -> Callable[..., Any]:
    """Give what makes labels of the records of a log in memory, by a model whose severity is their field."""
    log = MemoryLog()
    for i in range(3):
        log.append("in", b'{"x": %d}' % i)
    log.append("in", b"no JSON")

    class Field1:
        def score(self, columns: Any) -> Any:
            return SimpleNamespace(p_value=columns["x"] / 10, severity=columns["x"])

    def call(*asked: Asked, has_model: bool = True) -> Any:
        return make_labels(
            asked,
            author="ann",
            at=AT,
            topics=("in",),
            reader=RecordReader(lambda: log, topics=("in",)),
            decoder=JsonDecoder(RecordSchema((Field("x"),))),
            live=SimpleNamespace(version=7, model=Field1()) if has_model else None,  # type: ignore[arg-type]
        )

    return call


def test_a_label_has_the_record_and_what_the_live_model_says(make: Callable[..., Any]) -> None:
    one, unreadable = make(Asked("in-0-2", "normal", "ours"), Asked("in-0-3", "anomaly"))
    assert (one.record, one.version, one.p_value, one.severity) == (b'{"x": 2}', 7, 0.2, 2.0)
    assert (one.author, one.at, one.note) == ("ann", AT, "ours")
    assert (unreadable.record, unreadable.version, unreadable.severity) == (b"no JSON", None, None)
    assert to_plain(one)["has_record"]
    assert "record" not in to_plain(one)
    (unread,) = make(Asked("in-0-3", "anomaly"))
    assert unread.p_value is None


def test_a_record_that_is_too_large_is_told_to_be_left_out(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srr_stream.labels.MAX_SIZE", 100)
    (one,) = make(Asked("in-0-2", "normal"))
    assert (one.record, one.severity) == (None, 2.0)
    assert not to_plain(one)["has_record"]


def test_without_a_model_a_label_has_no_numbers(make: Callable[..., Any]) -> None:
    (one,) = make(Asked("in-0-2", "normal"), has_model=False)
    assert (one.record, one.version, one.p_value, one.severity) == (b'{"x": 2}', None, None, None)


def test_everything_that_is_wrong_is_told_at_once(make: Callable[..., Any]) -> None:
    asked = [
        Asked("in-0-1", "normal", where="f:2"),
        Asked("in-0-1", "anomaly", where="f:3"),
        Asked("what", "normal", where="f:4"),
        Asked("other-0-1", "normal", where="f:5"),
        Asked("in-0-2", "good", "x" * 2001, where="f:6"),
    ]
    with pytest.raises(WrongLabels) as error:
        make(*asked)
    assert [problem[:40] for problem in error.value.problems] == [
        "f:3: in-0-1 is there twice",
        "f:4: 'what' is no event id; ids are topi",
        "f:5: other-0-1: other is not among input",
        "f:6: label is 'good'; allowed: anomaly, ",
        "f:6: note has 2001 characters; allowed: ",
    ]


def test_records_that_are_not_in_the_log_are_told_together(make: Callable[..., Any]) -> None:
    with pytest.raises(WrongLabels) as error:
        make(Asked("in-0-1", "normal"), Asked("in-0-9", "normal", where="f:3"), Asked("in-5-0", "normal"))
    assert len(error.value.problems) == 2
    assert error.value.problems[0].startswith("f:3: in-0-9: ")
    assert error.value.problems[1].startswith("in-5-0: ")


# --- the commands -----------------------------------------------------------------------------------------------------


class Bench:
    """A stream with a topic for labels, and records to label."""

    def __init__(self, stream: Any, broker: Any, values: list[bytes]) -> None:
        self.topic, self.folder = stream.topic, stream.folder
        labels_topic = f"{stream.topic}-labels"
        broker.create_topics({labels_topic: 1})
        self.path = stream.write_settings(labels={"topic": labels_topic})
        self.writer = LabelTopic({"bootstrap_servers": stream.bootstrap_servers}, labels_topic)
        stream.produce(values)
        self.ids = [f"{record.topic}-{record.partition}-{record.offset}" for record in stream.read(stream.topic)]

    def call(self, command: str, *arguments: object) -> Result:
        return CliRunner().invoke(main, ["labels", command, "-c", str(self.path), *map(str, arguments)])

    def document(self, command: str, *arguments: object) -> Any:
        result = self.call(command, *arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def bench(stream: Any, embedded_broker: Any, make_values: Callable[..., list[bytes]]) -> Any:
    made = Bench(stream, embedded_broker, make_values(6))
    yield made
    made.writer.close()


def test_labels_are_set_listed_summed_up_and_removed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ann")
    empty = bench.call("list")
    assert (empty.exit_code, empty.stdout, empty.stderr) == (0, "", "there are no labels\n")
    one, two = bench.ids[:2]
    assert bench.call("set", one, "normal", "--note", "a backup\x1b[2J").stdout == "labelled 1\n"
    (made,) = bench.document("set", two, "anomaly", "--author", "bob")
    assert (made["author"], made["has_record"], made["version"]) == ("bob", True, None)
    listed = bench.document("list")
    assert [(row["id"], row["label"], row["author"]) for row in listed] == [
        (one, "normal", "ann"),
        (two, "anomaly", "bob"),
    ]
    text = bench.call("list", "--label", "normal").stdout
    assert "a backup\ufffd[2J" in text
    assert two not in text
    summary = bench.document("summary")
    assert (summary["n_anomaly"], summary["n_normal"], summary["precision"]) == (1, 1, None)
    assert "20 are needed to suggest" in bench.call("summary").stdout
    refused = bench.call("remove", one, bench.ids[3])
    assert refused.exit_code == 3
    assert refused.stderr == f"error: there is no label of {bench.ids[3]}; nothing was removed\n"
    assert bench.document("remove", one) == {"n_removed": 1}
    assert [row["id"] for row in bench.document("list")] == [two]
    assert bench.call("remove", two).stdout == "removed 1\n"


def test_a_file_is_taken_whole_or_not_at_all(bench: Bench) -> None:
    lines = [f"{event_id},normal,{i}" for i, event_id in enumerate(bench.ids)]
    wrong = file(bench.folder, "\n".join(["id,label,note", *lines[:3], f"{bench.topic}-0-99,normal,", *lines[3:]]))
    result = bench.call("import", wrong)
    assert result.exit_code == 2
    assert result.stdout == ""
    first, last = result.stderr.splitlines()
    assert first.startswith(f"error: {wrong}:5: {bench.topic}-0-99: ")
    assert last == "nothing was written"
    assert bench.document("list") == []
    right = file(bench.folder, "\n".join(["id,label,note", *lines]))
    assert len(bench.document("import", right)) == 6
    assert {row["note"] for row in bench.document("list")} == set("012345")


def test_a_record_that_is_not_there_is_told(bench: Bench) -> None:
    result = bench.call("set", f"{bench.topic}-0-99", "normal")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {bench.topic}-0-99: ")
    assert result.stderr.endswith("nothing was written\n")


@pytest.mark.parametrize("command", [("list",), ("summary",), ("set", "t-0-0", "normal"), ("remove", "t-0-0")])
def test_without_a_topic_for_labels_every_command_says_how_to_make_one(command: tuple[str, ...], stream: Any) -> None:
    path = stream.write_settings()
    result = CliRunner().invoke(main, ["labels", command[0], "-c", str(path), *command[1:]])
    assert result.exit_code == 3
    assert result.stderr.startswith("error: labels.topic is not set; make a topic, kafka-topics.sh --create")


def test_rubbish_in_the_topic_is_told_beside_the_list(bench: Bench, stream: Any) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=stream.bootstrap_servers)
    producer.send(f"{stream.topic}-labels", b"rubbish", key=b"x").get(10)
    producer.close(5)
    result = bench.call("list")
    assert result.exit_code == 0
    assert "1 records of the topic are no labels and are left out" in result.stderr
