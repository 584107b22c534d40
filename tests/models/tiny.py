"""A complete model with unusual sizes, small enough to compile quickly."""

import jax
import jax.numpy as jnp
import numpy as np

from specjax.config import (
    DecoderConfig,
    LabelHeadConfig,
    LoRAConfig,
    ModelConfig,
    ProjectionConfig,
    SpecFormerConfig,
    XPAutoencoderConfig,
)
from specjax.models import LabelHead, SpecCLIP
from specjax.spectra import Spectra

TINY = ModelConfig(
    name="tiny",
    specformer=SpecFormerConfig(
        num_pixels=41, window=6, stride=3, dim=24, num_layers=2, num_heads=3, mlp_dim=40, max_len=17
    ),
    xp_autoencoder=XPAutoencoderConfig(num_pixels=23, hidden_dim=22, latent_dim=20),
    projection=ProjectionConfig(shared_dim=28, feature_hidden=18),
    decoder=DecoderConfig(lamost_hidden=(30, 26, 18), gaia_xp_hidden=(26, 18, 14)),
    head=LabelHeadConfig(hidden_dims=(16, 12), num_labels=2),
    labels=("teff", "fe_h"),
    lora1=LoRAConfig(rank=2, alpha=6.0),
    lora2=LoRAConfig(rank=3, alpha=4.0),
    lora3=LoRAConfig(rank=4, alpha=6.0),
    lora4=LoRAConfig(rank=3, alpha=5.0),
)


SMALL = ModelConfig(
    name="small",
    specformer=SpecFormerConfig(dim=16, num_layers=1, num_heads=2, mlp_dim=16),
    xp_autoencoder=XPAutoencoderConfig(hidden_dim=16, latent_dim=12, num_blocks=1),
    projection=ProjectionConfig(shared_dim=16, feature_hidden=12),
    decoder=DecoderConfig(lamost_hidden=(16,), gaia_xp_hidden=(16,)),
    head=LabelHeadConfig(hidden_dims=(16,), num_labels=2),
    labels=("teff", "fe_h"),
)
"""As small on the published grids, for spectra from files."""


def random_system(config: ModelConfig = TINY, seed: int = 0) -> dict:
    """Draw {"params", "batch_stats"} of SpecCLIP and both heads, including biases and running statistics.

    NumPy draws them for the shapes of init: compiling init itself takes longer than most tests.
    """
    key = jax.random.key(0)
    lamost = jnp.zeros((1, config.specformer.num_pixels))
    gaia_xp = jnp.zeros((1, config.xp_autoencoder.num_pixels))
    system = dict(jax.eval_shape(SpecCLIP(config).init, key, lamost, gaia_xp))
    for head, width in (("mlp1", config.specformer.dim), ("mlp2", config.projection.dim)):
        shapes = jax.eval_shape(LabelHead(config.head).init, key, jnp.zeros((1, width)))
        for name in system:
            system[name] = {**system[name], head: shapes[name]}
    return random_like(system, seed)


def random_like(shapes: dict, seed: int = 0) -> dict:
    """Draw arrays of those shapes, with a scale that suits the name of each leaf."""
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _draw(rng, path[-1].key, leaf.shape), shapes)


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.normal(size=shape)
    if name == "kernel":
        values /= np.sqrt(shape[-2])
    elif name in ("scale", "var"):
        values = 1 + 0.1 * np.clip(values, -3, 3)
    elif name in ("bias", "mean"):
        values *= 0.1
    return values.astype(np.float32)


def on_grid(flux, mask=None, ivar=None, id=None, survey="lamost"):
    """Spectra on a model grid of any number of pixels, as preprocessing would return them."""
    flux = np.asarray(flux)
    mask = np.zeros(flux.shape, bool) if mask is None else mask
    return Spectra(
        wavelength=4000.0 + np.arange(flux.shape[1]),
        flux=np.where(mask, 1.0 if survey == "lamost" else 0.0, flux),
        ivar=np.where(mask, 0.0, 1.0) if ivar is None else ivar,
        mask=mask,
        id=np.array([str(k) for k in range(len(flux))] if id is None else id),
        survey=survey,
        has_ivar=ivar is not None,
        prepared={"tower": survey},
    )


def head_stats(model, spectra, scale):
    """Return the statistics of both heads for spectra on the LAMOST grid and a scale of the labels."""
    features = {head: model.features(spectra, head) for head in ("mlp1", "mlp2")}
    return {
        head: {"feature_mean": x.mean(0), "feature_std": x.std(0) + 1e-3, **scale}
        for head, x in features.items()
    }


def equations(jaxpr):
    """All equations of a program, including those of inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def precisions(function, *arguments):
    """The precisions of all products of float32 arrays in a program."""
    program = jax.make_jaxpr(function)(*arguments)
    found = [each for each in equations(program.jaxpr) if each.primitive.name == "dot_general"]
    return {
        each.params["precision"]
        for each in found
        if all(operand.aval.dtype == jnp.float32 for operand in each.invars)
    }
