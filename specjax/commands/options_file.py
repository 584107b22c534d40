"""Options of a command in a TOML file: `--config FILE`, and the file that a run leaves in its folder."""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from specjax.atomic import atomic_file
from specjax.errors import ConfigError

FILE = "run.toml"
"""The name of the file in a run folder."""

Command = TypeVar("Command")

_KINDS = {str: "a text", Path: "a path", int: "an integer", float: "a number", bool: "true or false"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromFile:
    """The option that all commands have."""

    config: Path | None = None
    """TOML file with options of this command by name, such as the run.toml of a run folder; options on the
    command line win"""


class _Option(NamedTuple):
    """An option: its name on the command line, its field, the nested dataclass that has it, and its type."""

    name: str
    field: "dataclasses.Field[Any]"
    group: str | None
    type: Any


def config_path(words: Sequence[str]) -> Path | None:
    """Return the file that a command line names with --config."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
        if word == "--config" and following:
            return Path(following)
    return None


def read_options(path: Path, command: type[Command], words: Sequence[str] = ()) -> Command:
    """Return a command with the options of a file; required ones that it lacks are `tyro.MISSING`.

    Args:
        path: a TOML file of options without a table, by name, with - or _. A list may be given as one value.
        command: the dataclass of the command.
        words: the command line; the options in it are not taken from the file.

    Raises:
        ConfigError: the file is not TOML, or has an unknown option or a value of another type.
    """
    options = {option.name: option for option in _options(command) if option.field.name != "config"}
    given: dict[str | None, dict[str, Any]] = {}
    for key, value in _read(path).items():
        name = key.replace("_", "-")
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            raise ConfigError(f"{path}: there is no option {key!r}{f'; is it {near[0]!r}?' if near else ''}")
        option = options[name]
        converted = _converted(value, option.type, f"{path}: {key}")
        if not any(word == f"--{name}" or word.startswith(f"--{name}=") for word in words):
            given.setdefault(option.group, {})[option.field.name] = converted
    mine = given.pop(None, {})
    for group, values in given.items():
        assert group is not None
        mine[group] = dataclasses.replace(_default(command, group), **values)
    for option in options.values():
        required = option.field.default is dataclasses.MISSING and option.group is None
        if required and option.field.name not in mine:
            mine[option.field.name] = tyro.MISSING
    return command(**mine)


def options_text(command: Any, without: Sequence[str] = ("config", "out", "resume", "hosts")) -> str:
    """Return the file with which `specjax COMMAND --config FILE` repeats a run.

    Paths are absolute. Options that are None, and the fields `without`, are left out: the folder among them,
    so that a repeated run does not replace this one by mistake.
    """
    name = type(command).__name__.lower()
    lines = [f"# specjax {name} --config {FILE} --out FOLDER repeats this run."]
    for option in _options(type(command)):
        if option.field.name in without or option.group in without:
            continue
        owner = command if option.group is None else getattr(command, option.group)
        value = getattr(owner, option.field.name)
        if option.name == "model":
            value = _located(value)
        if value is not None:
            lines.append(f"{option.name.replace('-', '_')} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def write_options(folder: Path, command: Any) -> None:
    """Write the file into a finished folder."""
    with atomic_file(folder / FILE) as temporary:
        temporary.write_text(options_text(command), encoding="utf-8")


def _located(model: str | None) -> str | Path | None:
    """Return the path of a model folder; the name of a model that ships as it is."""
    from specjax.foundation.model import SHIPPED  # imports JAX

    return model if model is None or model in SHIPPED else Path(model)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from None


def _options(command: type) -> Iterator[_Option]:
    """Yield the options of a dataclass, with those of nested ones."""
    hints = get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        kind, *extras = _parts(hints[field.name])
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            for inner in _options(kind):
                yield inner._replace(group=field.name)
            continue
        named = [extra.name for extra in extras if getattr(extra, "name", None)]
        yield _Option(named[0] if named else field.name.replace("_", "-"), field, None, kind)


def _parts(hint: Any) -> tuple[Any, ...]:
    """Return the type of a hint and its annotations."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _default(command: type, group: str) -> Any:
    return next(field.default for field in dataclasses.fields(command) if field.name == group)


def _converted(value: Any, kind: Any, what: str) -> Any:
    """Convert a value of TOML to the type of an option.

    Raises:
        ConfigError: it has another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _converted(value, inner[0], what)
    if origin in (Union, UnionType):
        return _converted(value, next(one for one in inner if one is not NoneType), what)
    if origin is Literal:
        if value not in inner:
            raise ConfigError(f"{what} must be one of {', '.join(map(str, inner))}, not {value!r}")
        return value
    if origin is tuple:
        values = value if isinstance(value, list) else [value]
        kinds = [inner[0]] * len(values) if inner[-1] is ... else inner
        if len(kinds) != len(values):
            raise ConfigError(f"{what} must be a list of {len(kinds)} values, not {value!r}")
        return tuple(_converted(one, each, what) for one, each in zip(values, kinds, strict=True))
    accepted: Any = {float: (int, float), Path: str}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{what} must be {_KINDS[kind]}, not {value!r}")
    return kind(value)


def _toml(value: Any) -> str:
    """Write a value as TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value.expanduser().absolute() if isinstance(value, Path) else value)
    # As JSON, but for one control character; names of files that are not UTF-8 cannot be written.
    safe = text.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(safe, ensure_ascii=False).replace("\x7f", "\\u007f")
