import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.config import SpecFormerConfig
from specjax.train import losses

pytestmark = pytest.mark.usefixtures("quick_compilation")

PAPER = SpecFormerConfig()


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class TestChunkMask:
    def test_hides_six_chunks_of_ten_as_published(self):
        hidden = np.asarray(losses.chunk_mask(jax.random.key(0), 2000, PAPER))
        assert hidden.shape == (2000, 146)
        assert hidden.dtype == bool
        # first = 0, 24, 48, 73, 97, 121 and randint(0, 14) is at most 13: chunks never touch
        assert (hidden.sum(1) == 60).all()
        starts = np.flatnonzero(np.diff(np.pad(hidden, ((0, 0), (1, 0))).astype(int), axis=1) == 1)
        offset = (starts % 146).reshape(2000, 6) - np.arange(6) * 146 // 6
        for chunk in offset.T:
            assert sorted(set(chunk.tolist())) == list(range(14))  # the chance to miss one of the 14 is 1e-64

    def test_starts_are_uniform_and_independent_between_chunks_and_rows(self):
        hidden = np.asarray(losses.chunk_mask(jax.random.key(1), 4000, PAPER))
        offset = np.stack([hidden[:, c * 146 // 6 :].argmax(1) for c in range(6)], axis=1)
        # A uniform draw from 0..13 has mean 6.5 and sigma 4.03: the mean of 4000 scatters by 0.064.
        np.testing.assert_allclose(offset.mean(0), 6.5, atol=5 * 0.064)
        correlation = np.corrcoef(offset.T) - np.eye(6)
        assert np.abs(correlation).max() < 5 / np.sqrt(4000)

    def test_depends_on_the_key_alone(self):
        first, again, other = (losses.chunk_mask(jax.random.key(k), 5, PAPER) for k in (3, 3, 4))
        np.testing.assert_array_equal(first, again)
        assert (np.asarray(first) != np.asarray(other)).any()

    def test_chunks_of_other_shapes_stay_inside_the_spectrum(self):
        config = SpecFormerConfig(num_pixels=41, window=6, stride=3, mask_chunks=3, mask_width=2)
        hidden = np.asarray(losses.chunk_mask(jax.random.key(0), 500, config))
        assert hidden.shape == (500, 13)
        assert (hidden.sum(1) == 6).all()

    def test_under_jit_and_vmap(self):
        keys = jax.random.split(jax.random.key(0), 3)
        together = jax.jit(jax.vmap(lambda key: losses.chunk_mask(key, 4, PAPER)))(keys)
        for key, one in zip(keys, together, strict=True):
            np.testing.assert_array_equal(losses.chunk_mask(key, 4, PAPER), one)


class TestMaskedModelling:
    def test_equals_the_published_form_and_the_mean_over_hidden_tokens(self):
        predicted, tokens = normal(4, 146, 21), normal(4, 146, 21, seed=1)
        hidden = np.asarray(losses.chunk_mask(jax.random.key(0), 4, PAPER))
        squared = (np.asarray(predicted, np.float64) - np.asarray(tokens)) ** 2
        mask = np.broadcast_to(hidden[..., None], squared.shape).astype(float)
        published = (squared * mask).mean() / mask.mean()
        value = losses.masked_modelling(predicted, tokens, jnp.asarray(hidden))
        np.testing.assert_allclose(value, published, rtol=1e-5)  # float32 sum of 12,000 squares
        np.testing.assert_allclose(published, squared[hidden].mean(), rtol=1e-12)

    def test_visible_tokens_do_not_enter_the_loss(self):
        predicted, tokens = normal(2, 13, 7), normal(2, 13, 7, seed=1)
        hidden = jnp.zeros((2, 13), bool).at[:, 4:7].set(True)
        value, gradient = jax.value_and_grad(losses.masked_modelling)(predicted, tokens, hidden)
        changed = jnp.where(hidden[..., None], predicted, 1e3)
        assert losses.masked_modelling(changed, tokens, hidden) == value
        assert not np.asarray(gradient)[~np.asarray(hidden)].any()
        assert np.asarray(gradient)[np.asarray(hidden)].all()

    def test_the_loss_is_zero_if_nothing_is_hidden(self):
        value, gradient = jax.value_and_grad(losses.masked_modelling)(
            normal(2, 13, 7), normal(2, 13, 7, seed=1), jnp.zeros((2, 13), bool)
        )
        assert value == 0
        assert not np.asarray(gradient).any()

    def test_shapes_must_agree(self):
        with pytest.raises(AssertionError):
            losses.masked_modelling(normal(2, 13, 7), normal(2, 13, 6), jnp.ones((2, 13), bool))
        with pytest.raises(AssertionError):  # would otherwise be broadcast over the spectra
            losses.masked_modelling(normal(2, 13, 7), normal(2, 13, 7), jnp.ones((1, 13), bool))


class TestContrastive:
    def test_is_the_symmetric_cross_entropy(self):
        """Against the formula in float64 NumPy, with logits 15.5 cos."""
        a, b = normal(7, 5), normal(7, 5, seed=1)
        x, y = (np.asarray(z, np.float64) for z in (a, b))
        x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
        logits = 15.5 * x @ y.T
        rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
        columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
        expected = (rows.mean() + columns.mean()) / 2
        np.testing.assert_allclose(losses.contrastive(a, b), expected, rtol=1e-5)  # float32

    def test_known_values(self):
        # Orthogonal pairs: each row is softmax of (15.5, 0, 0, 0).
        expected = np.log1p(3 * np.exp(-15.5))
        # log_softmax subtracts two numbers near 15.5 in float32: 1e-6
        np.testing.assert_allclose(losses.contrastive(jnp.eye(4), 3 * jnp.eye(4)), expected, atol=2e-6)
        np.testing.assert_allclose(
            losses.contrastive(jnp.ones((4, 3)), jnp.ones((4, 3))), np.log(4), rtol=1e-6
        )
        assert losses.contrastive(normal(1, 5), normal(1, 5, seed=1)) == 0  # nothing to confuse it with

    def test_symmetric_and_invariant_to_scale_and_common_permutation(self):
        a, b = normal(6, 5), normal(6, 5, seed=1)
        value = losses.contrastive(a, b)
        order = np.random.default_rng(0).permutation(6)
        scales = jnp.asarray(np.random.default_rng(1).uniform(0.1, 10, (6, 1)), jnp.float32)
        close = {"rtol": 1e-5}  # float32, summed in another order
        np.testing.assert_allclose(losses.contrastive(b, a), value, **close)
        np.testing.assert_allclose(losses.contrastive(a[order], b[order]), value, **close)
        np.testing.assert_allclose(losses.contrastive(a * scales, b / scales), value, **close)
        assert abs(losses.contrastive(a[order], b) - value) > 0.01  # other pairs, another loss

    def test_rows_of_different_kinds_are_not_matched(self):
        """The loss is then that of each kind alone, weighted by its rows."""
        a, b = normal(6, 5), normal(6, 5, seed=1)
        kind = jnp.asarray([0, 1, 0, 0, 1, 1]) > 0
        parts = [
            losses.contrastive(a[rows], b[rows]) for rows in (np.flatnonzero(kind), np.flatnonzero(~kind))
        ]
        value, gradient = jax.value_and_grad(losses.contrastive)(a, b, kind)
        np.testing.assert_allclose(value, np.mean(parts), rtol=1e-5)  # float32
        chex.assert_tree_all_finite(gradient)

    def test_features_below_the_minimum_norm_are_not_normalised(self):
        a, tiny = normal(3, 5), 1e-4 * jnp.eye(3, 5)
        logits = 15.5 * np.asarray(a / jnp.linalg.norm(a, axis=1, keepdims=True)) @ (np.eye(3, 5) * 0.1).T
        expected = -0.5 * sum(np.mean(np.diag(logits) - np.log(np.exp(logits).sum(k))) for k in (0, 1))
        np.testing.assert_allclose(losses.contrastive(a, tiny), expected, rtol=1e-5)  # float32

    def test_a_zero_feature_has_a_finite_gradient(self):
        a = normal(4, 5).at[1].set(0)
        value, gradient = jax.value_and_grad(losses.contrastive)(a, normal(4, 5, seed=1))
        chex.assert_tree_all_finite(value)
        chex.assert_tree_all_finite(gradient)

    def test_gradient_descent_aligns_pairs(self):
        a, b = normal(6, 5), normal(6, 5, seed=1)
        step = jax.jit(jax.value_and_grad(losses.contrastive))
        for _ in range(100):
            b = b - 0.3 * step(b, a)[1]
        assert step(b, a)[0] < 0.05


class TestL1:
    def test_is_the_mean_over_valid_pixels(self):
        predicted, target = normal(3, 9), normal(3, 9, seed=1)
        valid = np.random.default_rng(2).random((3, 9)) < 0.6
        expected = np.abs(np.asarray(predicted) - np.asarray(target))[valid].mean()
        np.testing.assert_allclose(losses.l1(predicted, target, jnp.asarray(valid)), expected, rtol=1e-6)
        assert losses.l1(predicted, predicted, jnp.asarray(valid)) == 0
        assert losses.l1(predicted, target, jnp.zeros((3, 9), bool)) == 0

    def test_invalid_pixels_may_hold_any_value(self):
        predicted, target = normal(3, 9), normal(3, 9, seed=1)
        valid = jnp.asarray(np.random.default_rng(2).random((3, 9)) < 0.6)
        value, gradient = jax.value_and_grad(losses.l1)(predicted, target, valid)
        for bad in (jnp.nan, jnp.inf):
            holed = jnp.where(valid, target, bad)
            assert losses.l1(predicted, holed, valid) == value
            np.testing.assert_array_equal(jax.grad(losses.l1)(predicted, holed, valid), gradient)


class TestPseudoHuber:
    def test_limits(self):
        for delta in (0.1, 0.3, 1.0):
            small, large = 0.02 * delta, 1e3 * delta
            # The neglected term is (r/delta)^2/8; sqrt(1 + 4e-4) - 1 in float32 is accurate to 6e-4.
            value = losses.pseudo_huber(jnp.full(1, small), delta)
            np.testing.assert_allclose(value, small**2 / 2, rtol=1e-3)
            value = losses.pseudo_huber(jnp.full(1, large), delta)
            np.testing.assert_allclose(value, delta * (large - delta), rtol=1e-5)
        assert losses.pseudo_huber(jnp.zeros(1)) == 0

    def test_even_and_with_bounded_gradient(self):
        residual = jnp.linspace(-50, 50, 101)
        total = lambda r: losses.pseudo_huber(r).sum()  # noqa: E731
        np.testing.assert_allclose(total(residual), total(-residual), rtol=1e-6)  # float32 sum
        gradient = np.asarray(jax.grad(total)(residual))
        assert (np.diff(gradient) > -1e-6).all()  # convex, to float32 rounding of 0.3
        assert np.abs(gradient).max() <= 0.3 + 1e-6

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_numpy_arrays_keep_their_kind_and_dtype(self, dtype):
        residual = np.random.default_rng(0).normal(size=(3, 4)).astype(dtype)
        value = losses.pseudo_huber(residual)
        assert isinstance(value, np.ndarray)
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, 0.3**2 * (np.sqrt(1 + (residual / 0.3) ** 2) - 1))

    def test_under_jit_and_vmap(self):
        residual = normal(3, 4)
        together = jax.jit(jax.vmap(losses.pseudo_huber))(residual)
        # Compiled and eager float32 may round differently; sqrt(1 + x) - 1 loses digits.
        np.testing.assert_allclose(together, losses.pseudo_huber(np.asarray(residual)), rtol=1e-5, atol=1e-7)


class TestPseudoHuberLoss:
    def test_equal_weights_give_the_mean(self):
        residual = normal(5, 2)
        expected = losses.pseudo_huber(residual).mean()
        np.testing.assert_allclose(losses.pseudo_huber_loss(residual, jnp.ones((5, 2))), expected, rtol=1e-6)
        labels = normal(5, 2, seed=1)
        expected = losses.pseudo_huber(residual - labels).mean()
        np.testing.assert_allclose(losses.label_loss(residual, labels), expected, rtol=1e-6)  # float32 sums

    def test_stars_of_weight_zero_do_not_count(self):
        predicted, labels = normal(3, 5, 2), normal(3, 5, 2, seed=1)
        weight = jnp.asarray([1.0, 0.0, 1.0, 1.0, 0.0])
        expected = losses.label_loss(predicted[:, [0, 2, 3]], labels[:, [0, 2, 3]])
        np.testing.assert_allclose(losses.label_loss(predicted, labels, weight), expected, rtol=1e-6)

    def test_weights(self):
        residual = normal(6)
        weight = jnp.asarray([1.0, 2.0, 0.0, 1.0, 0.0, 0.5])
        expected = np.average(losses.pseudo_huber(residual), weights=weight)
        np.testing.assert_allclose(losses.pseudo_huber_loss(residual, weight), expected, rtol=1e-6)
        np.testing.assert_allclose(losses.pseudo_huber_loss(residual, 7 * weight), expected, rtol=1e-6)
        assert losses.pseudo_huber_loss(residual, jnp.zeros(6)) == 0

    def test_entries_without_weight_may_be_nan(self):
        label = jnp.asarray([0.1, jnp.nan, 0.3, jnp.inf])
        weight = jnp.asarray([1.0, 0.0, 1.0, 0.0])
        loss = lambda p: losses.pseudo_huber_loss(p - label, weight)  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(jnp.zeros(4))
        alone = losses.pseudo_huber_loss(jnp.asarray([-0.1, -0.3]), jnp.ones(2))
        np.testing.assert_allclose(value, alone, rtol=1e-6)
        chex.assert_tree_all_finite(gradient)
        np.testing.assert_array_equal(np.asarray(gradient) != 0, [True, False, True, False])
