"""Known properties of the targets; the libraries must be in the cache (`specjax fetch stellar-libraries`)."""

import numpy as np
import pytest

from experiments import miles
from specjax.errors import DataError
from specjax.pretrain import corpus
from specjax.services import stellar_libraries

FOLDER = stellar_libraries.stellar_libraries_folder()  # at import, as the tests run with an empty cache
needs_libraries = pytest.mark.skipif(
    not stellar_libraries.have_stellar_libraries(),
    reason=f"no stellar libraries in {FOLDER}: run `specjax fetch stellar-libraries` (121 MB)",
)


def test_the_parts_are_disjoint_and_always_the_same():
    first, again = corpus.miles_parts(785), corpus.miles_parts(785)
    assert [len(part) for part in first] == [495, 164, 126]
    np.testing.assert_array_equal(np.sort(np.concatenate(first)), np.arange(785))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(DataError, match="600 MILES stars are too few"):
        corpus.miles_parts(600)


@needs_libraries
def test_the_targets_have_the_papers_numbers_of_stars():
    observed, degraded = miles.make_targets(FOLDER)
    assert (observed.name, degraded.name) == miles.NAMES
    for target in (observed, degraded):
        assert (len(target.labelled), len(target.unlabelled)) == (495, 164)
    # So that the splits of a seed have the same stars.
    np.testing.assert_array_equal(degraded.labelled.id, observed.labelled.id)
    assert not set(observed.labelled.id) & set(observed.unlabelled.id)
    stars = corpus.read_miles(FOLDER)
    development = set(stars.id[corpus.miles_parts(len(stars)).development].tolist())
    assert not development & set(observed.labelled.id.tolist() + observed.unlabelled.id.tolist())
    np.testing.assert_allclose(miles.star_labels(FOLDER, observed.labelled.id)[:, 2], observed.truth)
