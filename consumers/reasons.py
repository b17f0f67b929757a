"""Why a record is bad: the closed set of reasons, and the exception that carries one to the decoder."""

from __future__ import annotations

REASONS = (
    "empty",
    "too_large",
    "not_json",
    "not_an_object",
    "missing_field",
    "wrong_type",
    "not_finite",
    "not_base64",
    "not_an_image",
    "truncated_image",
    "broken_image",
    "trailing_data",
    "animated",
    "too_many_pixels",
    "wrong_size",
)
"""Why a record is bad: a closed set, fit for a metric label."""


class Bad(Exception):
    """A record, or a value in it, that is refused; never leaves a decoder.

    Parameters
    ----------
    reason
        One of `REASONS`.
    detail
        For people: what is wrong, where, what is allowed.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def bare(self) -> Bad:
        """Return the same without traceback and cause: kept, these would keep alive all that was being decoded."""
        return Bad(self.reason, self.detail)
