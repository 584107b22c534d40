"""Models, adapters and training state on disk.

A model or adapter folder holds

- ``weights.safetensors``: every array, named by its path in the nested dict ("params/lamost/backbone/...");
- ``config.json``: what is needed to build the module that the arrays belong to;
- ``manifest.json``: format and version, SHA-256 of both files and of each tensor, its shape and type, and for
  an adapter the digest of the base model that it was trained on.

It is written beside its place and renamed, and checked against its manifest on loading, so that a killed run
leaves the old folder or the new one and a damaged file is named instead of used. Training state, which only
the program that wrote it reads, is Orbax's.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specjax._version import __version__
from specjax.atomic import atomic_folder, recover_folder
from specjax.errors import ModelError

Arrays = dict[str, Any]  # nested dicts with str keys and array leaves

FORMAT_VERSION = 1
_SAFETENSORS_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
WEIGHTS, CONFIG, MANIFEST = "weights.safetensors", "config.json", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a folder held: its configuration, its arrays (nested, NumPy) and the digest of both.

    ``base`` is the digest of the base model for an adapter and None for a model.
    """

    config: dict[str, Any]
    arrays: Arrays
    digest: str
    base: str | None = None


def save_model(
    folder: str | Path, *, config: Mapping[str, Any], arrays: Mapping[str, Any], half: Iterable[str] = ()
) -> str:
    """Write a model folder, replacing the model that was there, and return its digest.

    Args:
        folder: the folder to make. One that exists must be empty or hold a model.
        config: JSON-serialisable configuration.
        arrays: nested dict of NumPy or JAX arrays; keys are strings without "/".
        half: shell patterns on tensor names ("params/*"); the float32 tensors that match are stored as
            float16, at half the size, and come back as float32, rounded.

    Raises:
        SpecjaxError: the folder holds something else.
        ModelError: a tensor does not fit float16.
    """
    return _save(folder, "model", config, arrays, tuple(half), None)


def load_model(folder: str | Path) -> Stored:
    """Read a model folder and verify it.

    Raises:
        ModelError: missing, damaged or of another kind or version; it names the file or the tensor.
    """
    return _load(folder, "model")


def save_adapter(
    folder: str | Path, *, config: Mapping[str, Any], arrays: Mapping[str, Any], base: str
) -> str:
    """Write an adapter folder, with ``base`` the digest of its base model; returns the adapter's own digest.

    Raises:
        SpecjaxError: the folder holds something else.
    """
    return _save(folder, "adapter", config, arrays, (), base)


def load_adapter(folder: str | Path, *, base: str | None = None) -> Stored:
    """Read an adapter folder and verify it, against the digest of the base model too where that is given.

    Raises:
        ModelError: missing, damaged, or trained on another base model.
    """
    stored = _load(folder, "adapter")
    if base is not None and stored.base != base:
        raise ModelError(
            f"the adapter {folder} was trained on another base model "
            f"({str(stored.base)[:12]}, this one is {base[:12]})"
        )
    return stored


def flatten(arrays: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a/b/c", leaf) for a nested dict, in sorted order, and ("a/b/", None) for an empty dict."""
    if not arrays and prefix:
        yield prefix, None
    for key in sorted(arrays):
        if not isinstance(key, str) or "/" in key or not key:
            raise ValueError(f"cannot name a tensor by the key {key!r}")
        value = arrays[key]
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def unflatten(items: Iterable[tuple[str, Any]]) -> Arrays:
    """Rebuild the nested dict that `flatten` took apart."""
    tree: Arrays = {}
    for name, value in items:
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        if last:
            node[last] = value
    return tree


def _save(
    folder: str | Path,
    kind: str,
    config: Mapping[str, Any],
    arrays: Mapping[str, Any],
    half: tuple[str, ...],
    base: str | None,
) -> str:
    """Write weights, config and manifest, in that order, and put the folder in place."""
    flat = dict(flatten(arrays))
    tensors = {name: np.asarray(value) for name, value in flat.items() if value is not None}
    text = json.dumps(dict(config), indent=2, allow_nan=False) + "\n"
    with atomic_folder(folder) as temporary:
        described, weights_sha256 = _write_tensors(temporary / WEIGHTS, tensors, half)
        digest = _digest(text, described)
        (temporary / CONFIG).write_text(text)
        manifest = {
            "format": f"specjax-{kind}",
            "version": FORMAT_VERSION,
            "specjax": __version__,
            "digest": digest,
            **({} if base is None else {"base": base}),
            "files": {
                CONFIG: {"sha256": _sha256(temporary / CONFIG)},
                WEIGHTS: {"sha256": weights_sha256},
            },
            "empty": [name for name, value in flat.items() if value is None],
            "tensors": described,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return digest


def _load(folder: str | Path, kind: str) -> Stored:
    """Read what `_save` wrote and check every part of it."""
    folder = Path(folder)
    recover_folder(folder)
    manifest = _read_manifest(folder, kind)
    try:
        expected: dict[str, dict[str, Any]] = manifest["tensors"]
        digest, base, empty = manifest["digest"], manifest.get("base"), manifest["empty"]
        hashes = {name: manifest["files"][name]["sha256"] for name in (CONFIG, WEIGHTS)}
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / MANIFEST} is damaged: it lacks {error}") from None
    text = _checked_text(folder / CONFIG, hashes[CONFIG])
    # Before the tensors: what the manifest says about them is only as good as its digest.
    if _digest(text, expected) != digest or not all(isinstance(name, str) for name in empty):
        raise ModelError(f"{folder / MANIFEST} is damaged: its digest is not that of its tensors")
    tensors = _checked_tensors(folder / WEIGHTS, hashes[WEIGHTS], expected)
    flat = {name: a.astype(expected[name]["dtype"], copy=False) for name, a in tensors.items()}
    arrays = unflatten([*flat.items(), *((name, None) for name in empty)])
    return Stored(config=json.loads(text), arrays=arrays, digest=digest, base=base)


def _read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a folder of that kind and of a version that this program reads."""
    if not folder.is_dir():
        raise ModelError(f"there is no {kind} folder {folder}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        form, version = str(manifest["format"]), int(manifest["version"])
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a specjax {kind}: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / MANIFEST} cannot be read: {error}") from None
    if form != f"specjax-{kind}":
        raise ModelError(f"{folder} is a {form}, not a specjax-{kind}")
    if version != FORMAT_VERSION:
        raise ModelError(f"{folder} has format version {version}; this specjax reads {FORMAT_VERSION}")
    return manifest


def _checked_text(path: Path, sha256: str) -> str:
    """The text of a file whose hash is as the manifest says."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")
    return data.decode()


def _checked_tensors(path: Path, sha256: str, expected: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tensors of a file, all there and all as the manifest says.

    The hash of the whole file decides; those of single tensors are compared only to name the damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        whole = _sha256(path) == sha256
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise ModelError(f"{path} {'lacks' if name in expected else 'has an unknown'} tensor {name}")
        array, want = tensors[name], expected[name]
        if str(array.dtype) != want["stored"] or list(array.shape) != want["shape"]:
            raise ModelError(
                f"{path}: tensor {name} is {array.dtype}{list(array.shape)}, "
                f"{MANIFEST} says {want['stored']}{want['shape']}"
            )
        if not whole and _sha256(array) != want["sha256"]:
            raise ModelError(f"{path} is damaged in tensor {name}: SHA-256 differs from the {MANIFEST}")
    if not whole:
        raise ModelError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")
    return tensors


def _write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], half: tuple[str, ...]
) -> tuple[dict[str, dict[str, Any]], str]:
    """Write a safetensors file one tensor at a time; return their entries in the manifest and its SHA-256.

    Only one tensor is copied at a time, so that large models need no second room in memory, and views of a
    mapped file are read when their turn comes. Larger items come first, which keeps all of them aligned.
    """
    stored = {
        name: np.dtype(np.float16) if _matches(name, a, half) else a.dtype for name, a in tensors.items()
    }
    order = sorted(tensors, key=lambda name: (-stored[name].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].size * stored[name].itemsize
        if str(stored[name]) not in _SAFETENSORS_NAMES:
            raise ModelError(f"tensor {name} has the type {stored[name]}, which cannot be stored")
        kind = _SAFETENSORS_NAMES[str(stored[name])]
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = hashlib.sha256()
    described: dict[str, dict[str, Any]] = {}

    def digest(name: str, array: NDArray[Any]) -> None:
        whole.update(_bytes_of(array))
        described[name] = _describe(array, tensors[name].dtype)

    # Hashing takes as long as copying and writing, and runs beside them, one tensor behind.
    with path.open("wb") as file, ThreadPoolExecutor(max_workers=1) as hashing:
        start_of_file = len(text).to_bytes(8, "little") + text
        file.write(start_of_file)
        waiting = hashing.submit(whole.update, start_of_file)
        for name in order:
            array = tensors[name]
            array = _in_order(_to_half(name, array) if stored[name] != array.dtype else array)
            waiting.result()
            waiting = hashing.submit(digest, name, array)
            file.write(_bytes_of(array))
        waiting.result()
    return {name: described[name] for name in sorted(described)}, whole.hexdigest()


def _in_order(array: NDArray[Any], tile: int = 128) -> NDArray[Any]:
    """An array in C order; a transposed matrix tile by tile, which is twice as fast as row by row."""
    if array.flags.c_contiguous or array.ndim != 2:
        return np.asarray(array, order="C")
    out = np.empty(array.shape, array.dtype)
    for i in range(0, len(array), tile):
        for j in range(0, array.shape[1], tile):
            out[i : i + tile, j : j + tile] = array[i : i + tile, j : j + tile]
    return out


def _matches(name: str, array: NDArray[Any], patterns: tuple[str, ...]) -> bool:
    """Whether a tensor is to be stored as float16."""
    return array.dtype == np.float32 and any(fnmatchcase(name, p) for p in patterns)


def _to_half(name: str, array: NDArray[Any]) -> NDArray[np.float16]:
    """Round to float16, unless a finite value would become infinite."""
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16)
    if not np.array_equal(np.isfinite(rounded), np.isfinite(array)):
        raise ModelError(f"tensor {name} has values beyond 65504, which float16 cannot hold")
    return rounded


def _describe(stored: NDArray[Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """One tensor's entry in the manifest."""
    described = {"shape": list(stored.shape), "dtype": str(dtype), "stored": str(stored.dtype)}
    return {**described, "sha256": _sha256(stored)}


def _digest(config: str, tensors: Mapping[str, Any]) -> str:
    """One hash of a configuration and its tensors, however the files are laid out."""
    parts = {"config": json.loads(config), "tensors": tensors}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sha256(source: Path | NDArray[Any]) -> str:
    """SHA-256 of a file's or an array's bytes, as hexadecimal."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(_bytes_of(source)).hexdigest()


def _bytes_of(array: NDArray[Any]) -> memoryview | bytes:
    """An array's bytes, without a copy where they lie in order."""
    return array.reshape(-1).view(np.uint8).data if array.flags.c_contiguous else array.tobytes()


def save_training_state(folder: str | Path, state: Any, step: int, *, keep: int = 2) -> None:
    """Write a training state at a step, keeping the ``keep`` newest; complete or absent, also when killed.

    Args:
        folder: where the steps are, one folder each.
        state: any pytree of arrays, scalars and random keys (parameters, optimizer state, ...).
        step: the number it is found by; it must be larger than those before.
        keep: how many steps to keep.
    """
    import orbax.checkpoint as ocp

    with _manager(folder, max_to_keep=keep) as manager:
        manager.save(step, args=ocp.args.StandardSave(state), force=True)
        manager.wait_until_finished()


def latest_step(folder: str | Path) -> int | None:
    """The newest complete step in a training-state folder, or None if there is none."""
    if not Path(folder).is_dir():
        return None
    with _manager(folder) as manager:
        return manager.latest_step()


def restore_training_state(folder: str | Path, like: Any) -> tuple[Any, int]:
    """Read the newest complete training state.

    Args:
        folder: as given to `save_training_state`.
        like: a pytree of the same structure with arrays or `jax.ShapeDtypeStruct`.

    Returns:
        The state and its step.

    Raises:
        ModelError: there is no state, or it has another structure than ``like``.
    """
    import jax
    import orbax.checkpoint as ocp

    step = latest_step(folder)
    if step is None:
        raise ModelError(f"there is no training state in {folder}")
    abstract = jax.eval_shape(lambda: like)
    with _manager(folder) as manager:
        try:
            state = manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"the training state {folder} at step {step} does not fit: {reason}") from None
    return state, step


def _manager(folder: str | Path, **options: Any) -> Any:
    """Orbax's manager of a folder of steps, without background threads."""
    import orbax.checkpoint as ocp

    return ocp.CheckpointManager(
        Path(folder).resolve(),
        options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **options),
    )
