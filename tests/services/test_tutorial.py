"""Every command of docs/desi-apogee.md, against local substitutes for the archives."""

import json
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import tyro
from astropy.io import fits
from astropy.table import Table

from specjax import cli
from specjax.surveys import read
from specjax.wavelength import GAIA_XP_WAVELENGTH
from tests.services.archive_server import serve, star, uuid

ROOT = Path(__file__).parents[2]
GRID = np.arange(3600.0, 9824.1, 1.6)  # DESI's range, in pixels of twice its size
LABELLED, OTHERS = 120, 170
CONFIGURATIONS = ("zero-shot-mlp2", "lora4")


def commands():
    """The command lines of the fenced blocks, split into words."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/desi-apogee.md").read_text(), re.DOTALL | re.M)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


OURS = [words[1:] for words in commands() if words[0] == "specjax"]


def test_the_tutorial_uses_known_programs():
    assert {words[0] for words in commands()} == {"specjax", "python", "mkdir", "curl"}
    assert [words[0] for words in OURS] == (
        "fetch fetch prepare info label split adapt predict adapt fetch info".split()
    )


def test_everything_installed_and_downloaded_is_used():
    (install,) = [words for words in commands() if words[0] == "python"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.search(r"\[(.*)\]", install[-1])[1].split(",")) <= set(extras)
    (curl,) = [words for words in commands() if words[0] == "curl"]
    made, target = commands()[1][-1], curl[curl.index("-o") + 1]
    assert target == f"{made}/{curl[-1].rpartition('/')[2]}"
    assert sum(target in words for words in OURS) == 2


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_every_command_is_parsed(words):
    tyro.cli(cli.Command, args=words, config=(tyro.conf.FlagCreatePairsOff,))


def spectrum(number, fe_h):
    """A DESI record of a star whose lines get deeper with metallicity."""
    rng = np.random.default_rng(number)
    places = np.random.default_rng(0).uniform(3700, 9700, 300)
    lines = np.exp(-0.5 * ((GRID[:, None] - places) / 2.5) ** 2).sum(axis=1)
    flux = 50.0 * (1.0 - 0.25 * 10 ** (0.3 * fe_h) * np.minimum(lines, 2.0)) * (GRID / 5000.0) ** -1
    flux += rng.normal(0.0, 0.5, GRID.size)
    position = {"ra": 215.0 + 0.01 * number, "dec": 0.5, "redshift": 1e-5}
    return star(number, GRID, flux=np.round(flux, 4).tolist(), **position)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """SPARCL, Gaia, APOGEE's catalogue where curl would put it, and an empty working directory."""
    fe_h = np.random.default_rng(1).uniform(-1.5, 0.4, LABELLED + OTHERS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    rows = {
        "APOGEE_ID": ("18A", [f"2M{number:08d}" for number in range(LABELLED)]),
        "RA": ("D", 215.0 + 0.01 * np.arange(LABELLED) + 1e-5),
        "DEC": ("D", np.full(LABELLED, 0.5)),
        "SNR": ("E", np.full(LABELLED, 120.0)),
        "STARFLAG": ("K", np.zeros(LABELLED)),
        "ASPCAPFLAG": ("K", np.zeros(LABELLED)),
        "TEFF": ("E", np.full(LABELLED, 5000.0)),
        "LOGG": ("E", np.full(LABELLED, 4.5)),
        "FE_H": ("E", fe_h[:LABELLED]),
        "GAIAEDR3_SOURCE_ID": ("K", 4408087461749558912 + np.arange(LABELLED)),
    }
    columns = [fits.Column(name, form, array=values) for name, (form, values) in rows.items()]
    fits.BinTableHDU.from_columns(columns).writeto("data/allStar-dr17-synspec_rev1.fits")

    def calibrate(ids, sampling, save_file):
        flux = [1e-16 * (1 + np.arange(343) / 343) for _ in ids]
        return {"source_id": ids, "flux": flux, "flux_error": [np.full(343, 1e-18)] * len(ids)}, sampling

    monkeypatch.setitem(sys.modules, "gaiaxpy", types.ModuleType("gaiaxpy"))
    sys.modules["gaiaxpy"].calibrate = calibrate
    with serve(
        [spectrum(number, fe_h[number]) for number in range(LABELLED + OTHERS)], monkeypatch
    ) as server:
        yield server


@pytest.mark.slow  # minutes: two adaptations of the shipped model
def test_the_tutorial_adapts_a_model(world, capsys):
    for words in OURS:
        assert cli.main(words) == 0, f"{words}: {capsys.readouterr().err}"
    assert not re.search(r"(?<![\d.])429", capsys.readouterr().err)  # the status, not digits of a loss

    apogee = read("data/apogee/spectra.h5")
    assert apogee.id.tolist() == [uuid(number) for number in range(LABELLED)]
    assert len(read("data/others/spectra.h5")) == LABELLED + OTHERS
    assert len(read("data/desi.h5")) == LABELLED + OTHERS  # each star once
    rows = json.loads(Path("runs/desi/table.json").read_text())
    assert {row["configuration"] for row in rows} == set(CONFIGURATIONS)
    for name in ("predictions.ecsv", "predictions_desi.png", "sigma.png"):
        assert Path("runs/desi", name).stat().st_size > 0
    labels = Table.read("data/fe_h.fits")
    truth = Table.read("data/labels.ecsv")
    assert labels["id"].tolist() == truth["id"].tolist()
    assert np.isfinite(labels["fe_h"]).all()
    # The model has not seen such stars, so that adaptation removes at least the bias.
    zero, adapted = (next(row for row in rows if row["configuration"] == name) for name in CONFIGURATIONS)
    assert zero["subset"] == adapted["subset"] == "all"
    assert adapted["r2"] > zero["r2"] + 0.5
    xp = read("data/xp/spectra.h5")
    np.testing.assert_array_equal(xp.wavelength, GAIA_XP_WAVELENGTH)
    assert sorted(xp.id.tolist()) == sorted(apogee.id.tolist())
