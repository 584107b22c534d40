"""The command `specjax`: parses, calls, prints. A subcommand imports what it calls when it runs.

Results go to stdout and progress to stderr. An error that a user can cause is one line on stderr and exit
status 1; `--debug` anywhere on the line shows where it came from.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import tyro
from tyro.conf import FlagCreatePairsOff

from specjax._version import __version__
from specjax.commands.adapt import Adapt
from specjax.commands.fetch import Fetch
from specjax.commands.info import Info
from specjax.commands.label import Label
from specjax.commands.predict import Predict
from specjax.commands.prepare import Prepare
from specjax.commands.pretrain import Pretrain
from specjax.commands.split import Split
from specjax.errors import SpecjaxError

Command = Info | Fetch | Prepare | Label | Split | Pretrain | Adapt | Predict


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; usage errors leave through SystemExit(2)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words == ["--version"]:
        print(__version__)
        return 0
    description = "Adapt a stellar foundation model to a new survey. --debug shows where an error came from."
    command: Command = tyro.cli(
        Command,
        prog="specjax",
        description=description,
        args=words or ["--help"],
        config=(FlagCreatePairsOff,),
    )
    return _status(command.run, debug)


def run(program: Callable[[], object]) -> NoReturn:
    """Run a study's main function as a program: exit with 0, or with 1 and one line where a user erred."""
    sys.exit(_status(program, debug=False))


def _status(program: Callable[[], object], debug: bool) -> int:
    """Run, and turn what a user can cause into one line on stderr and an exit status."""
    try:
        program()
    except (SpecjaxError, OSError) as error:
        if debug:
            raise
        print(f"specjax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("specjax: interrupted", file=sys.stderr)
        return 130
    return 0
