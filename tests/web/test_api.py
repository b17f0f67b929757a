"""The API's routes over HTTP: what each answers, who may ask, what becomes of every mistake."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from srr_stream.errors import RegistryError
from srr_stream.web.shell import MAX_BODY

Desks = Callable[..., Any]
Clients = Callable[..., Any]

GOOD = {"amount": 40.0, "duration_ms": 20.0, "load": 0.5, "route": "/"}
ODD = {"amount": 9140.0, "duration_ms": 17.0, "load": 0.5, "route": "/pay"}
CHANGES = [
    ("POST", "/v1/labels"),
    ("DELETE", "/v1/labels/payments-0-400"),
    ("POST", "/v1/models/1/promote"),
    ("POST", "/v1/rollback"),
    ("POST", "/v1/train"),
    ("POST", "/v1/session"),
    ("DELETE", "/v1/session"),
]


@pytest.fixture(scope="module")
def shared(module_desk_with: Desks) -> Any:
    """A bench for tests that change nothing of it."""
    return module_desk_with(2)


def problem_of(answer: Any) -> tuple[int, str]:
    """Return status and type of a problem, whose form is right."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) >= {"type", "title", "status", "detail"}
    assert body["status"] == answer.status_code
    return answer.status_code, body["type"].removeprefix("urn:srr-stream:problem:")


# Status and history


def test_status_is_one_state_with_its_sentence(desk_with: Desks, client_of: Clients) -> None:
    answer = client_of(desk_with(3)).get("/v1/status")
    assert answer.status_code == 200
    said = answer.json()
    assert (said["state"], said["sentence"]) == ("scoring", "Scoring 2 partitions with version 2.")
    assert (said["n_in_index"], said["live_version"], said["lag"], said["has_labels"]) == (3, 2, 12, True)
    assert said["scorers"][0]["lag"] == [{"topic": "payments", "partition": 0, "records": 12}]


def test_before_the_first_model_everything_answers_and_scoring_says_why_not(
    desk_with: Desks, client_of: Clients
) -> None:
    client = client_of(desk_with(n_models=0), with_token=True)
    assert client.get("/v1/status").json()["state"] == "empty"
    assert client.get("/v1/models").json() == {
        "in_use": {
            "champion": None,
            "previous": None,
            "challenger": None,
            "reason": None,
            "at": None,
            "can_roll_back": False,
        },
        "models": [],
    }
    assert client.get("/v1/flagged").json() == {"items": [], "next_cursor": None, "n_total": 0}
    assert client.get("/readyz").status_code == 200
    assert problem_of(client.post("/v1/score", json=GOOD)) == (503, "not_ready")
    assert problem_of(client.get("/v1/models/1")) == (404, "not_found")
    assert problem_of(client.get("/v1/refinement/1")) == (404, "not_found")
    assert problem_of(client.post("/v1/rollback")) == (409, "conflict")
    assert client.post("/v1/train").status_code == 202


def test_history_has_points_swaps_and_trainings(desk_with: Desks, client_of: Clients) -> None:
    said = client_of(desk_with(3)).get("/v1/history").json()
    assert len(said["points"]) == 60
    assert [swap["version"] for swap in said["swaps"]] == [1, 2]
    assert said["bucket_s"] == 10.0


# Scoring


def test_a_record_a_list_and_lines_get_the_same_verdicts(shared: Any, client_of: Clients) -> None:
    client = client_of(shared)
    one = client.post("/v1/score", json=ODD)
    assert one.status_code == 200
    (verdict,) = one.json()["verdicts"]
    assert (verdict["index"], verdict["flagged"], verdict["version"]) == (0, True, 2)
    assert verdict["severity"] > 1
    assert {reason["field"] for reason in verdict["reasons"]} == set(GOOD)
    lines = b"\n".join(map(orjson.dumps, [ODD, GOOD])) + b"\n\n"
    for answer in (
        client.post("/v1/score", json=[ODD, GOOD]),
        client.post("/v1/score", content=lines, headers={"Content-Type": "application/x-ndjson; charset=utf-8"}),
    ):
        verdicts = answer.json()["verdicts"]
        assert verdicts[0] == verdict
        assert (verdicts[1]["index"], verdicts[1]["flagged"], verdicts[1]["reasons"]) == (1, False, [])


def test_a_record_that_is_bad_costs_its_neighbours_nothing(shared: Any, client_of: Clients) -> None:
    answer = client_of(shared).post("/v1/score", json=[{"amount": "much"}, GOOD, {}])
    first, second, third = answer.json()["verdicts"]
    assert first == {
        "index": 0,
        "problem": {"reason": "wrong_type", "detail": 'field amount is "much"; expected: a number'},
    }
    assert second["flagged"] is False
    assert third["problem"]["reason"] == "missing_field"


def test_lines_that_are_no_json_are_problems_of_their_own(shared: Any, client_of: Clients) -> None:
    lines = b"{torn\n" + orjson.dumps(GOOD) + b"\n[1]"
    answer = client_of(shared).post("/v1/score", content=lines, headers={"Content-Type": "application/x-ndjson"})
    verdicts = answer.json()["verdicts"]
    assert [v.get("problem", {}).get("reason") for v in verdicts] == ["not_json", None, "not_an_object"]


def test_a_picture_is_sent_as_it_is_or_as_base64(desk_with: Desks, client_of: Clients, photos: list[bytes]) -> None:
    client = client_of(desk_with(pictures=True))
    as_file = client.post("/v1/score", content=photos[79], headers={"Content-Type": "image/png"})
    as_text = client.post("/v1/score", json=[base64.b64encode(photos[79]).decode()])
    assert as_file.status_code == as_text.status_code == 200
    assert as_file.json() == as_text.json()
    (verdict,) = as_file.json()["verdicts"]
    assert verdict["flagged"] is True
    assert verdict["reasons"][0]["field"] == "photo"
    assert problem_of(client.post("/v1/score", json=["no base64!"])) == (422, "invalid")
    assert problem_of(client.post("/v1/score", json=[{"photo": 1}])) == (422, "invalid")
    no_lines = client.post("/v1/score", content=b"x", headers={"Content-Type": "application/x-ndjson"})
    assert problem_of(no_lines) == (415, "unsupported_media_type")
    html = client.post("/v1/score", content=b"<html>", headers={"Content-Type": "image/png"})
    assert html.json()["verdicts"][0]["problem"]["reason"] == "not_an_image"


@pytest.mark.parametrize(
    ("content", "media_type", "expected"),
    [
        (b"", "application/json", (422, "invalid")),
        (b"[]", "application/json", (422, "invalid")),
        (b"{", "application/json", (422, "invalid")),
        (b"[1]", "application/json", (422, "invalid")),
        (b'"text"', "application/json", (422, "invalid")),
        (b"\xff\xfe", "application/json", (422, "invalid")),
        (b"[" * 100_000, "application/json", (422, "invalid")),
        (b"\n\n", "application/x-ndjson", (422, "invalid")),
        (b"a,b", "text/csv", (415, "unsupported_media_type")),
        (b"\x89PNG", "image/png", (415, "unsupported_media_type")),
        (b"{}\n" * 5001, "application/x-ndjson", (413, "too_large")),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_reason(
    shared: Any, client_of: Clients, content: bytes, media_type: str, expected: tuple[int, str]
) -> None:
    answer = client_of(shared).post("/v1/score", content=content, headers={"Content-Type": media_type})
    assert problem_of(answer) == expected


async def _endless(n_bytes: int) -> AsyncIterator[bytes]:
    for _ in range(0, n_bytes, 1 << 20):
        yield b" " * (1 << 20)


@pytest.mark.parametrize("path", ["/v1/score", "/v1/train"])
def test_a_body_that_is_too_large_is_refused_told_or_not(shared: Any, client_of: Clients, path: str) -> None:
    client = client_of(shared, with_token=True)
    told = client.post(path, content=b" " * (MAX_BODY + 1))
    untold = client.post(path, content=_endless(MAX_BODY + 1))
    assert problem_of(told) == problem_of(untold) == (413, "too_large")


# Flagged records


def test_flagged_records_are_filtered_and_paged(desk_with: Desks, client_of: Clients) -> None:
    client = client_of(desk_with(25))
    query = {"min_severity": "1.5", "sort": "severity", "limit": "5", "since": "2025-01-01T00:00:00Z"}
    first = client.get("/v1/flagged", params=query).json()
    assert first["n_total"] == 20
    assert [item["severity"] for item in first["items"]] == [3.4, 3.3, 3.2, 3.1, 3.0]
    assert first["items"][0]["headline"] == "amount 9,140 where 35 was expected"
    second = client.get("/v1/flagged", params={**query, "cursor": first["next_cursor"]}).json()
    assert [item["severity"] for item in second["items"]] == [2.9, 2.8, 2.7, 2.6, 2.5]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "501"},
        {"limit": "many"},
        {"since": "2025-01-01T00:00:00"},
        {"since": "yesterday"},
        {"min_severity": "nan"},
        {"min_severity": "-1"},
        {"version": "0"},
        {"version": "99999999999999999999"},
        {"label": "odd"},
        {"sort": "up"},
        {"topic": "a/b"},
        {"text": "x" * 201},
        {"cursor": "made-up"},
    ],
)
def test_a_query_that_is_not_valid_says_what_is_wrong(shared: Any, client_of: Clients, query: dict[str, str]) -> None:
    answer = client_of(shared).get("/v1/flagged", params=query)
    assert problem_of(answer) == (422, "invalid")
    assert next(iter(query)) in answer.json()["detail"]


def test_a_flagged_record_has_its_contributions_and_its_nearest_normal_records(
    desk_with: Desks, client_of: Clients
) -> None:
    said = client_of(desk_with(3)).get("/v1/flagged/payments-0-401").json()
    assert said["record"] == {"amount": 9141.0, "duration_ms": 18.0, "load": 0.5, "route": "/pay"}
    assert {part["field"] for part in said["contributions"]} == set(GOOD)
    parts = [part["contribution"] for part in said["contributions"]]
    assert parts == sorted(parts, reverse=True)
    assert said["explained_by"] == 2
    far = [neighbour["distance"] for neighbour in said["nearest"]]
    assert len(far) == 5
    assert far == sorted(far)
    assert all(neighbour["record"]["amount"] < 500 for neighbour in said["nearest"])
    assert said["record_problem"] is said["contributions_problem"] is said["nearest_problem"] is None


def test_a_picture_and_its_heat_map_are_png(desk_with: Desks, client_of: Clients) -> None:
    client = client_of(desk_with(pictures=True))
    for name in ("picture", "heat-map"):
        answer = client.get(f"/v1/flagged/payments-0-79/{name}.png")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert answer.content.startswith(b"\x89PNG")
    assert answer.headers["x-srr-version"] == "1"


@pytest.mark.parametrize("name", ["picture", "heat-map"])
def test_of_fields_there_is_no_picture(shared: Any, client_of: Clients, name: str) -> None:
    client = client_of(shared)
    assert problem_of(client.get(f"/v1/flagged/payments-0-401/{name}.png")) == (409, "no_picture")
    assert problem_of(client.get(f"/v1/flagged/orders-0-1/{name}.png")) == (404, "not_found")


@pytest.mark.parametrize("name", ["picture", "heat-map"])
def test_of_a_record_that_is_not_there_there_is_no_picture(desk_with: Desks, client_of: Clients, name: str) -> None:
    client = client_of(desk_with(pictures=True))
    assert problem_of(client.get(f"/v1/flagged/payments-0-99999/{name}.png")) == (404, "not_found")


@pytest.mark.parametrize("path", ["/v1/flagged/payments-0-7", "/v1/flagged/orders-0-1"])
def test_a_record_that_is_not_flagged_is_not_found(shared: Any, client_of: Clients, path: str) -> None:
    assert problem_of(client_of(shared).get(path)) == (404, "not_found")


# Labels


def test_records_are_labelled_listed_counted_and_unlabelled(desk_with: Desks, client_of: Clients) -> None:
    client = client_of(desk_with(5), with_token=True)
    ids = ["payments-0-400", "payments-0-403"]
    made = client.post("/v1/labels", json={"ids": ids, "label": "normal", "note": "a test", "author": "ann"})
    assert made.status_code == 200
    assert [label["id"] for label in made.json()["labels"]] == ids
    assert client.get("/v1/flagged", params={"label": "normal"}).json()["n_total"] == 2
    assert client.get("/v1/flagged", params={"label": "none"}).json()["n_total"] == 3
    listed = client.get("/v1/labels", params={"limit": 1}).json()
    assert (len(listed["labels"]), listed["n_total"]) == (1, 2)
    summary = client.get("/v1/labels/summary").json()
    assert (summary["n_normal"], summary["precision"]) == (2, 0.0)
    one = client.get("/v1/flagged/payments-0-403").json()
    assert (one["flagged"]["label"], one["note"], one["author"]) == ("normal", "a test", "ann")
    assert client.delete("/v1/labels/payments-0-403").status_code == 204
    assert problem_of(client.delete("/v1/labels/payments-0-403")) == (404, "not_found")
    assert client.get("/v1/labels").json()["n_total"] == 1


@pytest.mark.parametrize(
    "body",
    [
        {"ids": [], "label": "normal"},
        {"ids": ["payments-0-400"], "label": "odd"},
        {"ids": ["no id"], "label": "normal"},
        {"ids": [f"payments-0-{i}" for i in range(201)], "label": "normal"},
        {"ids": ["payments-0-400"], "label": "normal", "note": "x" * 2001},
        {"ids": ["payments-0-400"], "label": "normal", "notes": "misspelt"},
        {"ids": ["payments-0-400"]},
        ["payments-0-400"],
        None,
    ],
)
def test_a_label_that_is_not_valid_labels_nothing(shared: Any, client_of: Clients, body: Any) -> None:
    answer = client_of(shared, with_token=True).post("/v1/labels", json=body)
    assert problem_of(answer) == (422, "invalid")
    assert shared.label_log.records == []


def test_if_one_record_is_not_there_none_is_labelled(desk_with: Desks, client_of: Clients) -> None:
    bench = desk_with(1)
    body = {"ids": ["payments-0-400", "payments-0-9999"], "label": "normal"}
    assert problem_of(client_of(bench, with_token=True).post("/v1/labels", json=body)) == (404, "not_found")
    assert bench.label_log.records == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/labels"),
        ("GET", "/v1/labels/summary"),
        ("POST", "/v1/labels"),
        ("DELETE", "/v1/labels/payments-0-400"),
    ],
)
def test_without_a_topic_there_are_no_labels(desk_with: Desks, client_of: Clients, method: str, path: str) -> None:
    client = client_of(desk_with(1, has_labels=False), with_token=True)
    body = {"ids": ["payments-0-400"], "label": "normal"} if method == "POST" else None
    answer = client(method, path, json=body)
    assert problem_of(answer) == (409, "no_labels_topic")
    assert "labels.topic" in answer.json()["detail"]


# Models


def test_models_are_listed_shown_promoted_and_rolled_back(desk_with: Desks, client_of: Clients) -> None:
    bench = desk_with()
    client = client_of(bench, with_token=True)
    listed = client.get("/v1/models").json()
    assert [(row["version"], row["role"]) for row in listed["models"]] == [(2, "champion"), (1, "previous")]
    assert (listed["in_use"]["champion"], listed["in_use"]["can_roll_back"]) == (2, True)
    shown = client.get("/v1/models/1").json()
    assert shown["row"]["checks"][0]["name"] == "flagged_ratio"
    assert shown["window"] == [{"topic": "payments", "partition": 0, "start": 0, "stop": 400}]
    back = client.post("/v1/rollback", json={"reason": "flags the new release"}).json()
    assert (back["champion"], back["reason"], back["can_roll_back"]) == (1, "flags the new release", False)
    again = client.post("/v1/rollback")
    assert problem_of(again) == (409, "conflict")
    assert "version 2 was rolled back itself (flags the new release)" in again.json()["detail"]
    assert client.post("/v1/models/2/promote").json()["champion"] == 2
    assert problem_of(client.post("/v1/models/7/promote")) == (404, "not_found")
    assert bench.registry.pointer().champion == 2


def test_a_damaged_version_is_in_the_list_with_its_problem_and_is_not_promoted(
    desk_with: Desks, client_of: Clients
) -> None:
    bench = desk_with()
    (bench.folder / "registry" / "versions" / "1" / "manifest.json").write_text("{torn")
    client = client_of(bench, with_token=True)
    assert "refused" in client.get("/v1/models").json()["models"][1]["problem"]
    assert problem_of(client.get("/v1/models/1")) == (409, "conflict")
    assert problem_of(client.post("/v1/models/1/promote")) == (409, "conflict")
    assert bench.registry.pointer().champion == 2


def test_a_training_is_asked_for_with_its_reason(desk_with: Desks, client_of: Clients) -> None:
    bench = desk_with()
    assert client_of(bench, with_token=True).post("/v1/train", json={"reason": "after the release"}).status_code == 202
    assert bench.registry.take_request() == "after the release"


def test_what_refinement_left_out_is_shown(desk_with: Desks, client_of: Clients, trained: Any) -> None:
    bench = desk_with()
    said = client_of(bench).get("/v1/refinement/2").json()
    assert sum(said["rows_by_votes"]) == said["n_rows"] == 400
    assert len(said["rows"]) == said["n_excluded"]
    version = bench.publish(trained, is_champion=False, tells=False)
    assert problem_of(client_of(bench).get(f"/v1/refinement/{version}")) == (404, "not_found")


# Who may ask


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer ", "Basic a-token-that-nobody-guesses", "Bearer ä"])
def test_nothing_is_changed_without_the_right_token(
    shared: Any, client_of: Clients, method: str, path: str, given: str | None
) -> None:
    headers = {"Authorization": given.encode()} if given is not None else {}
    answer = client_of(shared)(method, path, headers=headers, json={} if method == "POST" else None)
    assert problem_of(answer) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert shared.registry.pointer().champion == 2
    assert shared.registry.take_request() is None


@pytest.mark.parametrize("path", ["/", "/v1/status", "/v1/flagged", "/v1/models", "/openapi.json", "/metrics"])
def test_elsewhere_reading_needs_the_token_too(shared: Any, client_of: Clients, path: str) -> None:
    assert problem_of(client_of(shared, is_open=False).get(path)) == (401, "unauthorized")
    assert problem_of(client_of(shared, is_open=False, token="wrong").get(path)) == (401, "unauthorized")
    assert client_of(shared, is_open=False, with_token=True).get(path).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/sign-in", "/sign-in.js", "/sign-in.css"])
def test_probes_and_signing_in_need_nothing(shared: Any, client_of: Clients, path: str) -> None:
    assert client_of(shared, is_open=False).get(path).status_code == 200


def test_elsewhere_scoring_needs_the_token(shared: Any, client_of: Clients) -> None:
    assert problem_of(client_of(shared, is_open=False).post("/v1/score", json=GOOD)) == (401, "unauthorized")
    assert client_of(shared, is_open=False, with_token=True).post("/v1/score", json=GOOD).status_code == 200


def test_a_browser_is_led_to_signing_in_and_its_cookie_reads_but_changes_nothing(
    desk_with: Desks, client_of: Clients
) -> None:
    bench = desk_with(1)
    html = {"Accept": "text/html,*/*;q=0.8"}
    led = client_of(bench, is_open=False).get("/flagged/payments-0-400?a=b&c", headers=html)
    assert (led.status_code, led.headers["location"]) == (303, "/sign-in?next=%2Fflagged%2Fpayments-0-400%3Fa%3Db%26c")
    signed = client_of(bench, is_open=False, with_token=True).post("/v1/session")
    assert signed.status_code == 204
    cookie = signed.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "a-token" not in cookie
    given = {"Cookie": cookie.partition(";")[0]}
    client = client_of(bench, is_open=False)
    assert client.get("/", headers=given | html).status_code == 200
    assert client.get("/v1/status", headers=given).status_code == 200
    assert problem_of(client.post("/v1/train", headers=given)) == (401, "unauthorized")
    assert client.get("/", headers={"Cookie": "srr_session=made-up"} | html).status_code == 303
    signed_out = client_of(bench, is_open=False, with_token=True).delete("/v1/session")
    assert 'srr_session=""' in signed_out.headers["set-cookie"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:9110", "localhost:80", "LOCALHOST", "[::1]:9110", "srr.local"]
)
def test_requests_that_name_this_machine_are_answered(shared: Any, client_of: Clients, host: str) -> None:
    client = client_of(shared, hosts=["srr.local"])
    assert client.get("/v1/status", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9110", "127.0.0.1.evil.example", "", "[", "localhost@evil.example"]
)
def test_a_name_from_elsewhere_that_leads_here_reads_nothing(shared: Any, client_of: Clients, host: str) -> None:
    client = client_of(shared, with_token=True)
    for path in ("/", "/v1/flagged", "/nothing"):
        assert problem_of(client.get(path, headers={"Host": host})) == (403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_send_nothing(shared: Any, client_of: Clients, headers: dict[str, str]) -> None:
    client = client_of(shared, with_token=True)
    assert problem_of(client.post("/v1/score", json=GOOD, headers=headers)) == (403, "forbidden")
    assert problem_of(client.post("/v1/train", headers=headers)) == (403, "forbidden")
    own = {"Origin": "http://127.0.0.1:9110", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/v1/score", json=GOOD, headers=own).status_code == 200


# Mistakes and defects


def test_what_is_not_there_is_a_problem(shared: Any, client_of: Clients) -> None:
    client = client_of(shared)
    for path in ("/nothing", "/v1/", "/v1/status/", "/docs", "/redoc"):
        assert problem_of(client.get(path)) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/labels", "GET, HEAD, POST"),
        ("POST", "/v1/status", "GET, HEAD"),
        ("GET", "/v1/train", "POST"),
        ("DELETE", "/", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_allowed_says_which_are(
    shared: Any, client_of: Clients, method: str, path: str, allowed: str
) -> None:
    answer = client_of(shared, with_token=True)(method, path)
    assert problem_of(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/v1/status", "/v1/flagged", "/livez", "/metrics", "/openapi.json", "/nothing"])
def test_the_head_of_an_answer_is_that_of_the_answer(shared: Any, client_of: Clients, path: str) -> None:
    client = client_of(shared)
    whole, head = client.get(path), client("HEAD", path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_a_defect_is_a_problem_without_a_traceback_and_the_log_has_it(
    desk_with: Desks, client_of: Clients, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = desk_with()

    def fail() -> None:
        raise ZeroDivisionError("a secret of the inside")

    monkeypatch.setattr(bench.desk, "status", fail)
    with caplog.at_level(logging.ERROR):
        answer = client_of(bench).get("/v1/status")
    assert problem_of(answer) == (500, "internal")
    assert "secret" not in answer.text
    assert "a secret of the inside" in caplog.text


def test_a_registry_that_cannot_be_read_is_not_ready_and_the_rest_answers(
    desk_with: Desks, client_of: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = desk_with(2)

    def fail() -> None:
        raise RegistryError("registry s3://models: cannot read current.json: no route; check registry.url")

    monkeypatch.setattr(bench.registry, "pointer", fail)
    client = client_of(bench, with_token=True)
    for answer in (client.get("/v1/models"), client.post("/v1/rollback")):
        assert problem_of(answer) == (503, "not_ready")
        assert "check registry.url" in answer.json()["detail"]
    assert client.get("/v1/flagged").json()["n_total"] == 2
    assert "check registry.url" in client.get("/v1/history").json()["problem"]


@pytest.mark.parametrize("path", ["/v1/status", "/v1/flagged", "/nothing", "/livez", "/v1/flagged?limit=0"])
def test_every_answer_has_the_headers_that_keep_it_safe(shared: Any, client_of: Clients, path: str) -> None:
    headers = client_of(shared).get(path).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/sign-in"])
def test_pages_allow_no_script_but_their_own_files(shared: Any, client_of: Clients, path: str) -> None:
    policy = client_of(shared).get(path).headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_the_apis_own_metrics_count_answers(desk_with: Desks, client_of: Clients) -> None:
    client = client_of(desk_with())
    client.get("/v1/status")
    client.get("/nothing")
    text = client.get("/metrics").text
    assert 'srr_api_requests_total{status="2xx"} 1.0' in text
    assert 'srr_api_requests_total{status="4xx"} 1.0' in text


def test_the_document_describes_every_route_with_a_summary_an_answer_and_its_problems(
    shared: Any, client_of: Clients
) -> None:
    document = json.loads(client_of(shared).get("/openapi.json").text)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["description"], where
            assert operation["tags"], where
            if path.startswith("/v1/"):
                assert "403" in operation["responses"], where
                assert "422" in operation["responses"], where
            if method in ("post", "delete") and path != "/v1/score":
                assert operation["security"], where
    flagged = document["components"]["schemas"]["Flagged"]["properties"]
    assert flagged["severity"]["description"] == "1.0 is the boundary for every model; higher is less usual."
