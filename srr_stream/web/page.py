"""The review page: HTML made on the server from what the :class:`~srr_stream.web.desk.Desk` says.

Reading needs no script. With scripts the status is kept fresh, and labels and model changes go to the API; what they
changed is fetched again as a fragment. Nothing comes from elsewhere, and nothing stands inline that the content
security policy would have to allow.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import jinja2
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute

from srr_stream.web.drawings import changes, compared, contribution_bars, timeline, vote_rows
from srr_stream.web.problems import DeskError
from srr_stream.web.views import (
    DeskStatus,
    Facets,
    Flagged,
    FlaggedQuery,
    LabelSummaryView,
    RefinementView,
)
from srr_stream.web.words import FILTERS, in_path

if TYPE_CHECKING:
    from srr_stream.web.desk import Desk

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every page and fragment."""

NAV = (
    ("queue", "/", "Queue"),
    ("timeline", "/timeline", "Timeline"),
    ("models", "/models", "Models"),
    ("refinement", "/refinement", "Refinement"),
)
STATE_WORDS: Mapping[str, str] = {
    "empty": "Empty",
    "warming_up": "Warming up",
    "holding": "Holding",
    "scoring": "Scoring",
    "lagging": "Lagging",
    "broker_away": "Broker away",
    "unreachable": "Scorer unreachable",
}
ADVICE: Mapping[str, str] = {
    "empty": "Write records to the input topic; nothing else is to be done.",
    "warming_up": "Nothing is to be done: the first model comes by itself.",
    "holding": "No record is lost: all get their verdict once there is a model.",
    "scoring": "",
    "lagging": "Start another scorer of the same group if this goes on; verdicts are late, none is lost.",
    "broker_away": "Check the brokers; the service comes back by itself, and goes on where it was.",
    "unreachable": "Check that srr-stream run is up, and api.scorer_urls.",
}
ROLE_WORDS: Mapping[str, str] = {"champion": "in use", "challenger": "proposed"}
ROLE_TONES: Mapping[str, str] = {"champion": "good", "challenger": "wait"}

PAGE_SIZE = 50
_NEAR_IN_QUEUE = 200
"""Records among which the neighbours of an opened one are looked for."""
_N_BARS = 12
_N_NEAREST = 4
_N_EXCLUDED = 200
_MAX_FRAGMENT = 200
_WITHIN: Mapping[str, tuple[str, timedelta]] = {
    "15m": ("last 15 min", timedelta(minutes=15)),
    "1h": ("last hour", timedelta(hours=1)),
    "6h": ("last 6 hours", timedelta(hours=6)),
    "1d": ("last day", timedelta(days=1)),
    "7d": ("last 7 days", timedelta(days=7)),
}
_SPANS: Mapping[str, tuple[str, float]] = {"1h": ("1 h", 3600.0), "3h": ("3 h", 10_800.0), "6h": ("6 h", 21_600.0)}
_TABS = (("none", "To review"), ("anomaly", "Anomaly"), ("normal", "Normal"), ("unsure", "Unsure"), ("any", "All"))
_SORTS = (("time", "Newest"), ("severity", "Most severe"))
_CONTENT_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Asked:
    """What an address asks of the queue, as it was written."""

    text: str = ""
    topic: str = ""
    within: str = ""
    min_severity: str = ""
    field: str = ""
    version: str = ""
    since: str = ""
    until: str = ""
    label: str = "none"
    sort: str = "time"
    cursor: str = ""

    @classmethod
    def of(cls, params: Mapping[str, str]) -> Asked:
        """Read an address; what is not known is left alone."""
        return cls(**{name: params[name].strip() for name in cls.__dataclass_fields__ if params.get(name, "").strip()})

    def address(self, path: str = "/", **changed: str) -> str:
        """Return an address that asks for this, but for what is changed. A change begins at the first page."""
        given = asdict(self) | {"cursor": ""} | changed
        default = asdict(Asked())
        said = {name: text for name, text in given.items() if text != default[name]}
        return path + ("?" + urlencode(said) if said else "")

    @property
    def filters(self) -> dict[str, str]:
        """What narrows the queue, but for the label; name → value."""
        names = ("text", "topic", "within", "min_severity", "field", "version", "since", "until")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def query(self, now: datetime, problems: list[str]) -> FlaggedQuery:
        """Return the query; what cannot be understood is left out, and said in `problems`."""

        def read(name: str, words: str, parse: Callable[[str], Any]) -> Any:
            text = getattr(self, name)
            if not text:
                return None
            try:
                return parse(text)
            except (ValueError, KeyError, OverflowError):
                problems.append(f"{words} is {text!r}; {_ALLOWED[name]} is needed. It is left out.")
                return None

        within = read("within", "the time", lambda text: _WITHIN[text][1])
        return FlaggedQuery(
            topic=self.topic or None,
            since=read("since", "the beginning", _time) or (now - within if within is not None else None),
            until=read("until", "the end", _time),
            min_severity=read("min_severity", "the severity", _finite),
            field=self.field or None,
            version=read("version", "the version", _whole),
            label=read("label", "the label", lambda text: _LABELS[text]),
            text=self.text or None,
            sort=read("sort", "the order", lambda text: _SORT_OF[text]) or "time",
            cursor=self.cursor or None,
            limit=PAGE_SIZE,
        )


_ALLOWED = {
    "within": "one of " + ", ".join(_WITHIN),
    "since": "a time such as 2025-11-26T14:03",
    "until": "a time such as 2025-11-26T14:03",
    "min_severity": "a number such as 1.5",
    "version": "a whole number",
    "label": "one of none, anomaly, normal, unsure, any",
    "sort": "time or severity",
}
_LABELS: Mapping[str, Any] = {name: None if name == "any" else name for name, _ in _TABS}
_SORT_OF: Mapping[str, Any] = {name: name for name, _ in _SORTS}


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _finite(text: str) -> float:
    number = float(text.replace(",", "."))
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _whole(text: str) -> int:
    number = int(text.removeprefix("v"))
    if not 0 <= number < 2**63:
        raise ValueError(text)
    return number


class Pages:
    """Makes the pages' HTML. What time it is, the desk says."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.static = _read_static()
        self.digest = hashlib.sha256(b"".join(self.static[name] for name in sorted(self.static))).hexdigest()[:12]
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("srr_stream.web"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= FILTERS
        self._environment.globals |= {
            "static": lambda name: f"/static/{self.digest}/{name}",
            "modules": sorted(
                name for name in self.static if name.endswith(".js") and name not in ("theme.js", "page.js")
            ),
            "nav": NAV,
            "state_words": STATE_WORDS,
            "role_words": ROLE_WORDS,
            "role_tones": ROLE_TONES,
            "part_of": None,
            "status": None,
            "view": None,
        }

    # --- pages

    def queue(self, params: Mapping[str, str]) -> str:
        """Return the queue of flagged records."""
        asked, problems = Asked.of(params), list[str]()
        query = asked.query(self._now(), problems)
        try:
            page = self._desk.flagged(query)
        except DeskError as error:
            if not asked.cursor or error.problem_type != "invalid":
                raise
            problems.append("The place to go on from is not known any more; this is the first page.")
            asked = replace(asked, cursor="")
            page = self._desk.flagged(replace(query, cursor=None))
        facets, has_labels = self._desk.facets(), self._desk.has_labels
        summary = self._summary()
        return self._page(
            "queue.html",
            view="queue",
            title="Flagged records",
            asked=asked,
            page=page,
            topics=_with(facets.topics, asked.topic),
            fields=facets.fields,
            withins=[(name, words) for name, (words, _) in _WITHIN.items()],
            has_more=any((asked.field, asked.version, asked.since, asked.until)),
            chips=_chips(asked),
            problems=problems,
            tabs=_tabs(asked, page.n_total, summary["summary"], facets),
            sorts=[(name, text, asked.address(sort=name)) for name, text in _SORTS],
            what_is_listed="to review" if asked.label == "none" else "in this list",
            is_filtered=bool(asked.filters) or asked.label not in ("none", "any"),
            link_query=asked.address("", cursor=asked.cursor),
            older=asked.address(cursor=page.next_cursor) if page.next_cursor else None,
            newest=asked.address() if asked.cursor else None,
            has_labels=has_labels,
            notes=self._notes(page.items),
            **summary,
        )

    def record(self, id: str, params: Mapping[str, str]) -> str:
        """Return the page of one flagged record."""
        detail = self._desk.flagged_one(id)
        asked = Asked.of(params)
        before, after = self._neighbours(id, asked)
        link = asked.address("", cursor=asked.cursor)
        item, nearest = detail.flagged, detail.nearest[:_N_NEAREST]
        rows, n_equal = compared(detail.record, nearest, [reason.field for reason in detail.contributions])
        return self._page(
            "record.html",
            view="record",
            part_of="queue",
            title=item.headline if not item.is_picture else f"Picture {item.id}",
            detail=detail,
            back=asked.address(cursor=asked.cursor),
            previous=record_address(before.id, link) if before else None,
            next=record_address(after.id, link) if after else None,
            bars=contribution_bars(detail.contributions),
            n_bars=_N_BARS,
            rows=rows,
            shown_nearest=nearest,
            n_equal=n_equal,
            record_text=None if detail.record is None else _readable(detail.record),
            **self._said(id),
        )

    def is_flagged(self, id: str) -> bool:
        """Return whether a record has a page of its own."""
        return self._desk.flagged_row(id) is not None

    def unflagged(self, id: str) -> str:
        """Return the page of a record that is not among the flagged ones."""
        record = self._desk.record(id)
        return self._page(
            "unflagged.html",
            view="record",
            part_of="refinement",
            title=f"Record {id}",
            view_of=record,
            record_text=None if record.record is None else _readable(record.record),
            **self._said(id),
        )

    def timeline(self, params: Mapping[str, str]) -> str:
        """Return severity and flagged share over time."""
        span = params.get("span", "6h")
        span = span if span in _SPANS else "6h"
        words, span_s = _SPANS[span]
        history, now = self._desk.history(), self._desk.now()
        return self._page(
            "timeline.html",
            view="timeline",
            title="Timeline",
            caption=f"the last {words}, by the time of scoring",
            span=span,
            spans=[(name, text, f"/timeline?span={name}") for name, (text, _) in _SPANS.items()],
            history=history,
            drawing=timeline(history, now=now, span_s=span_s),
            changes=changes(history, since=now - span_s),
        )

    def models(self) -> str:
        """Return all versions with what the gate said of them."""
        return self._page(
            "models.html", view="models", title="Models", models=self._desk.models(), in_use=self._desk.in_use()
        )

    def refinement(self, params: Mapping[str, str]) -> str:
        """Return what the refinement of a version's window left out."""
        problem, version, found = "", params.get("version", ""), None
        try:
            found = self._desk.refinement(_whole(version) if version else None)
        except ValueError:
            problem = f"the version is {version!r}; a whole number is needed"
        except DeskError as error:
            problem = error.detail
        n_shown = _N_EXCLUDED if params.get("all") != "1" else None
        return self._page(
            "refinement.html",
            view="refinement",
            title="Refinement",
            refinement=found,
            problem=problem,
            versions=[row.version for row in self._desk.models() if row.problem is None],
            votes=vote_rows(found.rows_by_votes, found.n_excluded) if found else [],
            n_members=len(found.rows_by_votes) - 1 if found else 0,
            shown=found.rows[:n_shown] if found else (),
            more=_more_excluded(found, n_shown),
        )

    def problem(self, error: DeskError) -> str:
        """Return a page that says what is wrong, without asking the desk anything."""
        template = self._environment.get_template("problem.html")
        return template.render(title=error.title, detail=error.detail)

    # --- fragments

    def status(self) -> str:
        """Return the line with the state of the service."""
        return self._environment.get_template("status.html").render(self._status_context())

    def records(self, ids: list[str], params: Mapping[str, str]) -> str:
        """Return rows of the queue anew, those that are still known, and the labels in numbers."""
        asked = Asked.of(params)
        items = [found for found in map(self._desk.flagged_row, ids[:_MAX_FRAGMENT]) if found is not None]
        return self._environment.get_template("records.html").render(
            items=items,
            link_query=asked.address("", cursor=asked.cursor),
            has_labels=self._desk.has_labels,
            notes=self._notes(items),
            **self._summary(),
        )

    def record_label(self, id: str) -> str:
        """Return what is said of one record."""
        return self._environment.get_template("record_label.html").render(self._said(id))

    # ---

    def _page(self, name: str, **context: Any) -> str:
        return self._environment.get_template(name).render(self._status_context() | context)

    def _status_context(self) -> dict[str, Any]:
        status = self._desk.status()
        return {"status": status, "advice": ADVICE[status.state], "training": _training_words(status)}

    def _summary(self) -> dict[str, Any]:
        """Return the labels in numbers, or why there are none: a queue without them is still a queue."""
        if not self._desk.has_labels:
            return {"summary": None, "summary_problem": None}
        try:
            return {"summary": self._desk.label_summary(), "summary_problem": None}
        except DeskError as error:
            return {"summary": None, "summary_problem": error.detail}

    def _said(self, id: str) -> dict[str, Any]:
        """Return what the panel with a record's label shows."""
        return {"id": id, "said": self._desk.label_of(id), "has_labels": self._desk.has_labels}

    def _notes(self, items: Iterable[Flagged]) -> dict[str, str]:
        """Return the notes of what is labelled, by id."""
        said = {item.id: self._desk.label_of(item.id) for item in items if item.label is not None}
        return {id: label.note for id, label in said.items() if label is not None and label.note}

    def _neighbours(self, id: str, asked: Asked) -> tuple[Flagged | None, Flagged | None]:
        """Return the records before and after one in the queue that it was opened from.

        Whatever their label they are looked through: the opened one may have left the queue by being labelled.
        """
        query = asked.query(self._now(), [])
        try:
            items = self._desk.flagged(replace(query, label=None, limit=_NEAR_IN_QUEUE)).items
        except DeskError:
            return None, None
        place = next((at for at, item in enumerate(items) if item.id == id), None)
        if place is None:
            return None, None

        def is_listed(item: Flagged) -> bool:
            return query.label is None or (item.label or "none") == query.label

        before = next(filter(is_listed, reversed(items[:place])), None)
        return before, next(filter(is_listed, items[place + 1 :]), None)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._desk.now(), UTC)


def make_page(desk: Desk) -> APIRouter:
    """Return the routes of the review page."""
    pages = Pages(desk)

    class Route(APIRoute):
        """A problem of the desk is a page, for who asks for a page."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await handler(request)
                except DeskError as error:
                    return HTMLResponse(pages.problem(error), status_code=error.status, headers=HEADERS)

            return handle

    router = APIRouter(route_class=Route, include_in_schema=False)

    def html(text: str) -> HTMLResponse:
        return HTMLResponse(text, headers=HEADERS)

    @router.get("/")
    def queue(request: Request) -> Response:
        return html(pages.queue(request.query_params))

    @router.get("/flagged/{id}")
    def record(id: str, request: Request) -> Response:
        return html(pages.record(id, request.query_params))

    @router.get("/records/{id}")
    def any_record(id: str) -> Response:
        if pages.is_flagged(id):
            return RedirectResponse(record_address(id), status_code=303, headers=HEADERS)
        return html(pages.unflagged(id))

    @router.get("/timeline")
    def timeline_page(request: Request) -> Response:
        return html(pages.timeline(request.query_params))

    @router.get("/models")
    def models() -> Response:
        return html(pages.models())

    @router.get("/refinement")
    def refinement(request: Request) -> Response:
        return html(pages.refinement(request.query_params))

    @router.get("/fragments/status")
    def status() -> Response:
        return html(pages.status())

    @router.get("/fragments/records")
    def records(request: Request, id: list[str] = Query()) -> Response:  # noqa: B008
        return html(pages.records(id, request.query_params))

    @router.get("/fragments/label")
    def label(id: str) -> Response:
        return html(pages.record_label(id))

    @router.get("/static/{digest}/{name}")
    async def static(digest: str, name: str) -> Response:  # from memory: it waits for nothing
        content = pages.static.get(name)
        if content is None:
            raise DeskError("not_found", detail=f"there is no file {name}")
        kept = "public, max-age=31536000, immutable" if digest == pages.digest else "no-store"
        kind = _CONTENT_TYPES["." + name.rpartition(".")[2]]
        return Response(content, media_type=kind, headers={"Cache-Control": kept, "X-Content-Type-Options": "nosniff"})

    return router


def _read_static() -> dict[str, bytes]:
    folder = files("srr_stream.web") / "static"
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if "." + file.name.rpartition(".")[2] in _CONTENT_TYPES
    }


def _training_words(status: DeskStatus) -> str:
    trainer = status.trainer
    if not trainer.is_reachable:
        return "trainer unreachable"
    if trainer.phase == "training" and trainer.n_steps:
        return f"training, {100 * trainer.step // trainer.n_steps} %"
    return trainer.phase if trainer.phase in ("reading", "training", "judging", "publishing") else ""


def _with(names: tuple[str, ...], asked: str) -> tuple[str, ...]:
    return names if not asked or asked in names else (*names, asked)


def _chips(asked: Asked) -> list[tuple[str, str]]:
    words = {
        "text": "text: {}",
        "topic": "topic {}",
        "min_severity": "severity from {}",
        "field": "field {}",
        "version": "version {}",
        "since": "from {}",
        "until": "before {}",
    }
    chips = []
    for name, text in asked.filters.items():
        said = _WITHIN[text][0] if name == "within" and text in _WITHIN else text
        said = said.replace("T", " ") if name in ("since", "until") else said
        chips.append((words.get(name, "{}").format(said), asked.address(**{name: ""})))
    return chips


def _tabs(
    asked: Asked, n_total: int, summary: LabelSummaryView | None, facets: Facets
) -> list[tuple[str, str, int | None, str]]:
    counts: dict[str, int] = {asked.label: n_total}
    if summary is not None and not asked.filters:
        numbers = {"anomaly": summary.n_anomaly, "normal": summary.n_normal, "unsure": summary.n_unsure}
        counts = numbers | counts
    return [(name, text, counts.get(name), asked.address(label=name)) for name, text in _TABS]


def record_address(id: str, query: str = "") -> str:
    """Return the address of a flagged record's page; `query` is the queue's that it was opened from."""
    return f"/flagged/{in_path(id)}{query}"


def _readable(record: object) -> str:
    return record if isinstance(record, str) else json.dumps(record, indent=2, ensure_ascii=False, default=str)


def _more_excluded(found: RefinementView | None, n_shown: int | None) -> str | None:
    if found is None or n_shown is None or len(found.rows) <= n_shown:
        return None
    return f"/refinement?version={found.version}&all=1"
