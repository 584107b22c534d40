"""Run a PyTorch module and our model on the same spectra, and compare their layers."""

from functools import partial

import jax
import numpy as np
import torch

from checkpoints_convert.keys import table
from specjax.models import LabelHead, SpecCLIP, SpecFormer, XPAutoencoder, tokenise, xp_vector
from tests.checkpoints_convert.files import PARTS

# Both sides compute in float32 and differ only in the order of sums: by a few 1e-7 of the largest value,
# growing with depth. A wrong factor, epsilon or GELU differs by 1e-4 and more (test_golden.py).
TOLERANCE = 1e-5


def difference(ours, theirs):
    """Return the largest difference relative to the largest value."""
    theirs = np.asarray(theirs)
    ours = np.asarray(ours).reshape(theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_close(ours, theirs, what=""):
    """Compare an output of our model with that of the module, a tensor or an array."""
    found = difference(ours, theirs)
    assert found < TOLERANCE, f"{what}: differs by {found:.1e} of the largest value"


def spectra(n, pixels=1462, seed=0):
    """Return flux (n, pixels) of order 1, like normalised spectra."""
    return np.random.default_rng(seed).normal(0.9, 0.15, (n, pixels)).astype(np.float32)


def inputs_of(kind, n, config):
    """Return the inputs of the module of a kind."""
    if kind == "head":
        return (spectra(n, config.projection.dim),)
    lamost, gaia_xp = config.specformer.num_pixels, config.xp_autoencoder.num_pixels
    grids = {"lamost": (lamost,), "xp_transformer": (343,), "xp_autoencoder": (gaia_xp,)}.get(
        kind, (lamost, gaia_xp)
    )
    return tuple(spectra(n, pixels, seed) for seed, pixels in enumerate(grids))


def run_torch(module, *inputs):
    """Run a module; return its output and those of all its submodules, by name, as arrays."""
    layers = {}

    def keep(name):
        return lambda _module, _inputs, out: layers.update({name: out})

    hooks = [inner.register_forward_hook(keep(name)) for name, inner in module.named_modules() if name]
    with torch.no_grad():
        out = module(*(torch.from_numpy(x) for x in inputs))
    for hook in hooks:
        hook.remove()
    return out, {name: value.numpy() for name, value in layers.items() if isinstance(value, torch.Tensor)}


def run_ours(kind, model, *inputs):
    """Run a converted model like `run_torch`; layers are named by their paths in the parameter tree."""
    part, config = PARTS[kind], model.config
    where = {"lamost": "lamost/backbone", "gaia_xp": "gaia_xp/backbone", "mlp2": "mlp2"}.get(part, "")
    variables = {name: tree for name, tree in model.variables.items() if name in ("params", "batch_stats")}
    for step in filter(None, where.split("/")):
        variables = {name: tree[step] for name, tree in variables.items() if step in tree}
    former = config.xp_transformer or config.specformer
    module, prepare, method = {
        "lamost": (SpecFormer(former), lambda x: tokenise(x, former), "predict_tokens"),
        "xp_transformer": (SpecFormer(former), lambda x: tokenise(x, former), "predict_tokens"),
        "xp_autoencoder": (XPAutoencoder(config.xp_autoencoder), xp_vector, "reconstruct"),
        "head": (LabelHead(config.head), lambda x: x, None),
    }.get(kind, (SpecCLIP(config), lambda *x: x, None))

    # Small models take longest to compile; this halves the time.
    quick = {"xla_backend_optimization_level": 0} if former.dim < 100 else None

    @partial(jax.jit, compiler_options=quick)
    def run(variables, *inputs):
        prepared = prepare(*inputs)
        prepared = prepared if isinstance(prepared, tuple) else (prepared,)
        return module.apply(
            variables, *prepared, method=method, capture_intermediates=True, mutable=["intermediates"]
        )

    out, captured = run(variables, *inputs)
    layers = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(captured["intermediates"]):
        keys = [entry.key for entry in path if hasattr(entry, "key")]
        if keys[-1] == "__call__" and len(keys) > 1:
            layers["/".join(filter(None, (where, *keys[:-1])))] = np.asarray(leaf)
    return out, layers | projections(model.params, layers)


def projections(params, layers):
    """Return queries and keys with values of each block, by path, from its normalised input.

    The modules are not called: their kernels are cut and multiplied together (`models.layers.dense`). What
    comes of it is compared in the output of the attention.
    """
    found = {}
    for path in (path for path in layers if path.endswith("/ln1")):
        block = params
        for step in path.split("/")[:-1]:
            block = block[step]
        for name in ("q_proj", "kv_proj"):
            tree = block["attention"][name]
            output = layers[path] @ np.asarray(tree["kernel"]) + np.asarray(tree["bias"])
            found[f"{path.removesuffix('ln1')}attention/{name}"] = output
    return found


def layer_names(kind, config):
    """Return our names of modules with parameters and of their parents, by the published names."""
    names = {}
    for row in table(config, [PARTS[kind]]):
        # Not called as modules: the projections inside torch's attention and the position embedding.
        if "multihead_attn" in row.key or "position_embed" in row.key:
            continue
        theirs, ours = row.key.rpartition(".")[0], row.path.partition("/")[2].rpartition("/")[0]
        names[theirs] = ours
        if "/" in ours and "." in theirs:
            names.setdefault(theirs.rpartition(".")[0], ours.rpartition("/")[0])
    return names
