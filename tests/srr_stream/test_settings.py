"""Settings: every problem at once, each with its path, what was given, what is allowed and the nearest key."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers.decoding import ImageDecoder, JsonDecoder
from consumers.records import Field, FieldKind, ImageSpec, StoredRecord
from models.occ import CLASSIFIERS
from models.occ.knn import KNN
from srr_stream.assembly import (
    kafka_connection,
    make_decoder,
    make_sink,
    make_source,
    make_training_config,
    record_schema,
)
from srr_stream.errors import SettingsError
from srr_stream.loading import check_settings, load_settings
from srr_stream.settings import ClassifierName, Settings, parse_duration

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {
    "kafka": {"bootstrap_servers": "broker:9092"},
    "input": {"topics": ["requests"], "start": "earliest"},
    "record": {"fields": [{"name": "duration_ms"}, {"name": "route", "kind": "categorical"}]},
    "output": {"alerts_topic": "requests-alerts", "dead_letter_topic": "requests-dead"},
}


def changed(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the good settings with some keys of some sections replaced."""
    content = copy.deepcopy(GOOD)
    for section, values in sections.items():
        content[section] = content.get(section, {}) | dict(values)
    return content


PHOTO = {"name": "photo", "kind": "image", "size": [32, 24]}


def of_pictures(*fields: Mapping[str, Any], **sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return good settings of a topic with pictures, with some keys of some sections replaced."""
    sections["record"] = {"fields": list(fields) or [PHOTO]} | dict(sections.get("record", {}))
    return changed(**sections, training={"representation": "pixels"})


def without(section: str, key: str) -> dict[str, Any]:
    content = copy.deepcopy(GOOD)
    del content[section][key]
    return content


def problems_of(content: Mapping[str, Any]) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        check_settings(content)
    assert all("\n" not in problem for problem in refused.value.problems)
    return refused.value.problems


def only_problem_of(content: Mapping[str, Any]) -> str:
    problems = problems_of(content)
    assert len(problems) == 1, problems
    return problems[0]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "settings.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.upper().startswith("SRR__")]:
        monkeypatch.delenv(name)


# Good settings


def test_the_least_that_must_be_said_is_enough_and_the_rest_has_defaults(tmp_path: Path) -> None:
    loaded = load_settings(write(tmp_path, json.dumps(GOOD)))
    assert loaded.kafka.bootstrap_servers == "broker:9092"
    assert loaded.input.topics == ("requests",)
    assert loaded.threshold.false_alarm_rate == 0.005
    assert loaded.training.every == timedelta(minutes=15)
    assert record_schema(loaded.record).feature_names == ("duration_ms", "route")


def test_a_section_whose_every_line_is_commented_out_means_its_defaults() -> None:
    assert check_settings(GOOD | {"training": None}) == check_settings(GOOD)


def test_durations_and_sizes_are_read_as_people_write_them() -> None:
    content = changed(training={"every": "1h30m", "memory_limit": "2GiB"}, input={"max_record_size": "512KiB"})
    loaded = check_settings(content)
    assert loaded.training.every == timedelta(minutes=90)
    assert loaded.training.memory_limit == 2 * 1024**3
    assert loaded.input.max_record_size == 512 * 1024


def test_settings_cannot_be_changed_once_they_are_checked() -> None:
    loaded = check_settings(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        loaded.kafka.client_id = "another"


@given(
    days=st.integers(0, 999),
    hours=st.integers(0, 99),
    minutes=st.integers(0, 999),
    seconds=st.integers(0, 9999),
    millis=st.integers(0, 9999),
    gap=st.sampled_from(["", " "]),
)
def test_a_duration_written_in_its_parts_reads_back_exactly(
    days: int, hours: int, minutes: int, seconds: int, millis: int, gap: str
) -> None:
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s"), (millis, "ms")]
    text = gap.join(f"{number}{gap}{unit}" for number, unit in parts)
    exact = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=millis)
    assert parse_duration(text) == exact


@given(n=st.integers(1, 1 << 20), unit=st.sampled_from([("", 1), ("kB", 10**3), ("KiB", 1 << 10), ("MiB", 1 << 20)]))
@settings(max_examples=30, deadline=None)
def test_a_size_written_with_its_unit_reads_back_exactly(n: int, unit: tuple[str, int]) -> None:
    name, factor = unit
    assert check_settings(changed(training={"memory_limit": f"{n}{name}"})).training.memory_limit == n * factor


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_file_is_good(path: Path) -> None:
    load_settings(path)


def test_a_picture_of_the_settings_is_one_of_the_schema() -> None:
    field = {**PHOTO, "mode": "grey", "resize": "pad", "path": "data.photo"}
    schema = record_schema(check_settings(of_pictures(field, {"name": "x"})).record)
    assert schema.image_field == Field(
        "photo", FieldKind.IMAGE, ("data", "photo"), image=ImageSpec(32, 24, "grey", "pad")
    )
    assert schema.metadata_names == ("x",)


def test_the_decoder_is_the_one_that_the_settings_name() -> None:
    raw = [StoredRecord("t", 0, 0, 0, None, b"x" * 101)]
    for how, expected in (("json", JsonDecoder), ("image", ImageDecoder)):
        loaded = check_settings(of_pictures(record={"format": how}, input={"max_record_size": 100}))
        decoder = make_decoder(loaded)
        assert isinstance(decoder, expected)
        assert [bad.reason for bad in decoder.decode(raw).bad] == ["too_large"]


def test_the_limit_on_pixels_reaches_the_decoder(encode: Callable[..., bytes]) -> None:
    data = encode(PIL.Image.new("RGB", (40, 25)), "PNG")
    for limit, reasons in ((1000, []), (999, ["too_many_pixels"])):
        loaded = check_settings(of_pictures(record={"format": "image", "max_pixels": limit}))
        decoded = make_decoder(loaded).decode([StoredRecord("t", 0, 0, 0, None, data)])
        assert [bad.reason for bad in decoded.bad] == reasons


@pytest.mark.parametrize(("content", "expected"), [(changed, 20_000), (of_pictures, 128)])
def test_pictures_are_scored_in_smaller_batches_unless_something_else_is_said(
    monkeypatch: pytest.MonkeyPatch, content: Callable[..., dict[str, Any]], expected: int
) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr("consumers.sources.kafka.KafkaSource", lambda topics, **options: found.update(options))
    make_source(check_settings(content(input={"max_batch": None})))
    assert found["max_batch"] == expected
    make_source(check_settings(content(input={"max_batch": 7})))
    assert found["max_batch"] == 7


def test_the_client_of_the_settings_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr(
        "consumers.sources.kafka.KafkaSource", lambda topics, **options: found.append(options["client"])
    )
    monkeypatch.setattr("consumers.sinks.kafka.KafkaSink", lambda _, **options: found.append(options["client"]))
    for client in ("kafka-python", "confluent"):
        settings = check_settings(changed(kafka={"client": client}))
        make_source(settings)
        make_sink(settings)
    assert found == ["kafka-python"] * 2 + ["confluent"] * 2


# Wrong settings


def test_every_problem_is_reported_at_once() -> None:
    content = changed(
        input={"start": "yesterday", "max_batch": 0},
        threshold={"false_alarm_rate": 2},
        training={"evry": "5m"},
        web={"port": 80},
    )
    del content["kafka"]["bootstrap_servers"]
    problems = "\n".join(problems_of(content))
    for path in (
        "kafka.bootstrap_servers",
        "input.start",
        "input.max_batch",
        "threshold.false_alarm_rate",
        "training.evry",
        "web",
    ):
        assert f"{path}: " in problems
    assert len(problems.splitlines()) == 6


def test_a_problem_names_path_value_and_what_is_allowed() -> None:
    problem = only_problem_of(changed(input={"start": "yesterday"}))
    assert problem == "input.start: is 'yesterday'; allowed: 'earliest' or 'latest'"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("kafka", "bootstrap_servers"),
        ("input", "topics"),
        ("input", "start"),
        ("record", "fields"),
        ("output", "dead_letter_topic"),
    ],
)
def test_what_has_no_default_must_be_given(section: str, key: str) -> None:
    assert only_problem_of(without(section, key)) == f"{section}.{key}: is missing; it has no default"


def test_nothing_at_all_names_the_four_sections_that_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(write(tmp_path, ""))
    assert {p.split(":")[0] for p in refused.value.problems} == {"kafka", "input", "record", "output"}


def test_an_unknown_section_is_refused_with_the_nearest_name() -> None:
    assert only_problem_of(changed(treshold={})) == "treshold: unknown key; did you mean 'threshold'?"


def test_an_unknown_key_of_a_section_is_refused_with_the_nearest_name() -> None:
    problem = only_problem_of(changed(kafka={"bootstrap_server": "x:1"}))
    assert problem == "kafka.bootstrap_server: unknown key; did you mean 'bootstrap_servers'?"


def test_an_unknown_key_of_a_field_is_refused_with_the_nearest_name() -> None:
    content = changed(record={"fields": [{"name": "a"}, {"name": "b", "requird": False}]})
    assert only_problem_of(content) == "record.fields.1.requird: unknown key; did you mean 'required'?"


def test_an_unknown_key_that_is_near_to_none_gets_the_list_of_those_allowed() -> None:
    problem = only_problem_of(changed(threshold={"zzz": 1}))
    assert problem == "threshold.zzz: unknown key; allowed: false_alarm_rate"


def test_no_key_of_the_file_is_taken_for_an_argument_of_the_settings_library() -> None:
    assert only_problem_of(changed(_env_file={})).startswith("_env_file: unknown key; allowed: kafka, input")


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("size", [0, 8], "size.0"),
        ("size", [8, 4097], "size.1"),
        ("size", [8, 8, 8], "size"),
        ("size", 8, "size"),
        ("mode", "cmyk", "mode"),
        ("resize", "zoom", "resize"),
    ],
)
def test_a_value_of_a_picture_that_is_not_allowed_is_refused_by_path(key: str, value: object, where: str) -> None:
    problem = only_problem_of(of_pictures(PHOTO | {key: value}))
    assert problem.startswith(f"record.fields.0.{where}: is ")


@pytest.mark.parametrize("value", ["-5s", "0s", "0ms", "5", 5, "5 minutes", "", "ten", "1h-5m", "1.s", [], True])
def test_a_duration_that_is_none_says_how_to_write_one(value: object) -> None:
    problem = only_problem_of(changed(input={"poll_timeout": value}))
    assert problem.startswith(f"input.poll_timeout: is {value!r}; allowed: a duration")


def test_a_duration_beyond_what_a_clock_can_hold_is_refused() -> None:
    problem = only_problem_of(changed(input={"poll_timeout": "999999999999d"}))
    assert problem.endswith("allowed: a duration up to 999999999d")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("input", "max_batch", 0),
        ("input", "max_batch", -1),
        ("input", "max_batch", 1.5),
        ("input", "max_record_size", "-1KiB"),
        ("input", "max_record_size", "a lot"),
        ("input", "topics", []),
        ("record", "format", "avro"),
        ("record", "max_pixels", 0),
        ("record", "max_pixels", 100_000_000),
        ("input", "topics", "requests"),
        ("window", "min_size", 49),
        ("training", "gamma", 0),
        ("training", "gamma", 1),
        ("training", "n_subsets", 1),
        ("training", "nice", 20),
        ("training", "every_records", 0),
        ("training", "representation", "pca"),
        ("threshold", "false_alarm_rate", float("nan")),
        ("threshold", "false_alarm_rate", -0.1),
        ("gate", "max_flagged_factor", 1),
        ("gate", "min_synthetic_auc_margin", 0.1),
        ("registry", "keep", 1),
        ("http", "scorer_port", 65536),
        ("http", "scorer_port", -1),
        ("http", "public_url", "srr.example.com"),
        ("http", "public_url", "ftp://srr.example.com"),
        ("http", "public_url", "https://srr.example.com/?a=b"),
        ("http", "public_url", "https://"),
        ("http", "public_url", ""),
        ("output", "n_reasons", -1),
        ("output", "include_record", "perhaps"),
        ("kafka", "security_protocol", "TLS"),
        ("kafka", "ssl_check_hostname", None),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_path(section: str, key: str, value: object) -> None:
    problem = only_problem_of(changed(**{section: {key: value}}))
    assert problem.startswith(f"{section}.{key}: is {value!r}; allowed: ")


def test_a_section_that_is_no_mapping_says_which_keys_it_has() -> None:
    problem = only_problem_of(GOOD | {"threshold": [0.1]})
    assert problem == "threshold: is [0.1]; allowed: a mapping of false_alarm_rate"


def test_a_long_value_is_cut() -> None:
    problem = only_problem_of(changed(input={"start": "x" * 5000}))
    assert len(problem) < 150


# Files


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.yaml: cannot be read: No such file"):
        load_settings(tmp_path / "absent.yaml")


def test_a_folder_in_place_of_a_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    "text", ["kafka: {", "a: b: c", b"\xff\xfe\x00", "kafka:\n\tx: 1", "a: \x00", "at: 2026-99-99"]
)
def test_what_is_not_yaml_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(SettingsError, match=r"settings\.yaml: is not YAML: ") as refused:
        load_settings(write(tmp_path, text))
    assert len(refused.value.problems) == 1


def test_what_is_not_yaml_is_shown_by_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not YAML: line 2, column 5: mapping values are not allowed here"):
        load_settings(write(tmp_path, "kafka: x\n   y: z\n"))


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("just text", "str"), ("42", "int")])
def test_yaml_that_is_no_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    with pytest.raises(SettingsError, match=f"must be a mapping of sections, but is a {kind}"):
        load_settings(write(tmp_path, text))


def test_a_section_whose_name_is_no_text_is_refused() -> None:
    problems = problems_of({**GOOD, 7: {}})  # type: ignore[dict-item]  # YAML allows it
    assert problems == [f"7: unknown key; allowed: {', '.join(Settings.model_fields)}"]


# Secrets


@pytest.mark.parametrize(
    "content",
    [
        changed(kafka={"sasl_plain_password": ["hunter2"]}),
        changed(kafka={"sasl_plain_passwort": "hunter2"}),
        changed(kafka={"sasl_plain_password": {"value": "hunter2"}}),
        GOOD | {"kafka": [{"sasl_plain_password": "hunter2"}]},
        GOOD | {"kafka": "hunter2"},
        changed(kafka={"security_protocol": "SASL_SSL", "sasl_plain_password": "hunter2"}),
    ],
)
def test_a_secret_is_in_no_error(content: dict[str, Any]) -> None:
    assert "hunter2" not in "\n".join(problems_of(content))


@pytest.mark.parametrize(
    "text", ['kafka: {sasl_plain_password: "hunter2', "kafka:\n  sasl_plain_password: *hunter2", "k: !hunter2 x"]
)
def test_a_secret_in_a_file_that_is_not_yaml_is_in_no_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(write(tmp_path, text))
    assert "hunter2" not in str(refused.value)


SECRETS = {
    "PLAIN": {"sasl_plain_username": "me", "sasl_plain_password": "hunter2"},
    "OAUTHBEARER": {
        "sasl_oauthbearer_token_endpoint_url": "https://login.example.com/token?tenant=1",
        "sasl_oauthbearer_client_id": "me",
        "sasl_oauthbearer_client_secret": "hunter2",
    },
}


@pytest.mark.parametrize("mechanism", SECRETS)
def test_a_secret_is_not_in_what_settings_or_the_connection_print(mechanism: str, tmp_path: Path) -> None:
    (tmp_path / "certificate").touch()
    tls = {"ssl_certfile": str(tmp_path / "certificate"), "ssl_password": "hunter2"}
    kafka = {"security_protocol": "SASL_SSL", "sasl_mechanism": mechanism, **tls, **SECRETS[mechanism]}
    loaded = check_settings(changed(kafka=kafka))
    made = kafka_connection(loaded.kafka)
    assert made["ssl_password"].encode() == b"hunter2"
    assert loaded.kafka.ssl_password is not None
    assert loaded.kafka.ssl_password.get_secret_value() == "hunter2"
    printed = [repr(loaded), str(loaded), loaded.model_dump_json(), str(loaded.model_dump()), repr(made), str(made)]
    assert not [text for text in printed if "hunter2" in text]


@pytest.mark.parametrize(
    "kafka",
    [
        {"sasl_oauthbearer_client_secret": ["hunter2"]},
        {"sasl_oauthbearer_token_endpoint_url": "https://me:hunter2@login.example.com/token"},
        {"ssl_password": {"value": "hunter2"}},
    ],
)
def test_a_secret_is_not_in_the_error_about_it(kafka: dict[str, Any]) -> None:
    assert "hunter2" not in only_problem_of(changed(kafka=kafka))


FILES = {
    "sasl_plain_password_file": {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "x",
    },
    "sasl_oauthbearer_client_secret_file": {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "OAUTHBEARER",
        "sasl_oauthbearer_token_endpoint_url": "https://login.example.com/token",
        "sasl_oauthbearer_client_id": "x",
    },
    "ssl_cafile": {"security_protocol": "SSL"},
    "ssl_certfile": {"security_protocol": "SSL"},
    "ssl_keyfile": {"security_protocol": "SSL", "ssl_certfile": __file__},
    "ssl_password_file": {"security_protocol": "SSL", "ssl_certfile": __file__},
}


@pytest.mark.parametrize("key", FILES)
def test_a_file_that_is_named_must_be_there(tmp_path: Path, key: str) -> None:
    absent = tmp_path / "absent"
    content = changed(kafka={key: str(absent), **FILES[key]})
    assert only_problem_of(content) == f"kafka.{key}: there is no file {str(absent)!r}"
    absent.write_text("secret")
    assert getattr(check_settings(content).kafka, key) == absent


# Contradictions


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"window": {"min_size": 500, "max_size": 400}},
            "window.max_size: is 400; allowed: at least window.min_size (500)",
        ),
        (
            {"window": {"mode": "span"}},
            "window.span: is missing; needed with window.mode: span, such as span: 6h",
        ),
        (
            {"output": {"alerts_topic": None}},
            "output: verdicts would go nowhere; set output.alerts_topic, output.scores_topic or both",
        ),
        (
            {"gate": {"reference_version": 3, "max_forgotten_ratio": None}},
            "gate.reference_version: is 3; allowed: nothing with gate.max_forgotten_ratio: null, with which no "
            "reference is asked",
        ),
        (
            {"output": {"scores_topic": "requests"}},
            "output: topic 'requests' is also an input topic; verdicts would be read again as records; "
            "use another name",
        ),
        (
            {"output": {"scores_topic": "requests-dead"}},
            "output: topics must differ from each other, got requests-alerts, requests-dead, requests-dead",
        ),
        (
            {"training": {"gamma": 0.2, "contamination": 0.1}},
            "training.gamma: is 0.2; allowed: nothing beside training.contamination (0.1), from which gamma follows; "
            "give one of them",
        ),
        (
            {"record": {"fields": [{"name": "a"}, {"name": "a"}]}},
            "record.fields: field names must be unique, these are there twice: a",
        ),
        (
            {"record": {"fields": [{"name": "at", "kind": "timestamp"}]}},
            "record.fields: needs at least one numeric, categorical, boolean or image field to learn from",
        ),
        (
            {"record": {"fields": [{"name": "a"}], "time_field": "a"}},
            "record.time_field: 'a' is not among the timestamp fields []",
        ),
        (
            {"record": {"fields": [{"name": "a"}, {"name": "b", "size": [8, 8]}]}},
            "record.fields.1.size: is (8, 8); allowed: with kind: image only, and this is numeric",
        ),
        (
            {"record": {"fields": [{"name": "a", "kind": "categorical", "mode": "rgb"}]}},
            "record.fields.0.mode: is 'rgb'; allowed: with kind: image only, and this is categorical",
        ),
        (
            {"record": {"format": "image"}},
            "record.fields: are duration_ms, route; allowed with record.format: image: one field of kind image, "
            "nothing else",
        ),
        (
            {"delivery": {"mode": "exactly_once"}, "input": {"isolation_level": "read_uncommitted"}},
            "input.isolation_level: is read_uncommitted; allowed with delivery.mode: exactly_once: read_committed, "
            "or records whose transaction is not settled yet would be answered twice",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sections: dict[str, Any], problem: str) -> None:
    assert only_problem_of(changed(**sections)) == problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            of_pictures({"name": "a", "kind": "image"}),
            "record.fields.0.size: is missing; needed with kind: image, such as size: [224, 224]",
        ),
        (
            of_pictures(PHOTO | {"required": False}),
            "record.fields.0.required: is False; allowed: true with kind: image; nothing takes a picture's place",
        ),
        (
            of_pictures(PHOTO | {"size": [200, 100]}, record={"max_pixels": 19_999}),
            "record.fields.0.size: is [200, 100]; allowed: at most record.max_pixels (19999) pixels",
        ),
        (
            of_pictures(PHOTO, PHOTO | {"name": "back"}),
            "record.fields: at most one image field is allowed, these are there: photo, back",
        ),
        (
            of_pictures(PHOTO, {"name": "x"}, record={"format": "image"}),
            "record.fields: are photo, x; allowed with record.format: image: one field of kind image, nothing else",
        ),
        (
            of_pictures(PHOTO | {"size": [512, 512]}),
            "window.max_size: is 20000; pictures of 512 × 512 × 3 make 14.6 GiB of it; allowed: 4 GiB, that is at "
            "most 5461 pictures; lower window.max_size or the size in record.fields",
        ),
    ],
)
def test_settings_of_pictures_that_contradict_each_other_are_refused(content: dict[str, Any], problem: str) -> None:
    assert only_problem_of(content) == problem


def test_options_that_the_representation_does_not_have_are_refused() -> None:
    content = changed(training={"representation": "goad", "representation_options": {"n_transfroms": 8}})
    problem = only_problem_of(content)
    assert problem.startswith("training.representation_options: ")
    assert "n_transfroms" in problem


def test_options_that_the_classifier_does_not_have_are_refused() -> None:
    problem = only_problem_of(changed(training={"classifier": "knn", "classifier_options": {"n_neighbours": 8}}))
    assert problem.startswith("training.classifier_options: ")
    assert "n_neighbours" in problem
    problem = only_problem_of(changed(training={"classifier_options": {"n_neighbors": 8}}))
    assert problem == "training.classifier_options: are given without training.classifier; name it"


def test_every_classifier_of_the_library_can_be_named_and_becomes_the_final_one() -> None:
    assert set(get_args(ClassifierName)) == set(CLASSIFIERS)
    config = make_training_config(
        Settings(**changed(training={"classifier": "knn", "classifier_options": {"n_neighbors": 3}}))
    )
    assert (config.representation, config.classifier, config.gamma) == ("goad", "knn", "auto")
    knn = config.make_classifier()
    assert isinstance(knn, KNN)
    assert knn.n_neighbors == [3]


def test_sasl_without_mechanism_user_and_password_names_all_three() -> None:
    problems = problems_of(changed(kafka={"security_protocol": "SASL_PLAINTEXT"}))
    assert [p.split(":")[0] for p in problems] == [
        "kafka.sasl_mechanism",
        "kafka.sasl_plain_password_file",
        "kafka.sasl_plain_username",
    ]


def test_complete_sasl_settings_are_good(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    loaded = check_settings(
        changed(
            kafka={
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "PLAIN",
                "sasl_plain_username": "me",
                "sasl_plain_password_file": str(secret),
            }
        )
    )
    assert loaded.kafka.sasl_plain_password_file == secret
    assert kafka_connection(loaded.kafka)["sasl_plain_password"].encode() == b"hunter2"


OAUTH = {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", **SECRETS["OAUTHBEARER"]}
PLAIN = {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", **SECRETS["PLAIN"]}


@pytest.mark.parametrize(
    ("kafka", "problem"),
    [
        (
            {**OAUTH, "sasl_oauthbearer_token_endpoint_url": None},
            "kafka.sasl_oauthbearer_token_endpoint_url: is missing; needed with SASL by OAUTHBEARER",
        ),
        (
            {**OAUTH, "sasl_oauthbearer_client_secret": None},
            "kafka.sasl_oauthbearer_client_secret_file: is missing; needed with SASL by OAUTHBEARER "
            "(or sasl_oauthbearer_client_secret)",
        ),
        (
            {**OAUTH, "sasl_plain_username": "me"},
            "kafka.sasl_plain_username: is set; not used with security_protocol SASL_SSL and sasl_mechanism "
            "OAUTHBEARER; remove it or correct these",
        ),
        (
            {**PLAIN, "sasl_oauthbearer_scope": "kafka"},
            "kafka.sasl_oauthbearer_scope: is set; not used with security_protocol SASL_SSL and sasl_mechanism "
            "PLAIN; remove it or correct these",
        ),
        (
            {"ssl_cafile": __file__},
            "kafka.ssl_cafile: is set; not used with security_protocol PLAINTEXT; remove it or correct these",
        ),
        (
            {"sasl_mechanism": "PLAIN"},
            "kafka.sasl_mechanism: is set; not used with security_protocol PLAINTEXT; remove it or correct these",
        ),
        (
            {**PLAIN, "sasl_plain_password_file": __file__},
            "kafka.sasl_plain_password: is set, and so is kafka.sasl_plain_password_file; allowed: one of them",
        ),
        (
            {"security_protocol": "SSL", "ssl_keyfile": __file__},
            "kafka.ssl_certfile: is missing; needed with ssl_keyfile, ssl_password and ssl_password_file",
        ),
    ],
)
def test_a_login_that_contradicts_itself_is_named(kafka: dict[str, Any], problem: str) -> None:
    assert only_problem_of(changed(kafka=kafka)) == problem


def test_a_login_by_token_over_an_open_connection_may_name_the_ca_of_the_endpoint() -> None:
    loaded = check_settings(changed(kafka={**OAUTH, "security_protocol": "SASL_PLAINTEXT", "ssl_cafile": __file__}))
    assert "ssl_cafile" not in kafka_connection(loaded.kafka)


def test_the_age_of_metadata_reaches_the_client() -> None:
    loaded = check_settings(changed(kafka={"metadata_max_age": "90s"}))
    assert kafka_connection(loaded.kafka)["metadata_max_age_ms"] == 90_000


# Environment


def test_the_environment_goes_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SRR__KAFKA__BOOTSTRAP_SERVERS", "other:1")
    monkeypatch.setenv("SRR__TRAINING__EVERY", "2h")
    loaded = load_settings(write(tmp_path, json.dumps(changed(kafka={"client_id": "mine"}))))
    assert loaded.kafka.bootstrap_servers == "other:1"
    assert loaded.kafka.client_id == "mine"
    assert loaded.training.every == timedelta(hours=2)


def test_the_environment_can_give_what_the_file_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRR__KAFKA__BOOTSTRAP_SERVERS", "other:1")
    content = {name: section for name, section in GOOD.items() if name != "kafka"}
    assert check_settings(content).kafka.bootstrap_servers == "other:1"


def test_lists_are_given_as_json_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRR__INPUT__TOPICS", '["a", "b"]')
    assert check_settings(GOOD).input.topics == ("a", "b")


@pytest.mark.parametrize("name", ["SRR__INPUT__TOPICS", "SRR__RECORD__FIELDS"])
def test_a_list_of_the_environment_that_is_not_json_is_a_problem(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "a,b")
    problems = problems_of(GOOD)
    assert any("input.topics" in p or "record.fields" in p or "JSON" in p for p in problems)


def test_a_section_of_the_environment_that_is_not_json_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRR__INPUT", "{hunter2")
    problem = only_problem_of(GOOD)
    assert "must be JSON" in problem
    assert "hunter2" not in problem


def test_an_unknown_section_of_the_environment_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SRR__KAFFKA__BOOTSTRAP_SERVERS", "other:1")
    problem = only_problem_of(GOOD)
    assert problem == (
        "environment variable SRR__KAFFKA__BOOTSTRAP_SERVERS: unknown section 'kaffka'; did you mean 'kafka'?"
    )


def test_an_unknown_key_of_the_environment_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRR__KAFKA__BOOTSTRAP_SERVER", "other:1")
    problem = only_problem_of(GOOD)
    assert problem == "kafka.bootstrap_server: unknown key; did you mean 'bootstrap_servers'?"


def test_a_wrong_value_of_the_environment_is_named_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRR__THRESHOLD__FALSE_ALARM_RATE", "often")
    assert only_problem_of(GOOD).startswith("threshold.false_alarm_rate: is 'often'; allowed: ")


def test_other_variables_of_the_environment_are_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRR_DATA_DIR", "somewhere")
    monkeypatch.setenv("KAFKA__BOOTSTRAP_SERVERS", "other:1")
    assert check_settings(GOOD).kafka.bootstrap_servers == "broker:9092"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5, deadline=None)
@given(section=st.sampled_from(["kafka", "input", "nonsense"]))
def test_without_the_environment_nothing_of_it_counts(monkeypatch: pytest.MonkeyPatch, section: str) -> None:
    monkeypatch.setenv("SRR__KAFKA__BOOTSTRAP_SERVERS", "production:9092")
    monkeypatch.setenv(f"SRR__{section.upper()}__X", "1")
    assert check_settings(GOOD, use_environment=False).kafka.bootstrap_servers == "broker:9092"
