"""What test_many_devices runs in processes of its own: the same training, however many devices share it."""

import functools
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import Configuration
from specjax.adapt.splits import draw_splits
from specjax.pretrain import stages
from specjax.pretrain.batches import make_data
from specjax.pretrain.config import PretrainConfig, StageConfig
from specjax.pretrain.loop import run_stage
from specjax.pretrain.programs import chunk_program
from specjax.train import loop
from specjax.train.optimizer import GroupSchedule, make_optimizer
from specjax.train.sharding import on_mesh, shard_rows, training_mesh
from tests import synthetic

CONFIG = StageConfig(steps=6, batch=16, learning_rate=0.05, chunk=3)
SEED = 3
OPTIMIZER = make_optimizer({"lora2": GroupSchedule(learning_rate=1e-2)}, steps=4)
# float32: shares of a batch are summed in another order, and Adam divides by small second moments
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def close(first, second):
    for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


def norm(tree):
    """Return the norm of all leaves together."""
    return float(np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(tree))))


def head_loss(factors, frozen, shared, own, key):
    layer = factors["mlp1"]["dense_0"]
    x = own["x"][jax.random.randint(key, (8,), 0, len(own["x"]))] + shared
    return ((x @ frozen + (x @ layer["lora_a"]) @ layer["lora_b"] - 1) ** 2).mean()


def seeds_problem(seeds):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "frozen": draw(10, 7),
        "shared": draw(10),
        "trainable": {"mlp1": {"dense_0": {"lora_a": draw(seeds, 10, 2), "lora_b": draw(seeds, 2, 7)}}},
        "per_seed": {"x": draw(seeds, 30, 10)},
        "keys": jax.random.split(jax.random.key(SEED), seeds),
    }


def check_seeds():
    """Numbers of seeds that the devices divide and do not divide."""
    for seeds in (16, 5, 1):
        given = seeds_problem(seeds)
        alone = loop.fit(head_loss, OPTIMIZER, **given, steps=4, devices=jax.local_devices()[:1])
        together = loop.fit(head_loss, OPTIMIZER, **given, steps=4)
        assert together.loss.shape == (seeds, 1)
        if jax.process_count() == 1:
            assert len(together.loss.sharding.device_set) == len(jax.devices())
        else:
            assert together.loss.is_fully_addressable
        close(together, alone)


def batch_loss(params, stats, data, key):
    """Least squares on a drawn batch, which is spread; the statistics see all its rows."""
    rows = jax.random.randint(key, (CONFIG.batch,), 0, len(data["x"]))
    batch = shard_rows(jax.tree.map(lambda leaf: leaf[rows], data))
    hidden = jnp.tanh(batch["x"] @ params["w"])
    error = hidden.sum(axis=1) - batch["y"]
    return (error**2).mean(), ({"mean": 0.9 * stats["mean"] + 0.1 * hidden.mean(axis=0)}, {})


def stage_problem():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(50, 40)), jnp.float32)
    return {"params": params, "batch_stats": {"mean": jnp.zeros(30)}, "data": {"x": x, "y": x[:, 0]}}


def check_stage(folder):
    """A stage, and one that is interrupted and goes on."""
    given = stage_problem()
    options = {**given, "key": jax.random.key(SEED), "say": lambda text: None}
    alone = run_stage("toy", batch_loss, CONFIG, **options, devices=jax.local_devices()[:1])
    seen = []

    def validate(params, stats):
        seen.append(float(params["w"].sum() + given["params"]["w"].sum()))
        return {}

    close(run_stage("toy", batch_loss, CONFIG, **options, validate=validate), alone)
    assert len(seen) == 2

    def stop(text):
        if " 3/" in text:
            raise KeyboardInterrupt

    try:
        run_stage("toy", batch_loss, CONFIG, **{**options, "say": stop}, folder=folder)
    except KeyboardInterrupt:
        close(run_stage("toy", batch_loss, CONFIG, **options, folder=folder), alone)
    else:
        raise AssertionError("it was not interrupted")


def stage_flops(devices):
    """FLOPs of a device in a chunk."""
    mesh = training_mesh(CONFIG.batch, devices=devices)
    given = stage_problem()
    optimizer = CONFIG.optimizer()
    state = {k: given[k] for k in ("params", "batch_stats")}
    state["optimizer"] = optimizer.init(given["params"])
    program = chunk_program(batch_loss, optimizer, jax.random.key(SEED), mesh)
    with on_mesh(mesh):
        compiled = program.lower(state, given["data"], np.arange(2)).compile()
    return compiled.cost_analysis()["flops"]


def check_pretraining():
    """The backbone's stage: batches are drawn and varied on the device."""
    stages.get_preset = lambda name: synthetic.CONFIG
    stage = StageConfig(steps=2, batch=8, chunk=2)
    config = PretrainConfig(held_out=0.25, backbone=stage)
    made = []
    for devices in (jax.local_devices()[:1], None):
        trainer = stages.Pretraining(make_data(synthetic.corpus(), config), config, say=lambda text: None)
        trainer.run_stage = functools.partial(trainer.run_stage, devices=devices)
        start = jax.tree.map(jnp.asarray, synthetic.foundation().variables)
        made.append(trainer.train_backbone(start)["params"]["lamost"]["backbone"])
    # Adam divides by the root of a gradient's square, so that rounding decides where a gradient is almost 0.
    # As a whole the updates agree; with other batches they would have hardly anything in common.
    first = start["params"]["lamost"]["backbone"]
    moved, differing = (norm(jax.tree.map(jnp.subtract, made[0], other)) for other in (first, made[1]))
    assert differing < 0.01 * moved, (differing, moved)


def check_adaptation():
    """Three seeds on eight devices, through towers and heads: what eight devices give goes into programs."""
    target, config = synthetic.target(), synthetic.ADAPT
    splits = draw_splits(len(target.labelled), seeds=3, train=config.train, validate=config.validate)
    configuration = Configuration.parse("lora1+lora2")
    found = Adaptation(synthetic.foundation(), target, splits, config).run(configuration)
    assert np.isfinite(found.predictions).all()
    assert found.predictions.shape == (3, len(target.labelled))


def one_process():
    assert len(jax.devices()) == 8
    check_seeds()
    with tempfile.TemporaryDirectory() as folder:
        check_stage(Path(folder))
    # The forward and backward products are shared; the optimizer's pass over the parameters is each one's.
    share = stage_flops(None) / stage_flops(jax.devices()[:1])
    assert share < 0.4, share
    check_pretraining()
    check_adaptation()
    print("8 devices: same seeds, same stages")


def two_processes(address, rank, folder):
    jax.distributed.initialize(address, num_processes=2, process_id=int(rank))
    assert len(jax.devices()) == 2 * len(jax.local_devices()) == 4
    check_seeds()
    check_stage(Path(folder))
    print(f"process {rank} of 2: same seeds, same stages")


if __name__ == "__main__":
    with synthetic.quick_compilation():
        {"one-process": one_process, "two-processes": two_processes}[sys.argv[1]](*sys.argv[2:])
