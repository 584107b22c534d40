import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.pretrain.probes import hidden_pixels, linear_head
from tests.models.tiny import TINY, random_system

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_linear_head_finds_a_linear_relation_and_is_scored_on_other_stars():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6))
    y = 3 + x @ np.arange(6)
    truth, predicted = linear_head(x, y)
    np.testing.assert_array_equal(truth, y[1::2])
    np.testing.assert_allclose(
        predicted, truth, atol=0.1
    )  # a ridge of a thousandth of labels that scatter by 7
    y[1::2] = rng.normal(size=200)  # the stars that it is scored on do not enter
    np.testing.assert_array_equal(linear_head(x, y)[1], predicted)


@pytest.mark.parametrize("width", [1, 3])
def test_hidden_pixels_are_in_no_visible_token_and_do_not_enter_the_prediction(width):
    shape = dataclasses.replace(TINY.specformer, mask_chunks=2, mask_width=width)
    backbone = jax.tree.map(jnp.asarray, random_system()["params"]["lamost"]["backbone"])
    flux = jnp.asarray(np.random.default_rng(1).normal(1, 0.1, (3, shape.num_pixels)), jnp.float32)
    predicted, hidden = hidden_pixels(shape, backbone, flux)
    assert predicted.shape == hidden.shape == flux.shape
    assert hidden.any(axis=1).all()
    assert not hidden.all()
    # Hidden values in reverse have the same mean and standard deviation.
    other = np.array(flux)
    for row, gone in zip(other, hidden, strict=True):
        row[gone] = row[gone][::-1]
    assert not np.array_equal(other, flux)
    again, _ = hidden_pixels(shape, backbone, jnp.asarray(other))
    np.testing.assert_allclose(again, predicted, atol=1e-4)  # float32 sums in another order
