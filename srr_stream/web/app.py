"""The application: routes and page over a desk, with every error as a problem."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp

from srr_stream.metrics import ApiMetrics, package_version
from srr_stream.web.access import Access
from srr_stream.web.desk import Desk
from srr_stream.web.page import make_page
from srr_stream.web.problems import MEDIA_TYPE, PROBLEMS, DeskError, problem
from srr_stream.web.routes import ProblemView, make_routes, needed_to_read, problems
from srr_stream.web.shell import DEFECT, Shell
from srr_stream.web.sign_in import make_sign_in

_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
_MOST_ERRORS = 20
"""Of a request that is not valid; more help nobody."""
_DESCRIPTION = """Anomalies in a contaminated, unlabelled stream: what was flagged and why, models, labels, scoring.

Reading is open where the API listens on a loopback address; changing needs the token everywhere, as does reading
elsewhere. Every error is a problem of RFC 9457, ``application/problem+json``: its ``type`` is fixed, ``detail`` is for
people."""
_TAGS = [
    {"name": "status", "description": "What scorers and trainer are about."},
    {"name": "scoring", "description": "Verdicts on records that are sent along."},
    {"name": "flagged records", "description": "What was flagged, and why."},
    {"name": "labels", "description": "What people say of records."},
    {"name": "models", "description": "Versions, the gate, and which is in use."},
    {"name": "probes", "description": "For those who watch this process."},
]


def make_app(
    desk: Desk,
    *,
    token: str,
    is_open: bool,
    hosts: Collection[str] = (),
    record_format: str = "json",
    metrics: CollectorRegistry | None = None,
) -> ASGIApp:
    """Return the API and the page as one ASGI application.

    Parameters
    ----------
    token
        What changing needs.
    is_open
        Whether reading needs none; then requests must name a loopback address, or one of `hosts`, as their host.
    record_format
        ``json`` or ``image``, as ``record.format``.
    metrics
        Where this process's own metrics are; None: nowhere else.
    """
    registry = metrics if metrics is not None else CollectorRegistry()
    requests = ApiMetrics(registry).requests
    access = Access(token, is_open, hosts)
    app = FastAPI(
        title="srr-stream",
        version=package_version(),
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(make_routes(desk, record_format=record_format, is_open=is_open))
    _add_probes(app, desk, registry, is_open=is_open)
    app.include_router(make_sign_in(access))
    app.include_router(make_page(desk))
    _add_problems(app)
    _describe_problems(app)
    return Shell(app, access=access, on_answer=lambda status: requests.labels(f"{status // 100}xx").inc())


def _add_probes(app: FastAPI, desk: Desk, registry: CollectorRegistry, *, is_open: bool) -> None:
    @app.get("/livez", tags=["probes"], summary="Is the API alive", response_class=PlainTextResponse)
    def livez() -> str:
        """Whatever else is wrong, this process answers."""
        return "alive\n"

    @app.get(
        "/readyz",
        tags=["probes"],
        summary="Can the API be used",
        response_class=PlainTextResponse,
        responses={503: {"description": "Not yet; the text says why", "content": {"text/plain": {}}}},
    )
    def readyz() -> Response:
        """Ready while the index of flagged records can be read, with a model or without."""
        try:
            desk.facets()
        except DeskError as error:
            return PlainTextResponse(f"{error.detail}\n", status_code=503)
        return PlainTextResponse("ready\n")

    @app.get(
        "/metrics",
        tags=["probes"],
        summary="Metrics of this process",
        response_class=PlainTextResponse,
        dependencies=needed_to_read(is_open),
        responses=problems("forbidden", *([] if is_open else ["unauthorized"])),
    )
    def metrics() -> Response:
        """For Prometheus; those of scorer and trainer are at their own addresses."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _add_problems(app: FastAPI) -> None:
    def told(problem_type: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
        body = problem(problem_type, detail, **more)
        return JSONResponse(body, status_code=body["status"], media_type=MEDIA_TYPE, headers=headers)

    @app.exception_handler(DeskError)
    async def of_desk(request: Request, error: DeskError) -> Response:
        body = problem(error.problem_type, error.detail, title=error.title) | {"status": error.status}
        return JSONResponse(body, status_code=error.status, media_type=MEDIA_TYPE)

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> Response:
        errors = [
            {"where": ".".join(map(str, each["loc"])), "what": each["msg"], "type": each["type"]}
            for each in error.errors()[:_MOST_ERRORS]
        ]
        detail = "; ".join(f"{each['where']}: {each['what']}" for each in errors[:3])
        return told("invalid", detail, errors=errors)

    @app.exception_handler(Exception)
    async def of_defect(request: Request, error: Exception) -> Response:
        return told("internal", DEFECT)  # the shell logs it

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, DeskError):  # raised while a body was read, and wrapped
            return await of_desk(request, error.__cause__)
        path = request.url.path[:200]
        if error.status_code == 404:
            return told("not_found", f"there is nothing at {path}; see /openapi.json")
        if error.status_code == 405:
            allowed = ", ".join(_methods(app, request))
            return told("method_not_allowed", f"{request.method} {path}; allowed: {allowed}", {"Allow": allowed})
        kind = next((name for name, (status, _) in PROBLEMS.items() if status == error.status_code), "invalid")
        return told(kind, str(error.detail))


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Return all methods that a path knows."""
    asked = ({**request.scope, "method": method} for method in _METHODS)
    found = {
        scope["method"] for scope in asked if any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)
    }
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


def _describe_problems(app: FastAPI) -> None:
    """Put the schema of problems into the OpenAPI document, in the place of FastAPI's own."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        schemas = document["components"]["schemas"]
        schemas.setdefault(ProblemView.__name__, ProblemView.model_json_schema())
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation says
