"""Convert a published PyTorch file to a model folder that `specjax.load` reads."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_convert.keys import IGNORED, Row, check, table
from checkpoints_convert.recognise import Recognised, recognise
from checkpoints_convert.torch_file import StoredTensor, TorchFile, open_torch_file
from specjax.checkpoints import save_model, unflatten
from specjax.checkpoints.tensor_file import sha256_of
from specjax.config import ModelConfig, to_dict
from specjax.errors import ModelError
from specjax.typing import AnyArray, FloatArray

# Types of weights. 16-bit weights are converted to float32, which is exact, and back on export.
_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_FLOATS = (*_HALVES, np.dtype(np.float32), np.dtype(np.float64))

HEADS = ("mlp1", "mlp2")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that was read, recognised and checked against the key table."""

    path: Path
    file: TorchFile
    state: Mapping[str, StoredTensor]
    recognised: Recognised

    @property
    def config(self) -> ModelConfig:
        """The configuration of the network."""
        return self.recognised.config


def convert(
    source: str | Path,
    out: str | Path,
    *,
    head: str | Path | None = None,
    stats: str | Path | None = None,
    labels: Sequence[str] = (),
    head_name: str | None = None,
) -> dict[str, Any]:
    """Convert a published file to a model folder, which is written atomically.

    Args:
        source: File of an encoder, a SpecCLIP model or a label head.
        out: The folder to write; an existing model is replaced.
        head: File of a label head to add to the model.
        stats: JSON file with `mean` and `std` of the features the head was trained on.
        labels: Names of the outputs of the head.
        head_name: "mlp1" (reads the mean token) or "mlp2" (reads the projected vector). The default
            fits the model; it is "mlp2" if `source` is a label head.

    Returns:
        The record of the conversion, as stored in config.json: name, SHA-256 and network of each file.

    Raises:
        SpecjaxError: A file is damaged, not recognised, or has other keys than the published ones; the head
            does not fit the model; or the folder has other contents.
    """
    first, label_head = open_source(source), None if head is None else open_source(head)
    model: Source | None = first
    if first.recognised.part == "mlp2":
        if label_head is not None:
            raise ModelError(
                f"{source} is a label head; give the file of the model first and the head as --head"
            )
        model, label_head = None, first
    arrays: dict[str, AnyArray] = {}
    sources: dict[str, Any] = {}
    config = first.config
    if model is not None:
        arrays, sources["model"] = _read(model, table(config, [model.recognised.part]))
    if label_head is not None:
        part = head_name or _head_of(model)
        config = _with_head(model, label_head, part, labels)
        head_arrays, sources[part] = _read_head(label_head, config, part, stats)
        arrays |= head_arrays
    elif stats is not None or labels:
        raise ModelError("stats and labels require a label head")
    tree = {"params": {}, "batch_stats": {}, "stats": {}, **unflatten(sorted(arrays.items()))}
    save_model(out, config={"model": to_dict(config), "sources": sources}, arrays=tree)
    return sources


def open_source(path: str | Path) -> Source:
    """Open a published file and check all of its keys.

    Raises:
        ModelError: The file is damaged, not recognised, or has other keys than the published ones.
    """
    file = open_torch_file(path)
    state = file.state_dict()
    shapes = {key: tensor.shape for key, tensor in state.items()}
    try:
        recognised = recognise(shapes, file.hyper_parameters)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    check(f"{path} ({recognised.title})", shapes, table(recognised.config, [recognised.part]))
    integers = [
        key for key, tensor in state.items() if tensor.dtype not in _FLOATS and not IGNORED.fullmatch(key)
    ]
    if integers:
        raise ModelError(
            f"{path}: {integers[0]} has the type {state[integers[0]].dtype}, which is not a type of weights"
        )
    return Source(path=Path(path), file=file, state=state, recognised=recognised)


def describe(source: Source, sha256: str) -> dict[str, Any]:
    """Return the record of a source in config.json, sufficient to write the same file again."""
    kept = {key: tensor for key, tensor in source.state.items() if IGNORED.fullmatch(key)}
    return {
        "file": source.path.name,
        "sha256": sha256,
        "network": source.recognised.title,
        "part": source.recognised.part,
        "dtypes": {
            key: str(tensor.dtype)
            for key, tensor in source.state.items()
            if key not in kept and tensor.dtype != np.float32
        },
        "num_batches_tracked": {key: _counter(key, tensor) for key, tensor in kept.items()},
    }


def read_stats(path: str | Path, features: int) -> tuple[FloatArray, FloatArray]:
    """Read `mean` and `std`, each (features,), from a JSON file.

    Raises:
        ModelError: The file is invalid, or the numbers are too few or many, not finite or not positive.
    """
    try:
        content = json.loads(Path(path).read_text())
        mean, std = (np.asarray(content[name], np.float64).ravel() for name in ("mean", "std"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ModelError(f"{path} is not a JSON file with lists of numbers `mean` and `std`") from None
    if len(mean) != features or len(std) != features:
        raise ModelError(
            f"{path} has {len(mean)} means and {len(std)} stds for a head of {features} features"
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ModelError(f"{path} has a mean or std that is not finite or a std that is not positive")
    return mean, std


def _read(source: Source, rows: Sequence[Row]) -> tuple[dict[str, AnyArray], dict[str, Any]]:
    """Read parameters by path, as views of the file except for 16-bit weights, and describe the source."""
    arrays = {}
    # The file is hashed while the checksums of its members are verified.
    with ThreadPoolExecutor(max_workers=1) as thread:
        sha256 = thread.submit(sha256_of, source.path)
        for row in rows:
            array = row.read(source.state[row.key].array())
            arrays[row.path] = array.astype(np.float32) if array.dtype in _HALVES else array
        return arrays, describe(source, sha256.result())


def _read_head(
    head: Source, config: ModelConfig, part: str, stats: str | Path | None
) -> tuple[dict[str, AnyArray], dict[str, Any]]:
    """Read the parameters of a label head and the statistics of its features, and describe both."""
    arrays, record = _read(head, table(config, [part]))
    if stats is not None:
        mean, std = read_stats(stats, _inputs(config, part))
        arrays |= {f"stats/{part}/feature_mean": mean, f"stats/{part}/feature_std": std}
        record["stats"] = {"file": Path(stats).name, "sha256": sha256_of(Path(stats))}
    return arrays, record


def _counter(key: str, tensor: StoredTensor) -> int:
    if tensor.shape or tensor.dtype != np.int64:
        raise ModelError(f"{key} is not an integer scalar")
    return int(tensor.array())


def _head_of(model: Source | None) -> str:
    if model is None or model.recognised.part == "specclip":
        return "mlp2"
    if model.recognised.part == "lamost":
        return "mlp1"
    raise ModelError(f"a label head needs LAMOST embeddings, which a {model.recognised.title} does not give")


def _inputs(config: ModelConfig, part: str) -> int:
    return config.specformer.dim if part == "mlp1" else config.projection.dim


def _with_head(model: Source | None, head: Source, part: str, labels: Sequence[str]) -> ModelConfig:
    """Return the configuration of a model with a head (None: of the head by itself)."""
    if head.recognised.part != "mlp2":
        raise ModelError(f"{head.path} is a {head.recognised.title}, not a label head")
    if part not in HEADS:
        raise ModelError(f"unknown head {part!r}; the heads are {' and '.join(HEADS)}")
    own = head.config
    base = own if model is None else model.config
    given, wanted = _inputs(own, part), _inputs(base, part)
    if model is not None and part != _head_of(model) and part != "mlp1":
        raise ModelError(f"head {part!r} needs the projected vector, which {model.path} does not give")
    if given != wanted:
        raise ModelError(f"{head.path} needs {given} features, but the model gives {wanted}")
    if labels and len(labels) != own.head.num_labels:
        raise ModelError(f"{head.path} has {own.head.num_labels} outputs, not {len(labels)} labels")
    return replace(base, head=own.head, labels=tuple(labels) or own.labels)
