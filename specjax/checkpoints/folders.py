"""Models and adapters on disk, as folders that are verified.

A model or adapter folder holds

- ``weights.safetensors``: every array, named by its path in the nested dict ("params/lamost/backbone/...");
- ``config.json``: what is needed to build the module that the arrays belong to;
- ``manifest.json``: format and version, SHA-256 of both files and of each tensor, its shape and type, and for
  an adapter the digest of the base model that it was trained on.

It is written beside its place and renamed, and checked against its manifest on loading, so that a killed run
leaves the old folder or the new one and a damaged file is named instead of used.
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
from specjax.checkpoints.tensor_file import read_tensors, sha256_of, write_tensors
from specjax.checkpoints.trees import Arrays, flatten, unflatten
from specjax.errors import ModelError

FORMAT_VERSION = 1
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
        described, weights_sha256 = write_tensors(temporary / WEIGHTS, tensors, half)
        digest = _digest(json.loads(text), described)
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
    content = _checked_config(folder / CONFIG, hashes[CONFIG])
    # Before the tensors: what the manifest says about them is only as good as its digest.
    named = isinstance(empty, list) and all(isinstance(name, str) for name in empty)
    if _digest(content, expected) != digest or not named:
        raise ModelError(f"{folder / MANIFEST} is damaged: its digest is not that of its tensors")
    tensors = read_tensors(folder / WEIGHTS, hashes[WEIGHTS], expected)
    flat = {name: a.astype(expected[name]["dtype"], copy=False) for name, a in tensors.items()}
    arrays = unflatten([*flat.items(), *((name, None) for name in empty)])
    return Stored(config=content, arrays=arrays, digest=digest, base=base)


def _read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a folder of that kind and of a version that this program reads."""
    if not folder.is_dir():
        raise ModelError(f"there is no {kind} folder {folder}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        form, version = str(manifest["format"]), int(manifest["version"])
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a specjax {kind}: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{folder / MANIFEST} cannot be read: {error}") from None
    if form != f"specjax-{kind}":
        raise ModelError(f"{folder} is a {form}, not a specjax-{kind}")
    if version != FORMAT_VERSION:
        raise ModelError(f"{folder} has format version {version}; this specjax reads {FORMAT_VERSION}")
    return manifest


def _checked_config(path: Path, sha256: str) -> dict[str, Any]:
    """The content of a JSON file whose hash is as the manifest says."""
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ModelError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")
        content = json.loads(data)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no configuration")
    return content


def _digest(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    """One hash of a configuration and its tensors, however the files are laid out."""
    parts = {"config": config, "tensors": tensors}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
