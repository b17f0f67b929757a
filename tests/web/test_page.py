"""The review page without a browser: every state, every view, hostile records, what the security policy needs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import orjson
import pytest
from fastapi import FastAPI

from srr_stream.web.drawings import changes, compared, contribution_bars, timeline, vote_rows
from srr_stream.web.page import ADVICE, NAV, STATE_WORDS, make_page
from srr_stream.web.problems import DeskError
from srr_stream.web.views import (
    ExcludedRow,
    FlaggedQuery,
    HistoryPoint,
    HistoryView,
    Neighbour,
    Reason,
    RefinementView,
    Swap,
    Training,
)

VIEWS = ("/", "/?label=any", "/timeline", "/models", "/refinement")
HOSTILE = '<script>alert("1")</script>'
_STATIC = re.compile(r"/static/[0-9a-f]{12}/[a-z.]+")


class Page(HTMLParser):
    """What stands in a page: tags, addresses, text, and whatever the policy forbids."""

    VOID = frozenset({"meta", "link", "input", "img", "br", "hr", "source"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute twice in <{tag}>: {attrs}"
        self.tags.append(tag)
        self.text += "" if tag in ("b", "code") else " "
        self.attributes.append((tag, given))
        self.addresses += [value for name, value in attrs if name in ("href", "src", "action") and value]
        self.inline += [f"{tag} {name}" for name in given if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and not given.get("src")):
            self.inline.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        last = self.open.pop()
        assert last == tag, f"</{tag}> closes <{last}>"

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


class Reader:
    """Reads pages of a bench: of the page's routes alone, whose making takes no time."""

    def __init__(self, bench: Any) -> None:
        self._app = FastAPI()
        self._app.include_router(make_page(bench.desk))

    def get(self, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.get(path, **options)

        return asyncio.run(ask())


def seen(bench: Any, path: str, status: int = 200) -> Page:
    answer = Reader(bench).get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Page(answer.text)


def test_every_state_is_said_in_words_on_every_page(desk_with: Callable[..., Any]) -> None:
    for n_models, states in (
        (0, ("empty", "warming_up", "holding")),
        (1, ("scoring", "lagging", "broker_away", "unreachable")),
    ):
        bench = desk_with(0, n_models=n_models)
        client = Reader(bench)
        for state in states:
            bench.say(state)
            status = bench.desk.status()
            assert status.state == state
            for view in ("/", "/timeline", "/models", "/refinement", "/fragments/status"):
                page = Page(client.get(view).text)
                assert STATE_WORDS[state] in page.words
                assert " ".join(status.sentence.split()) in page.words
                assert ADVICE[state] in page.words
                assert ("progress" in page.tags) is (state == "warming_up")


def test_an_empty_queue_says_why_it_is_empty(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(0)
    assert "Nothing has been flagged" in seen(bench, "/").words
    assert "Nothing matches" in seen(bench, "/?text=nonsense").words
    reviewed = desk_with(1)
    (item,) = reviewed.desk.flagged(FlaggedQuery()).items
    reviewed.desk.label([item.id], "anomaly")
    assert "All reviewed" in seen(reviewed, "/").words


@pytest.mark.parametrize(
    "view", [*VIEWS, "/?label=any&text=9,140&since=2020-01-01T00:00&min_severity=1", "/flagged/ID"]
)
def test_a_page_is_well_formed_and_fits_its_policy(view: str, desk_with: Callable[..., Any]) -> None:
    bench = desk_with(60)
    path = view.replace("ID", "payments-0-400")
    client = Reader(bench)
    answer = client.get(path)
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    page = Page(answer.text)
    assert page.inline == []
    assert len(page.ids) == len(set(page.ids)), "an id twice"
    assert page.tags.count("h1") == page.tags.count("main") == 1
    assert all(not urlsplit(address).netloc and not urlsplit(address).scheme for address in page.addresses)
    controls = [given for tag, given in page.attributes if tag in ("img",)]
    assert all("alt" in given for given in controls)


def test_links_of_every_page_lead_somewhere(desk_with: Callable[..., Any], client_of: Callable[..., Any]) -> None:
    bench = desk_with(60)
    client = client_of(bench)
    waiting, there, anchors = list(VIEWS), dict[str, str](), list[tuple[str, str]]()
    while waiting and len(there) < 150:
        path = waiting.pop()
        answer = client.get(path)
        assert answer.status_code == 200, f"{path}: {answer.text[:300]}"
        there[path] = answer.text
        if "text/html" not in answer.headers["content-type"]:
            continue
        for address in Page(answer.text).addresses:
            target, _, anchor = urljoin(path, address).partition("#")
            anchors += [(target, anchor)] if anchor else []
            if target not in there and target not in waiting:
                waiting.append(target)
    assert len(there) > 60
    assert all(f'id="{anchor}"' in there[target] for target, anchor in anchors if target in there)


def test_scripts_and_styles_name_nothing_that_is_elsewhere(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(0)
    client = Reader(bench)
    names = set(_STATIC.findall(client.get("/").text))
    files = {name: client.get(name) for name in names}
    assert {name.rpartition("/")[2] for name in names} >= {"page.js", "page.css", "theme.js", "labels.js", "icon.svg"}
    for name, answer in files.items():
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z0-9]+\.[a-z]|@import|\beval\(|innerHTML|\.style\b", text), name
        for imported in re.findall(r'from "\./([a-z.]+)"', text):
            assert f"{name.rpartition('/')[0]}/{imported}" in names, f"{name} imports {imported}"
    css = next(answer.text for name, answer in files.items() if name.endswith(".css"))
    assert not re.search(r"url\(|@font-face", css)


def test_an_old_page_gets_files_that_are_not_kept(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(0)
    client = Reader(bench)
    answer = client.get("/static/000000000000/page.css")
    assert answer.headers["cache-control"] == "no-store"
    assert client.get("/static/000000000000/nothing.css").status_code == 404
    assert client.get("/static/000000000000/..%2fpage.py").status_code == 404


def hostile(bench: Any) -> str:
    """Flag a record that is hostile wherever it can be; return its id."""
    value = orjson.dumps({"amount": 1.0, HOSTILE: HOSTILE, "duration_ms": 1.0, "route": HOSTILE, "load": 0.5})
    raw = bench.produce(value, key=HOSTILE)
    reasons = [
        {"field": HOSTILE, "contribution": 9.0, "observed": HOSTILE, "expected": HOSTILE},
        {
            "field": "route",
            "contribution": 8.0,
            "observed": f"x where {HOSTILE}",
            "expected": '"><img src=x onerror=1>',
        },
    ]
    metadata = {HOSTILE: HOSTILE}
    bench.flag(bench.verdict(raw, topic=HOSTILE, reasons=reasons, metadata=metadata))
    id = f"{raw.topic}-{raw.partition}-{raw.offset}"
    bench.desk.label([id], "unsure", note=HOSTILE, author=HOSTILE)
    return id


def test_hostile_records_are_shown_and_never_run(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(3)
    id = hostile(bench)
    bench.problems.append(HOSTILE)
    paths = ["/?label=any", f"/flagged/{id}", f"/fragments/records?id={id}", f"/fragments/label?id={id}", "/models"]
    for path in paths:
        page = seen(bench, path)
        own_scripts = [given for tag, given in page.attributes if tag == "script"]
        assert all(str(given.get("src", "")).startswith("/static/") for given in own_scripts), path
        assert "<img src=x" not in page.html
        assert page.inline == []
        assert HOSTILE in page.text or path == "/models", path


@pytest.mark.parametrize(
    "name", ["text", "topic", "field", "since", "until", "version", "min_severity", "within", "sort", "label"]
)
def test_hostile_filters_are_shown_and_never_run(name: str, desk_with: Callable[..., Any]) -> None:
    bench = desk_with(3)
    client = Reader(bench)
    answer = client.get("/", params={name: HOSTILE})
    assert answer.status_code == 200
    assert HOSTILE not in answer.text
    assert Page(answer.text).inline == []


def test_a_filter_that_cannot_be_understood_is_left_out_and_said(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(3)
    page = seen(bench, "/?label=any&min_severity=much&version=last&since=yesterday&sort=up&within=ever")
    for words in (
        "severity is 'much'",
        "version is 'last'",
        "beginning is 'yesterday'",
        "order is 'up'",
        "time is 'ever'",
    ):
        assert words in page.words
    assert page.tags.count("li") > 3
    assert "3 in this list" in page.words


def test_a_cursor_that_is_none_leads_to_the_first_page(desk_with: Callable[..., Any]) -> None:
    page = seen(desk_with(3), "/?label=any&cursor=xyz")
    assert "this is the first page" in page.words
    assert "3 in this list" in page.words


def rows_of(page: Page) -> list[str]:
    return [str(given["data-id"]) for tag, given in page.attributes if tag == "li" and "data-id" in given]


def test_pages_go_through_the_whole_queue_once(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(120)
    listed, path = list[str](), "/?label=any"
    while path:
        page = seen(bench, path)
        listed += rows_of(page)
        path = next((str(given["href"]) for _, given in page.attributes if given.get("id") == "older"), "")
    assert len(listed) == len(set(listed)) == 120


def test_filters_narrow_the_queue_and_can_be_removed(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(60)
    page = seen(bench, "/?label=any&min_severity=4&version=v2")
    assert 0 < len(rows_of(page)) < 60
    assert "severity from 4" in page.words
    assert "/?min_severity=4&label=any" in page.addresses
    bench.desk.label(rows_of(page)[:1], "normal")
    assert rows_of(seen(bench, "/?label=normal")) == rows_of(page)[:1]
    assert len(rows_of(seen(bench, "/?within=15m&label=any"))) == 16


def test_a_row_says_the_reason_in_words(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(1)
    bench.flag(
        bench.verdict(
            bench.log.slice(("payments", 0), 400, 401)[0],
            reasons=[
                {"field": "amount", "contribution": 40.0, "observed": 9140.0, "expected": 35.0},
                {"field": "route", "contribution": 10.0, "observed": "/pay", "expected": "/"},
                {"field": "load", "contribution": 0.1, "observed": 0.5, "expected": 0.4},
            ],
        )
    )
    page = seen(bench, "/")
    assert "amount 9,140 where 35 was expected" in page.words
    assert "route /pay where / was expected" in page.words
    assert "load 0.5" not in page.words
    assert "key customer-0" in page.words


def test_pictures_have_thumbnail_and_heat_map(desk_with: Callable[..., Any], client_of: Callable[..., Any]) -> None:
    bench = desk_with(pictures=True)
    client = client_of(bench)
    page, record = (Page(client.get(path).text) for path in ("/", "/flagged/payments-0-79"))
    assert "This picture is unusual, severity 2.0" in page.words
    for drawn in ("picture", "heat-map"):
        address = f"/v1/flagged/payments-0-79/{drawn}.png"
        assert address in page.addresses
        assert address in record.addresses
        assert client.get(address).headers["content-type"] == "image/png"


def test_a_record_shows_why_and_its_neighbours_in_the_queue(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(5)
    listed = rows_of(seen(bench, "/?label=any"))
    page = seen(bench, f"/flagged/{listed[1]}?label=any")
    assert [a for a in page.addresses if a.startswith("/flagged/")] == [
        f"/flagged/{listed[0]}?label=any",
        f"/flagged/{listed[2]}?label=any",
    ]
    for field in ("amount", "duration_ms", "load", "route"):
        assert field in page.words
    assert '"amount": 9141' in page.text


def test_a_record_that_left_the_queue_by_its_label_keeps_its_neighbours(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(5)
    listed = rows_of(seen(bench, "/"))
    bench.desk.label(listed[1:3], "normal")
    page = seen(bench, f"/flagged/{listed[1]}")
    assert [a for a in page.addresses if a.startswith("/flagged/")] == [
        f"/flagged/{listed[0]}",
        f"/flagged/{listed[3]}",
    ]


def test_a_record_that_the_log_does_not_hold_any_more_says_so(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(2)
    bench.log.gone_before = 10_000
    page = seen(bench, "/flagged/payments-0-400")
    assert "only the reasons of the verdict are known" in page.words
    assert "retention" in page.words
    bench.log.gone_before = 0
    bench.log.is_lost = True
    assert "no answer from broker:9092" in seen(bench, "/flagged/payments-0-401").words


def test_what_is_not_there_is_a_page_that_says_so(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(1)
    page = seen(bench, "/flagged/payments-0-9999", 404)
    assert "is not among the flagged ones" in page.words
    assert seen(bench, "/fragments/label?id=x").words


def test_a_record_that_was_not_flagged_can_be_looked_at(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(1)
    page = seen(bench, "/records/payments-0-5")
    assert "was not flagged" in page.words
    assert '"amount"' in page.text
    client = Reader(bench)
    answer = client.get("/records/payments-0-400", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/flagged/payments-0-400")
    assert "is no event id" in seen(bench, "/records/nonsense").words


def test_without_a_topic_for_labels_nothing_can_be_labelled(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(2, has_labels=False)
    for path in ("/", "/flagged/payments-0-400"):
        page = seen(bench, path)
        assert "labels.topic" in page.words
        assert "data-label" not in page.html


def test_labels_are_told_in_numbers(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(10)
    listed = rows_of(seen(bench, "/"))
    bench.desk.label(listed[:3], "anomaly", note="really")
    bench.desk.label(listed[3:4], "normal")
    page = seen(bench, "/")
    assert "Precision so far 75.0 %" in page.words
    assert len(rows_of(page)) == 6
    assert "“really”" in seen(bench, "/?label=anomaly").words


def test_a_summary_that_cannot_be_had_leaves_the_queue(
    desk_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = desk_with(2)

    def fail(self: Any) -> None:
        raise DeskError("not_ready", detail="the labels topic is away")

    monkeypatch.setattr(type(bench.desk), "label_summary", fail)
    page = seen(bench, "/")
    assert "the labels topic is away" in page.words
    assert len(rows_of(page)) == 2


def test_models_show_roles_gate_and_what_can_be_done(desk_with: Callable[..., Any], trained: Any) -> None:
    bench = desk_with(0)
    bench.publish(trained, is_champion=False, passed=False, reason="drift <of> the rate")
    page = seen(bench, "/models")
    assert "Roll back to v1" in page.words
    assert "drift <of> the rate" in page.words
    assert "✗ failed" in page.words
    assert "flagged ratio 0.7 ≤ 0.3" in page.words
    done = {(given["data-do"], given.get("data-version")) for _, given in page.attributes if given.get("data-do")}
    assert done == {("rollback", None), ("train", None), ("promote", "1"), ("promote", "3")}
    bench.desk.rollback("test")
    assert "Roll back" not in seen(bench, "/models").words
    assert "test" in seen(bench, "/models").words


def test_the_refinement_shows_votes_and_what_was_left_out(
    desk_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = desk_with(1)
    rows = tuple(ExcludedRow(f"payments-0-{i}", "payments", 0, i, 5, "anomaly" if i else None) for i in range(250))
    view = RefinementView(2, 0.06, (1700, 30, 10, 5, 5, 250), 2000, 300, rows)
    asked: list[int | None] = []

    def refinement(self: Any, version: int | None = None) -> RefinementView:
        asked.append(version)
        return view

    monkeypatch.setattr(type(bench.desk), "refinement", refinement)
    page = seen(bench, "/refinement")
    assert "300 of 2,000 records were left out of the training (15.0 %)" in page.words
    assert "all 5 250 12.5 %" in page.words
    assert sum(address.startswith("/records/") for address in page.addresses) == 200
    everything = seen(bench, "/refinement?version=2&all=1")
    assert sum(address.startswith("/records/") for address in everything.addresses) == 250
    assert asked == [None, 2]
    assert "a whole number is needed" in seen(bench, "/refinement?version=old").words


def test_a_refinement_that_is_not_there_says_why(desk_with: Callable[..., Any]) -> None:
    assert "there is no version 9" in seen(desk_with(0), "/refinement?version=9").words
    assert "there is no model yet" in seen(desk_with(0, n_models=0), "/refinement").words


def test_the_timeline_has_its_figures_as_a_table(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(20)
    page = seen(bench, "/timeline?span=1h")
    assert "Severity, highest in 30 s" in page.words
    assert "3,000 15 0.50 % 1.5 v2" in page.words
    assert "v2 went live" in page.words
    spikes = [address for address in page.addresses if address.startswith("/?label=any&since=")]
    assert len(spikes) == 2 * 21
    client = Reader(bench)
    assert client.get(spikes[-1]).status_code == 200


def test_the_timeline_of_nothing_says_so(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(0, n_models=0)
    bench.history = {"history": [], "swaps": []}
    assert "Nothing has been scored in this span" in seen(bench, "/timeline?span=nonsense").words
    bench.say("unreachable")
    assert "Connection refused" in seen(bench, "/timeline").words


def test_fragments_are_parts_of_pages(desk_with: Callable[..., Any]) -> None:
    bench = desk_with(4)
    listed = rows_of(seen(bench, "/"))
    status = seen(bench, "/fragments/status")
    assert status.ids == ["status"]
    rows = seen(bench, f"/fragments/records?id={listed[0]}&id={listed[2]}&id=gone&text=9,140")
    assert rows_of(rows) == [listed[0], listed[2]]
    assert "labels-summary" in rows.ids
    assert f"/flagged/{listed[0]}?text=9%2C140" in rows.addresses
    assert seen(bench, f"/fragments/label?id={listed[0]}").ids == [f"record-{listed[0]}", "label-title"]


def test_the_page_is_not_part_of_the_api_document(desk_with: Callable[..., Any], client_of: Callable[..., Any]) -> None:
    client = client_of(desk_with(0))
    paths = client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path in {p for _, p, _ in NAV} or path.startswith(("/frag", "/stat"))]


def test_reading_needs_the_token_where_it_is_not_open(
    desk_with: Callable[..., Any], client_of: Callable[..., Any]
) -> None:
    bench, page = desk_with(1), {"accept": "text/html"}
    stranger = client_of(bench, is_open=False)
    answer = stranger.get("/?text=x", headers=page)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2F%3Ftext%3Dx")
    friend = client_of(bench, is_open=False, with_token=True)
    cookie = friend.post("/v1/session").headers["set-cookie"].partition(";")[0]
    assert stranger.get("/", headers=page | {"cookie": cookie}).status_code == 200


# --- arithmetic of the drawings


def history(points: Sequence[tuple[float, int, int, float | None]], **more: Any) -> HistoryView:
    made = tuple(HistoryPoint(at, n, flagged, severity, 1) for at, n, flagged, severity in points)
    return replace(HistoryView(10.0, made, (), ()), **more)


def test_bins_add_up_what_is_in_them() -> None:
    points = [(1000.0 + 10 * i, 100, i % 3, 0.5 + i % 4) for i in range(360)]
    drawn = timeline(history(points), now=4600.0, span_s=3600.0)
    assert drawn is not None
    assert sum(bin.n for bin in drawn.bins) == 35_800
    assert sum(bin.n_flagged for bin in drawn.bins) == 359
    assert max(bin.max_severity or 0.0 for bin in drawn.bins) == 3.5
    assert all(drawn.left <= bin.x <= drawn.right for bin in drawn.bins)
    assert [bin.start for bin in drawn.bins] == sorted(bin.start for bin in drawn.bins)
    assert len(drawn.share_paths) == 1


def test_gaps_stay_gaps() -> None:
    points = [(1000.0, 10, 1, 1.5), (1010.0, 10, 0, None), (1500.0, 10, 10, float("inf"))]
    drawn = timeline(history(points), now=1595.0, span_s=600.0)
    assert drawn is not None
    assert len(drawn.share_paths) == 2
    assert [bool(bin.stem) for bin in drawn.bins] == [True, False, True]
    assert drawn.bins[1].title.endswith("nothing scored")
    assert timeline(history(points), now=99_000.0, span_s=600.0) is None
    assert timeline(history([]), now=0.0, span_s=600.0) is None


def test_marks_that_are_near_do_not_write_over_each_other() -> None:
    points = [(float(at), 10, 0, 0.5) for at in range(0, 3600, 10)]
    swaps = tuple(Swap(at, i + 1) for i, at in enumerate((100.0, 120.0, 140.0, 3000.0, 99_999.0)))
    trainings = (Training(90.0, 1, "cold start", True), Training(2990.0, 4, "clock", False))
    view = history(points, swaps=swaps, trainings=trainings)
    drawn = timeline(view, now=3599.0, span_s=3600.0)
    assert drawn is not None
    assert [(mark.text, mark.row) for mark in drawn.swaps] == [("v1", 0), ("v2", 1), ("v3", 2), ("v4", 0)]
    assert len(drawn.trainings) == 2
    said = changes(view, since=150.0)
    assert [change.what for change in said] == ["v5 went live", "v4 went live", "v4 was trained"]
    assert said[2].why == "clock; rejected by the gate"


def test_contributions_share_one_scale_with_its_zero() -> None:
    bars = contribution_bars([Reason("a", 8.0, 3.0, 1.0), Reason("b", 0.0, None, None), Reason("c", -2.0, "x", "y")])
    assert [(bar.x, bar.width, bar.is_less) for bar in bars] == [
        (20.0, 80.0, False),
        (20.0, 0.6, False),
        (0.0, 20.0, True),
    ]
    assert [bar.part for bar in bars] == ["+8", "0", "−2"]
    assert contribution_bars([Reason("a", float("nan"), None, None)])[0].width == 0.6
    assert contribution_bars([]) == []


def test_values_that_differ_from_the_nearest_are_found() -> None:
    record = {"amount": 9140, "route": "/pay", "load": 0.5, "flag": True, "deep": {"x": 1, "y": None}}
    nearest = [
        Neighbour("t-0-1", 1.0, {"amount": 35, "route": "/pay", "load": 0.4, "flag": True, "deep": {"x": 2}, "new": 1}),
        Neighbour("t-0-2", 2.0, {"amount": 36, "route": "/", "load": 0.6, "flag": True, "deep": {"x": 2}}),
    ]
    rows, n_equal = compared(record, nearest, ["route", "amount", "gone"])
    assert [(row.field, row.differs) for row in rows] == [
        ("route", False),
        ("amount", True),
        ("load", False),
        ("deep.x", True),
        ("new", False),
    ]
    assert n_equal == 2
    assert rows[0].others == (("/pay", True), ("/", False))
    assert compared("base64", nearest) == ([], 0)
    assert compared(record, [Neighbour("t-0-1", 1.0, None, "gone")], ["amount"])[0][0].differs


def test_votes_that_exclude_are_marked() -> None:
    rows = vote_rows((80, 10, 6, 4), 10)
    assert [(row.text, row.is_out) for row in rows] == [
        ("none", False),
        ("1 of 3", False),
        ("2 of 3", True),
        ("all 3", True),
    ]
    assert [row.ratio for row in rows] == [0.8, 0.1, 0.06, 0.04]
    assert rows[0].width == 100.0
    assert vote_rows((), 0) == []
