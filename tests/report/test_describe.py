import json

import numpy as np

from specjax import cli
from specjax.report.describe import describe_spectra
from specjax.spectra import Spectra

GRID = np.linspace(4000.0, 5600.0, 200)


def test_info_describes_a_file(tmp_path, capsys):
    flux, snr = np.ones((3, 200)), np.array([10.0, 30.0, np.nan])
    flux[0, :100] = np.nan
    flux[2] = np.inf
    ra, dec = np.array([10.0, 350.0, np.nan]), np.array([-5.0, 5.0, 0.0])
    ids = np.array(["a", "b", "b"])
    np.savez(tmp_path / "s.npz", wavelength=GRID / 10, flux=flux, id=ids, snr=snr, ra=ra, dec=dec)
    assert cli.main(["info", str(tmp_path / "s.npz"), "--wavelength-unit", "nm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["spectra"], found["distinct_ids"], found["pixels"]) == (3, 2, 200)
    assert (found["wavelength_min_angstrom"], found["wavelength_max_angstrom"]) == (4000.0, 5600.0)
    np.testing.assert_allclose(found["pixel_width_angstrom"], 1600 / 199, rtol=1e-5)  # six digits
    assert (found["medium"], found["has_ivar"], found["shared_grid"]) == ("vacuum", False, True)
    assert (found["masked_pixels"], found["masked_fraction"], found["wholly_masked_spectra"]) == (300, 0.5, 1)
    assert (found["snr_known"], found["snr_median"], found["snr_range"]) == (2, 20.0, [10.0, 30.0])
    assert (found["positions_known"], found["ra_range_deg"]) == (2, [10.0, 350.0])
    assert found["columns"] == ["dec", "file", "ra", "snr"]
    assert (found["left_out"], found["reasons"]) == (0, [])


def test_info_reports_unusable_records(tmp_path, capsys):
    record = {"sparcl_id": "good", "wavelength": GRID.tolist(), "flux": [1.0] * 200}
    (tmp_path / "s.json").write_text(json.dumps([record, {"sparcl_id": "bad", "flux": [1.0]}]))
    assert cli.main(["info", str(tmp_path / "s.json")]) == 0
    out, _ = capsys.readouterr()
    assert "left_out" in out
    assert "record 1 (bad): it has no wavelength" in out


def test_unknown_values_are_none():
    found = describe_spectra(Spectra.build(GRID, np.ones(200), meta={"ra": ["10:00:00"]}))
    assert (found["snr_known"], found["snr_median"], found["snr_range"], found["ra_range_deg"]) == (
        0,
        None,
        None,
        None,
    )
