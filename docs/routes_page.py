"""docs/reference/routes.md, from the API's OpenAPI document and from the endpoint of scorer and trainer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, cast

from docs.markdown import anchor, code, plain_code, table
from srr_stream.heat_maps import PATH as HEAT_MAPS
from srr_stream.web.access import OPEN_PATHS
from srr_stream.web.app import make_app
from srr_stream.web.desk import Desk
from srr_stream.web.problems import BASE, PROBLEMS

_NOBODY = cast("Desk", None)
"""Routes are described without a desk."""
_TOKEN = "no request that changes anything is made"

ENDPOINT: Mapping[str, tuple[str, str]] = {
    "/metrics": ("scorer, trainer", "What Prometheus reads: [metrics.md](../metrics.md)."),
    "/livez": (
        "scorer, trainer",
        "200 while the loop goes round, 503 when it has been silent for `http.live_timeout`.",
    ),
    "/readyz": ("scorer, trainer", "200 or 503, with what is waited for in a sentence."),
    "/statusz": ("scorer, trainer", "JSON: what the role says of itself; of a scorer `?history=1` adds six hours."),
    f"{HEAT_MAPS}{{topic}}/{{partition}}/{{offset}}.png": (
        "scorer",
        "A PNG: where a picture is unusual, `?version=N` by that version: [images.md](../images.md#heat-maps).",
    ),
}
"""Path → who answers there, and what."""

PAGES: Mapping[str, str] = {
    "/": "The queue of flagged records.",
    "/flagged/{id}": "One of them: the record, what caused it, what is nearest.",
    "/records/{id}": "Any record of the log, flagged or not.",
    "/timeline": "Severity over time, with swaps and trainings.",
    "/models": "Versions, the gate's reports, promote and roll back.",
    "/refinement": "What was left out of a window, by how many votes.",
    "/sign-in": "Where reading needs the token; the address with `#token=…` signs in by itself.",
}
"""What people open; the parts that these load are not listed."""


@cache
def openapi(*, is_open: bool = True, record_format: str = "json") -> dict[str, Any]:
    """Return the API's own description, asked for as a client would."""
    app = make_app(_NOBODY, token=_TOKEN, is_open=is_open, record_format=record_format)
    parts: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        parts.append(message.get("body", b""))

    headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {_TOKEN}".encode())]
    scope = {"type": "http", "method": "GET", "path": "/openapi.json", "query_string": b"", "headers": headers}

    async def ask() -> None:
        await app({**scope, "root_path": "", "scheme": "http", "http_version": "1.1"}, receive, send)

    asyncio.run(ask())
    document: dict[str, Any] = json.loads(b"".join(parts))
    return document


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield method, path and description of every operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def routes(note: str) -> str:
    """Return the page; `note` says where it comes from."""
    document = openapi()
    by_tag: dict[str, list[str]] = {tag["name"]: [] for tag in document["tags"]}
    for method, path, operation in operations(document):
        by_tag[operation["tags"][0]].append(_operation(method, path, operation))
    said = {tag["name"]: tag["description"] for tag in document["tags"]}
    groups = "".join(f"\n## About {tag}\n{said[tag]}\n{''.join(parts)}" for tag, parts in by_tag.items())
    schemas = "".join(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    problems = table(
        ["type", "status", "title"],
        ((code(BASE + name), str(status), title) for name, (status, title) in PROBLEMS.items()),
    )
    overview = table(
        ["method", "path", "token", "what"],
        (
            (method, f"[`{path}`](#{anchor(f'{method} {path}')})", _needs(path, operation), operation["summary"])
            for method, path, operation in operations(document)
        ),
    )
    return f"""# Routes

{note}
Three processes answer, each at an address of its own. The API serves its description at `/openapi.json`; how to use it:
[api.md](../api.md).

## The API
Port 9110 (`api.port`). {plain_code(document["info"]["description"])}

{overview}
*always*: needs the header `Authorization: Bearer TOKEN`; *elsewhere*: only where `api.host` is no loopback address.
Sessions of the page: `POST /v1/session` turns the token into a cookie that can only read, `DELETE /v1/session` ends it.

## The page
On the same port: [review-page.md](../review-page.md).

{table(["path", "what"], ((code(path), what) for path, what in PAGES.items()))}
## The endpoints of scorer and trainer
Ports 9108 (`http.scorer_port`) and 9109 (`http.trainer_port`); they only read, without a token.

{table(["path", "of", "what"], ((code(path), who, what) for path, (who, what) in ENDPOINT.items()))}
## Problems
The body of every error is a [ProblemView](#problemview), as `application/problem+json`.

{problems}{groups}
## Bodies
{schemas}"""


def _needs(path: str, operation: Mapping[str, Any]) -> str:
    if path in OPEN_PATHS:
        return "never"
    return "always" if operation.get("security") else "elsewhere"


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    described = "\n\n".join(plain_code(part) for part in operation.get("description", "").split("\n\n"))
    parts = [f"\n### {method} `{path}`\n**{operation['summary']}.** {described}\n"]
    if operation.get("parameters"):
        rows = (
            (
                code(each["name"]),
                each["in"],
                _kind(each["schema"]),
                _default(each),
                plain_code(each.get("description", "")),
            )
            for each in operation["parameters"]
        )
        parts.append(table(["parameter", "in", "values", "default", "meaning"], rows))
    if "requestBody" in operation:
        body = operation["requestBody"]
        needed = "" if body.get("required") else " (may be left out)"
        parts.append(f"Body{needed}: {_content(body['content'])}\n")
    answers = (
        (status, _content(answer.get("content", {})) or "nothing" if _is_good(status) else answer["description"])
        for status, answer in sorted(operation["responses"].items())
    )
    parts.append(table(["status", "answer"], answers))
    return "\n".join(parts)


def _is_good(status: str) -> bool:
    return status.startswith("2")


def _content(content: Mapping[str, Any]) -> str:
    return "; ".join(f"{_kind(each.get('schema', {}))} as `{media_type}`" for media_type, each in content.items())


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = (
        (
            code(key),
            _kind(each),
            "always" if key in required else _default({"schema": each}),
            plain_code(each.get("description", "")),
        )
        for key, each in schema.get("properties", {}).items()
    )
    said = plain_code(schema.get("description", "").split("\n\n")[0])
    return f"\n### {name}\n{said}\n\n{table(['key', 'values', 'there', 'meaning'], rows)}"


def _default(parameter: Mapping[str, Any]) -> str:
    if parameter.get("required"):
        return "must be given"
    default = parameter["schema"].get("default")
    return "" if default in (None, "") else code(json.dumps(default).strip('"'))


def _kind(schema: Mapping[str, Any]) -> str:
    """Return what a value may be, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{anchor(name)})"
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(_kind(each) for each in choices)
    if "enum" in schema:
        return ", ".join(map(code, schema["enum"]))
    if "const" in schema:
        return code(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_kind(schema['items'])}{_limits(schema, 'Items')}" if "items" in schema else "list"
    if kind == "object":
        return "object"
    if kind == "string":
        return _FORMATS.get(schema.get("format", ""), "text") + _limits(schema, "Length")
    words = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "null": "`null`"}
    return words.get(kind or "", "anything") + _bounds(schema)


_FORMATS = {"date-time": "time (RFC 3339)", "binary": "a file", "byte": "text in base64"}


def _limits(schema: Mapping[str, Any], of: str) -> str:
    low, high = schema.get(f"min{of}"), schema.get(f"max{of}")
    if low is None and high is None:
        return ""
    return f", {_span(low, high)}" + (" characters" if of == "Length" else "")


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    return "" if low is None and high is None else f" {_span(low, high)}"


def _span(low: float | None, high: float | None) -> str:
    parts: Iterable[str] = (
        *((f"at least {low:,.12g}",) if low is not None else ()),
        *((f"at most {high:,.12g}",) if high is not None else ()),
    )
    return ", ".join(parts)
