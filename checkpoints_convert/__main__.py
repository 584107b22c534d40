"""`python -m checkpoints_convert SRC --out DIR`: convert a published file, or list its tensors."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from checkpoints_convert.convert import convert
from checkpoints_convert.keys import IGNORED, check, table
from checkpoints_convert.recognise import recognise
from checkpoints_convert.torch_file import open_torch_file
from specjax.errors import ModelError, SpecjaxError, one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m checkpoints_convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="SRC", help="PyTorch file or PEFT folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--list", action="store_true", help="print the recognised network and its tensors")
    parser.add_argument("--head", type=Path, metavar="FILE", help="label head to add to the model")
    parser.add_argument("--stats", type=Path, metavar="JSON", help="mean and std of the features of the head")
    parser.add_argument(
        "--label", action="append", default=[], help="name of an output of the head; repeat in order"
    )
    parser.add_argument("--head-name", help="mlp1 or mlp2, if SRC is a label head")
    parser.add_argument("--model", metavar="DIR", help="model folder that a PEFT folder adapts")
    return run(lambda: _run(parser.parse_args(arguments)))


def run(action: Callable[[], None]) -> int:
    """Run an action; print an error that user input can cause as one line and return status 1."""
    try:
        action()
    except SpecjaxError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {one_line(f'{error.filename or str()}: {error.strerror or error}')}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.list:
        _list(options.source)
        return
    if options.out is None:
        raise ModelError("give the folder to write as --out DIR, or --list to print the contents of the file")
    if options.source.is_dir():
        _import_peft(options)
        return
    sources = convert(
        options.source,
        options.out,
        head=options.head,
        stats=options.stats,
        labels=options.label,
        head_name=options.head_name,
    )
    for source in sources.values():
        print(f"{source['file']}: {source['network']}")
    print(f"wrote {options.out}")


def _import_peft(options: argparse.Namespace) -> None:
    from checkpoints_convert.peft_folder import import_adapter

    if options.model is None:
        raise ModelError(
            f"{options.source} is a folder; to import a PEFT adapter, give its model as --model DIR"
        )
    import_adapter(options.source, options.model, options.out)
    print(f"wrote {options.out}")


def _list(path: Path) -> None:
    """Print one line per tensor: its name, type, shape and the path of the parameter."""
    file = open_torch_file(path)
    state = file.state_dict()
    shapes = {key: tensor.shape for key, tensor in state.items()}
    places: dict[str, list[str]] = {}
    try:
        recognised = recognise(shapes, file.hyper_parameters)
        rows = table(recognised.config, [recognised.part])
        for row in rows:
            places.setdefault(row.key, []).append(row.path + " (transposed)" * row.transpose)
        print(f"{path}: {recognised.title}")
        check("it", shapes, rows)
    except ModelError as error:
        print(one_line(f"{path}: not convertible: {error}"))
    names = {key: one_line(key) for key in state}
    width = max(map(len, names.values()))
    for key, tensor in state.items():
        place = ", ".join(places.get(key, ["ignored" if IGNORED.fullmatch(key) else "unknown"]))
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        print(f"{names[key]:{width}}  {tensor.dtype!s:8}  {shape:12}  {place}")


if __name__ == "__main__":
    sys.exit(main())
