"""The group of commands. A command's function is imported, and torch with it, when the command runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import rich_click as click

from bertnli import __version__
from bertnli.cli.config import drop_replaced
from bertnli.training.options import TrainingOptions

_COMPLETION = 'Completion: eval "$(_BERTNLI_COMPLETE=bash_source bertnli)" in ~/.bashrc; zsh and fish likewise.'

# The headings of the list of commands.
TRAINING_COMMANDS, USING_COMMANDS, OTHER_COMMANDS = "Training", "Using a model", "More"
_STYLE = {
    "theme": "default-slim",
    "options_table_column_types": ["opt_all", "help"],
    "options_table_help_sections": ["help", "metavar", "required", "default"],
    "default_string": "(default: {})",
    "required_long_string": "(required)",
}


@click.group(
    help="Fine-tune and run BERT on sentence pairs, fast.",
    epilog=_COMPLETION,
    panels=[click.RichCommandPanel(name) for name in (TRAINING_COMMANDS, USING_COMMANDS, OTHER_COMMANDS)],
    context_settings={"rich_help_config": _STYLE},
)
@click.version_option(__version__, prog_name="bertnli", message="%(prog)s %(version)s")
def cli() -> None: ...


def add(run: str, text: str, examples: Sequence[str], params: list[click.Parameter], panel: str) -> None:
    """Add a command. `run` is its function, "module.function" of this room; the function's name is the command's."""
    module, function = run.split(".")
    name = function.replace("_", "-")

    @click.pass_context
    def parsed(ctx: click.RichContext, /, **values: Any) -> SimpleNamespace:
        drop_replaced(ctx, values)
        if "scratch" in values and (values["model"] is None) == (values["scratch"] is None):
            raise click.UsageError("give either --model or --scratch", ctx)
        args = SimpleNamespace(command=name, params=values, **values)
        if "resume" in values:  # of a command that trains: options out of range are refused before torch is imported
            try:
                args.options = TrainingOptions(**{f.name: values[f.name] for f in fields(TrainingOptions)})
            except TypeError as error:  # a list or a table in a configuration file
                raise ValueError(str(error)) from None
        args.run = lambda: getattr(import_module(f"bertnli.cli.{module}"), function)(args)
        return args

    epilog = "\n\n".join(["Examples:", *examples])
    cli.add_command(click.RichCommand(name=name, params=params, callback=parsed, help=text, epilog=epilog, panel=panel))


def parse(argv: Sequence[str] | None) -> SimpleNamespace | None:
    """The command's arguments, with `run`, which runs it; None if help or the version was printed.

    Raises click.ClickException for a mistyped command line, ValueError for training options out of range.
    """
    parsed = cli.main(argv, prog_name="bertnli", standalone_mode=False)
    return parsed if isinstance(parsed, SimpleNamespace) else None
