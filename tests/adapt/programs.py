"""Training programs of configurations and the shapes of their arguments, for what is asked of compilers."""

import jax
import jax.numpy as jnp

from specjax.adapt import objectives, stage
from specjax.adapt.configuration import Configuration
from specjax.adapt.start import initial_leaves
from specjax.adapt.tower import entry_of
from specjax.models import LabelHead, SpecCLIP
from specjax.train import loop
from specjax.train.optimizer import GroupSchedule

SCHEDULE = GroupSchedule(learning_rate=1e-3)


def shapes_of(config):
    """The variables of a model with both heads, as shapes."""
    key, pixels = jax.random.key(0), (config.specformer.num_pixels, config.xp_autoencoder.num_pixels)
    system = jax.eval_shape(SpecCLIP(config).init, key, *(jnp.zeros((1, size)) for size in pixels))
    heads = {
        name: jax.eval_shape(LabelHead(config.head).init, key, jnp.zeros((1, width)))
        for name, width in (("mlp1", config.specformer.dim), ("mlp2", config.projection.dim))
    }
    return {
        "params": {**system["params"], **{name: head["params"] for name, head in heads.items()}},
        "batch_stats": {name: head["batch_stats"] for name, head in heads.items()},
    }


def training(config, variables, name, *, seeds, batch, stars=20, steps=2, rows=None, dtype="float32"):
    """The training program of a configuration on a head, and the shapes of its arguments.

    Trainings that do not run the backbone use all of the `stars` at once.
    """
    configuration = Configuration.parse(name)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
    start = jax.eval_shape(initial_leaves(config, configuration), keys, variables)
    entry, head, tower = entry_of(start), configuration.heads[0], config.specformer
    problem = objectives.Problem(
        config=config, dtype=dtype, entry=entry, heads=configuration.heads, rows=rows,
        objective=objectives.Objective(), batch=batch if entry.is_in_backbone else None,
    )  # fmt: skip

    def numbers(*shape, kind=jnp.float32):
        return jax.ShapeDtypeStruct(shape, kind)

    width = tower.dim if head == "mlp1" else config.projection.dim
    inputs = {
        "tokens": {"tokens": numbers(stars, tower.num_tokens, tower.token_dim)},
        "block": {"hidden": numbers(stars, tower.num_tokens, tower.dim)},
        "features": {head: numbers(stars, width)},
    }[entry.level]
    frozen = {
        "params": {part: variables["params"][part] for part in ("lamost", head)},
        "batch_stats": {head: variables["batch_stats"][head]},
        "stats": {head: {part: numbers(width) for part in ("feature_mean", "feature_std")}},
        "column": numbers(kind=jnp.int32),
    }
    own = {
        "rows": numbers(seeds, stars, kind=jnp.int32),
        "y": {head: numbers(seeds, stars)},
        "weight": numbers(seeds, stars),
    }
    optimizer = stage._optimizer(tuple(dict.fromkeys(configuration.groups, SCHEDULE).items()), steps)
    run = loop._program(objectives.make_loss(problem), optimizer, steps, 1)
    return run, (frozen, start, {"labelled": inputs}, own, keys)
