"""The routes below ``/v1``: what the desk can do, over HTTP, described so that programs can be written against it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request, Response, Security
from fastapi.security import HTTPBearer
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from srr_stream.web import views
from srr_stream.web.desk import MAX_LABELS, Desk
from srr_stream.web.problems import MEDIA_TYPE, PROBLEMS, DeskError
from srr_stream.web.views import FlaggedQuery

MAX_RECORDS = 5000
"""Of one request to score."""
MAX_REASON = 500
"""Characters of a reason that somebody gives."""
_MAX_VERSION = 10**9
_MAX_LISTED = 10_000
_PICTURE_TYPES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream")
_LINE_TYPES = ("application/x-ndjson", "application/jsonl", "application/ndjson")
_JSON = "application/json"

_bearer = HTTPBearer(auto_error=False, description="The token of the API: api.token, or the one that was made.")
EventId = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9._-]{1,249}-[0-9]{1,9}-[0-9]{1,18}$",
        description="topic-partition-offset, as in verdicts and alerts.",
        examples=["requests-3-1042"],
    ),
]
Version = Annotated[int, Path(ge=1, le=_MAX_VERSION, description="Of a model.", examples=[7])]


# --- what is asked and answered


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProblemView(BaseModel):
    """What went wrong, as RFC 9457 has it."""

    type: str = Field(
        examples=["urn:srr-stream:problem:not_found"], description="What programs tell problems apart by."
    )
    title: str
    status: int
    detail: str = Field(description="What is wrong, where, what is allowed and what to do.")
    errors: list[dict[str, Any]] | None = Field(None, description="Of a request that is not valid: each thing wrong.")


class BadRecordView(BaseModel):
    """Why a record got no verdict."""

    reason: str = Field(examples=["missing_field"], description="One of a small closed set, as of dead letters.")
    detail: str


class VerdictView(BaseModel):
    """What the live model says of a record, or why it says nothing."""

    index: int = Field(description="Of the record in the request, from 0.")
    score: float | None = Field(None, description="Raw: higher is less usual.")
    p_value: float | None = Field(None, description="Share of normal records that score at least as high.")
    severity: float | None = Field(None, description="1.0 is the boundary for every model.")
    flagged: bool | None = None
    version: int | None = Field(None, description="Of the model.")
    known_normal: str | None = Field(
        None, description="Id of the record marked normal that keeps it from being flagged."
    )
    reasons: list[views.Reason] | None = Field(None, description="Of a flagged record: what caused it, greatest first.")
    metadata: dict[str, Any] | None = Field(None, description="What the record has beside its picture.")
    problem: BadRecordView | None = None


class Verdicts(BaseModel):
    """A verdict for every record, in the order of the request."""

    verdicts: list[VerdictView]


class ReasonBody(_Body):
    """Why somebody does it; kept with what was done."""

    reason: Annotated[str, Field(min_length=1, max_length=MAX_REASON)] | None = Field(
        None, examples=["version 7 flags the new release"]
    )


class LabelBody(_Body):
    """A label for some records."""

    ids: Annotated[
        list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}-[0-9]{1,9}-[0-9]{1,18}$")]],
        Field(min_length=1, max_length=MAX_LABELS),
    ] = Field(examples=[["requests-3-1042"]])
    label: Literal["anomaly", "normal", "unsure"]
    note: str = Field("", max_length=2000)
    author: str = Field("", max_length=200)


class Labels(BaseModel):
    """Labels, newest first."""

    labels: list[views.LabelView]
    n_total: int


class Models(BaseModel):
    """All versions, newest first, and which are in use."""

    in_use: views.InUse
    models: list[views.ModelRow]


class Asked(BaseModel):
    """A training was asked for."""

    detail: str


# --- the routes


def make_routes(desk: Desk, *, record_format: str, is_open: bool) -> APIRouter:
    """Return the routes.

    Parameters
    ----------
    record_format
        ``json`` or ``image``, as ``record.format``.
    is_open
        Whether reading needs no token; that is only described here, :class:`srr_stream.web.access.Access` sees to it.
    """
    reading = APIRouter(
        prefix="/v1",
        dependencies=needed_to_read(is_open),
        responses=problems("forbidden", "invalid", "not_ready", *([] if is_open else ["unauthorized"])),
    )
    changing = APIRouter(
        prefix="/v1",
        dependencies=[Security(_bearer)],
        responses=problems("unauthorized", "forbidden", "too_large", "invalid", "not_ready"),
    )
    _add_scoring(reading, desk, record_format)
    _add_flagged(reading, desk)
    _add_labels(reading, changing, desk)
    _add_models(reading, changing, desk)

    @reading.get("/status", tags=["status"], summary="What everything is about, in words too")
    def status() -> views.DeskStatus:
        """One state, the sentence that says it, and what each scorer and the trainer say of themselves.

        Never waits longer than about a second for one that does not answer.
        """
        return desk.status()

    @reading.get("/history", tags=["status"], summary="Severity over the last six hours, with swaps and trainings")
    def history() -> views.HistoryView:
        """Buckets of ten seconds, of all scorers together; where nothing was scored there is none."""
        return desk.history()

    both = APIRouter()
    both.include_router(reading)
    both.include_router(changing)
    return both


def needed_to_read(is_open: bool) -> list[Any]:
    """Return what a route that reads says of the token."""
    return [] if is_open else [Security(_bearer)]


def problems(*types: str) -> dict[int | str, dict[str, Any]]:
    """Return how OpenAPI describes problems."""
    found: dict[int | str, dict[str, Any]] = {}
    schema = {"$ref": f"#/components/schemas/{ProblemView.__name__}"}
    for name in types:
        status, title = PROBLEMS[name]
        said = f"{found[status]['description']}; {title}" if status in found else title
        found[status] = {"description": said, "content": {MEDIA_TYPE: {"schema": schema}}}
    return found


async def _body(request: Request) -> bytes:
    return await request.body()


def _add_scoring(router: APIRouter, desk: Desk, record_format: str) -> None:
    @router.post(
        "/score",
        tags=["scoring"],
        summary="Judge records by the live model",
        responses=problems("too_large", "unsupported_media_type"),
        response_model_exclude_unset=True,
        openapi_extra={"requestBody": _score_body(record_format)},
    )
    def score(request: Request, content: Annotated[bytes, Depends(_body)]) -> Verdicts:
        """Give each record the verdict that it would get from the stream, with reasons. Nothing is published.

        At most 5,000 records. One that cannot be read gets its problem instead, and its neighbours their verdicts.
        """
        records = records_of(content, request.headers.get("content-type", ""), record_format=record_format)
        return Verdicts(verdicts=[VerdictView(**answer) for answer in desk.score(records)])


def _add_flagged(router: APIRouter, desk: Desk) -> None:
    @router.get("/flagged", tags=["flagged records"], summary="List flagged records")
    def flagged(
        topic: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9._-]{1,249}$", description="Input topic.")] = None,
        since: Annotated[AwareDatetime | None, Query(description="By the record's own time, at or after.")] = None,
        until: Annotated[AwareDatetime | None, Query(description="Before.")] = None,
        min_severity: Annotated[float | None, Query(ge=0, le=1e9, allow_inf_nan=False)] = None,
        field: Annotated[str | None, Query(min_length=1, max_length=500, description="Among the reasons.")] = None,
        version: Annotated[int | None, Query(ge=1, le=_MAX_VERSION, description="That flagged it.")] = None,
        label: Annotated[views.LabelFilter | None, Query(description="none: not labelled yet.")] = None,
        text: Annotated[
            str | None, Query(min_length=1, max_length=200, description="In id, key, reasons or metadata.")
        ] = None,
        sort: Annotated[views.Sort, Query(description="Newest, or most severe, first.")] = "time",
        cursor: Annotated[
            str | None, Query(min_length=1, max_length=200, description="next_cursor of the page before.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> views.FlaggedPage:
        """A page of the flagged records that fit everything that is given.

        A page stays where it is while new records come in: nothing is listed twice.
        """
        return desk.flagged(
            FlaggedQuery(topic, since, until, min_severity, field, version, label, text, sort, cursor, limit)
        )

    @router.get(
        "/flagged/{id}", tags=["flagged records"], summary="Show a flagged record", responses=problems("not_found")
    )
    def flagged_one(id: EventId) -> views.FlaggedDetail:
        """The record itself, what every field adds to its score, and the normal records that are most like it.

        What cannot be had is null or empty, and the problem beside says why: the log holds records for a time only.
        """
        return desk.flagged_one(id)

    @router.get(
        "/flagged/{id}/picture.png",
        tags=["flagged records"],
        summary="The picture of a record, as the model sees it",
        response_class=Response,
        responses={200: _PNG, **problems("not_found", "no_picture")},
    )
    def picture(id: EventId) -> Response:
        """A PNG; of records without a picture there is none."""
        return Response(desk.picture(id), media_type="image/png")

    @router.get(
        "/flagged/{id}/heat-map.png",
        tags=["flagged records"],
        summary="Where a picture is unusual",
        response_class=Response,
        responses={200: _PNG, **problems("not_found", "no_picture")},
    )
    def heat_map(id: EventId) -> Response:
        """A PNG, by the version that flagged it, else by the live one."""
        drawn = desk.heat_map(id)
        told = {"X-Srr-Severity": f"{drawn.severity:.6g}", "X-Srr-Version": str(drawn.version)}
        return Response(drawn.png, media_type="image/png", headers=told)


_PNG: dict[str, Any] = {
    "description": "A PNG",
    "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
}


def _add_labels(reading: APIRouter, changing: APIRouter, desk: Desk) -> None:
    @reading.get("/labels", tags=["labels"], summary="List labels", responses=problems("no_labels_topic"))
    def labels(limit: Annotated[int, Query(ge=1, le=_MAX_LISTED)] = 1000) -> Labels:
        """What people said of records, newest first."""
        found = desk.labels()
        return Labels(labels=list(found[:limit]), n_total=len(found))

    @reading.get("/labels/summary", tags=["labels"], summary="Labels in numbers", responses=problems("no_labels_topic"))
    def summary() -> views.LabelSummaryView:
        """How many of each, precision, and a false-alarm rate that they suggest; nobody applies it but a person."""
        return desk.label_summary()

    @changing.post(
        "/labels", tags=["labels"], summary="Label records", responses=problems("not_found", "no_labels_topic")
    )
    def label(body: LabelBody) -> Labels:
        """A label replaces the one before. No model changes by it; the next training reads it.

        Records that were not flagged may be labelled too, while the log holds them.
        """
        made = desk.label(body.ids, body.label, body.note, body.author)
        return Labels(labels=list(made), n_total=len(made))

    @changing.delete(
        "/labels/{id}",
        tags=["labels"],
        summary="Take a label back",
        status_code=204,
        responses=problems("not_found", "no_labels_topic"),
    )
    def unlabel(id: EventId) -> None:
        """As if nobody had said anything of the record."""
        desk.unlabel([id])


def _add_models(reading: APIRouter, changing: APIRouter, desk: Desk) -> None:
    @reading.get("/models", tags=["models"], summary="List the models of the registry")
    def models() -> Models:
        """Every version with its role and what the gate said."""
        return Models(in_use=desk.in_use(), models=list(desk.models()))

    @reading.get(
        "/models/{version}", tags=["models"], summary="Show a model", responses=problems("not_found", "conflict")
    )
    def model(version: Version) -> views.ModelView:
        """The window that it was trained on, the facts of its training, and the report of the gate."""
        return desk.model(version)

    @reading.get(
        "/refinement/{version}",
        tags=["models"],
        summary="What refinement left out of a window",
        responses=problems("not_found"),
    )
    def refinement(version: Version) -> views.RefinementView:
        """How many members of the ensemble rejected how many rows, and the rows that were left out."""
        return desk.refinement(version)

    @changing.post(
        "/models/{version}/promote",
        tags=["models"],
        summary="Put a model to use",
        responses=problems("not_found", "conflict"),
    )
    def promote(version: Version, body: ReasonBody | None = None) -> views.InUse:
        """Make it the champion; scorers swap within ``registry.poll_every``."""
        return desk.promote(version, **_reason(body))

    @changing.post("/rollback", tags=["models"], summary="Go back to the model before", responses=problems("conflict"))
    def rollback(body: ReasonBody | None = None) -> views.InUse:
        """Make the previous champion the champion again."""
        return desk.rollback(**_reason(body))

    @changing.post("/train", tags=["models"], summary="Ask for a training", status_code=202)
    def train(body: ReasonBody | None = None) -> Asked:
        """The trainer takes it up when ``training.min_interval`` has passed since its last training."""
        desk.request_training(**_reason(body))
        return Asked(detail="asked; the trainer takes it up when training.min_interval has passed since its last one")


def _reason(body: ReasonBody | None) -> dict[str, str]:
    return {} if body is None or body.reason is None else {"reason": body.reason}


# --- records in a request


def records_of(content: bytes, content_type: str, *, record_format: str) -> list[bytes]:
    """Return the records of a request's body.

    Parameters
    ----------
    content_type
        JSON: an object, or a list of them; NDJSON: one a line; the type of a picture: one file. Where records are
        pictures, they are base64 in JSON.

    Raises
    ------
    DeskError
        unsupported_media_type, invalid, or too_large for more than :data:`MAX_RECORDS`.
    """
    media_type = content_type.partition(";")[0].strip().lower() or _JSON
    is_image = record_format == "image"
    if is_image and media_type in _PICTURE_TYPES:
        records = [content]
    elif not is_image and media_type in _LINE_TYPES:
        records = [line for line in content.split(b"\n") if line.strip()]
    elif media_type == _JSON:
        records = _json_records(content, is_image=is_image)
    else:
        allowed = (_JSON, *(_PICTURE_TYPES if is_image else _LINE_TYPES))
        raise DeskError(
            "unsupported_media_type", detail=f"content type {media_type[:100]!r}; allowed: {', '.join(allowed)}"
        )
    if not records or not content:
        raise DeskError("invalid", detail="there is no record in the request; send at least one")
    if len(records) > MAX_RECORDS:
        raise DeskError("too_large", detail=f"{len(records):,} records at once; allowed: {MAX_RECORDS:,}")
    return records


def _json_records(content: bytes, *, is_image: bool) -> list[bytes]:
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise DeskError("invalid", detail=f"the request is no JSON: {error}") from error
    given: Sequence[Any] = parsed if isinstance(parsed, list) else [parsed]
    kind: type = str if is_image else dict
    wrong = next((index for index, record in enumerate(given) if not isinstance(record, kind)), None)
    if wrong is not None:
        what = "a picture as base64 text" if is_image else "a JSON object"
        raise DeskError("invalid", detail=f"record {wrong} is not {what}; a record is that, or a list of them")
    if not is_image:
        return [orjson.dumps(record) for record in given]
    return [_file_of(text, index) for index, text in enumerate(given)]


def _file_of(text: str, index: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DeskError("invalid", detail=f"record {index} is no base64: {error}") from error


def _score_body(record_format: str) -> dict[str, Any]:
    """Return how OpenAPI describes the body of a request to score."""
    if record_format == "image":
        record: dict[str, Any] = {"type": "string", "format": "byte", "contentEncoding": "base64", "minLength": 1}
        others = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _PICTURE_TYPES}
    else:
        record = {"type": "object"}
        others = {kind: {"schema": {"type": "string"}} for kind in _LINE_TYPES[:1]}
    schema = {"oneOf": [record, {"type": "array", "items": record, "minItems": 1, "maxItems": MAX_RECORDS}]}
    return {"required": True, "content": {_JSON: {"schema": schema}, **others}}
