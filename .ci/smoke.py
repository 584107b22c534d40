"""What an installed specjax must do outside its checkout: run with the Python that it was installed into."""

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

import specjax


def run(*words: str) -> str:
    """Run the command `specjax` of this environment and return what it prints."""
    program = Path(sys.prefix) / "bin" / "specjax"
    return subprocess.run([program, *words], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Check the version, the models that ship, and a prediction."""
    assert Path(specjax.__file__).is_relative_to(sys.prefix), f"{specjax.__file__} is not the installed one"
    assert metadata.version("specjax") == specjax.__version__ == run("--version").strip()
    assert json.loads(run("info", "--model", "mini", "--json"))["labels"] == ["teff", "logg", "fe_h"]
    model = specjax.load("mini")
    assert model.embed(np.ones((2, 1462), np.float32)).shape == (2, 128)
    with tempfile.TemporaryDirectory() as folder:
        spectra, out = Path(folder) / "spectra.npz", Path(folder) / "labels.csv"
        wavelength = np.linspace(3700.0, 5700.0, 2500)
        flux = 1 - 0.5 * np.exp(-0.5 * ((wavelength - 4861.0) / 5.0) ** 2) + np.zeros((3, 1))
        np.savez(spectra, wavelength=wavelength, flux=flux)
        run("predict", str(spectra), "-o", str(out), "--workers", "1")
        assert len(out.read_text().splitlines()) > 3
    print(f"specjax {specjax.__version__} in {sys.prefix} works")


if __name__ == "__main__":
    main()
