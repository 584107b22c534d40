import dataclasses

import numpy as np
import pytest

from experiments.joint_labels import adapted_jointly
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import Configuration
from specjax.adapt.splits import draw_splits
from tests import synthetic

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPLITS = draw_splits(40, seeds=2, train=20, validate=4)
CONFIG = dataclasses.replace(synthetic.ADAPT, seeds=2, folds=2)
LORA2 = Configuration.parse("lora2")
BOTH = ("teff", "fe_h")


def jointly(labels, truth=None, splits=SPLITS, config=CONFIG):
    model = synthetic.foundation()
    values = synthetic.labels(40, seed=5) if truth is None else truth
    columns = [BOTH.index(name) for name in labels]
    features = model.features(synthetic.target().labelled, "mlp1")
    return adapted_jointly(model, LORA2, features, values[:, columns], labels, splits, config)


@pytest.fixture(scope="module")
def together():
    return jointly(BOTH)


def test_one_label_is_what_specjax_adapt_makes_of_it():
    alone = Adaptation(synthetic.foundation(), synthetic.target(), SPLITS, CONFIG).run(LORA2)
    # The same arithmetic in programs of another shape, in labels of order 1.
    np.testing.assert_allclose(jointly(("fe_h",))[..., 0], alone.predictions, rtol=1e-3, atol=2e-3)


def test_all_labels_improve(together):
    truth = synthetic.labels(40, seed=5)
    features = synthetic.foundation().predict(synthetic.target().labelled, "mlp1")
    for column, name in enumerate(BOTH):
        for seed, test in enumerate(SPLITS.test):
            after = ((together[seed, test, column] - truth[test, column]) ** 2).mean()
            before = ((features[name][test] - truth[test, column]) ** 2).mean()
            assert after < 0.8 * before, name


def test_labels_of_test_stars_are_never_used(together):
    truth = synthetic.labels(40, seed=5)
    truth[SPLITS.test[0]] = np.nan
    np.testing.assert_array_equal(jointly(BOTH, truth)[0], together[0])


@pytest.mark.slow
def test_the_order_of_labels_does_not_matter(together):
    swapped = jointly(BOTH[::-1])
    np.testing.assert_allclose(swapped[..., ::-1], together, rtol=1e-4, atol=2e-3)
