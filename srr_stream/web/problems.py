"""What the API answers when it cannot: problem details of RFC 9457, for every error alike.

A problem's ``type`` is a fixed word below :data:`BASE`; programs tell problems apart by it, people read ``detail``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srr_stream.errors import SrrStreamError

MEDIA_TYPE = "application/problem+json"
BASE = "urn:srr-stream:problem:"

PROBLEMS: Mapping[str, tuple[int, str]] = {
    "unauthorized": (401, "The token is missing or wrong"),
    "forbidden": (403, "Not allowed from there"),
    "not_found": (404, "There is no such thing"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "conflict": (409, "Its state does not allow that"),
    "no_labels_topic": (409, "There are no labels"),
    "no_picture": (409, "There is no picture"),
    "too_large": (413, "The request is too large"),
    "unsupported_media_type": (415, "The content type is not allowed"),
    "invalid": (422, "The request is not valid"),
    "internal": (500, "A defect of this program"),
    "not_ready": (503, "Not ready yet"),
}
"""Type → its status and its title."""


class DeskError(SrrStreamError):
    """A question that cannot be answered, or a change that cannot be made: a problem for whoever asked.

    Parameters
    ----------
    problem_type
        One of :data:`PROBLEMS`.
    detail
        What is wrong, where, what is allowed and what to do.
    title, status
        Those of the type if left out.

    Examples
    --------
    >>> error = DeskError("not_found", detail="there is no version 7; there are 5, 6")
    >>> error.status, error.title
    (404, 'There is no such thing')
    """

    def __init__(
        self, problem_type: str, title: str | None = None, detail: str = "", status: int | None = None
    ) -> None:
        its_status, its_title = PROBLEMS[problem_type]
        self.problem_type = problem_type
        self.title = title or its_title
        self.detail = detail or self.title
        self.status = status or its_status
        super().__init__(self.detail)


def problem(problem_type: str, detail: str, *, title: str | None = None, **more: Any) -> dict[str, Any]:
    """Return the body of a problem; `more` are members of its own, such as ``errors``."""
    status, its_title = PROBLEMS[problem_type]
    return {"type": BASE + problem_type, "title": title or its_title, "status": status, "detail": detail, **more}
