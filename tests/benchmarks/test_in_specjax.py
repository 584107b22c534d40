"""The timed calls of specjax run, on a tiny model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import in_specjax
from tests.models.tiny import TINY

pytestmark = pytest.mark.usefixtures("quick_compilation")

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    return in_specjax.random_model(TINY)


def masked_modelling(model):
    return in_specjax.masked_modelling(model, in_specjax.random_tokens(model, 4), 3)


def contrastive(model):
    tower, projection = model.config.specformer, model.config.projection
    tokens = RANDOM.normal(size=(6, tower.num_tokens, tower.dim))
    return in_specjax.contrastive(model, tokens, RANDOM.normal(size=(6, projection.dim)))


def head_run(model):
    features = RANDOM.normal(size=(9, model.config.projection.dim)).astype(np.float32)
    return in_specjax.head_run(model, features, RANDOM.normal(size=9).astype(np.float32), 2)


def joint(model):
    labels = RANDOM.normal(size=4).astype(np.float32)
    return in_specjax.joint(model, in_specjax.random_tokens(model, 4), labels)


@pytest.mark.parametrize("work", [masked_modelling, joint, contrastive, head_run])
def test_work_trains_the_factors_of_all_seeds(model, work):
    training = work(model)
    result = training.call(3)()
    assert len(result.loss) == 3
    chex.assert_tree_all_finite(result.loss)
    # Factors of a seed do not depend on the number of seeds, up to the rounding of other vector widths.
    fewer = jax.tree.map(lambda leaf: leaf[:2], training.start(3))
    chex.assert_trees_all_close(fewer, training.start(2), atol=1e-7)


def test_a_full_step_trains_the_whole_encoder(model):
    result = in_specjax.full_step(model, in_specjax.random_tokens(model, 4)).call(1)()
    chex.assert_trees_all_equal_structs(
        result.snapshots["lamost"]["backbone"], model.params["lamost"]["backbone"]
    )


def test_the_random_target_can_be_adapted_to(model):
    target = in_specjax.random_target(TINY, labelled=7, unlabelled=5)
    assert model.embed(target.labelled).shape == (7, TINY.projection.dim)
    assert model.embed(target.unlabelled_xp).shape == (5, TINY.projection.dim)


def test_hidden_tokens_are_those_of_the_loss(model):
    """The loss of the drawn rows and hidden tokens is that of the training with the same key."""
    tokens, key = in_specjax.random_tokens(model, 4), jax.random.key(3)
    training = in_specjax.masked_modelling(model, tokens)
    start = training.start(1)
    rows, hidden = in_specjax.drawn_and_hidden(TINY, key, 4)
    everything_else = jnp.where(hidden[..., None], 1e3, tokens[rows])
    # Factors B are zero, so that the loss is that of the base model.
    predicted = in_specjax.apply(
        in_specjax.SpecCLIP(TINY),
        {"params": training.adapted},
        jnp.where(hidden[..., None], 0, everything_else),
        method=lambda model, x: model.lamost.backbone.predict_tokens(x),
    )
    expected = in_specjax.losses.masked_modelling(predicted, tokens[rows], hidden)
    # float32, with another order of the sums.
    np.testing.assert_allclose(training.loss_and_gradients(start, key)[0], [expected], rtol=1e-5)
