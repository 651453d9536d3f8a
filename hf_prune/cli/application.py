"""The application: exit code 0 if all is well, 1 with one sentence on stderr for our errors, 2 for wrong usage.

`diagnose` ends with 3 where the scores are not to be trusted.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import hf_prune
from hf_prune.cli import data, hub, runs
from hf_prune.cli.words import in_options

# ReplayError, TrajectoryError and UnsupportedError are ValueErrors, RecordingError is a RuntimeError
_SAID = (ValueError, TypeError, OSError, ImportError, RuntimeError)


class SentenceGroup(TyperGroup):
    """A group of commands whose errors are said in one sentence; `--debug` shows where they come from."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _SAID as error:
            if ctx.params.get("debug") or type(error).__module__.startswith(("typer", "click")):
                raise
            typer.echo(f"Error: {self._said(ctx, error)}", err=True)
            raise typer.Exit(1) from error

    def _said(self, ctx: Any, error: Exception) -> str:
        """The error in one line, in the words of the command line."""
        own = [option.name for option in self.commands[ctx.invoked_subcommand].params]
        names = {option.name for command in self.commands.values() for option in command.params}
        return in_options(" ".join(str(error).split()) or type(error).__name__, names, own)


app = typer.Typer(
    name="hf-prune",
    cls=SentenceGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prune a training set by what its rows did in training: record, score, prune, verify, publish.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"hf-prune {hf_prune.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of all commands."""


app.command()(runs.demo)
app.command()(runs.estimate)
app.command()(data.score)
app.command()(data.attribute)
app.command()(data.prune)
app.command()(runs.verify)
app.command()(data.report)
app.command()(hub.push)
app.command()(hub.replay)
app.command()(runs.inspect)
app.command()(runs.gather)
app.command()(runs.diagnose)


def main() -> None:
    """Runs the command line."""
    app()
