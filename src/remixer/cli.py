"""The command line: `remixer COMMAND`, or `python -m remixer COMMAND` as torchrun starts it.

Codes: 0 all is well; 1 an error, told in one sentence; 2 the command can't be understood; 3 nothing could be replaced;
130 interrupted.
"""

from __future__ import annotations

import typer

from remixer.commands.answering import answering
from remixer.commands.bench import bench
from remixer.commands.explain import explain
from remixer.commands.export import export
from remixer.commands.generate import generate
from remixer.commands.mixers import mixers
from remixer.commands.partition import partition
from remixer.commands.plan import plan
from remixer.commands.remix import remix
from remixer.commands.run import run
from remixer.commands.transfer import transfer
from remixer.commands.view import view

COMMANDS = (explain, mixers, plan, remix, transfer, generate, bench, view, export, partition, run)
WIDE = {"max_content_width": 120}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=WIDE,
)


@app.callback()
def main() -> None:
    """Swap the attention of a pretrained Transformer for an efficient token mixer."""


for command in COMMANDS:
    app.command(context_settings=WIDE)(answering(command))
