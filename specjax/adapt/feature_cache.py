"""Frozen features on disk: what the backbone as it is makes of the same stars is computed once for all runs.

A file holds the `Summary` of a set of spectra, under a name that is a hash of everything it follows from: the
tower's parameters, its sizes, the type it computes in, the program code, the device and the prepared spectra.
So a file is never wrong, and one that is damaged is made again. Files are in `features` under $SPECJAX_CACHE
(or the user's cache folder); the oldest go when they exceed $SPECJAX_FEATURES_MIB, 256 by default. 0 keeps
nothing.
"""

import functools
import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from specjax.atomic import atomic_file
from specjax.errors import ConfigError
from specjax.foundation import Foundation
from specjax.foundation.inference import Summary

VARIABLE = "SPECJAX_FEATURES_MIB"
DEFAULT_MIB = 256


def remembered(make: Callable[[], Summary], model: Foundation, flux: Any, valid: Any) -> Summary:
    """Return what `make` gives for prepared spectra, flux and valid (n, pixels), or what it gave before.

    `make` must run `model`'s backbone without any factors.

    Raises:
        ConfigError: $SPECJAX_FEATURES_MIB is no number.
    """
    limit = _limit()
    if not limit:
        return make()
    from specjax.cache import cache_folder

    path = cache_folder() / "features" / f"{_key(model, flux, valid)}.npz"
    if (known := _read(path)) is not None:
        return known
    summary = Summary(*map(np.asarray, make()))
    _write(path, summary, limit)
    return summary


def _limit() -> int:
    """The bytes that the files may take together."""
    text = os.environ.get(VARIABLE, "") or DEFAULT_MIB
    try:
        return max(int(float(text) * 2**20), 0)
    except (ValueError, OverflowError):
        raise ConfigError(f"{VARIABLE} must be a number of MiB, not {text!r}") from None


def _key(model: Foundation, flux: Any, valid: Any) -> str:
    device = jax.local_devices()[0]
    about = (model.config, model.dtype, jax.__version__, device.platform, device.device_kind)
    digest = hashlib.sha256(f"{about}{_code()}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path((model.params["lamost"], flux, valid)):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@functools.cache
def _code() -> str:
    """A hash of the modules that the towers are made of: features of another version are not taken."""
    files = sorted((Path(__file__).parents[1] / "models").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read(path: Path) -> Summary | None:
    """What a file holds; nothing where it is missing or damaged. It counts as used now."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = Summary(**{name: file[name] for name in Summary._fields})
        os.utime(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return found


def _write(path: Path, summary: Summary, limit: int) -> None:
    """Keep a summary, and of all the newest within the limit; where it cannot be written, nothing."""
    if sum(array.nbytes for array in summary) > limit:
        return
    try:
        with atomic_file(path) as temporary:
            np.savez(temporary, **summary._asdict())
        newest = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime, reverse=True)
        total = 0
        for file in newest:
            total += file.stat().st_size
            if total > limit and file != path:
                file.unlink(missing_ok=True)
    except OSError:
        return
