"""``srr-stream plot``: flagged share and severity over time, out of the scores topic."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from srr_stream.cli.common import Progress, clear_errors, config_option, json_option, load
from srr_stream.cli.sources import last_option, moment_ms, since_option
from srr_stream.errors import NotEnoughRecords, RegistryError

if TYPE_CHECKING:
    from srr_stream.settings import Settings


@click.command()
@config_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("srr-stream-plot.png"),
    show_default=True,
    help="Where the PNG goes.",
)
@since_option
@last_option
@json_option
def plot(path: Path, output: Path, since: str | None, last: int | None, as_json: bool) -> None:
    """Draw what the scores topic says: flagged share and severity over time, with the models that took over."""
    since_ms = moment_ms("--since", since)
    with clear_errors():
        settings = load(path)
        topic = settings.output.scores_topic
        if topic is None:
            raise click.UsageError("plot needs output.scores_topic: without it there are no verdicts to draw")
        from consumers.logs import KafkaLog
        from srr_stream.assembly import kafka_connection
        from srr_stream.plots import require_matplotlib
        from srr_stream.verdict_log import plot_verdicts, read_verdicts

        require_matplotlib()
        log = KafkaLog([topic], connection=kafka_connection(settings.kafka))
        with closing(log), Progress("read") as progress:
            verdicts = read_verdicts(log, since_ms=since_ms, last=last, on_read=progress.update)
        if not len(verdicts.flagged):
            raise NotEnoughRecords(f"{topic} holds no verdicts{' since then' if since else ''}; nothing was drawn")
        names = _names(settings, [version for _, version in verdicts.swaps()])
        n, n_flagged = len(verdicts.flagged), int(verdicts.flagged.sum())
        plot_verdicts(output, verdicts, names, title=f"{topic}: {n:,} verdicts")
    if verdicts.n_malformed:
        click.echo(f"warning: {verdicts.n_malformed:,} entries of {topic} are no verdicts; left out", err=True)
    if as_json:
        swaps = [{"version": version, "time_ms": time_ms} for time_ms, version in verdicts.swaps()]
        click.echo(json.dumps({"output": str(output), "verdicts": n, "flagged": n_flagged, "versions": swaps}))
        return
    from srr_stream.wording import percent

    click.echo(f"{output}: {n:,} verdicts by {len(names)} models, flagged {n_flagged:,} ({percent(n_flagged / n)})")


def _names(settings: Settings, versions: list[int]) -> dict[int, str]:
    """Return version → its name in the picture; what the registry does not know any more has its number only."""
    from srr_stream.assembly import make_registry

    registry, names = make_registry(settings), {}
    for version in versions:
        names[version] = f"v{version}"
        try:
            names[version] += f" {registry.manifest(version).model['representation']}"
        except (RegistryError, KeyError):
            continue
    return names
