import jax.numpy as jnp
import numpy as np
import pytest

from specjax.pretrain.label_model import LENGTH, NOISE, TREND, LabelModel

pytestmark = pytest.mark.usefixtures("quick_compilation")


def stars(n=300, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


def test_quadratic_spectra_are_predicted():
    """Spectra of The Cannon's form, at labels between those of the stars."""
    labels, new = stars(), 0.7 * stars(50, seed=1)
    shape = np.random.default_rng(2).normal(size=(10, 20))

    def spectra(x):
        squares = np.stack([x[:, i] * x[:, j] for i in range(3) for j in range(i, 3)], axis=1)
        return np.concatenate([np.ones((len(x), 1)), x, squares], axis=1) @ shape

    predicted = np.asarray(LabelModel.fit(labels).weights(jnp.asarray(new))) @ spectra(labels)
    # The trend has a finite variance, which biases towards zero by about NOISE / stars / variance.
    assert np.abs(predicted - spectra(new)).max() < 0.02 * spectra(new).std()


def test_local_features_are_predicted_and_individual_ones_are_not():
    labels = stars(600)
    bump = np.exp(-0.5 * (labels**2).sum(1))
    noise = np.random.default_rng(3).normal(size=len(labels))
    weights = np.asarray(LabelModel.fit(labels).weights(jnp.asarray(labels)))
    inside = (np.abs(labels) < 1).all(axis=1)
    assert np.abs(weights @ bump - bump)[inside].max() < 0.1 * bump.max()
    assert (weights @ noise).std() < 0.5 * noise.std()  # most of it stays with the stars


def test_weights_solve_the_equations():
    """Against NumPy's solution in double precision, with the covariance computed element by element."""
    labels, new = stars(40).astype(np.float64), stars(5, seed=4).astype(np.float64)

    def covariance(a, b):
        return np.array(
            [
                [
                    np.exp(-0.5 * ((x - y) ** 2).sum() / LENGTH**2) + TREND * (1 + x @ y) + (1 + x @ y) ** 2
                    for y in b
                ]
                for x in a
            ]
        )

    expected = np.linalg.solve(covariance(labels, labels) + NOISE * np.eye(40), covariance(labels, new)).T
    found = LabelModel.fit(labels).weights(jnp.asarray(new, jnp.float32))
    # float32 sums over 40 stars of covariances up to a hundred and an inverse up to 1 / NOISE
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_weight_change_is_the_difference_of_the_weights():
    model, before = LabelModel.fit(stars(40)), jnp.asarray(stars(5, seed=4))
    after = before + 0.3 * jnp.asarray(stars(5, seed=5))
    # Rounding of both sets of weights, as above.
    np.testing.assert_allclose(
        model.weight_change(before, after), model.weights(after) - model.weights(before), atol=2e-4
    )
    assert not np.asarray(model.weight_change(before, before)).any()
