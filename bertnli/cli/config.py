"""Configuration files: what `--config` reads, and the run.toml that a training run writes beside its model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import rich_click as click
from click.core import ParameterSource

from bertnli import __version__
from bertnli.cli.options import OUTPUT, InputPath, hint, option

RUN_FILE = "run.toml"
_NOT_RECORDED = ("resume", "overwrite", "json", "quiet")
_ALTERNATIVES = (("model", "scratch"), ("batch_size", "batch_tokens"))  # one on the command line replaces the other


def read_toml(text: str) -> dict[str, Any]:
    """The values of a TOML file. Raises ValueError naming line and column."""
    if sys.version_info >= (3, 11):  # imported here: help does not need it
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def config_option() -> click.Option:
    return option(
        "--config",
        OUTPUT,
        type=InputPath(),
        is_eager=True,
        expose_value=False,
        callback=_read,
        help=f"TOML file of options by name, such as the {RUN_FILE} beside a trained model; options on the command "
        "line override it",
    )


def _read(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make the file's values the defaults of the other options. Raises UsageError for an unknown key."""
    if path is None:
        return
    try:
        values = read_toml(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise click.UsageError(f"{path}: {error}", ctx) from None
    command = values.pop("command", ctx.info_name)
    if command != ctx.info_name:
        raise click.UsageError(f"{path} is of `bertnli {command}`, not of `bertnli {ctx.info_name}`", ctx)
    values.pop("version", None)
    flags = {other.name: other for other in ctx.command.params if other.name and other is not param}
    for name, value in values.items():
        if name not in flags:
            raise click.UsageError(f"{path}: {ctx.info_name} has no option {name!r}{hint(name, list(flags))}", ctx)
        is_flag = getattr(flags[name], "is_flag", False)
        if is_flag != isinstance(value, bool):
            raise click.UsageError(f"{path}: {name} must {'' if is_flag else 'not '}be true or false", ctx)
    # As the command line gives them: the option's type reads a text.
    ctx.default_map = {
        name: value if isinstance(value, bool | list | dict) else str(value) for name, value in values.items()
    }


def drop_replaced(ctx: click.Context, params: dict[str, Any]) -> None:
    """Drop what the configuration file says where the command line has the alternative: --model for scratch."""

    def is_from_file(name: str) -> bool:
        return ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP

    for pair in _ALTERNATIVES:
        if all(params.get(name) is not None for name in pair):
            for name in pair:
                if is_from_file(name) and not all(map(is_from_file, pair)):
                    params[name] = None


def run_toml(command: str, params: dict[str, Any]) -> str:
    """The command's options, all that decide its result, as the text of a configuration file."""
    lines = [
        f"{name} = {_toml(value)}"
        for name, value in params.items()
        if name not in _NOT_RECORDED and value is not None and value != ()
    ]
    return "\n".join(
        [
            f"# Repeat this run: bertnli {command} --config {RUN_FILE} --output ANOTHER_FOLDER",
            f"command = {_toml(command)}",
            f"version = {_toml(__version__)}",
            *lines,
            "",
        ]
    )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(str(key))} = {_toml(item)}' for key, item in value.items())}}}"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # escapes are JSON's
