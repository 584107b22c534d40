"""The program that test_devices.py runs: results do not depend on the number of devices."""

import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np

from specjax import devices, lora
from specjax.foundation import Foundation, inference
from specjax.foundation.networks import Networks
from specjax.models import LabelHead
from specjax.train import loop, losses
from specjax.train.optimizer import GroupSchedule, make_optimizer
from tests.models.tiny import TINY, random_system

SEEDS = 8
NETWORK = LabelHead(TINY.head, lora=TINY.lora2)
OPTIMIZER = make_optimizer({"lora2": GroupSchedule(learning_rate=1e-2)}, steps=6)
# float32: the parts of a batch may be summed in another order
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def loss(factors, frozen, shared, own, key):
    rows = jax.random.choice(key, len(own["x"]), (6,), replace=False)
    variables = {"params": lora.combine(frozen, factors)["mlp1"], "batch_stats": shared}
    predicted = NETWORK.apply(variables, own["x"][rows])
    return losses.label_loss(predicted, own["y"][rows])


def problem(system):
    frozen = {"mlp1": system["params"]["mlp1"]}
    keys = jax.random.split(jax.random.key(1), SEEDS)
    rng = np.random.default_rng(0)
    return {
        "frozen": frozen,
        "shared": system["batch_stats"]["mlp1"],
        "trainable": jax.vmap(lambda key: lora.init_adapters(key, frozen, {"lora2": TINY.lora2}))(keys),
        "per_seed": {
            "x": jnp.asarray(rng.normal(size=(SEEDS, 12, 24)), jnp.float32),
            "y": jnp.asarray(rng.normal(size=(SEEDS, 12, 2)), jnp.float32),
        },
        "keys": keys,
    }


def placed(given, mesh):
    """Shard what each seed has of its own; replicate what all seeds share."""
    common = {"frozen", "shared"}
    return {
        name: (devices.replicate if name in common else devices.shard)(tree, mesh)
        for name, tree in given.items()
    }


def check_fit(system, mesh):
    given = problem(system)
    alone = loop.fit(loss, OPTIMIZER, **given, steps=6, devices=jax.local_devices()[:1])
    together = loop.fit(loss, OPTIMIZER, **placed(given, mesh), steps=6)
    for leaf in jax.tree.leaves(together):
        assert len(leaf.sharding.device_set) == mesh.size, leaf.sharding
        assert not leaf.is_fully_replicated
    chex.assert_trees_all_close(devices.gather(together), devices.gather(alone), **CLOSE)


def embedded(system, rows=19):
    """Embed on one device and on all devices of this process; return the model."""
    model = Foundation(config=TINY, variables=system)
    flux = np.random.default_rng(0).normal(1.0, 0.1, (rows, TINY.specformer.num_pixels)).astype(np.float32)
    valid = np.ones(flux.shape, bool)
    alone = inference.run(TINY, Networks.lamost_z, inference.Placement(model.variables, None), flux, valid)
    np.testing.assert_allclose(model.embed(flux), alone, **CLOSE)
    return model


def one_process():
    system = jax.tree.map(jnp.asarray, random_system())
    model = embedded(system)
    mesh = devices.mesh_for(SEEDS)
    assert mesh.size == len(jax.devices()) == 8
    check_fit(system, mesh)

    def flops(mesh):
        flux = np.ones((64, TINY.specformer.num_pixels), np.float32)
        arrays = [flux, np.ones(flux.shape, bool)]
        tree = model._placed.variables if mesh else system
        arrays = devices.shard(arrays, mesh) if mesh else arrays
        lowered = inference._run.lower(TINY, Networks.lamost_z, "float32", tree, *arrays)
        return lowered.compile().cost_analysis()["flops"]

    share = flops(mesh) / flops(None)
    assert 0.12 < share < 0.14, share  # an eighth, plus the work that is not divided
    print("8 devices: same embedding, same fit, an eighth of the work")


def two_processes(address, rank):
    jax.distributed.initialize(address, num_processes=2, process_id=int(rank))
    assert len(jax.devices()) == 2 * len(jax.local_devices()) == 4
    system = jax.tree.map(jnp.asarray, random_system())
    embedded(system)  # each process embeds its own spectra
    check_fit(system, devices.mesh_for(SEEDS))
    print(f"process {rank} of 2: same embedding, same fit")


if __name__ == "__main__":
    {"one-process": one_process, "two-processes": two_processes}[sys.argv[1]](*sys.argv[2:])
