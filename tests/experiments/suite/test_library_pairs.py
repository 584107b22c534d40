"""Known properties of the pairs and surveys; the libraries must be in the cache, as for tests of STELIB."""

import dataclasses

import numpy as np
import pytest

from experiments.suite import raw, retrieval, shifts
from experiments.suite.pair_targets import TWO_TELESCOPES, load_pairs
from specjax.catalogues.star_names import common_stars
from specjax.errors import ConfigError
from specjax.services import stellar_libraries

FOLDER = stellar_libraries.stellar_libraries_folder()  # at import, as the tests run with an empty cache
pytestmark = pytest.mark.skipif(
    not stellar_libraries.have_stellar_libraries(),
    reason=f"no stellar libraries in {FOLDER}: run `specjax fetch stellar-libraries` (121 MB)",
)


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    for module in ("raw", "pair_targets"):
        monkeypatch.setattr(f"experiments.suite.{module}.fetch_stellar_libraries", lambda: FOLDER)


def test_pairs_from_two_telescopes_share_no_star_between_training_and_test():
    config = dataclasses.replace(retrieval.get_config(), targets=(TWO_TELESCOPES,))
    (pairs,) = load_pairs(config)
    assert len(pairs.test) == 94
    names = pairs.lamost.meta["name"].astype(str)
    trained = names[np.concatenate([pairs.train, pairs.validate])]
    assert not common_stars(trained, names[pairs.test])
    # Both sides are of one star: blue stars have a large share of their flux at 400 nm.
    blue = pairs.xp.flux[pairs.test, 40] / pairs.xp.flux[pairs.test, 200]
    teff = pairs.lamost.meta["teff"][pairs.test]
    assert np.corrcoef(blue, teff)[0, 1] > 0.9


def test_the_survey_before_preprocessing_is_the_target():
    (survey,) = raw.load_raw(shifts.get_config())
    target = survey.target("miles", survey.spectra)
    assert (len(target.labelled), len(target.unlabelled)) == (495, 164)
    with pytest.raises(ConfigError, match="miles-grism is degraded already: use miles"):
        raw.load_raw(dataclasses.replace(shifts.get_config(), targets=("miles-grism",)))
