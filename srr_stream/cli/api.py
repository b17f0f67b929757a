"""``srr-stream api``: the API and the review page by themselves."""

from __future__ import annotations

from pathlib import Path

import click

from srr_stream.cli.common import clear_errors, config_option, load, stop_on_signals


@click.command()
@config_option
def api(path: Path) -> None:
    """Serve the API and the review page, until stopped; other processes score and train."""
    with clear_errors():
        settings = load(path, role="api")
        from srr_stream.api_process import run_api

        run_api(settings, should_stop=stop_on_signals())
