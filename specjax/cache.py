"""The user's cache folder: downloads, compiled programs and features of the frozen backbone."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $SPECJAX_CACHE or, if it is not set, `specjax` in the user's platform cache folder."""
    if chosen := os.environ.get("SPECJAX_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("specjax", appauthor=False, opinion=False)


def use_compilation_cache() -> None:
    """Keep compiled programs in the cache folder, so that later runs need not compile them again.

    They are kept in the subfolder `jax`; if it cannot be created, nothing is kept.
    """
    import jax

    folder = cache_folder() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX keeps only programs that took a second to compile. Ours are many and small: with all of them kept, a
    # second adaptation starts seven seconds sooner than with those that took a tenth of a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
