"""The review page in headless Chromium, on a real server: labels, models, keys, screen readers, offline, speed."""

from __future__ import annotations

import os
import re
import statistics
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from srr_stream.web.views import FlaggedQuery

pytestmark = pytest.mark.operate
expect.set_options(timeout=15_000)

TOKEN = "a-token-that-nobody-guesses"
VIEWS = (
    "/?label=any",
    "/flagged/payments-0-402?label=any",
    "/timeline?span=1h",
    "/models",
    "/refinement",
    "/records/payments-0-5",
)
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 860}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 860}},
    "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "has_touch": True},
    "dark phone": {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}, "has_touch": True},
}
FIRST_VIEW_MS = 300.0
IMAGES = Path(__file__).parents[2] / "docs" / "images"


@dataclass
class Tab:
    """A browser's tab on a page of a server, and what came of it."""

    page: Page
    address: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Errors on the console, and of scripts."""

    def open(self, path: str = "/?label=any") -> Page:
        self.page.goto(self.address + path)
        return self.page

    def row(self, place: int) -> Any:
        return self.page.locator("#records > .record").nth(place)


class Served:
    """Applications served on free ports until all is over."""

    def __init__(self) -> None:
        self._running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(self, app: Any) -> str:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started = threading.Event()
        for _ in range(500):
            if server.started or started.wait(0.02):
                break
        assert server.started
        self._running.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        for server, thread in self._running:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()
        self._running.clear()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.stop()


@pytest.fixture
def tab_on(browser: Browser, served: Served, make_app_of: Callable[..., Any]) -> Iterator[Callable[..., Tab]]:
    """Give what opens a tab on a bench; at the end nothing may have been asked of anybody else, nor gone wrong.

    `may_fail`: what the console may complain of.
    """
    contexts, tabs = [], list[tuple[Tab, str]]()

    def make(bench: Any, look: str = "light", *, may_fail: str = "", is_open: bool = True, **options: Any) -> Tab:
        address = served.serve(make_app_of(bench, is_open=is_open))
        context = browser.new_context(**LOOKS[look], **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        tab = Tab(page, address)
        page.on("request", lambda request: tab.requests.append(request.url))
        page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        page.on("console", lambda said: tab.complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: tab.complaints.append(f"a dialog: {dialog.message}"))
        tabs.append((tab, may_fail))
        return tab

    yield make
    for tab, may_fail in tabs:
        assert [url for url in tab.requests if not url.startswith(f"{tab.address}/")] == []
        pattern = "unsafe-eval" + (f"|{may_fail}" if may_fail else "")  # axe tries to; the page itself never does
        assert [text for text in tab.complaints if not re.search(pattern, text)] == []
    for context in contexts:
        context.close()


def label_of(bench: Any, id: str) -> str | None:
    said = bench.desk.label_of(id)
    return said.label if said is not None else None


def id_of(row: Any) -> str:
    return str(row.get_attribute("data-id"))


def with_token(tab: Tab, path: str = "/?label=any") -> Page:
    """Open a page as the address that the program prints does."""
    page = tab.open(f"{path}#token={TOKEN}")
    expect(page).to_have_url(tab.address + path)
    return page


def test_a_label_is_given_and_undone_with_the_mouse(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    bench = desk_with(5)
    tab = tab_on(bench)
    page = tab.open()
    row, id = tab.row(1), id_of(tab.row(1))
    row.get_by_role("button", name="Anomaly").click()
    dialog = page.get_by_role("dialog", name="The token, please")
    dialog.get_by_label("Your name").fill("Ann")
    dialog.get_by_label("Token").fill(TOKEN)
    dialog.get_by_role("button", name="Use it").click()
    expect(row.get_by_role("button", name="Anomaly")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("status")).to_have_text("Record labelled anomaly")
    expect(page.locator("#labels-summary")).to_contain_text("100.0 %")
    assert label_of(bench, id) == "anomaly"
    assert bench.desk.label_of(id).author == "Ann"
    page.get_by_role("button", name="Undo").click()
    expect(row.get_by_role("button", name="Anomaly")).to_have_attribute("aria-pressed", "false")
    assert label_of(bench, id) is None


def test_a_refused_token_is_asked_for_again(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    bench = desk_with(2)
    tab = tab_on(bench, may_fail="401")
    page = tab.open("/?label=any#token=wrong-as-can-be-wrong")
    tab.row(0).get_by_role("button", name="Normal").click()
    dialog = page.get_by_role("dialog", name="The token, please")
    expect(dialog).to_contain_text("refused")
    assert "token" not in page.url
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    expect(tab.row(0).get_by_role("button", name="Normal")).to_have_attribute("aria-pressed", "false")
    assert label_of(bench, id_of(tab.row(0))) is None


def test_everything_works_by_keyboard_alone(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    bench = desk_with(60)
    tab = tab_on(bench)
    page = with_token(tab)
    keys = page.keyboard
    keys.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    keys.press("j")
    keys.press("j")
    expect(tab.row(1).locator(".reason")).to_be_focused()
    first, second = id_of(tab.row(0)), id_of(tab.row(1))
    keys.press("u")
    expect(tab.row(1).get_by_role("button", name="Unsure")).to_have_attribute("aria-pressed", "true")
    expect(tab.row(1).locator(".reason")).to_be_focused()
    keys.press("k")
    keys.press("a")
    expect(tab.row(0)).to_have_attribute("data-is", "anomaly")
    keys.press("z")
    expect(tab.row(0)).to_have_attribute("data-is", "none")
    keys.press("z")
    expect(tab.row(1)).to_have_attribute("data-is", "none")
    keys.press("z")
    expect(page.get_by_role("status")).to_have_text("There is nothing to undo.")
    assert label_of(bench, first) is label_of(bench, second) is None
    keys.press("/")
    expect(page.locator("#filter-text")).to_be_focused()
    keys.type("an")
    assert label_of(bench, first) is None
    keys.press("Escape")
    keys.press("Tab")
    page.locator("#main").focus()
    keys.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    keys.press("a")
    keys.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    keys.press("j")
    keys.press("Enter")
    page.wait_for_url("**/flagged/**")
    before = page.url
    keys.press("j")
    page.wait_for_url(lambda url: "/flagged/" in url and url != before)
    keys.press("n")
    expect(page.locator("aside [data-id]")).to_have_attribute("data-is", "normal")
    keys.press("b")
    page.wait_for_url("**/?label=any")
    keys.press("z")
    expect(page.get_by_role("status")).to_contain_text("Undone")
    assert bench.desk.labels() == ()


def test_single_keys_can_be_turned_off(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    bench = desk_with(3)
    tab = tab_on(bench)
    page = with_token(tab)
    page.get_by_role("button", name="Keys and help").click()
    page.get_by_label("Single keys act").uncheck()
    page.get_by_role("button", name="Close").click()
    page.reload()
    tab.row(0).locator(".reason").focus()
    page.keyboard.press("a")
    page.keyboard.press("j")
    expect(tab.row(0).locator(".reason")).to_be_focused()
    assert bench.desk.labels() == ()


def test_many_are_labelled_at_once_and_all_come_back(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    bench = desk_with(8)
    ids = [item.id for item in bench.desk.flagged(FlaggedQuery()).items]
    bench.desk.label(ids[1:2], "anomaly", note="as on Monday")
    tab = tab_on(bench)
    page = with_token(tab)
    tab.row(0).locator(".pick").click()
    tab.row(3).locator(".pick").click(modifiers=["Shift"])
    expect(page.locator("#n-picked")).to_have_text("4")
    page.get_by_role("region", name="The selected records").get_by_role("button", name="Normal").click()
    for place in range(4):
        expect(tab.row(place)).to_have_attribute("data-is", "normal")
    expect(page.get_by_role("status")).to_have_text("4 records labelled normal")
    expect(page.locator("#bulk")).to_be_hidden()
    assert {label_of(bench, id) for id in ids[:4]} == {"normal"}
    page.locator("#main").focus()
    page.keyboard.press("z")
    expect(tab.row(1)).to_have_attribute("data-is", "anomaly")
    expect(tab.row(0)).to_have_attribute("data-is", "none")
    assert bench.desk.label_of(ids[1]).note == "as on Monday"
    assert [label_of(bench, id) for id in ids] == [None, "anomaly", *[None] * 6]
    tab.row(5).locator(".reason").focus()
    page.keyboard.press("x")
    expect(page.locator("#n-picked")).to_have_text("1")
    page.keyboard.press("Escape")
    expect(page.locator("#bulk")).to_be_hidden()
    page.get_by_label("Select all on this page").check()
    expect(page.locator("#n-picked")).to_have_text("8")


def test_a_problem_of_the_api_is_said(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    from consumers.errors import BrokerUnavailable

    bench = desk_with(2)
    bench.label_log.problem = BrokerUnavailable("no answer from broker:9092")
    tab = tab_on(bench, may_fail="503")
    page = with_token(tab)
    tab.row(0).get_by_role("button", name="Anomaly").click()
    expect(page.get_by_role("alert").filter(has_text="no answer from broker:9092")).to_be_attached()
    expect(tab.row(0)).to_have_attribute("data-is", "none")


def test_a_note_is_kept_with_the_label(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    bench = desk_with(2)
    tab = tab_on(bench)
    page = with_token(tab, "/flagged/payments-0-401")
    page.get_by_label("Note").fill("a <b>bold</b> backup")
    page.get_by_role("group", name="Label this record").get_by_role("button", name="Normal").click()
    expect(page.locator(".quote")).to_have_text("a <b>bold</b> backup")
    assert bench.desk.label_of("payments-0-401").note == "a <b>bold</b> backup"
    page.get_by_role("button", name="Remove the label").click()
    expect(page.get_by_text("Nobody has said yet")).to_be_visible()
    assert bench.desk.label_of("payments-0-401") is None
    page.keyboard.press("z")
    expect(page.locator(".quote")).to_have_text("a <b>bold</b> backup")


def test_a_model_is_rolled_back_promoted_and_trained(
    desk_with: Callable[..., Any], tab_on: Callable[..., Tab], trained: Any
) -> None:
    bench = desk_with(0)
    bench.publish(trained, is_champion=False, passed=False, reason="drift")
    tab = tab_on(bench)
    page = with_token(tab, "/models")
    page.get_by_role("button", name="Roll back to v1").click()
    dialog = page.get_by_role("dialog", name="Roll back to v1?")
    dialog.get_by_role("button", name="Cancel").click()
    assert bench.desk.in_use().champion == 2
    page.get_by_role("button", name="Roll back to v1").click()
    dialog.get_by_label("Reason").fill("flags the new release")
    dialog.get_by_role("button", name="Roll back to v1").click()
    expect(page.locator("#version-1")).to_contain_text("in use")
    expect(page.locator("#models-head")).to_contain_text("flags the new release")
    expect(page.get_by_role("button", name="Roll back")).to_have_count(0)
    assert bench.desk.in_use().champion == 1
    page.get_by_role("button", name="Promote v3").click()
    dialog = page.get_by_role("dialog", name="Promote v3?")
    expect(dialog).to_contain_text("The gate rejected it: flagged_ratio is 0.7")
    dialog.get_by_role("button", name="Promote v3").click()
    expect(page.locator("#version-3")).to_contain_text("in use")
    page.get_by_role("button", name="Train now").click()
    page.get_by_role("dialog", name="Train now?").get_by_label("Reason").fill("after the release")
    page.get_by_role("dialog", name="Train now?").get_by_role("button", name="Train now").click()
    expect(page.get_by_role("status")).to_contain_text("A training is asked for")
    assert bench.registry.take_request() == "after the release"


def test_the_status_line_keeps_itself_fresh(
    desk_with: Callable[..., Any], tab_on: Callable[..., Tab], served: Served
) -> None:
    bench = desk_with(2)
    tab = tab_on(bench, may_fail="ERR_CONNECTION_REFUSED")
    page = tab.open()
    status = page.get_by_role("region", name="State of the service")
    expect(status).to_contain_text("Scoring")
    bench.say("broker_away")
    expect(status).to_contain_text("Broker away")
    expect(page.get_by_role("status")).to_contain_text("Broker away: The broker is away")
    bench.say("lagging")
    expect(status).to_contain_text("120,000 records are not scored yet")
    served.stop()
    expect(status).to_contain_text("API unreachable")


def test_a_hidden_tab_asks_nothing(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    tab = tab_on(desk_with(1))
    page = tab.open()
    page.clock.install()
    page.reload()
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => window.isAway, configurable: true})")
    page.evaluate("window.isAway = true; document.dispatchEvent(new Event('visibilitychange'))")
    n = len(tab.requests)
    page.clock.run_for(60_000)
    assert len(tab.requests) == n
    with page.expect_request("**/fragments/status"):
        page.evaluate("window.isAway = false; document.dispatchEvent(new Event('visibilitychange'))")


def test_a_hostile_record_does_nothing(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    import orjson

    bench = desk_with(1)
    evil = '"\'><img src=x onerror="window.wasRun=1"><script>window.wasRun=1</script>'
    raw = bench.produce(orjson.dumps({"amount": 1.0, evil: evil, "duration_ms": 1.0, "route": evil}), key=evil)
    reason = {"field": evil, "contribution": 9.0, "observed": evil, "expected": evil}
    bench.flag(bench.verdict(raw, reasons=[reason], metadata={evil: evil}))
    id = f"{raw.topic}-{raw.partition}-{raw.offset}"
    tab = tab_on(bench)
    for path in ("/?label=any", f"/flagged/{id}"):
        page = with_token(tab, path)
        page.locator(f"[data-id='{id}'] button[data-label=unsure]").click()
        expect(page.get_by_role("status")).to_contain_text("Record")
        expect(page.locator("main")).to_contain_text("onerror")
        assert page.evaluate("window.wasRun === undefined")
        assert page.locator("main img").count() == 0
        page.reload()


def test_pictures_are_seen(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    tab = tab_on(desk_with(pictures=True))
    for path in ("/?label=any", "/flagged/payments-0-79"):
        page = tab.open(path)
        pictures = page.locator("main img")
        expect(pictures).to_have_count(2)
        for picture in pictures.all():
            picture.evaluate("(image) => image.decode()")
    assert_accessible(page)


def test_reading_works_without_scripts(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    tab = tab_on(desk_with(60), java_script_enabled=False)
    page = tab.open()
    assert page.locator("#records > .record").count() == 50
    assert page.locator("button:visible").all_inner_texts() == ["Filter"]
    page.get_by_role("link", name="Older").click()
    assert page.locator("#records > .record").count() == 10
    page.get_by_role("searchbox").fill("payments-0-401")
    page.get_by_role("button", name="Filter").click()
    assert page.locator("#records > .record").count() == 1
    page.locator(".reason").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("amount 9,140")


def test_where_reading_needs_the_token_its_address_signs_in(
    desk_with: Callable[..., Any], tab_on: Callable[..., Tab]
) -> None:
    bench = desk_with(3)
    tab = tab_on(bench, is_open=False)
    page = tab.open(f"/?label=any#token={TOKEN}")
    page.wait_for_url("**/?label=any")
    expect(tab.row(2)).to_be_visible()
    tab.row(0).get_by_role("button", name="Normal").click()
    expect(tab.row(0)).to_have_attribute("data-is", "normal")


def test_a_click_on_the_timeline_filters_the_queue(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    tab = tab_on(desk_with(20))
    page = tab.open("/timeline?span=1h")
    page.locator("svg.plot a").nth(5).click()
    page.wait_for_url("**/?label=any&since=*")
    expect(page.get_by_label("Filters in use")).to_contain_text("before 2025-10-09")


def test_the_theme_can_be_changed_and_stays(desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    tab = tab_on(desk_with(1), "light")
    page = tab.open()
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Change to the dark theme").click()
    dark = page.evaluate(paper)
    assert dark != light
    page.goto(f"{tab.address}/models")
    assert page.evaluate(paper) == dark
    page.get_by_role("button", name="Change to the light theme").click()
    assert page.evaluate(paper) == light


def assert_accessible(page: Page) -> None:
    found = Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, f"{page.url}\n{found.generate_report()}"


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_on_any_view(look: str, desk_with: Callable[..., Any], tab_on: Callable[..., Tab]) -> None:
    bench = desk_with(60)
    items = bench.desk.flagged(FlaggedQuery(limit=6)).items
    for item, label in zip(items, ("anomaly", "normal", "unsure"), strict=False):
        bench.desk.label([item.id], label, note="a note")
    tab = tab_on(bench, look)
    for view in VIEWS:
        page = tab.open(view)
        for details in page.locator("main details").all():
            details.evaluate("(details) => { details.open = true; }")
        assert_accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= LOOKS[look]["viewport"]["width"], view
    for state in ("broker_away", "lagging", "unreachable"):
        bench.say(state)
        assert_accessible(tab.open())


@pytest.mark.parametrize("look", ["light", "dark phone"])
def test_axe_finds_nothing_in_dialogs_toasts_and_empty_states(
    look: str, desk_with: Callable[..., Any], tab_on: Callable[..., Tab]
) -> None:
    bench = desk_with(2)
    tab = tab_on(bench, look, may_fail="404")
    page = tab.open()
    tab.row(0).locator(".pick").check()
    page.locator("#bulk").get_by_role("button", name="Unsure").click()
    assert_accessible(page)
    page.get_by_role("dialog").get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator(".toast")).to_be_visible()
    page.locator(".toast").evaluate("(toast) => Promise.all(toast.getAnimations().map((a) => a.finished))")
    assert_accessible(page)
    page.get_by_role("button", name="Keys and help").click()
    assert_accessible(page)
    page = tab.open("/models")
    page.get_by_role("button", name="Train now").click()
    assert_accessible(page)
    assert_accessible(tab.open("/?text=nonsense"))
    assert_accessible(tab.open("/flagged/payments-9-9"))
    without_model = desk_with(0, n_models=0)
    empty = tab_on(without_model, look)
    for state in ("empty", "warming_up", "holding"):
        without_model.say(state)
        assert_accessible(empty.open("/"))
        assert_accessible(empty.open("/timeline"))


def test_the_first_view_comes_quickly_with_ten_thousand_records(
    desk_with: Callable[..., Any], tab_on: Callable[..., Tab], browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_page = FlaggedQuery().limit
    tabs = {n: tab_on(desk_with(n)) for n in (10_000, whole_page)}
    times: dict[int, list[float]] = {n: [] for n in tabs}
    for tab in tabs.values():
        tab.open()
    for _ in range(9):
        for n, tab in tabs.items():
            context = browser.new_context(**LOOKS["light"])  # one with nothing in its cache
            page = context.new_page()
            page.goto(f"{tab.address}/")
            timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
            times[n].append(float(page.evaluate(timing)))
            assert page.locator("#n-total").inner_text() == f"{n:,}"
            context.close()
    many, few = times[10_000], times[whole_page]
    with capsys.disabled():
        for n, found in times.items():
            figures = f"median {statistics.median(found):.0f} ms ({min(found):.0f} to {max(found):.0f})"
            print(f"\nfirst view with {n:,} flagged records: {figures}")
    # What the page takes, not what else a machine does: on a busy one the median has been twice the best. Where the
    # browser alone takes most of the time, the many may not cost much more than as many as are shown.
    assert min(many) <= max(FIRST_VIEW_MS, 1.25 * min(few)), times


def test_pictures_of_the_page_for_the_docs(
    tab_on: Callable[..., Tab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also writes them to docs/images, if SRR_STREAM_DOC_IMAGES is set."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import kdd_desk

    stage = kdd_desk.make(tmp_path)
    kdd_desk.review(stage.desk)
    severe = stage.desk.flagged(FlaggedQuery(sort="severity", limit=3)).items[1]
    shots = {
        "page-queue": ("light", "/?label=any&sort=severity"),
        "page-record": ("dark", f"/flagged/{severe.id}?label=any&sort=severity"),
        "page-timeline": ("light", "/timeline"),
        "page-models": ("dark", "/models"),
    }
    into = IMAGES if os.environ.get("SRR_STREAM_DOC_IMAGES") else tmp_path
    for name, (look, view) in shots.items():
        page = tab_on(stage, look).open(view)
        assert_accessible(page)
        picture = PIL.Image.open(BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
        few_colours = picture.quantize(256, method=PIL.Image.Quantize.MAXCOVERAGE, dither=PIL.Image.Dither.NONE)
        few_colours.save(into / f"{name}.png", optimize=True)
        assert 10_000 < (into / f"{name}.png").stat().st_size < 150_000
    stage.close()
