"""The numbers on the page of limits, and the sizes on that of deployment, are those of the code and of other pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from consumers.images import MAX_PIXELS
from consumers.records import MAX_IMAGE_SIDE
from models.preprocessing import MAX_CATEGORIES
from srr_stream.flagged import MAX_LIMIT
from srr_stream.history import BUCKET_S, N_BUCKETS
from srr_stream.labels import LEAST_LABELS, MAX_NOTE, MAX_RATE
from srr_stream.settings import ApiSettings, InputSettings, OutputSettings
from srr_stream.training_record import MAX_EXCLUDED, MAX_NEIGHBOURS
from srr_stream.web.desk import MAX_LABELS
from srr_stream.web.routes import MAX_RECORDS
from srr_stream.web.shell import MAX_BODY

DOCS = Path(__file__).parents[1] / "docs"
LIMITS = " ".join((DOCS / "limits.md").read_text(encoding="utf-8").split())
DEPLOY = (DOCS / "deploy.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words",
    [
        f"beyond the {MAX_CATEGORIES} most frequent",
        f"{InputSettings.model_fields['max_record_size'].default >> 20} MiB a record",
        f"{MAX_PIXELS:,} pixels",
        f"{MAX_IMAGE_SIDE} × {MAX_IMAGE_SIDE} after scaling",
        f"a poll waits {InputSettings.model_fields['poll_timeout'].default.microseconds // 1000} ms",
        f"the newest {ApiSettings().keep_flagged:,} flagged records",
        f"among {MAX_NEIGHBOURS:,} rows",
        f"the first {MAX_EXCLUDED:,}",
        f"{N_BUCKETS * BUCKET_S / 3600:g} hours".replace("6", "six"),
        f"A request may have {MAX_BODY >> 20} MiB",
        f"takes {MAX_RECORDS:,} records at once",
        f"a label {MAX_LABELS} records",
        f"a note of {MAX_NOTE:,} characters",
        f"`GET /v1/flagged` {MAX_LIMIT}",
        f"from {LEAST_LABELS} labels on",
        f"never above {MAX_RATE}",
    ],
)
def test_a_limit_is_that_of_the_code(words: str) -> None:
    assert words in LIMITS


def test_the_proxy_lets_through_what_the_api_takes() -> None:
    assert f"client_max_body_size {MAX_BODY >> 20}m;" in DEPLOY


def test_whoever_stops_the_service_waits_longer_than_brokers_may_take() -> None:
    patience_s = OutputSettings.model_fields["flush_timeout"].default.total_seconds()
    waits = re.findall(r"(?:TimeoutStopSec=|--stop-timeout |terminationGracePeriodSeconds: )(\d+)", DEPLOY)
    assert len(waits) == 4
    assert all(float(each) > patience_s for each in waits)


def test_figures_for_sizing_stand_where_they_are_said_to() -> None:
    rows = re.findall(r"^\| [^|]+\| ([\d][^|]*)\| ([^|]+)\|$", DEPLOY, flags=re.M)
    assert len(rows) == 8
    source = ""
    for numbers, where in rows:
        source = next(iter(re.findall(r"\(([\w-]+\.md)", where)), source)
        page = (DOCS / source).read_text(encoding="utf-8")
        assert all(number in page for number in re.findall(r"\d[\d,]*", numbers)), (numbers, source)
