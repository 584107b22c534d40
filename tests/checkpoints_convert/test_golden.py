"""Golden numbers of the published arithmetic, and evidence that each plausible mistake would change them.

Most tests need no torch: files are written here, converted, loaded and run.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from checkpoints_convert import convert, keys
from checkpoints_convert.torch_writer import write_torch_file
from specjax.config import SpecFormerConfig
from specjax.models import SpecCLIP, layers, projection, specformer, tokens, xp_autoencoder
from tests.checkpoints_convert import golden

# The first numbers of each output for the first spectrum, by the PyTorch modules in float64.
GOLDEN = {
    "lamost": {
        "embed": [1.0438381, 0.229189, -0.622541, 0.5976335],
        "reconstruct": [0.3777137, -0.0415823, 0.7947347, 1.4800433],
    },
    "xp_autoencoder": {
        "embed": [-0.6728439, -0.4014907, -0.2432502, 0.8208356],
        "reconstruct": [-0.4257622, 0.6807612, 0.1347106, -0.2054164],
    },
    "pr": {
        "z_lamost": [-1.3844732, 1.1015837, 0.4037689, -0.4734773],
        "z_xp": [1.1459743, 0.3345003, 0.469985, -0.3544406],
        "lamost": [-0.2284176, 0.1440103, -0.2904785, 0.2037168],
        "gaia_xp": [0.6503718, -0.4918701, -0.6313069, -0.5998576],
        "lamost_cross": [0.7840386, 0.1893432, 0.0049542, 0.1578172],
        "gaia_xp_cross": [0.8014268, -0.3785648, 0.0234333, -0.0864521],
    },
    "split": {
        "z_lamost": [0.6969576, -2.9543326, 1.0033038, 0.0219002],
        "z_xp": [-0.4616674, 1.2147795, 0.9211824, 0.9718072],
        "lamost": [1.6215871, 0.8466689, -0.2553306, 0.6603697],
        "gaia_xp": [0.0834788, 0.7184645, -0.1379786, 0.0362741],
        "lamost_cross": [0.5257497, 0.0278168, -0.5379489, -0.5292149],
        "gaia_xp_cross": [0.5747193, -0.4324239, -0.284391, -0.53873],
    },
    "head": {"labels": [-0.4554928]},
}

# float32 on small networks: measured differences are below 2e-6 of values of order 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _eager():
    """Run without compilation, so that no program compiled before a mistake is made is reused after it."""
    with jax.disable_jit():
        yield


def outputs(tmp_path, kind):
    """Write, convert, load and run a model; return the numbers to compare with `GOLDEN`."""
    path, folder = tmp_path / f"{kind}.ckpt", tmp_path / kind
    write_torch_file(path, golden.content_of(kind))
    convert(path, folder)
    model = specjax.load(folder)
    if kind == "head":
        found = {"labels": model.predict_from_features(golden.flux(6), "mlp2")["label_0"][:, None]}
    elif kind == "lamost":
        flux = golden.flux(1462)
        found = {"embed": model.embed(flux), "reconstruct": model.reconstruct(flux, raw=True)[:, 0]}
    elif kind == "xp_autoencoder":
        flux = golden.flux(11)
        found = {
            "embed": model.embed(flux, "gaia_xp"),
            "reconstruct": model.reconstruct(flux, "gaia_xp", raw=True),
        }
    else:
        # In one call; each method of the model would run its tower again.
        variables = {name: model.variables[name] for name in ("params", "batch_stats")}
        z_lamost, z_xp, decoded = SpecCLIP(model.config).apply(variables, golden.flux(61), golden.flux(11))
        found = {"z_lamost": z_lamost, "z_xp": z_xp, **decoded}
    return {name: value[0, :4] for name, value in found.items()}


def agrees(tmp_path, kind):
    """Return for each output whether it agrees with `GOLDEN`."""
    found = outputs(tmp_path, kind)
    assert found.keys() == GOLDEN[kind].keys()
    return {name: np.allclose(found[name], GOLDEN[kind][name], **CLOSE) for name in found}


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_golden_numbers(tmp_path, kind):
    found = outputs(tmp_path, kind)
    for name, expected in GOLDEN[kind].items():
        np.testing.assert_allclose(found[name], expected, err_msg=name, **CLOSE)


# Mistakes, each made by a monkeypatch, and the outputs of the networks that must then differ.


def reading(change):
    """Return a mistake in reading tensors."""

    def mistake(monkeypatch):
        read = keys.Row.read
        monkeypatch.setattr(keys.Row, "read", lambda row, tensor: change(row, read(row, tensor)))

    return mistake


def square_not_transposed(part):
    def change(row, parameter):
        is_it = part in row.path and parameter.ndim == 2 and len(set(parameter.shape)) == 1
        return parameter.T if is_it else parameter

    return reading(change)


def halves_swapped(row, parameter):
    """Swap keys and values of the joint projection."""
    if "kv_proj" not in row.path:
        return parameter
    return np.concatenate(np.split(parameter, 2, axis=-1)[::-1], axis=-1)


def pooling_swapped(monkeypatch):
    """Swap keys and values of torch's attention, whether joint or separate tensors."""
    attention = keys._attention

    def swapped(*args):
        names = {"k_proj": "v_proj", "v_proj": "k_proj"}
        for row in attention(*args):
            name = row.path.split("/")[-2]
            yield keys.Row(**{**vars(row), "path": row.path.replace(name, names.get(name, name))})

    monkeypatch.setattr(keys, "_attention", swapped)


def scaled_once(monkeypatch):
    once = property(lambda config: (config.num_heads / config.dim) ** 0.5)
    monkeypatch.setattr(SpecFormerConfig, "attention_scale", once)


def pooling_scaled_twice(monkeypatch):
    softmax = jax.nn.softmax
    monkeypatch.setattr(projection.jax.nn, "softmax", lambda x: softmax(x * 0.5))


def biased_deviation(monkeypatch):
    standardise = tokens.standardise

    def biased(flux, valid=None):
        _, mean, std = standardise(flux, valid)
        std = std * np.float32((1 - 1 / flux.shape[-1]) ** 0.5)
        return (flux - mean) / std, mean, std

    for module in (tokens, xp_autoencoder):
        monkeypatch.setattr(module, "standardise", biased)


class UnbiasedNorm(nn.LayerNorm):
    """A LayerNorm whose variance has ddof = 1."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        variance = x.var(-1, ddof=1, keepdims=True)
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(variance + self.epsilon) * scale + bias


def unbiased_norms(monkeypatch):
    for module in (specformer, projection, xp_autoencoder):
        monkeypatch.setattr(module, "layer_norm", lambda name=None: UnbiasedNorm(epsilon=layers.EPSILON))


def tanh_gelu(monkeypatch):
    from specjax.models import decoders

    for module in (layers, projection, decoders):
        monkeypatch.setattr(module, "gelu", lambda x: jax.nn.gelu(x, approximate=True))


def epsilon(value):
    return lambda monkeypatch: monkeypatch.setattr(layers, "EPSILON", value)


ANY: set[str] = set()  # any output must differ; which one depends on the weights
TOWERS = {kind: ANY for kind in ("lamost", "xp_autoencoder", "pr")}
MISTAKES = {
    "q_proj not transposed": (square_not_transposed("attention/q_proj"), {"lamost": ANY, "pr": {"z_lamost"}}),
    "out_proj not transposed": (
        square_not_transposed("attention/out_proj"),
        {"lamost": ANY, "pr": {"z_lamost"}},
    ),
    "k_proj not transposed": (square_not_transposed("cross_attention/k_proj"), {"pr": {"z_lamost"}}),
    "v_proj not transposed": (square_not_transposed("cross_attention/v_proj"), {"pr": {"z_lamost"}}),
    "pooled out_proj": (square_not_transposed("shared_attention/out_proj"), {"split": {"z_lamost"}}),
    "XP projection": (square_not_transposed("gaia_xp/projection/projection"), {"pr": {"z_xp"}}),
    "XP feature_mlp": (square_not_transposed("feature_mlp/encoder"), {"pr": {"z_xp"}}),
    "LAMOST decoder": (square_not_transposed("lamost_decoder/dense_1"), {"pr": {"lamost"}}),
    "XP cross decoder": (
        square_not_transposed("gaia_xp_cross_decoder/dense_2"),
        {"pr": {"gaia_xp_cross"}, "split": {"gaia_xp_cross"}},
    ),
    "label head": (square_not_transposed("mlp2/dense_1"), {"head": ANY}),
    "k and v swapped": (reading(halves_swapped), {"lamost": ANY, "pr": {"z_lamost"}}),
    "k and v swapped in the pooling": (pooling_swapped, {"pr": {"z_lamost"}, "split": {"z_lamost"}}),
    "attention scaled once": (scaled_once, {"lamost": ANY, "pr": {"z_lamost"}}),
    "pooling scaled twice": (pooling_scaled_twice, {"pr": {"z_lamost"}}),
    "ddof 0 where 1 is right": (biased_deviation, TOWERS),
    "ddof 1 where 0 is right": (unbiased_norms, TOWERS),
    "tanh GELU": (tanh_gelu, TOWERS),
    "LayerNorm eps 1e-6": (epsilon(1e-6), TOWERS),
    "BatchNorm eps 1e-3": (epsilon(1e-3), {"head": ANY, "pr": ANY}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_changes_the_numbers(tmp_path, monkeypatch, mistake):
    make, seen_by = MISTAKES[mistake]
    make(monkeypatch)
    for kind, names in seen_by.items():
        right = agrees(tmp_path, kind)
        assert not all(right.values()), kind
        assert not any(right[name] for name in names), f"{kind}: {right}"


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_golden_numbers_agree_with_pytorch(kind):
    torch = pytest.importorskip("torch")
    from tests.models import published

    config = golden.CONFIGS[kind]
    module = {
        "lamost": lambda: published.SpecFormer(config.specformer),
        "xp_autoencoder": lambda: published.XPAutoencoder(config.xp_autoencoder),
        "head": lambda: published.ParamRegressor(6, config.head),
    }.get(kind, lambda: published.SpecCLIP(config))()
    counters = {name: n for name, n in module.state_dict().items() if name.endswith("num_batches_tracked")}
    state = {name: torch.from_numpy(array) for name, array in golden.state_of(kind).items()}
    module.load_state_dict({**state, **counters}, strict=True)
    grids = {"lamost": (1462,), "xp_autoencoder": (11,), "head": (6,)}.get(kind, (61, 11))
    with torch.no_grad():
        out = module.double().eval()(*(torch.from_numpy(golden.flux(pixels)).double() for pixels in grids))
    if kind == "head":
        out = {"labels": out}
    elif kind == "lamost":
        out = {"embed": out["embedding"].mean(1), "reconstruct": out["reconstructions"][:, 0]}
    elif kind == "xp_autoencoder":
        out = {"embed": out["latent"], "reconstruct": out["reconstructions"]}
    for name, expected in GOLDEN[kind].items():
        # The golden numbers have seven decimals.
        np.testing.assert_allclose(out[name][0, :4], expected, atol=1e-7, rtol=0, err_msg=name)
