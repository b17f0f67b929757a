"""docs/reference/commands.md, from the commands' own help."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc

import click

from docs.markdown import code, table
from srr_stream.cli import main

PROGRAM = "srr-stream"


def commands(note: str) -> str:
    """Return the page; `note` says where it comes from."""
    parts = "".join(_described(words, command) for words, command in walk(main) if words)
    everywhere = table(["option", "values", "default", "meaning"], _rows(main))
    return f"""# Commands

{note}
Data goes to standard output, everything else to standard error. `{PROGRAM} COMMAND --help` says the same as this page.

## {PROGRAM}
Before the name of a command:

{everywhere}
{_paragraphs(main.epilog)}
{parts}"""


def walk(command: click.Command, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with the words that call it, a group before its own."""
    yield words, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from walk(command.commands[name], *words, name)


def _described(words: tuple[str, ...], command: click.Command) -> str:
    called = " ".join((PROGRAM, *words))
    context = click.Context(command, info_name=called)
    usage = " ".join((called, *command.collect_usage_pieces(context)))
    rows = list(_rows(command))
    options = "\n" + table(["option", "values", "default", "meaning"], rows) if rows else ""
    return f"\n{'#' * (len(words) + 1)} {called}\n```\n{usage}\n```\n{_paragraphs(command.help)}\n{options}"


def _paragraphs(text: str | None) -> str:
    """Return help as Markdown: what click shall not wrap keeps its lines."""
    made = []
    for paragraph in cleandoc(text or "").split("\n\n"):
        if paragraph.startswith("\b"):
            made.append("```\n" + paragraph.removeprefix("\b\n") + "\n```")
        else:
            made.append(" ".join(paragraph.split()))
    return "\n\n".join(made)


def _rows(command: click.Command) -> Iterator[tuple[str, str, str, str]]:
    context = click.Context(command)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            names = ", ".join(map(code, (*parameter.opts, *parameter.secondary_opts)))
            yield names, _values(parameter), _default(parameter, context), _meaning(parameter)
        elif isinstance(parameter, click.Argument):
            given = "must be given" if parameter.required else ""
            yield code(parameter.make_metavar(context)), _values(parameter), given, ""


def _values(parameter: click.Parameter) -> str:
    kind = parameter.type
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return ""
    if isinstance(kind, click.Choice):
        words = ", ".join(code(choice) for choice in kind.choices)
    elif isinstance(kind, (click.IntRange, click.FloatRange)):
        low = None if kind.min is None else f"{'above' if kind.min_open else 'at least'} {kind.min:g}"
        high = None if kind.max is None else f"{'below' if kind.max_open else 'at most'} {kind.max:,g}"
        number = "whole number" if isinstance(kind, click.IntRange) else "number"
        words = " ".join((number, ", ".join(filter(None, (low, high)))))
    elif isinstance(parameter, click.Option) and parameter.metavar is not None:
        words = code(parameter.metavar)
    else:
        words = {"integer": "whole number", "float": "number"}.get(kind.name, kind.name)
    return f"{words}; more than once" if parameter.multiple or parameter.nargs == -1 else words


def _default(option: click.Option, context: click.Context) -> str:
    if option.required:
        return "must be given"
    value = option.get_default(context)
    is_said = value is not None and value != () and not option.is_flag and str(value) != "Sentinel.UNSET"
    return code(value) if is_said else ""


def _meaning(option: click.Option) -> str:
    return " ".join((option.help or "").split())
