"""Rounding errors of bfloat16.

    python -m benchmarks.precision

Prints the root-mean-square difference from float32 for each tower, relative to the standard deviation over
spectra, and the resulting change of a label of the shipped model. The spectra are smooth noise of a few
percent.
"""

import dataclasses

import numpy as np

from benchmarks.in_specjax import random_model
from specjax.config import get_preset
from specjax.foundation import Foundation, load
from specjax.foundation.inputs import pixel_count
from specjax.typing import Float32Array


def main(rows: int = 16) -> None:
    """Print the differences."""
    mini = load("mini")
    for name, model in {"paper sizes, random": random_model(get_preset("paper")), "mini": mini}.items():
        exact, rounded = (embeddings(one, rows) for one in (model, _half(model)))
        for what, vectors in exact.items():
            error = relative_error(rounded[what], vectors)
            print(f"{name}: {what}: {error:.2%} of the standard deviation")
    flux = smooth_noise(rows, pixel_count(mini.config, "lamost"))
    labels, rounded_labels = (one.predict(flux)["fe_h"] for one in (mini, _half(mini)))
    change = np.sqrt(np.mean((labels - rounded_labels) ** 2))
    print(f"mini: [Fe/H] changes by {change:.4f} dex (standard deviation {labels.std():.2f})")


def embeddings(model: Foundation, rows: int) -> dict[str, Float32Array]:
    """Return the embeddings (rows, d) of smooth noise by name."""
    lamost, xp = (smooth_noise(rows, pixel_count(model.config, survey)) for survey in ("lamost", "gaia_xp"))
    return {
        "LAMOST mean token": model.mean_token(lamost),
        "LAMOST projected": model.embed(lamost),
        "Gaia XP projected": model.embed(xp, "gaia_xp"),
    }


def _half(model: Foundation) -> Foundation:
    return dataclasses.replace(model, dtype="bfloat16")


def relative_error(rounded: Float32Array, exact: Float32Array) -> float:
    """Return rms(rounded - exact) over the standard deviation across spectra, both (n, d)."""
    return float(np.sqrt(np.mean((rounded - exact) ** 2)) / np.sqrt(np.mean(exact.var(axis=0))))


def smooth_noise(rows: int, count: int) -> Float32Array:
    """Draw flux (rows, count) around 1 that is correlated over a few pixels."""
    noise = np.random.default_rng(0).normal(0, 0.15, (rows, count + 4))
    smooth = np.mean([noise[:, shift : shift + count] for shift in range(5)], axis=0)
    return np.asarray(1 + smooth, np.float32)


if __name__ == "__main__":
    main()
