"""The commands that lead from spectra and a catalogue to the table that `specjax adapt` takes."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from specjax import cli
from specjax.adapt.roles import read_roles
from specjax.catalogues.labels import read_labels

STARS = 60
GRID = np.arange(3750.0, 5750.0, 4.0)


@pytest.fixture
def survey(tmp_path):
    """Sixty spectra; the first forty are in APOGEE, the last of which fails a cut."""
    ra = 10.0 + np.arange(STARS)
    ids = np.array([f"spectrum {k}" for k in range(STARS)])
    zero, snr = np.zeros(STARS), np.full(STARS, 60.0)
    flux = np.tile(1 + 0.1 * np.sin(GRID / 5), (STARS, 1))
    np.savez(tmp_path / "survey.npz", wavelength=GRID, flux=flux, id=ids, ra=ra, dec=zero, snr=snr)
    rows = {
        "APOGEE_ID": ("18A", [f"2M{k:02d}" for k in range(40)]),
        "RA": ("D", ra[:40]), "DEC": ("D", zero[:40]),
        "SNR": ("E", [100.0] * 40), "STARFLAG": ("K", [0] * 39 + [4]), "ASPCAPFLAG": ("K", [0] * 40),
        "TEFF": ("E", [5000.0] * 40), "LOGG": ("E", [4.0] * 40), "FE_H": ("E", np.linspace(-1, 0.4, 40)),
    }  # fmt: skip
    columns = [fits.Column(name, form, array=values) for name, (form, values) in rows.items()]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "allStar.fits")
    Table({"star": ids[:30], "met": np.linspace(-1, 0.4, 30), "flag": [1] + [0] * 29}).write(
        tmp_path / "own.csv"
    )
    return tmp_path


def run(capsys, line):
    assert cli.main(line) == 0
    return capsys.readouterr()


def test_apogee_labels_lead_to_splits(survey, capsys):
    out, err = run(
        capsys,
        f"label {survey}/survey.npz --catalogue {survey}/allStar.fits --out {survey}/labels.ecsv".split(),
    )
    assert out == f"{survey}/labels.ecsv\n"
    assert "39 of 40 rows kept (left out: 1 starflag)" in err
    assert "39 of 60 spectra have a label, 0 of them are flagged; 0 more" in err
    line = f"split {survey}/labels.ecsv --train 20 --validate 4 --unlabelled 10 --seeds 3 --stratify fe_h -o"
    _, err = run(capsys, [*line.split(), f"{survey}/stars.fits"])
    assert err == "3 splits: 20 training, 4 validation and 15 test stars, 10 unlabelled spectra\n"
    roles = read_roles(survey / "stars.fits")
    labels = read_labels(survey / "stars.fits", ["fe_h", "teff"])
    assert roles.id.tolist() == labels["id"].tolist()
    assert np.isfinite(labels["fe_h"][roles.labelled(roles.id)]).all()
    assert roles.labelled(roles.id).sum() == 39


def test_a_users_table_is_matched_by_id(survey, capsys):
    line = f"label {survey}/survey.npz --catalogue {survey}/own.csv --columns id=star,fe_h=met --on id"
    _, err = run(capsys, [*line.split(), "--where", "flag == 0", "-o", f"{survey}/labels.csv"])
    assert "29 of 30 rows kept (left out: 1 flag == 0)" in err
    table = read_labels(survey / "labels.csv", ["fe_h"])
    assert np.isfinite(table["fe_h"]).sum() == 29


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("label {0}/survey.npz --catalogue {0}/own.csv --out {0}/l.ecsv", "own.csv is not an APOGEE allStar"),
        (
            "label {0}/survey.npz --catalogue {0}/allStar.fits --where a==1 --out {0}/l.ecsv",
            "allStar has cuts",
        ),
        ("label {0}/survey.npz --catalogue {0}/allStar.fits --out {0}/l.xyz", "the suffix must be"),
        ("label {0}/none --catalogue {0}/allStar.fits --out {0}/l.ecsv", "does not exist"),
        ("split {0}/own.csv --out {0}/l.ecsv", "no column id, fe_h"),
        ("split {0}/none.csv --out {0}/l.ecsv", "none.csv does not exist"),
    ],
)
def test_a_users_error_is_one_line_and_leaves_no_file(survey, capsys, line, message):
    before = sorted(survey.iterdir())
    assert cli.main(line.format(survey).split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert sorted(survey.iterdir()) == before
