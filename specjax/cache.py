"""The user's cache folder: downloads, compiled programs and features of the frozen backbone."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $SPECJAX_CACHE, or `specjax` in the platform's cache folder of the user."""
    if chosen := os.environ.get("SPECJAX_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("specjax", appauthor=False, opinion=False)


def use_compilation_cache() -> None:
    """Keep compiled programs in the cache folder, so that a second run starts without compiling.

    They are in its subfolder `jax`; where that is not writable, nothing is kept.
    """
    import jax

    folder = cache_folder() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The default keeps only what took a second to compile; these programs are many and small.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
