"""The PyTorch side computes the same as ours: embeddings, losses and gradients on the same batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from benchmarks import in_specjax
from benchmarks.in_torch import TorchSide
from specjax.checkpoints import flatten
from specjax.foundation import Foundation
from tests.models.tiny import TINY, random_system

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEEDS = 2
# Both sides compute in float32 and differ in the order of sums; gradients pass through twice as many layers
# as the outputs, whose tolerance in the parity tests is 1e-5 of the largest value.
TOLERANCE = 3e-5
RANDOM = np.random.default_rng(0)
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def model():
    return Foundation(config=TINY, variables=random_system())


@pytest.fixture(scope="module")
def side(model):
    with pytest.MonkeyPatch.context() as patch:
        # Several threads would spin on a busy machine.
        patch.setattr("benchmarks.in_torch.core_count", lambda: 1)
        yield TorchSide(TINY, half=False, model=model)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def masked_modelling(model, side):
    tokens = in_specjax.random_tokens(model, 4)
    rows, hidden = in_specjax.drawn_and_hidden(TINY, KEY, 4)
    ours = in_specjax.masked_modelling(model, tokens)
    return ours, lambda factors: side.masked_modelling(tokens[rows], hidden, factors=factors)


def joint(model, side):
    tokens, labels = in_specjax.random_tokens(model, 4), normal(4)
    ours = in_specjax.joint(model, tokens, labels)
    return ours, lambda factors: side.joint(tokens, labels, factors=factors)


def contrastive(model, side, folded=False):
    tower = TINY.specformer
    tokens, z_xp = normal(6, tower.num_tokens, tower.dim), normal(6, TINY.projection.dim)
    ours = in_specjax.contrastive(model, tokens, z_xp)
    return ours, lambda factors: side.contrastive(tokens, z_xp, factors=factors, folded=folded)


def folded(model, side):
    return contrastive(model, side, folded=True)


def head_run(model, side):
    features, labels = normal(9, TINY.projection.dim), normal(9)
    ours = in_specjax.head_run(model, features, labels, 2)
    return ours, lambda factors: side.head_run(features, labels, 2, factors=factors)


WORK = [masked_modelling, joint, contrastive, folded, head_run]


def random_factors(training):
    """Factors of which none is zero, so that every gradient is tested."""
    return jax.tree.map(lambda leaf: 0.3 * jnp.asarray(normal(*leaf.shape)), training.start(SEEDS))


@pytest.mark.parametrize("work", WORK)
def test_losses_and_gradients_agree(model, side, work):
    ours, make = work(model, side)
    factors = random_factors(ours)
    losses, gradients = ours.loss_and_gradients(factors, KEY)
    theirs = make(factors)
    found = dict(flatten(gradients))
    for their_losses, their_gradients in (
        theirs.loss_and_gradients(SEEDS),
        theirs.batched_loss_and_gradients(SEEDS),
    ):
        np.testing.assert_allclose(their_losses, losses, rtol=TOLERANCE)
        assert len(their_gradients) == len(found)
        for name, theirs_of_name in their_gradients.items():
            gradient = np.swapaxes(found[theirs.paths[name]], -1, -2)
            assert np.abs(gradient - theirs_of_name).max() < TOLERANCE * np.abs(gradient).max(), name


def test_seeds_train_to_the_same_factors_one_by_one_and_batched(model, side):
    ours, make = head_run(model, side)
    training = make(random_factors(ours))
    one_by_one, batched = (call().numpy() for call in (training.loop(SEEDS), training.batched(SEEDS)))
    # The loss of the last step, of the last seed and of all.
    np.testing.assert_allclose(batched[-1], one_by_one, rtol=TOLERANCE)
    # Calls begin anew.
    np.testing.assert_allclose(training.batched(SEEDS)().numpy(), batched, rtol=TOLERANCE)
    np.testing.assert_allclose(training.loop(SEEDS, fused=True)().numpy(), one_by_one, rtol=TOLERANCE)


def test_a_full_step_has_the_same_loss_and_trains_everything(model, side):
    tokens = in_specjax.random_tokens(model, 4)
    hidden = np.asarray(in_specjax.losses.chunk_mask(KEY, 4, TINY.specformer))
    ours, theirs = in_specjax.full_step(model, tokens), side.masked_modelling(tokens, hidden, full=True)
    losses, gradients = ours.loss_and_gradients(ours.start(1), KEY)
    their_losses, their_gradients = theirs.loss_and_gradients(1)
    np.testing.assert_allclose(their_losses, losses, rtol=TOLERANCE)
    assert sum(map(np.size, their_gradients.values())) == sum(map(np.size, jax.tree.leaves(gradients)))


@pytest.mark.parametrize(
    ("kind", "method", "survey"),
    [("lamost", "mean_token", None), ("projected", "embed", None), ("gaia_xp", "embed", "gaia_xp")],
)
def test_embeddings_agree(model, side, kind, method, survey):
    pixels = TINY.xp_autoencoder.num_pixels if survey else TINY.specformer.num_pixels
    flux = in_specjax.random_spectra(pixels, 5)
    if survey:  # the latent, without the projection
        tower = {"gaia_xp": {"backbone": model.params["gaia_xp"]["backbone"]}}
        model = Foundation(config=TINY, variables={"params": tower})
    ours = getattr(model, method)(flux, *[survey] * (survey is not None))
    theirs = side.embed(kind, flux)()
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


# Under torch.func, autocast on a CPU mixes types in the norms of the tower; the benchmark would note it.
@pytest.mark.parametrize(
    ("work", "batched"), [(masked_modelling, False), (joint, False), (contrastive, True)]
)
def test_half_precision_changes_the_towers_alone(model, side, work, batched):
    ours, make = work(model, side)
    training = make(random_factors(ours))
    exact = training.loss_and_gradients(SEEDS)[0]
    training.loss.half_precision(True)
    rounded = training.loss_and_gradients(SEEDS)[0]
    assert rounded.dtype == np.float32
    assert not np.array_equal(rounded, exact)
    # bfloat16 has eight bits, and errors of many products average out.
    np.testing.assert_allclose(rounded, exact, rtol=0.1)
    if batched:
        np.testing.assert_allclose(training.batched_loss_and_gradients(SEEDS)[0], rounded, rtol=0.1)


def test_heads_are_in_single_precision(model):
    training = head_run(model, TorchSide(TINY, half=True, model=model))[1](None)
    assert training.loss.half
    exact = head_run(model, TorchSide(TINY, half=False, model=model))[1](None)
    for one in (training, exact):
        one.loss.features.fill_(0.3)
        one.loss.labels.fill_(0.1)
    np.testing.assert_array_equal(training.loss_and_gradients(1)[0], exact.loss_and_gradients(1)[0])
