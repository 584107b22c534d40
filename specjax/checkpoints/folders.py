"""Save models and adapters as folders, and load and verify them.

A model or adapter folder contains

- ``weights.safetensors``: all arrays, named by their paths in the nested dict ("params/lamost/backbone/...");
- ``config.json``: the configuration from which the modules are built;
- ``manifest.json``: format and version, the SHA-256 of both files, the shape, type and SHA-256 of each tensor
  and, for an adapter, the digest of its base model.

Folders are written atomically, so that a killed run leaves the old or the new one, and verified against their
manifest on loading, so that a damaged file is reported and not used. A folder may be on the Hugging Face hub:
hf://owner/name is fetched into the cache and verified like any other.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specjax._version import __version__
from specjax.atomic import atomic_folder, recover_folder
from specjax.checkpoints.hub import HubAddress
from specjax.checkpoints.tensor_file import read_tensors, sha256_of, write_tensors
from specjax.checkpoints.trees import Arrays, flatten, unflatten
from specjax.errors import DownloadError, ModelError

FORMAT_VERSION = 1
WEIGHTS, CONFIG, MANIFEST = "weights.safetensors", "config.json", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The contents of a model or adapter folder.

    Attributes:
        config: The configuration, as stored in JSON.
        arrays: Nested dict of NumPy arrays.
        digest: Hash of the configuration and the arrays.
        base: Digest of the base model of an adapter; None for a model.
    """

    config: dict[str, Any]
    arrays: Arrays
    digest: str
    base: str | None = None


def save_model(
    folder: str | Path, *, config: Mapping[str, Any], arrays: Mapping[str, Any], half: Iterable[str] = ()
) -> str:
    """Write a model folder, replacing an existing model, and return its digest.

    Args:
        folder: The folder to write. If it exists, it must be empty or contain a model.
        config: JSON-serialisable configuration.
        arrays: Nested dict of NumPy or JAX arrays; keys are strings without "/".
        half: Shell patterns of tensor names ("params/*"). Matching float32 tensors are stored as float16, at
            half the size, and loaded as float32.

    Raises:
        SpecjaxError: The folder has other contents.
        ModelError: A tensor has values outside the range of float16 or a type that cannot be stored.
    """
    return _save(folder, "model", config, arrays, tuple(half), None)


def load_model(folder: str | Path) -> Stored:
    """Read and verify a model folder, or one on the hub (hf://owner/name[@revision][/folder]).

    Raises:
        ModelError: The folder is missing, damaged, or of another kind or version; the message names the file
            or tensor.
        DownloadError: It cannot be fetched from the hub.
        ConfigError: It is no valid address of the hub.
    """
    return _load(folder, "model")


def save_adapter(
    folder: str | Path, *, config: Mapping[str, Any], arrays: Mapping[str, Any], base: str
) -> str:
    """Write an adapter folder and return its digest; `base` is the digest of the base model.

    Raises:
        SpecjaxError: The folder has other contents.
    """
    return _save(folder, "adapter", config, arrays, (), base)


def load_adapter(folder: str | Path, *, base: str | None = None) -> Stored:
    """Read and verify an adapter folder and, if `base` is given, the digest of its base model.

    Raises:
        ModelError: The adapter is missing, damaged, or was trained on another base model.
        DownloadError: As `load_model`.
        ConfigError: Likewise.
    """
    stored = _load(folder, "adapter")
    if base is not None and stored.base != base:
        raise ModelError(
            f"the adapter {folder} was trained on another base model"
            f" (digest {str(stored.base)[:12]}, not {base[:12]})"
        )
    return stored


def _save(
    folder: str | Path,
    kind: str,
    config: Mapping[str, Any],
    arrays: Mapping[str, Any],
    half: tuple[str, ...],
    base: str | None,
) -> str:
    """Write a folder of a kind atomically and return its digest."""
    flat = dict(flatten(arrays))
    tensors = {name: np.asarray(value) for name, value in flat.items() if value is not None}
    text = json.dumps(dict(config), indent=2, allow_nan=False) + "\n"
    with atomic_folder(folder) as temporary:
        entries, weights_sha256 = write_tensors(temporary / WEIGHTS, tensors, half)
        digest = _digest(json.loads(text), entries)
        (temporary / CONFIG).write_text(text)
        manifest = {
            "format": f"specjax-{kind}",
            "version": FORMAT_VERSION,
            "specjax": __version__,
            "digest": digest,
            **({} if base is None else {"base": base}),
            "files": {
                CONFIG: {"sha256": sha256_of(temporary / CONFIG)},
                WEIGHTS: {"sha256": weights_sha256},
            },
            "empty": [name for name, value in flat.items() if value is None],
            "tensors": entries,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return digest


def _load(folder: str | Path, kind: str) -> Stored:
    """Read a folder that `_save` wrote, here or on the hub, and verify every part of it."""
    address = HubAddress.parse(folder)
    if address is None:
        return _read(Path(folder), kind)
    try:
        return _read_from_hub(address, kind)
    except ModelError as error:
        first = error
    try:  # once more: what is damaged may be the copy in the cache
        return _read_from_hub(address, kind, again=True)
    except DownloadError as error:
        raise ModelError(f"{first}; {error}") from None
    except ModelError as error:
        raise ModelError(f"{address}: {error}") from None


def _read_from_hub(address: HubAddress, kind: str, *, again: bool = False) -> Stored:
    """Fetch a folder and read it; the manifest comes first, so that another kind costs no large download."""
    _read_manifest(address.fetch([MANIFEST], again=again), kind)
    return _read(address.fetch([MANIFEST, CONFIG, WEIGHTS], again=again), kind)


def _read(folder: Path, kind: str) -> Stored:
    """Read a folder and verify every part of it."""
    recover_folder(folder)
    manifest = _read_manifest(folder, kind)
    try:
        expected: dict[str, dict[str, Any]] = manifest["tensors"]
        digest, base, empty = manifest["digest"], manifest.get("base"), manifest["empty"]
        hashes = {name: manifest["files"][name]["sha256"] for name in (CONFIG, WEIGHTS)}
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / MANIFEST} is damaged: it lacks {error}") from None
    config = _read_config(folder / CONFIG, hashes[CONFIG])
    # Before the tensors are read: the manifest can be trusted only if its digest is right.
    valid_empty = isinstance(empty, list) and all(isinstance(name, str) for name in empty)
    if _digest(config, expected) != digest or not valid_empty:
        raise ModelError(f"{folder / MANIFEST} is damaged: its digest does not match its contents")
    tensors = read_tensors(folder / WEIGHTS, hashes[WEIGHTS], expected)
    flat = {name: a.astype(expected[name]["dtype"], copy=False) for name, a in tensors.items()}
    arrays = unflatten([*flat.items(), *((name, None) for name in empty)])
    return Stored(config=config, arrays=arrays, digest=digest, base=base)


def _read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """Read the manifest of a folder, whose kind and format version must be right."""
    if not folder.is_dir():
        raise ModelError(f"there is no {kind} folder {folder}")
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        stored_format, version = str(manifest["format"]), int(manifest["version"])
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a specjax {kind}: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{folder / MANIFEST} cannot be read: {error}") from None
    if stored_format != f"specjax-{kind}":
        raise ModelError(f"{folder} is a {stored_format}, not a specjax-{kind}")
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{folder} has format version {version}; this version of specjax reads {FORMAT_VERSION}"
        )
    return manifest


def _read_config(path: Path, sha256: str) -> dict[str, Any]:
    """Read a JSON file and verify its hash."""
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ModelError(f"{path} is damaged: its SHA-256 differs from that in {MANIFEST}")
        content = json.loads(data)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not contain a configuration")
    return content


def _digest(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    """Hash a configuration and the entries of its tensors, independently of the file layout."""
    parts = {"config": config, "tensors": tensors}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
