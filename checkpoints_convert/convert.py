"""From a published PyTorch file to a model folder that `specjax.load` reads."""

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

# Types of weights; those of 16 bits become float32, which holds them exactly, and go back on export.
_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_FLOATS = (*_HALVES, np.dtype(np.float32), np.dtype(np.float64))

HEADS = ("mlp1", "mlp2")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file that was read, recognised and checked against the key table."""

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
    """Convert a published file and write a model folder, whole or not at all.

    Args:
        source: an encoder, a SpecCLIP model or a label head.
        out: the folder; a model that is there is replaced.
        head: a label head to put on the model, reading what it embeds.
        stats: the JSON file with `mean` and `std` of the features that the head was trained on.
        labels: names of the head's outputs.
        head_name: "mlp1" (reads the mean token) or "mlp2" (reads the projected vector), for a label head by
            itself; beside a model it follows from the model.

    Returns:
        The record of the conversion that config.json keeps: of each source its name, SHA-256 and network.

    Raises:
        SpecjaxError: a file that is damaged, not recognised, or whose keys are not the published ones; a head
            that does not fit; a folder that holds something else.
    """
    model: Source | None = (first := open_source(source))
    config = first.config
    arrays: dict[str, AnyArray] = {}
    sources: dict[str, Any] = {}
    with_head = open_source(head) if head is not None else None
    if first.recognised.part == "mlp2":
        if with_head is not None:
            raise ModelError(f"{source} is a label head by itself; give the model first, then --head")
        model, with_head = None, first
    else:
        read, sources["model"] = _read(first, table(config, [first.recognised.part]))
        arrays.update(read)
    if with_head is not None:
        part = head_name or _head_of(model)
        config = _with_head(model, with_head, part, labels)
        read, sources[part] = _read(with_head, table(config, [part]))
        arrays.update(read)
        if stats is not None:
            mean, std = read_stats(stats, _inputs(config, part))
            arrays.update({f"stats/{part}/feature_mean": mean, f"stats/{part}/feature_std": std})
            sources[part]["stats"] = {"file": Path(stats).name, "sha256": sha256_of(Path(stats))}
    elif stats is not None or labels:
        raise ModelError("stats and labels belong to a label head, and there is none")
    tree = {"params": {}, "batch_stats": {}, "stats": {}, **unflatten(sorted(arrays.items()))}
    save_model(out, config={"model": to_dict(config), "sources": sources}, arrays=tree)
    return sources


def open_source(path: str | Path) -> Source:
    """Open a published file and check every key of it.

    Raises:
        ModelError: as `convert`.
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
        raise ModelError(f"{path}: {integers[0]} holds {state[integers[0]].dtype}, which no weight is")
    return Source(path=Path(path), file=file, state=state, recognised=recognised)


def describe(source: Source, sha256: str) -> dict[str, Any]:
    """Return what config.json keeps about a source, enough to write the same file again."""
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
    """Read `mean` and `std` (features,) from a JSON file.

    Raises:
        ModelError: not such a file, or not that many positive numbers.
    """
    try:
        content = json.loads(Path(path).read_text())
        mean, std = (np.asarray(content[name], np.float64).ravel() for name in ("mean", "std"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ModelError(f"{path} is no JSON file with lists of numbers `mean` and `std`") from None
    if len(mean) != features or len(std) != features:
        raise ModelError(f"{path} has {len(mean)} and {len(std)} numbers for a head of {features} features")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ModelError(f"{path} has a mean or std that is not finite, or a std that is not positive")
    return mean, std


def _read(source: Source, rows: Sequence[Row]) -> tuple[dict[str, AnyArray], dict[str, Any]]:
    """Read the parameters by path, views of the mapped file but for halves, and describe the source."""
    arrays = {}
    # The file is hashed while the checksums of its members are compared.
    with ThreadPoolExecutor(max_workers=1) as thread:
        sha256 = thread.submit(sha256_of, source.path)
        for row in rows:
            array = row.read(source.state[row.key].array())
            arrays[row.path] = array.astype(np.float32) if array.dtype in _HALVES else array
        return arrays, describe(source, sha256.result())


def _counter(key: str, tensor: StoredTensor) -> int:
    if tensor.shape or tensor.dtype != np.int64:
        raise ModelError(f"{key} is no count")
    return int(tensor.array())


def _head_of(model: Source | None) -> str:
    if model is None or model.recognised.part == "specclip":
        return "mlp2"
    if model.recognised.part == "lamost":
        return "mlp1"
    raise ModelError(f"a label head reads LAMOST embeddings, not those of a {model.recognised.title}")


def _inputs(config: ModelConfig, part: str) -> int:
    return config.specformer.dim if part == "mlp1" else config.projection.dim


def _with_head(model: Source | None, head: Source, part: str, labels: Sequence[str]) -> ModelConfig:
    """Put the sizes of a head into the configuration of a model."""
    if head.recognised.part != "mlp2":
        raise ModelError(f"{head.path} is a {head.recognised.title}, not a label head")
    if part not in HEADS:
        raise ModelError(f"there is no head {part!r}; heads are {' and '.join(HEADS)}")
    own = head.config
    base = own if model is None else model.config
    given, wanted = _inputs(own, part), _inputs(base, part)
    if model is not None and part != _head_of(model) and part != "mlp1":
        raise ModelError(f"head {part!r} reads the projected vector, which {model.path} does not make")
    if given != wanted:
        raise ModelError(f"{head.path} reads {given} features, the model embeds {wanted}")
    if labels and len(labels) != own.head.num_labels:
        raise ModelError(f"{head.path} has {own.head.num_labels} outputs, not {len(labels)} labels")
    return replace(base, head=own.head, labels=tuple(labels) or own.labels)
