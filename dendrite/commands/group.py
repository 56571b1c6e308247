"""What all commands share: how they report errors, and their exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from dendrite.errors import DendriteError, InvalidArgument

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class Commands(TyperGroup):
    """A command group that reports every expected error in one line: exit code 2 for wrong usage, 1 for the rest."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit, as typer does, but for the form of errors."""
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
        except InvalidArgument as error:
            fail(str(error), 2)
        except DendriteError as error:
            fail(str(error), 1)
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer's usage errors, wherever its version keeps their class
                raise
            fail(error.format_message(), getattr(error, "exit_code", 2))
        sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, code: int) -> NoReturn:
    """Print an error as one line, and exit."""
    if message:  # without arguments typer has shown the help, and has nothing to add
        typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)
