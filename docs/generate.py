"""Writes the pages of reference that come from the code: ``python -m docs.generate`` all, or those that are named.

A page is one function that returns its text, and one line in `PAGES`. ``--check`` writes nothing, names the pages that
differ and exits with 1; a test does the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

from prometheus_client import CollectorRegistry

from docs.commands_page import commands
from docs.markdown import table
from docs.routes_page import routes
from docs.settings_page import settings
from srr_stream.metrics import EXEMPLAR_LABEL, ROLES, Description

DOCS = Path(__file__).parent
NOTE = "<!-- Written by `python -m docs.generate {name}`: change the code, not this page. -->\n"


def metrics() -> str:
    """Return docs/metrics.md."""
    described = {role: kind(CollectorRegistry()).descriptions for role, kind in ROLES.items()}
    everywhere = [each for each in described["Scorer"] if all(each in others for others in described.values())]
    own = {role: [each for each in descriptions if each not in everywhere] for role, descriptions in described.items()}
    sections = "".join(f"\n## {role}\n{_metrics_table(each)}" for role, each in own.items())
    buckets = table(
        ["histogram", "upper bounds", "why these"],
        (
            (f"`{each.name}`", ", ".join(f"{bound:g}" for bound in each.buckets.bounds), each.buckets.why)
            for each in chain(*own.values())
            if each.buckets is not None
        ),
    )
    return f"""# Metrics

{NOTE.format(name="metrics")}
Scorer: port 9108 (`http.scorer_port`). Trainer: port 9109 (`http.trainer_port`). API: port 9110 (`api.port`; elsewhere
than on a loopback address it wants its token). All answer `/metrics`, `/livez` (200 as long as the loop goes round) and
`/readyz` (200 or 503, with a sentence that says why). Names and labels are
frozen; no label is ever a key, an id or the text of an error. Where the values of a label are listed, there are no
others; where not, they are as many as the stream has. A counter whose labels are known is there, as 0, before it
counts. How to scrape and to alert: [monitoring.md](monitoring.md).
{sections}
## Of each process
{_metrics_table(everywhere)}
The trainer's memory may also be limited by `training.memory_limit`; of several limits, `srr_memory_limit_bytes` is the
one nearest to its end.

## Buckets
{buckets}
Classic histograms, so that every Prometheus can read them.

## Exemplars
Whoever asks for OpenMetrics (Prometheus does, and keeps them with `--enable-feature=exemplar-storage`) gets the event
id of the newest record of a bucket, as the label `{EXEMPLAR_LABEL}`: in `srr_severity` above the boundary, in
`srr_event_latency_seconds` everywhere. An id longer than 120 characters is left out: OpenMetrics allows no more.
"""


def _metrics_table(descriptions: Iterable[Description]) -> str:
    return table(
        ["metric", "type", "labels", "meaning"],
        ((f"`{each.name}`", each.kind, _labels(each), each.help) for each in descriptions),
    )


def _labels(description: Description) -> str:
    return ", ".join(
        f"{label} ({', '.join(values)})" if values else label for label, values in description.labels.items()
    )


def _reference(name: str, page: Callable[[str], str]) -> Callable[[], str]:
    return lambda: page(NOTE.format(name=name))


PAGES: dict[str, Callable[[], str]] = {
    "metrics": metrics,
    "reference/settings": _reference("reference/settings", settings),
    "reference/commands": _reference("reference/commands", commands),
    "reference/routes": _reference("reference/routes", routes),
}
"""Name of the page, without ``.md`` → what gives its text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write pages, or say which differ; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description="Write the pages made from the code.")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"which: {', '.join(PAGES)} (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs")
    asked = parser.parse_args(arguments)
    unknown = set(asked.pages) - PAGES.keys()
    if unknown:
        parser.error(f"no page {', '.join(sorted(unknown))}; there are {', '.join(PAGES)}")
    outdated = 0
    for name in asked.pages or PAGES:
        path, text = DOCS / f"{name}.md", PAGES[name]()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        outdated += 1
        if not asked.check:
            path.write_text(text, encoding="utf-8")
        print(f"{path}: {'differs from the code' if asked.check else 'written'}")
    return 1 if asked.check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
