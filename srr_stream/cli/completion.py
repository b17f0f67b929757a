"""``srr-stream completion``: what makes a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM = "srr-stream"
_VARIABLE = "_SRR_STREAM_COMPLETE"
"""What click itself derives from the program's name."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete this program's commands.

    \b
    bash  srr-stream completion bash > ~/.local/share/bash-completion/completions/srr-stream
    zsh   srr-stream completion zsh > "${fpath[1]}/_srr-stream"
    fish  srr-stream completion fish > ~/.config/fish/completions/srr-stream.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(context.find_root().command, {}, _PROGRAM, _VARIABLE).source())
