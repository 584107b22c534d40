"""The command `specjax`. Each subcommand imports the code it needs when it runs.

Results are printed to stdout and progress to stderr. Errors that user input can cause are printed to stderr
as one line, with exit status 1; the option `--debug`, anywhere on the line, shows the traceback instead.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_args

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff

from specjax._version import __version__
from specjax.commands.adapt import Adapt
from specjax.commands.check_published import CheckPublished
from specjax.commands.embed import Embed
from specjax.commands.fetch import SOURCES, Fetch
from specjax.commands.info import Info
from specjax.commands.label import Label
from specjax.commands.options_file import config_path, read_options
from specjax.commands.plan import Plan
from specjax.commands.predict import Predict
from specjax.commands.prepare import Prepare
from specjax.commands.pretrain import Pretrain
from specjax.commands.push import Push
from specjax.commands.report import Report
from specjax.commands.show import Show
from specjax.commands.similar import Similar
from specjax.commands.simulate import Simulate
from specjax.commands.split import Split
from specjax.commands.translate import Translate
from specjax.errors import SpecjaxError, one_line
from specjax.interrupt import Terminated, repeated_interrupt

# In the order in which `specjax --help` lists them.
Command = (
    Info
    | Show
    | Fetch
    | Prepare
    | Simulate
    | Plan
    | Label
    | Split
    | Pretrain
    | Adapt
    | Report
    | Predict
    | Embed
    | Similar
    | Translate
    | Push
    | CheckPublished
)

# An option that may be left out is shown with the type that it takes, without "None".
_STYLE = (FlagCreatePairsOff, DisallowNone)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; usage errors raise SystemExit(2)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words == ["--version"]:
        print(__version__)
        return 0
    return _exit_status(lambda: _parse(words or ["--help"]).run(), debug)


def _parse(words: Sequence[str]) -> Any:
    """Return the command of a command line, with the options of the file that --config names, if any.

    Raises:
        ConfigError: the file is invalid.
    """
    path, found = config_path(words), _command(words)
    if path is None or found is None:
        description = (
            "Adapt a stellar foundation model to a new survey. --debug shows the traceback of an error,"
            " --version the version."
        )
        return tyro.cli(Command, prog="specjax", description=description, args=words, config=_STYLE)
    kind, count = found
    return tyro.cli(
        kind,
        prog=" ".join(["specjax", *words[:count]]),
        args=words[count:],
        default=read_options(path, kind, words),
        config=_STYLE,
    )


def _command(words: Sequence[str]) -> tuple[type[Any], int] | None:
    """Return the class of the command that a line starts with, and the number of words of its name."""
    kinds = {_name(kind): kind for kind in get_args(Command)}
    if words[0] == Fetch.__name__.lower():
        source = SOURCES.get(words[1]) if len(words) > 1 else None
        return None if source is None else (source, 2)
    return (kinds[words[0]], 1) if words[0] in kinds else None


def _name(kind: type[Any]) -> str:
    """Return the name of a command, such as check-published for CheckPublished."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def run(program: Callable[[], object]) -> NoReturn:
    """Run the main function of a script and exit, reporting errors as the command `specjax` does."""
    sys.exit(_exit_status(program, debug=False))


def _exit_status(program: Callable[[], object], debug: bool) -> int:
    """Run a program; turn an error that user input can cause into one line on stderr and a status."""
    try:
        with repeated_interrupt():
            program()
    except (SpecjaxError, OSError) as error:
        if debug:
            raise
        print(f"specjax: error: {one_line(str(error))}", file=sys.stderr)
        return 1
    except Terminated as end:
        print(f"specjax: {end}", file=sys.stderr)
    except KeyboardInterrupt:
        print("specjax: interrupted", file=sys.stderr)
        return 130
    return 0
