"""The desk: one state and one sentence for everything, and answers that say what is missing instead of failing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from consumers.errors import SinkError
from srr_stream.flagged import IndexUnusable
from srr_stream.web.desk import Desk
from srr_stream.web.problems import DeskError
from srr_stream.web.states import Answer, Answers, describe, merged_history
from srr_stream.web.views import FlaggedQuery

Desks = Callable[..., Any]


# States


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("scoring", "Scoring 2 partitions with version 1."),
        ("empty", "No record has come yet; 2,000 are needed to learn from (window.min_size)."),
        (
            "warming_up",
            "Waiting for records to learn from: 812 of 2,000 records (window.min_size) are in the log. "
            "All of them are scored then.",
        ),
        ("holding", "Holding: version 1 refused (hash): it is torn."),
        (
            "lagging",
            "Behind: 120,000 records are not scored yet, about 20 minutes at the pace of the last minute.",
        ),
        ("broker_away", "The broker is away: no answer from broker:9092. What was scored so far can be looked at."),
        (
            "unreachable",
            "No scorer answers (http://127.0.0.1:9108: Connection refused). "
            "Start srr-stream run, or correct api.scorer_urls.",
        ),
    ],
)
def test_each_state_has_its_sentence(desk_with: Desks, state: str, sentence: str) -> None:
    bench = desk_with(1)
    bench.say(state)
    status = bench.desk.status()
    assert (status.state, status.sentence) == (state, sentence)


@pytest.mark.parametrize(
    ("scorer", "trainer", "state", "part"),
    [
        ({"trouble": "rights", "reason": "the brokers refuse"}, {}, "holding", "Not scoring: the brokers refuse."),
        ({"trouble": "sink", "reason": "not durable"}, {}, "broker_away", "The broker is away: not durable."),
        ({"n_scored": 0}, {}, "empty", "Scoring 2 partitions with version 1; no record has come yet."),
        ({"lag": [{"topic": "t", "partition": 0, "records": 999}], "records_per_s": 0}, {}, "scoring", "Scoring"),
        (
            {"lag": [{"topic": "t", "partition": 0, "records": 1000}], "records_per_s": 0},
            {},
            "lagging",
            "Behind: 1,000 records are not scored yet.",
        ),
        (
            {"lag": [{"topic": "t", "partition": 0, "records": 30_000}], "records_per_s": 1001},
            {},
            "scoring",
            "Scoring",
        ),
        (
            {"model_version": None},
            {"phase": "training", "step": 3, "n_steps": 1000},
            "warming_up",
            "The first model is being made: training, step 3 of 1,000.",
        ),
        ({"model_version": None}, {"phase": "judging"}, "warming_up", "The first model is being made: judging."),
        (
            {"model_version": None, "reason": "holding: too few"},
            {"phase": "resting"},
            "holding",
            "Holding: too few.",
        ),
    ],
)
def test_what_scorer_and_trainer_say_makes_the_state(
    desk_with: Desks, scorer: dict[str, Any], trainer: dict[str, Any], state: str, part: str
) -> None:
    bench = desk_with()
    bench.scorer = bench.scorer_says(**scorer)
    bench.trainer = bench.trainer_says(**trainer)
    status = bench.desk.status()
    assert status.state == state
    assert status.sentence.startswith(part)


def test_holding_without_a_trainer_says_that_it_is_not_reached(desk_with: Desks) -> None:
    bench = desk_with()
    bench.scorer = bench.scorer_says(model_version=None, reason="holding")
    bench.trainer = None
    status = bench.desk.status()
    assert status.state == "holding"
    assert "The trainer is not reached (http://127.0.0.1:9109: Connection refused)." in status.sentence
    assert status.trainer.phase == "unknown"


def described(*scorers: Answer, trainer: Answer | None = None) -> Any:
    answers = Answers(scorers, trainer or Answer("http://t", problem="refused"))
    return describe(answers, n_in_index=5, has_labels=False, problems=("a problem",), at=1.0)


def test_numbers_of_several_scorers_are_added_and_one_that_is_missing_is_said(desk_with: Desks) -> None:
    bench = desk_with()
    one = Answer("http://a", bench.scorer_says(model_version=3, loaded_at=7.0))
    two = Answer("http://b", bench.scorer_says(n_scored=10_000, n_flagged=150, reason="scoring 1 partition"))
    status = described(one, two, Answer("http://c", problem="timed out"))
    assert (status.n_scored, status.n_flagged, status.flagged_ratio) == (20_000, 200, 0.01)
    assert (status.lag, status.records_per_s) == (24, 200.0)
    assert (status.live_version, status.live_since) == (3, 7.0)
    assert status.sentence == (
        "Scoring 2 partitions with version 1; scoring 1 partition. 1 of 3 scorers do not answer."
    )
    assert status.problems == ("a problem",)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"role": "trainer"}, "is a trainer, not a scorer; correct api.scorer_urls"),
        ({}, "its /statusz is of another version of srr-stream, or of something else"),
        ({"role": "scorer", "reason": "x"}, "its /statusz is of another version of srr-stream, or of something else"),
    ],
)
def test_an_answer_that_is_no_scorers_counts_as_none(said: dict[str, Any], reason: str) -> None:
    status = described(Answer("http://a", said))
    assert status.state == "unreachable"
    assert status.scorers[0].reason == reason


@pytest.mark.parametrize("said", [{"role": "scorer"}, {}, {"role": "trainer", "reason": 1}])
def test_an_answer_that_is_no_trainers_counts_as_none(said: dict[str, Any]) -> None:
    status = described(Answer("http://a", problem="refused"), trainer=Answer("http://t", said))
    assert not status.trainer.is_reachable


def test_what_is_wrong_with_topics_models_and_index_is_said_though_scoring_goes_on(desk_with: Desks) -> None:
    bench = desk_with(1)
    bench.problems = ["flagged records: there is no topic alerts"]
    bench.live_model.problem = "version 3 refused"
    bench.index.problem = "flagged records cannot be written"
    assert bench.desk.status().problems == (
        "flagged records: there is no topic alerts",
        "version 3 refused",
        "flagged records cannot be written",
    )


# History


def test_the_history_of_several_scorers_is_added_bucket_by_bucket(desk_with: Desks) -> None:
    def said(at: float, n: int, severity: float, version: int, since: float) -> dict[str, Any]:
        bucket = {"at": at, "n": n, "n_flagged": 1, "max_severity": severity, "version": version}
        return {"history": [bucket], "swaps": [{"at": since, "version": version}]}

    trainer = Answer("http://t", problem="refused")
    scorers = (
        Answer("http://a", said(1000.0, 10, 1.5, 2, 990.0)),
        Answer("http://b", said(1000.0, 20, 3.5, 1, 950.0)),
        Answer("http://c", said(1010.0, 5, 0.5, 2, 980.0)),
        Answer("http://d", problem="timed out"),
        Answer("http://e", {"history": [{"at": 5}]}),
    )
    history = merged_history(Answers(scorers, trainer), desk_with().desk.models(), problem="no registry")
    assert [(p.at, p.n, p.n_flagged, p.max_severity, p.version) for p in history.points] == [
        (1000.0, 30, 2, 3.5, 2),
        (1010.0, 5, 1, 0.5, 2),
    ]
    assert [(swap.at, swap.version) for swap in history.swaps] == [(950.0, 1), (980.0, 2)]
    assert [training.version for training in history.trainings] == [1, 2]
    assert history.problem == (
        "no registry; http://d: timed out; http://e: its history is of another version of srr-stream"
    )


# One record


def test_a_record_that_the_log_no_longer_has_says_so_and_the_verdicts_reasons_stay(desk_with: Desks) -> None:
    bench = desk_with(3)
    bench.log.gone_before = 402
    detail = bench.desk.flagged_one("payments-0-401")
    assert detail.record is None
    assert "no record at offset 401 any more" in (detail.record_problem or "")
    assert [part.field for part in detail.contributions] == ["amount", "route"]
    assert "only the reasons of the verdict are known" in (detail.contributions_problem or "")


def test_a_neighbour_that_the_log_no_longer_has_says_so(desk_with: Desks) -> None:
    bench = desk_with(3)
    bench.log.gone_before = 400
    detail = bench.desk.flagged_one("payments-0-401")
    assert len(detail.nearest) == 5
    assert all(near.record is None and "any more" in (near.problem or "") for near in detail.nearest)


def test_a_lost_broker_is_said_and_a_found_one_answers_again(desk_with: Desks) -> None:
    bench = desk_with(3)
    bench.log.is_lost = True
    detail = bench.desk.flagged_one("payments-0-401")
    assert detail.record_problem == "no answer from broker:9092; check kafka.bootstrap_servers"
    with pytest.raises(DeskError, match="no answer from broker") as caught:
        bench.desk.picture("payments-0-401")
    assert caught.value.problem_type == "not_ready"
    bench.log.is_lost = False
    assert bench.desk.flagged_one("payments-0-401").record_problem is None


def test_of_a_version_that_is_gone_the_live_one_explains(desk_with: Desks) -> None:
    bench = desk_with(1)
    raw = bench.produce(orjson.dumps({"amount": 1.0, "duration_ms": 900.0, "route": "/"}))
    bench.flag(bench.verdict(raw, version=77))
    detail = bench.desk.flagged_one(f"payments-0-{raw.offset}")
    assert (detail.flagged.version, detail.explained_by) == (77, 2)
    assert len(detail.contributions) == 4


def test_a_version_that_has_kept_no_rows_has_no_neighbours(desk_with: Desks, trained: Any) -> None:
    bench = desk_with(1)
    version = bench.publish(trained, tells=False)
    raw = bench.produce(orjson.dumps({"amount": 1.0, "duration_ms": 900.0, "route": "/"}))
    bench.flag(bench.verdict(raw, version=version))
    detail = bench.desk.flagged_one(f"payments-0-{raw.offset}")
    assert (detail.nearest, detail.nearest_problem) == (
        (),
        f"version {version} has kept no normal records to compare with",
    )


def test_rows_that_are_damaged_are_said_and_the_rest_is_shown(desk_with: Desks) -> None:
    bench = desk_with(1)
    (bench.folder / "registry" / "versions" / "1" / "neighbours.safetensors").write_bytes(b"torn")
    detail = bench.desk.flagged_one("payments-0-400")
    assert detail.nearest == ()
    assert "neighbours.safetensors" in (detail.nearest_problem or "")
    assert len(detail.contributions) == 4


def test_a_record_that_is_bad_by_now_is_shown_all_the_same(desk_with: Desks) -> None:
    bench = desk_with(1)
    raw = bench.produce(b'{"amount": "much"}')
    bench.flag(bench.verdict(raw))
    detail = bench.desk.flagged_one(f"payments-0-{raw.offset}")
    assert detail.record == {"amount": "much"}
    assert "is a dead letter: wrong_type" in (detail.contributions_problem or "")


def test_long_texts_of_a_record_are_cut_and_their_length_is_told(desk_with: Desks) -> None:
    bench = desk_with()
    raw = bench.produce(orjson.dumps({"photo": "x" * 600, "parts": [{"deep": "y" * 600}], "n": 1}))
    view = bench.desk.record(f"payments-0-{raw.offset}")
    assert view.record == {
        "photo": "x" * 500 + "… (600 characters)",
        "parts": [{"deep": "y" * 500 + "… (600 characters)"}],
        "n": 1,
    }


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"", "the record has no value"),
        (None, "the record has no value"),
        (b"\xff\xfe", "the record is no JSON that can be shown"),
        (b"{" * 3000, "the record is no JSON that can be shown"),
    ],
)
def test_a_record_that_cannot_be_shown_says_why(desk_with: Desks, value: bytes, problem: str) -> None:
    bench = desk_with()
    raw = bench.produce(value)
    view = bench.desk.record(f"payments-0-{raw.offset}")
    assert view.record is None
    assert (view.problem or "").startswith(problem)


def test_a_record_of_another_topic_is_never_read(desk_with: Desks) -> None:
    assert "topic 'secrets' is not read here" in (desk_with().desk.record("secrets-0-1").problem or "")
    assert "is no event id" in (desk_with().desk.record("nonsense").problem or "")


def test_the_record_of_a_picture_is_said_to_be_one(desk_with: Desks) -> None:
    detail = desk_with(pictures=True).desk.flagged_one("payments-0-79")
    assert (detail.record, detail.record_problem, detail.is_picture) == (None, "it is a picture", True)
    assert [part.field for part in detail.contributions] == ["photo"]
    assert {near.problem for near in detail.nearest} == {"it is a picture"}


# Labels


def test_a_record_that_was_not_flagged_may_be_labelled_with_the_live_models_verdict(desk_with: Desks) -> None:
    bench = desk_with()
    (made,) = bench.desk.label(["payments-0-7"], "anomaly", "missed")
    assert (made.version, made.label) == (2, "anomaly")
    label = bench.book.get("payments-0-7")
    assert label.p_value is not None
    assert label.record == bench.log.slice(("payments", 0), 7, 8)[0].value


def test_a_bad_record_may_be_labelled_without_a_verdict(desk_with: Desks) -> None:
    bench = desk_with()
    raw = bench.produce(b"{torn")
    (made,) = bench.desk.label([f"payments-0-{raw.offset}"], "unsure")
    assert (made.version, made.severity) == (None, None)


def test_a_flagged_record_that_the_log_no_longer_has_is_labelled_without_it(desk_with: Desks) -> None:
    bench = desk_with(1)
    bench.log.gone_before = 10_000
    (made,) = bench.desk.label(["payments-0-400"], "normal")
    assert made.severity == 1.0
    assert bench.book.get("payments-0-400").record is None


def test_the_same_record_twice_is_labelled_once(desk_with: Desks) -> None:
    bench = desk_with(1)
    assert len(bench.desk.label(["payments-0-400"] * 3, "normal")) == 1
    assert len(bench.label_log.records) == 1


@pytest.mark.parametrize("change", ["label", "unlabel"])
def test_labels_that_cannot_be_written_are_not_ready_and_change_nothing(desk_with: Desks, change: str) -> None:
    bench = desk_with(1)
    bench.desk.label(["payments-0-400"], "unsure")
    bench.label_log.problem = SinkError("labels are not durable at broker:9092; write them again")
    act = {"label": lambda ids: bench.desk.label(ids, "normal"), "unlabel": bench.desk.unlabel}[change]
    with pytest.raises(DeskError, match="not durable") as caught:
        act(["payments-0-400"])
    assert caught.value.problem_type == "not_ready"
    assert bench.desk.labels()[0].label == "unsure"


def test_who_labels_sees_it_as_soon_as_it_has_come_back_from_its_topic(desk_with: Desks) -> None:
    bench = desk_with(1)
    hear = bench.label_log.hear
    bench.label_log.hear = lambda records: threading.Timer(0.2, hear, (records,)).start()
    bench.desk.label(["payments-0-400"], "normal")
    assert bench.desk.flagged(FlaggedQuery(label="normal")).n_total == 1


def test_a_label_that_does_not_come_back_is_waited_for_only_so_long(
    desk_with: Desks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srr_stream.web.desk._HEARD_S", 0.05)
    bench = desk_with(1)
    bench.label_log.hear = lambda records: None
    assert len(bench.desk.label(["payments-0-400"], "normal")) == 1
    assert bench.desk.labels() == ()


@pytest.mark.parametrize("ids", [[], [f"payments-0-{i}" for i in range(201)]])
def test_none_or_too_many_at_once_are_refused(desk_with: Desks, ids: list[str]) -> None:
    with pytest.raises(DeskError, match=r"records at once; allowed: 1 to 200"):
        desk_with().desk.label(ids, "normal")


def test_labels_that_are_heard_before_their_records_are_on_them(desk_with: Desks) -> None:
    bench = desk_with()
    bench.desk.label(["payments-0-7"], "normal")
    (raw,) = bench.log.slice(("payments", 0), 7, 8)
    bench.flag(bench.verdict(raw))
    assert bench.desk.flagged(FlaggedQuery()).items[0].label == "normal"


def test_a_false_alarm_that_was_marked_normal_is_not_flagged_when_it_is_scored(desk_with: Desks) -> None:
    bench = desk_with(1)
    (raw,) = bench.log.slice(("payments", 0), 400, 401)
    assert bench.desk.score([raw.value])[0]["flagged"] is True
    bench.desk.label(["payments-0-400"], "normal")
    (verdict,) = bench.desk.score([raw.value])
    assert (verdict["flagged"], verdict["known_normal"], verdict["reasons"]) == (False, "payments-0-400", [])
    assert verdict["severity"] > 1


# Index


def test_an_index_that_cannot_be_read_is_not_ready(desk_with: Desks, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = desk_with(1)

    def fail(*_: Any) -> Any:
        raise IndexUnusable("flagged.sqlite cannot be read: disk I/O error; check api.state_dir")

    monkeypatch.setattr(bench.index, "find", fail)
    with pytest.raises(DeskError, match=r"check api\.state_dir") as caught:
        bench.desk.flagged(FlaggedQuery())
    assert caught.value.status == 503


def test_another_false_alarm_rate_is_what_the_summary_compares_with(desk_with: Desks) -> None:
    desk: Desk = desk_with(1).desk
    desk.set_false_alarm_rate(0.03)
    assert desk.label_summary().n_normal == 0
