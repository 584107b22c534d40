"""The timed calls of specjax run, on a tiny model."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import in_specjax
from tests import synthetic
from tests.models.tiny import TINY

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def _quickly():
    with synthetic.quick_compilation():
        yield


@pytest.fixture(scope="module")
def model():
    return in_specjax.random_model(TINY)


def masked_modelling(model, full=False):
    return in_specjax.MaskedModelling(model, in_specjax.random_tokens(model, 4), full)


def contrastive(model):
    tower, projection = model.config.specformer, model.config.projection
    tokens = RANDOM.normal(size=(6, tower.num_tokens, tower.dim))
    return in_specjax.Contrastive(
        model, jnp.asarray(tokens), jnp.asarray(RANDOM.normal(size=(6, projection.dim)))
    )


def head_run(model):
    features = RANDOM.normal(size=(9, model.config.projection.dim)).astype(np.float32)
    return in_specjax.HeadRun(model, features, RANDOM.normal(size=9).astype(np.float32), 2)


def joint(model):
    labels = RANDOM.normal(size=4).astype(np.float32)
    return in_specjax.Joint(model, in_specjax.random_tokens(model, 4), labels)


@pytest.mark.parametrize("work", [masked_modelling, joint, contrastive, head_run])
def test_work_trains_the_factors_of_all_seeds(model, work):
    result = work(model).call(3)()
    assert len(result.loss) == 3
    chex.assert_tree_all_finite(result.loss)


def test_a_full_step_trains_the_whole_encoder(model):
    result = masked_modelling(model, full=True).call(1)()
    chex.assert_trees_all_equal_structs(
        result.snapshots["lamost"]["backbone"], model.params["lamost"]["backbone"]
    )


def test_the_random_target_can_be_adapted_to(model):
    target = in_specjax.random_target(TINY, labelled=7, unlabelled=5)
    assert model.embed(target.labelled).shape == (7, TINY.projection.dim)
    assert model.embed(target.unlabelled_xp).shape == (5, TINY.projection.dim)
