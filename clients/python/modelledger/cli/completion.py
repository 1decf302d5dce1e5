"""Shell completion: the script that click makes."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash: eval "$(modelledger completion bash)"
    fish: modelledger completion fish | source
    """
    root = ctx.find_root()
    kind = get_completion_class(shell)
    if kind is None:
        raise click.BadParameter(f"click has no completion for {shell}")
    click.echo(kind(root.command, {}, "modelledger", "_MODELLEDGER_COMPLETE").source())
