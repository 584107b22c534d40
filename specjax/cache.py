"""The user's cache folder: downloads, compiled programs and features of the frozen backbone."""

import os
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

_CHECKED = "checked"
"""The file in the folder of compiled programs whose time is that of the last check."""
_SETTLED = 60.0  # seconds after which a program is no longer being written


def cache_folder() -> Path:
    """Return $SPECJAX_CACHE or, if it is not set, `specjax` in the user's platform cache folder."""
    if chosen := os.environ.get("SPECJAX_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("specjax", appauthor=False, opinion=False)


def use_compilation_cache() -> None:
    """Keep compiled programs in the cache folder, so that later runs need not compile them again.

    They are kept in the subfolder `jax`; if it cannot be created, nothing is kept. A program that cannot be
    read or written is compiled, without a warning: there is nothing that the user should do.
    """
    import jax

    folder = cache_folder() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    _remove_damaged(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX keeps only programs that took a second to compile. Ours are many and small: with all of them kept, a
    # second adaptation starts seven seconds sooner than with those that took a tenth of a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _remove_damaged(folder: Path) -> None:
    """Remove the programs since the last check that a kill or a full disk has cut off.

    JAX writes each of them in place and never replaces one, so that it would be compiled in every run.
    """
    checked, now = folder / _CHECKED, time.time()
    with suppress(OSError):
        since = checked.stat().st_mtime if checked.exists() else 0.0
        for path in folder.glob("*-cache"):
            written = path.stat().st_mtime
            if since <= written < now - _SETTLED and not _is_whole(path.read_bytes()):
                path.unlink()
        checked.touch()
        os.utime(checked, (now - _SETTLED, now - _SETTLED))


def _is_whole(program: bytes) -> bool:
    """Return whether a program can be unpacked; one that JAX has not packed with zlib is not checked."""
    if len(program) > 1 and int.from_bytes(program[:2]) % 31:  # no header of zlib, see RFC 1950
        return True
    try:
        zlib.decompress(program)
    except zlib.error:
        return False
    return True
