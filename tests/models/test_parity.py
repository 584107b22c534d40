"""Our modules against the published arithmetic in PyTorch, with the same weights.

Tolerances: both sides compute in float32 and differ in the order of their sums only. Measured differences are
a few 1e-6 for activations of order 1; a wrong factor, epsilon or GELU shows at 1e-4 and above.
"""

import dataclasses

import jax
import numpy as np
import pytest

from specjax.config import (
    DecoderConfig,
    ModelConfig,
    ProjectionConfig,
    SpecFormerConfig,
    XPAutoencoderConfig,
)
from specjax.models import LabelHead, SpecCLIP, SpecFormer, XPAutoencoder, tokenise, xp_vector
from tests.models.tiny import TINY

torch = pytest.importorskip("torch")

from tests.models import published  # noqa: E402  (it needs torch)

CLOSE = {"rtol": 1e-5, "atol": 1e-5}

SPLIT = dataclasses.replace(
    TINY, projection=ProjectionConfig(shared_dim=16, private_dim=10, num_heads=(4, 2), feature_hidden=18)
)
XP_TRANSFORMER = SpecFormerConfig(
    num_pixels=23,
    window=1,
    stride=1,
    drop_last=False,
    statistics=("mean", "std"),
    dim=24,
    num_layers=2,
    num_heads=3,
    mlp_dim=40,
    max_len=30,
)


def spectra(n, pixels, seed=0):
    return np.random.default_rng(seed).normal(0.9, 0.15, (n, pixels)).astype(np.float32)


def published_output(module, *inputs):
    with torch.no_grad():
        out = module(*(torch.from_numpy(x) for x in inputs))
    return {name: value.numpy() for name, value in out.items()} if isinstance(out, dict) else out.numpy()


def our_output(module, variables, *inputs, method=None):
    # Jitted: one compilation of the whole instead of one for every operation.
    return jax.jit(lambda v, *x: module.apply(v, *x, method=method))(variables, *inputs)


def count(tree):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def check_specformer(config, n, **close):
    torch.manual_seed(1)
    module = published.randomised(published.SpecFormer(config))
    variables = published.to_linen(module.state_dict())
    flux = spectra(n, config.num_pixels)
    expected = published_output(module, flux)
    ours = SpecFormer(config)
    tokens = jax.jit(tokenise, static_argnums=1)(flux, config)
    np.testing.assert_allclose(tokens, expected["tokens"], **close)
    np.testing.assert_allclose(our_output(ours, variables, tokens), expected["embedding"], **close)
    predicted = our_output(ours, variables, tokens, method="predict_tokens")
    np.testing.assert_allclose(predicted, expected["reconstructions"], **close)


@pytest.mark.parametrize(
    ("config", "n"), [(TINY.specformer, 1), (XP_TRANSFORMER, 3)], ids=["lamost-1", "gaia_xp-3"]
)
def test_specformer(config, n):
    check_specformer(config, n, **CLOSE)


def test_scaling_once_is_visibly_different():
    """Guard of the test above: the published double scaling is what it sees."""
    config = TINY.specformer
    module = published.randomised(published.SpecFormer(config))
    # Larger queries, so that the attention is far from uniform and its scale matters.
    for block in module.blocks:
        block.attention.q_proj.weight.data *= 20
    variables = published.to_linen(module.state_dict())
    flux = spectra(2, config.num_pixels)
    expected = published_output(module, flux)["embedding"]
    tokens = tokenise(flux, config)
    twice = our_output(SpecFormer(config), variables, tokens)
    once_config = dataclasses.replace(config, logit_scale=(config.num_heads / config.dim) ** 0.5)
    once = our_output(SpecFormer(once_config), variables, tokens)
    np.testing.assert_allclose(twice, expected, **CLOSE)
    assert np.abs(once - expected).max() > 1e-2


def check_autoencoder(config, n, **close):
    torch.manual_seed(2)
    module = published.randomised(published.XPAutoencoder(config))
    variables = published.to_linen(module.state_dict())
    flux = spectra(n, config.num_pixels)
    expected = published_output(module, flux)
    vector = xp_vector(flux)
    ours = XPAutoencoder(config)
    np.testing.assert_allclose(our_output(ours, variables, vector), expected["latent"], **close)
    rebuilt = our_output(ours, variables, vector, method="reconstruct")
    np.testing.assert_allclose(rebuilt, expected["reconstructions"], **close)


def test_xp_autoencoder():
    check_autoencoder(TINY.xp_autoencoder, 1, **CLOSE)


def check_specclip(config, n, **close):
    torch.manual_seed(3)
    module = published.randomised(published.SpecCLIP(config))
    variables = published.to_linen(module.state_dict())
    lamost, gaia_xp = spectra(n, config.specformer.num_pixels), spectra(n, config.xp_autoencoder.num_pixels)
    expected = published_output(module, lamost, gaia_xp)
    z_lamost, z_xp, extras = our_output(SpecCLIP(config), variables, lamost, gaia_xp)
    ours = {"z_lamost": z_lamost, "z_xp": z_xp, **extras}
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, err_msg=name, **close)
    return variables


@pytest.mark.parametrize(("config", "n"), [(TINY, 1), (SPLIT, 3)], ids=["pr-1", "split-3"])
def test_specclip(config, n):
    variables = check_specclip(config, n, **CLOSE)
    init = jax.eval_shape(
        SpecCLIP(config).init,
        jax.random.key(0),
        np.zeros((1, config.specformer.num_pixels)),
        np.zeros((1, config.xp_autoencoder.num_pixels)),
    )
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, init)


@pytest.mark.parametrize("n", [1, 5])
def test_label_head(n):
    torch.manual_seed(4)
    module = published.randomised(published.ParamRegressor(28, TINY.head))
    x = spectra(n, 28)
    ours = our_output(LabelHead(TINY.head), published.to_linen(module.state_dict()), x)
    np.testing.assert_allclose(ours, published_output(module, x), **CLOSE)


@pytest.mark.slow
def test_paper_sizes():
    """The published widths: longer sums, so rounding differs by a few 1e-5 after six blocks."""
    close = {"rtol": 1e-4, "atol": 1e-4}
    check_specformer(SpecFormerConfig(), 2, **close)
    check_autoencoder(XPAutoencoderConfig(), 2, **close)
    assert count(check_specclip(ModelConfig(), 2, **close)["params"]) == 168_293_752


@pytest.mark.slow
def test_paper_split_sizes():
    config = ModelConfig(
        projection=ProjectionConfig(shared_dim=512, private_dim=256),
        decoder=DecoderConfig(lamost_hidden=(2048, 2048, 2048), gaia_xp_hidden=(2048, 1024, 512)),
    )
    variables = check_specclip(config, 2, rtol=1e-4, atol=1e-4)
    assert count(variables["params"]) == 126_229_506
