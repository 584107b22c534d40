"""Features of the frozen backbone on disk, so that later runs on the same stars need not compute them again.

A file holds the `BackboneFeatures` of a set of spectra. Its name is a hash of everything that they depend on:
the tower's parameters, its sizes, the type it computes in, the program code, the device and the spectra
themselves; a damaged file is computed again. Files are in `features` in the cache folder; the oldest are
removed when they exceed $SPECJAX_FEATURES_MIB, 256 by default. 0 keeps nothing.
"""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from specjax.atomic import atomic_file
from specjax.cache import cache_folder
from specjax.errors import ConfigError
from specjax.foundation import BackboneFeatures, Foundation, ModelInput
from specjax.npz import NpzError, read_npz

VARIABLE = "SPECJAX_FEATURES_MIB"
DEFAULT_MIB = 256


def cached(compute: Callable[[], BackboneFeatures], model: Foundation, data: ModelInput) -> BackboneFeatures:
    """Return the features of n spectra from disk, or compute and store them.

    Args:
        compute: runs the backbone of `model` on `data` without any adapter.
        model: the base model.
        data: n spectra.

    Raises:
        ConfigError: $SPECJAX_FEATURES_MIB is not a number.
    """
    limit = _limit()
    if not limit:
        return compute()
    path = cache_folder() / "features" / f"{_key(model, data)}.npz"
    if (known := _read(path)) is not None:
        return known
    features = BackboneFeatures(*map(np.asarray, compute()))
    _write(path, features, limit)
    return features


def _limit() -> int:
    """Return the bytes that all files together may take."""
    text = os.environ.get(VARIABLE, "") or DEFAULT_MIB
    try:
        return max(int(float(text) * 2**20), 0)
    except (ValueError, OverflowError):
        raise ConfigError(f"{VARIABLE} must be a number of MiB, not {text!r}") from None


def _key(model: Foundation, data: ModelInput) -> str:
    device = jax.local_devices()[0]
    about = (model.config, model.dtype, jax.__version__, device.platform, device.device_kind)
    digest = hashlib.sha256(f"{about}{_code()}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path((model.params["lamost"], *data)):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@functools.cache
def _code() -> str:
    """Return a hash of the modules that compute features, so that files of other versions are not used."""
    package = Path(__file__).parents[1]
    files = [*sorted((package / "models").glob("*.py")), package / "foundation" / "networks.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read(path: Path) -> BackboneFeatures | None:
    """Read a file and mark it as used now; None if it is missing or damaged."""
    try:
        arrays = read_npz(path)
        found = BackboneFeatures(**{name: arrays[name] for name in BackboneFeatures._fields})
        os.utime(path)
    except (OSError, NpzError, KeyError):
        return None
    return found


def _write(path: Path, features: BackboneFeatures, limit: int) -> None:
    """Write a file and remove the oldest beyond the limit; does nothing if the folder is not writable."""
    if sum(array.nbytes for array in features) > limit:
        return
    try:
        with atomic_file(path) as temporary:
            np.savez(temporary, **features._asdict())
        finished = [file for file in path.parent.glob("*.npz") if not file.name.startswith(".")]
        newest = sorted(finished, key=lambda file: file.stat().st_mtime, reverse=True)
        total = 0
        for file in newest:
            total += file.stat().st_size
            if total > limit and file != path:
                file.unlink(missing_ok=True)
    except OSError:
        return
