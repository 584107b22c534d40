"""What a program does once before it uses JAX."""

from specjax.services.stellar_libraries import cache_folder


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that a second run starts without compiling.

    The folder is `jax` under $SPECJAX_CACHE or the platform's user cache; where it is not writable, nothing
    is kept.
    """
    import jax

    folder = cache_folder() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The default keeps only what took a second; our programs are many and small.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
