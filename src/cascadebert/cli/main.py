"""The command ``cascadebert``: its subcommands, and how errors reach the user."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from cascadebert.cli.bench import bench
from cascadebert.cli.build import build
from cascadebert.cli.check import check
from cascadebert.cli.console import errors
from cascadebert.cli.demo import demo
from cascadebert.cli.evaluate import evaluate
from cascadebert.cli.predict import predict
from cascadebert.cli.report import report
from cascadebert.cli.train import train
from cascadebert.cli.tune import tune
from cascadebert.errors import CascadeError, TargetError

FAILED_CHECK, BAD_INPUT, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="cascadebert",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, train, build, tune, evaluate, bench, predict, check, report):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cascadebert {version('cascadebert')}")
        raise typer.Exit


@app.callback()
def about(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Classify text with a cascade: a small model answers what it is sure of, larger ones the rest.

    Exit codes: 0 done, 1 a check or target failed, 2 bad usage or input.
    """


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    errors.print(f"[yellow]warning:[/] {_plain(message)}", highlight=False, soft_wrap=True)


def _plain(message: object) -> str:
    return " ".join(str(message).split()).replace("[", r"\[")


def main() -> None:
    """Run the command line; errors become one line on standard error and an exit code."""
    warnings.showwarning = _show_warning
    try:
        app()
    except CascadeError as error:
        errors.print(f"[red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        sys.exit(FAILED_CHECK if isinstance(error, TargetError) else BAD_INPUT)
    except BrokenPipeError:
        # The reader of our output went away, as 'head' does; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message = _plain(f"{where}{error.strerror or error}")
        errors.print(f"[red]error:[/] {message}", highlight=False, soft_wrap=True)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(INTERRUPTED)
