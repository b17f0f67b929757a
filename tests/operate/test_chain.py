"""The whole chain as the person on call meets it: anomalies, an alert, its link, the page, a label, peace."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from tests.operate.conftest import Prometheus, RunningService, Webhook
from tests.srr_stream.conftest import make_flood, wait_until

pytestmark = [pytest.mark.operate, pytest.mark.timeout(300)]


def test_from_an_anomaly_to_the_alert_to_the_page_to_a_label_after_which_its_like_is_not_flagged(
    running_service: RunningService, prometheus: Prometheus, webhook: Webhook, browser: Browser
) -> None:
    stream = running_service.stream
    n_before = stream.count()
    (odd,) = make_flood(1)
    stream.produce([odd] * 2000)
    alert = webhook.wait_for("SrrFlaggedRateHigh", timeout_s=90, topic=stream.topic)
    wait_until(lambda: stream.count() >= n_before + 2000, timeout_s=60, what="all verdicts")

    token = (stream.folder / "state" / "api-token").read_text().strip()
    page = browser.new_context().new_page()
    page.set_default_timeout(20_000)
    address = urlsplit(alert["annotations"]["page"])
    page.goto(f"{address.scheme}://{address.netloc}/?{address.query}#token={token}")
    row = page.locator("#records > .record").first
    expect(row).to_contain_text("was expected")
    id = str(row.get_attribute("data-id"))
    assert id.startswith(f"{stream.topic}-")
    row.get_by_role("button", name="Normal").click()
    expect(page.get_by_role("status")).to_have_text("Record labelled normal")

    def in_force() -> bool:
        metrics = running_service.service.metrics_registry
        return metrics.get_sample_value("srr_labels", {"label": "normal"}) == 1.0

    wait_until(in_force, timeout_s=30, what="the label at the scorer")
    n_before = stream.count()
    stream.produce([odd] * 50)
    wait_until(lambda: stream.count() >= n_before + 50, timeout_s=60, what="verdicts of its like")
    last = sorted(stream.verdicts(), key=lambda verdict: (verdict["partition"], verdict["offset"]))
    covered = [verdict for verdict in last if verdict.get("known_normal") == id]
    assert len(covered) == 50
    assert not any(verdict["flagged"] for verdict in covered)
