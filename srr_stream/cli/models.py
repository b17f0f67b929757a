"""``srr-stream models …``: look at what the registry holds, and change which version is in use. Data on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from srr_stream.cli.common import EXIT_OUTSIDE, clear_errors, config_option, json_option, load
from srr_stream.cli.model_text import (
    LIST_HEADER,
    ROLES,
    checks_of,
    comparable,
    facts_of,
    list_row,
    role_of,
    summary_of,
    table,
    word,
)
from srr_stream.errors import ModelRefused, RegistryError

if TYPE_CHECKING:
    from srr_stream.registry import Pointer, Registry

_version = click.IntRange(min=1)
_reason_option = click.option(
    "--reason", default="asked for by hand", show_default=True, help="Kept in the registry's pointer."
)


@click.group()
def models() -> None:
    """Look at the models of the registry, and choose which is in use."""


@models.command("list")
@config_option
@json_option
def list_(path: Path, as_json: bool) -> None:
    """List every version with its role and what the gate said."""
    with clear_errors():
        registry = _open(path)
        pointer = _readable_pointer(registry)
        sizes = registry.sizes()
        rows = [summary_of(registry, version, sizes[version], pointer) for version in sorted(sizes)]
    click.echo(json.dumps(rows, indent=1) if as_json else table([LIST_HEADER, *map(list_row, rows)]))


@models.command()
@config_option
@click.argument("version", type=_version)
@json_option
def show(path: Path, version: int, as_json: bool) -> None:
    """Show what is known of a version: the essentials, or with --json its whole manifest."""
    with clear_errors():
        registry = _open(path)
        manifest = registry.manifest(version)
        role = role_of(version, _readable_pointer(registry))
    if as_json:
        click.echo(json.dumps(asdict(manifest), indent=1))
        return
    click.echo(table([[name, word(value)] for name, value in facts_of(manifest, role).items()]))
    checks = checks_of(manifest)
    if checks:
        click.echo("\n" + table([["check", "value", "allowed", "passed"], *checks]))


@models.command()
@config_option
@click.argument("a", type=_version)
@click.argument("b", type=_version)
@json_option
def diff(path: Path, a: int, b: int, as_json: bool) -> None:
    """Say what differs between two versions: window, training, calibration, gate."""
    with clear_errors():
        registry = _open(path)
        left, right = (comparable(registry.manifest(version)) for version in (a, b))
    keys = [*left, *(key for key in right if key not in left)]
    differences = {key: [left.get(key), right.get(key)] for key in keys if left.get(key) != right.get(key)}
    if as_json:
        click.echo(json.dumps({"versions": [a, b], "differences": differences}, indent=1))
    elif differences:
        rows = [[key, word(one), word(other)] for key, (one, other) in differences.items()]
        click.echo(table([["", f"version {a}", f"version {b}"], *rows]))
    else:
        click.echo(f"versions {a} and {b} do not differ in window, training, calibration and gate")


@models.command()
@config_option
@click.argument("version", type=_version)
@_reason_option
@json_option
def promote(path: Path, version: int, reason: str, as_json: bool) -> None:
    """Make a version the champion; repairs the registry's pointer if that is damaged."""
    with clear_errors():
        pointer = _open(path).promote(version, reason=reason)
    before = f", it was version {pointer.previous} before" if pointer.previous is not None else ""
    text = f"champion is version {version}{before}; scorers swap within registry.poll_every"
    click.echo(json.dumps(asdict(pointer)) if as_json else text)


@models.command()
@config_option
@_reason_option
@json_option
def rollback(path: Path, reason: str, as_json: bool) -> None:
    """Make the previous champion the champion again; scorers swap within registry.poll_every."""
    with clear_errors():
        pointer = _open(path).rollback(reason=reason)
    text = f"champion is version {pointer.champion} again, it was version {pointer.previous}"
    click.echo(json.dumps(asdict(pointer)) if as_json else text)


@models.command()
@config_option
@click.argument("version", type=_version, required=False)
@json_option
def verify(path: Path, version: int | None, as_json: bool) -> None:
    """Check size, checksum and canary of a version, or of all and the pointer; exit 3 if any is not good."""
    with clear_errors():
        registry = _open(path)
        versions = registry.versions() if version is None else (version,)
        problems = {}
        for number in versions:
            problem = _problem(registry, number)
            if not as_json:  # line by line: a version may take a while
                click.echo(f"version {number}: {problem or 'good'}")
            if problem:
                problems[number] = problem
        is_pointer_good, pointer = (True, "") if version is not None else _pointer(registry, versions, problems)
    if as_json:
        found = [{"version": number, "problem": problems.get(number)} for number in versions]
        whole = {"versions": found} if version is not None else {"versions": found, "pointer": pointer}
        click.echo(json.dumps({"is_good": is_pointer_good and not problems, **whole}))
    elif version is None:
        click.echo(f"pointer: {pointer}")
    if problems or not is_pointer_good:
        named = [*(f"version {number}" for number in problems), *([] if is_pointer_good else ["the pointer"])]
        click.echo(f"error: not good: {', '.join(named)}", err=True)
        sys.exit(EXIT_OUTSIDE)


@models.command()
@config_option
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Only say what would be removed.")
@json_option
def prune(path: Path, is_dry_run: bool, as_json: bool) -> None:
    """Remove all but the last registry.keep versions and those in use, and what crashed publishers left."""
    verb = "would remove" if is_dry_run else "removed"
    removed = []

    def tell(name: str) -> None:
        removed.append(name)
        if not as_json:
            click.echo(f"{verb} {name}")

    with clear_errors():
        _open(path).prune(is_dry_run=is_dry_run, on_removal=tell)
    if as_json:
        click.echo(json.dumps({"is_dry_run": is_dry_run, "removed": removed}))
    elif not removed:
        click.echo("nothing to remove")


def _open(path: Path) -> Registry:
    settings = load(path)
    from srr_stream.assembly import make_registry

    return make_registry(settings)


def _readable_pointer(registry: Registry) -> Pointer:
    """Return the pointer, an empty one with a word on stderr if it is damaged: the versions can be looked at still."""
    from srr_stream.registry import Pointer

    try:
        return registry.pointer()
    except RegistryError as error:
        click.echo(f"warning: {error}", err=True)
        return Pointer()


# Checking


def _problem(registry: Registry, version: int) -> str | None:
    """Return what is wrong with a version, None if nothing is."""
    from srr_stream.live_model import check_canary

    try:
        model, manifest = registry.load(version)
        check_canary(model, manifest.canary)
        for name in manifest.files:
            registry.beside(version, name)
    except ModelRefused as error:
        return f"refused ({error.reason}): {str(error).removeprefix(f'version {version}: ')}"
    return None


def _pointer(registry: Registry, versions: Sequence[int], problems: Mapping[int, str]) -> tuple[bool, str]:
    """Return whether the pointer can be read and names good versions, and that in words."""
    try:
        pointer = registry.pointer()
    except RegistryError as error:
        return False, str(error)
    wrong = []
    for role in ROLES:
        version = getattr(pointer, role)
        if version is not None and (version not in versions or version in problems):
            state = "is not good" if version in versions else "is not there"
            wrong.append(f"{role} is version {version}, which {state}")
    advice = "; srr-stream models promote N, or rollback, leads back to a good one"
    in_use = "no version is in use" if pointer.champion is None else f"champion is version {pointer.champion}"
    why = f", since {pointer.at}: {pointer.reason or 'no reason given'}" if pointer.at else ""
    return not wrong, f"{', '.join(wrong)}{advice}" if wrong else f"good; {in_use}{why}"
