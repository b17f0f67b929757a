"""The API keeps what its OpenAPI document promises, whatever it is sent: schemathesis makes up the requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

TOKEN = "a-token-that-nobody-guesses"
BOUNDED = settings(
    max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
READING = (
    "GET /v1/status",
    "GET /v1/history",
    "POST /v1/score",
    "GET /v1/flagged",
    "GET /v1/flagged/{id}",
    "GET /v1/flagged/{id}/picture.png",
    "GET /v1/flagged/{id}/heat-map.png",
    "GET /v1/labels",
    "GET /v1/labels/summary",
    "GET /v1/models",
    "GET /v1/models/{version}",
    "GET /v1/refinement/{version}",
)
CHANGING = (
    "POST /v1/labels",
    "DELETE /v1/labels/{id}",
    "POST /v1/models/{version}/promote",
    "POST /v1/rollback",
    "POST /v1/train",
)
PROBES = ("GET /livez", "GET /readyz", "GET /metrics")


@pytest.fixture(scope="module")
def bench(module_desk_with: Callable[..., Any]) -> Any:
    return module_desk_with(20)


@pytest.fixture(scope="module")
def operations(bench: Any, make_app_of: Callable[..., Any]) -> Mapping[str, Any]:
    """What the document of the API on a loopback address describes, by method and path."""
    app = make_app_of(bench, hosts=["testserver"])
    document = schemathesis.openapi.from_asgi("/openapi.json", app)
    return {found.ok().label: found.ok() for found in document.get_all_operations()}


@pytest.fixture(scope="module")
def closed_operations(bench: Any, make_app_of: Callable[..., Any]) -> Mapping[str, Any]:
    """The same where reading needs the token too."""
    app = make_app_of(bench, is_open=False)
    document = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Authorization": f"Bearer {TOKEN}"})
    return {found.ok().label: found.ok() for found in document.get_all_operations()}


def test_these_are_all_operations(operations: Mapping[str, Any]) -> None:
    assert sorted(operations) == sorted((*READING, *CHANGING, *PROBES))


@pytest.mark.parametrize("name", [*READING, *CHANGING, *PROBES])
def test_what_is_sent_with_the_token_is_answered_as_described(operations: Mapping[str, Any], name: str) -> None:
    @given(case=operations[name].as_strategy())
    @BOUNDED
    def check(case: Any) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=excluded)

    # A cursor is made by the API: that of somebody's own making is refused, though no schema can say so.
    excluded = [positive_data_acceptance] if name == "GET /v1/flagged" else []
    check()


@pytest.mark.parametrize("name", CHANGING)
def test_whatever_is_sent_without_the_token_changes_nothing(operations: Mapping[str, Any], name: str) -> None:
    @given(case=operations[name].as_strategy())
    @BOUNDED
    def check(case: Any) -> None:
        assert case.call_and_validate().status_code == 401

    check()


@pytest.mark.parametrize("name", [*READING, *CHANGING, "GET /metrics"])
def test_elsewhere_whatever_is_asked_without_the_token_is_refused(
    closed_operations: Mapping[str, Any], name: str
) -> None:
    @given(case=closed_operations[name].as_strategy())
    @settings(BOUNDED, max_examples=2)
    def check(case: Any) -> None:
        assert case.call_and_validate(headers={"Authorization": "Bearer another-token"}).status_code == 401

    check()
