"""What test_many_devices runs in processes of its own: streamed stages, however many devices share them."""

import dataclasses
import functools
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.interrupt import Terminated
from specjax.pretrain.config import PretrainConfig, StageConfig
from specjax.pretrain.monitor import read
from specjax.pretrain.programs import LoopOptions, initial_state
from specjax.pretrain.source import Source
from specjax.pretrain.stages import Pretraining
from specjax.train.sharding import parameter_shardings, place, training_mesh
from tests import synthetic
from tests.models.tiny import SMALL, random_system

STAGE = StageConfig(steps=6, batch=32, learning_rate=1e-4, chunk=3)
CONFIG = dataclasses.replace(
    PretrainConfig.published("paper"), backbone=STAGE, autoencoder=STAGE, alignment=STAGE
)
# float32: shares of a batch are summed in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def trainer(pairs, folder, *, fsdp=1, devices=None, states=None, model=SMALL, shared=True):
    source = Source.open([pairs])
    options = LoopOptions(fsdp=fsdp, log=folder)
    made = Pretraining(source.material(False), CONFIG, states, model_config=model, options=options)
    made.run_stage = functools.partial(made.run_stage, devices=devices)
    if not shared:  # every process trains alone, on all rows
        alone = functools.partial(Source.feed, source, shared=False)
        object.__setattr__(source, "feed", alone)
    return made


def start(model=SMALL):
    system = jax.tree.map(jnp.asarray, random_system(model))
    return {name: {k: v for k, v in tree.items() if not k.startswith("mlp")} for name, tree in system.items()}


def trained(made):
    """Train backbone and alignment; return the parameters and the reported losses."""
    variables = made.align(made.train_backbone(start()))
    lines = read(made.options.log) if jax.process_index() == 0 else []
    return variables, [line[name] for line in lines for name in ("loss", "held-out loss", "gradient norm")]


def close(first, second):
    for a, b in zip(*map(jax.tree.leaves, map(with_gradient, (first, second))), strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


def with_gradient(tree):
    """Leave out the biases of keys.

    The softmax does not depend on them: their gradient is rounding error, which Adam scales to a full step.
    """

    def chosen(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("kv_proj/bias"):
            return leaf[len(leaf) // 2 :]
        return None if name.endswith("k_proj/bias") else leaf

    return jax.tree_util.tree_map_with_path(chosen, tree)


def state_bytes(fsdp):
    """Bytes of parameters and optimizer state on the first device."""
    params = start()["params"]
    state = initial_state(params, {}, STAGE.optimizer(), LoopOptions(ema=0.9))
    placed = place(state, parameter_shardings(state, training_mesh(STAGE.batch, fsdp)))
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))


def one_process(pairs, folder):
    folder = Path(folder)
    assert len(jax.devices()) == 8
    alone = trained(trainer(pairs, folder / "alone", devices=jax.devices()[:1]))
    for fsdp in (1, 4):
        close(trained(trainer(pairs, folder / f"fsdp{fsdp}", fsdp=fsdp)), alone)
    shares = [state_bytes(fsdp) / state_bytes(1) for fsdp in (2, 8)]
    # A share each, apart from vectors of a length that the devices do not divide.
    assert shares[0] < 0.55, shares
    assert shares[1] < 0.2, shares
    goes_on_elsewhere(pairs, folder, alone[0]["params"]["lamost"]["backbone"])
    print("8 devices: same losses, same parameters, a share of the state each")


def goes_on_elsewhere(pairs, folder, expected):
    """A stage that was ended on eight devices goes on on two."""
    made = functools.partial(trainer, pairs, folder / "other", states=folder / "states")
    with pytest.raises(Terminated, match="backbone is saved after step 1"):
        ended(made(fsdp=8), "0").train_backbone(start())
    resumed = made(devices=jax.devices()[:2]).train_backbone(start())
    close(resumed["params"]["lamost"]["backbone"], expected)


def two_processes(pairs, folder, address, rank):
    jax.distributed.initialize(address, num_processes=2, process_id=int(rank))
    assert len(jax.devices()) == 2 * len(jax.local_devices()) == 4
    folder = Path(folder)
    mine = trainer(pairs, folder / rank, devices=jax.local_devices()[:1], shared=False)
    alone = mine.train_backbone(start())["params"]["lamost"]["backbone"]
    for fsdp in (1, 2):
        together = trainer(pairs, folder / "both", fsdp=fsdp).train_backbone(start())
        close(together["params"]["lamost"]["backbone"], alone)
    made = functools.partial(trainer, pairs, folder / "both", states=folder / "states")
    with pytest.raises(Terminated, match="backbone is saved after step 3"):
        ended(made(), "1").train_backbone(start())
    resumed = made(fsdp=2).train_backbone(start())["params"]["lamost"]["backbone"]
    close(resumed, alone)
    print(f"process {rank} of 2: same parameters, ended and resumed")


def ended(made, rank):
    """Send SIGTERM to one of the processes during the first step."""
    feed = made.source.feed

    def feed_with_signal(*given, **options):
        stream = feed(*given, **options)
        take = type(stream).__next__

        class Stopping(type(stream)):
            def __next__(self):
                if str(jax.process_index()) == rank:
                    signal.raise_signal(signal.SIGTERM)
                    self.__class__ = type(self).__mro__[1]
                return take(self)

        stream.__class__ = Stopping
        return stream

    object.__setattr__(made.source, "feed", feed_with_signal)
    return made


if __name__ == "__main__":
    with synthetic.quick_compilation():
        {"one-process": one_process, "two-processes": two_processes}[sys.argv[1]](*sys.argv[2:])
