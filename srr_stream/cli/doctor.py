"""``srr-stream doctor``: is everything there that the service needs, and what to do if not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from srr_stream.cli.common import EXIT_OUTSIDE, config_option, has_colour, json_option, painted, plain

_COLOURS = {"ok": "green", "warning": "yellow", "failure": "red", "skipped": "bright_black"}


@click.command()
@config_option
@click.option("--strict", is_flag=True, help="Exit with 3 for warnings too.")
@json_option
def doctor(path: Path, strict: bool, as_json: bool) -> None:
    """Check what the service needs: brokers, rights, topics, records, registry, disk, device, ports.

    Each line is ok, a warning or a failure with what to do about it, or skipped because of a failure before it. Nothing
    is changed, save a probe that is written into the registry and removed. Exits with 0, or with 3 if anything failed.
    """
    from srr_stream.doctor import Finding, Status, diagnose, to_dict, worst

    def tell(finding: Finding) -> None:
        word = painted(f"{finding.status.value:<8}", sys.stdout, fg=_COLOURS[finding.status.value])
        click.echo(f"{word} {finding.check:<14} {plain(finding.text)}", color=has_colour(sys.stdout))
        if finding.remedy:
            click.echo(f"{'':<23} → {plain(finding.remedy)}")

    findings = diagnose(path, on_finding=(lambda finding: None) if as_json else tell)
    if as_json:
        click.echo(json.dumps(to_dict(findings), indent=1))
    counts = to_dict(findings)["counts"]
    click.echo(", ".join(f"{n} {status}" for status, n in counts.items() if n), err=True)
    if worst(findings) is Status.FAILURE or (strict and worst(findings) is Status.WARNING):
        sys.exit(EXIT_OUTSIDE)
