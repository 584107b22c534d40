"""Prepared files in place of raw ones, up to the input of the model."""

from unittest.mock import Mock

import numpy as np
import pytest

from specjax.adapt import predict as predict_module
from specjax.adapt import survey
from specjax.errors import ConfigError, DataError
from specjax.prepare import Options, prepare_spectra
from specjax.preprocess import to_lamost
from specjax.spectra import Spectra
from specjax.surveys import read
from tests.prepare.stars import WIDE, write_star, write_stars

CONFIG = {"configuration": "lora4", "label": "fe_h", "seeds": 1, "sigma": 0.1}


@pytest.fixture
def folder(tmp_path):
    return write_stars(tmp_path / "raw", 5)


def prepare(folder, out, **options):
    prepare_spectra([folder], out, options=Options(**options), workers=1, say=lambda line: None)
    return read(out)


def predict(monkeypatch, spectra, **config):
    """Return the input of the model, and the table of predictions."""
    seen = []

    def predict_label(model, heads, adapters, spectra, label, base):
        seen.append((spectra.flux, spectra.ivar, spectra.mask))
        return spectra.flux.mean(axis=1)[None]

    monkeypatch.setattr(predict_module, "predict_label", predict_label)
    model = Mock(out_of_domain=Mock(return_value=None))  # it does not know its training domain
    columns = predict_module.predict(model, spectra, {}, {**CONFIG, **config})
    return [np.concatenate(parts) for parts in zip(*seen, strict=True)], columns


def test_prepared_and_raw_spectra_give_the_model_the_same_pixels(folder, tmp_path, monkeypatch):
    raw = Spectra.concatenate([read(file) for file in sorted(folder.iterdir())])
    prepared = prepare(folder, tmp_path / "p.h5", fwhm_from=8.0)
    how = {"preparation": to_lamost(raw, fwhm=8.0).prepared, "fwhm": 8.0}
    monkeypatch.setattr(predict_module, "_ROWS_AT_ONCE", 2)
    (flux, ivar, mask), columns = predict(monkeypatch, prepared, **how)
    (flux_raw, ivar_raw, mask_raw), columns_raw = predict(monkeypatch, raw, **how)
    np.testing.assert_allclose(flux, flux_raw, rtol=1e-6)  # float32 in the file
    np.testing.assert_allclose(ivar, ivar_raw, rtol=1e-6)
    np.testing.assert_array_equal(mask, mask_raw)
    assert columns["id"].tolist() == columns_raw["id"].tolist()


def test_spectra_prepared_unlike_the_adapters_are_refused(folder, tmp_path, monkeypatch):
    plain, smoothed = prepare(folder, tmp_path / "p.h5"), prepare(folder, tmp_path / "s.h5", fwhm_from=8.0)
    for spectra, other in ((plain, smoothed), (smoothed, plain)):
        with pytest.raises(ConfigError, match="prepared with fwhm"):
            predict(monkeypatch, spectra, preparation=dict(other.prepared))
        predict(monkeypatch, spectra, preparation=dict(spectra.prepared))


def test_the_target_records_the_preparation_of_its_spectra(tmp_path, monkeypatch):
    stars = 11  # ten to train on and one to test
    prepare(write_stars(tmp_path / "raw", stars), tmp_path / "p.h5", fwhm_from=8.0, fwhm_to=9.0)
    rows = "".join(f"star {k},{-0.1 * k}\n" for k in range(stars))
    (tmp_path / "labels.csv").write_text("id,fe_h\n" + rows)
    targets = []
    monkeypatch.setattr(survey, "run_study", lambda model, given, *more, **options: targets.extend(given))
    survey.adapt_survey(
        model="mini",
        spectra=tmp_path / "p.h5",
        labels=tmp_path / "labels.csv",
        out=tmp_path / "run",
        say=lambda line: None,
    )
    assert targets[0].preparation["fwhm_to"] == 9.0
    assert len(targets[0].labelled) == stars


def test_the_xp_side_is_read_from_the_prepared_file(folder, tmp_path):
    write_star(folder, 7, WIDE)
    prepared = prepare(folder, tmp_path / "p.h5", fwhm_from=4.0)
    side = survey._xp_side(prepared, tmp_path / "p.h5", None, None)
    assert side.id.tolist() == prepared.id.tolist()
    assert side.mask.all(axis=1).tolist() == [True, True, True, True, True, False]
    given = survey._xp_side(prepared[3:], tmp_path / "q.h5", tmp_path / "p.h5", None)
    np.testing.assert_array_equal(given.mask, side.mask[3:])
    plain = prepare(folder, tmp_path / "plain.h5")
    with pytest.raises(DataError, match="cannot be made gaia_xp input"):
        survey._xp_side(plain, tmp_path / "plain.h5", None, 4.0)
