"""What bfloat16 does to the numbers: `python -m benchmarks.precision`.

Prints for each tower the root mean square difference from float32, as a fraction of the spread of the numbers
over spectra, and how far a label of the shipped model moves by it. Spectra are smooth noise of a few percent.
"""

import dataclasses

import numpy as np

from benchmarks.in_specjax import random_model
from specjax.config import get_preset
from specjax.foundation import Foundation, load


def main(rows: int = 16) -> None:
    """Print the differences."""
    for name, model in {
        "paper sizes, random": random_model(get_preset("paper")),
        "mini": load("mini"),
    }.items():
        half = dataclasses.replace(model, dtype="bfloat16")
        flux = {survey: smooth_noise(rows, pixels(model, survey)) for survey in ("lamost", "gaia_xp")}
        for what, run in {
            "LAMOST mean token": lambda m: m.mean_token(flux["lamost"]),  # noqa: B023
            "LAMOST projected": lambda m: m.embed(flux["lamost"]),  # noqa: B023
            "Gaia XP projected": lambda m: m.embed(flux["gaia_xp"], "gaia_xp"),  # noqa: B023
        }.items():
            print(f"{name}: {what}: {relative_error(run(half), run(model)):.2%} of the spread")
    exact, close = (m.predict(flux["lamost"])["fe_h"] for m in (model, half))
    print(
        f"mini: [Fe/H] moves by {np.sqrt(np.mean((exact - close) ** 2)):.4f} dex (spread {exact.std():.2f})"
    )


def relative_error(close: np.ndarray, exact: np.ndarray) -> float:
    """Return rms(close - exact) over the spread of each number across spectra, both (n, d)."""
    return float(np.sqrt(np.mean((close - exact) ** 2)) / np.sqrt(np.mean(exact.var(axis=0))))


def smooth_noise(rows: int, count: int) -> np.ndarray:
    """Draw flux (rows, count) around 1 with structure of a few pixels."""
    noise = np.random.default_rng(0).normal(0, 0.15, (rows, count + 4))
    smooth = np.mean([noise[:, shift : shift + count] for shift in range(5)], axis=0)
    return np.asarray(1 + smooth, np.float32)


def pixels(model: Foundation, survey: str) -> int:
    """Return the number of pixels of a survey's grid."""
    config = model.config
    return config.specformer.num_pixels if survey == "lamost" else config.xp_autoencoder.num_pixels


if __name__ == "__main__":
    main()
