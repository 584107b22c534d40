import dataclasses

import jax
import jax.numpy as jnp
import pytest

from specjax import lora
from specjax.config import PRESETS, LabelHeadConfig
from specjax.models import LabelHead, SpecCLIP
from specjax.report.counts import count_parameters
from tests import synthetic
from tests.models.tiny import SMALL, TINY

CONFIGS = {
    **PRESETS,
    "tiny": TINY,
    "small": SMALL,
    "synthetic": synthetic.CONFIG,
    "no hidden layer": dataclasses.replace(TINY, head=LabelHeadConfig(hidden_dims=(), num_labels=2)),
}


def counted(config):
    """The parameters of the modules, from the shapes of their initialisation."""
    key = jax.random.key(0)
    fluxes = [jnp.zeros((1, n)) for n in (config.specformer.num_pixels, config.xp_autoencoder.num_pixels)]
    params = dict(jax.eval_shape(SpecCLIP(config).init, key, *fluxes)["params"])
    specclip = lora.count_parameters(params)
    for head, width in (("mlp1", config.specformer.dim), ("mlp2", config.projection.dim)):
        params[head] = jax.eval_shape(LabelHead(config.head).init, key, jnp.zeros((1, width)))["params"]

    def factors(group):
        configs = {group: config.loras[group]}
        return jax.eval_shape(lambda tree: lora.init_adapters(key, tree, configs), params)

    return {
        "lamost_encoder": lora.count_parameters(params["lamost"]["backbone"]),
        "xp_autoencoder": lora.count_parameters(params["gaia_xp"]["backbone"]),
        **{group: lora.count_parameters(factors(group)) for group in config.loras},
        "label_head": lora.count_parameters(params["mlp2"]),
        "specclip": specclip,
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_those_of_the_modules(name):
    assert count_parameters(CONFIGS[name]) == counted(CONFIGS[name])
