"""What must hold of LoRA as a partition of the tree; the optimizer here is the one that train/ builds on."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specjax import lora
from specjax.config import LORA_GROUPS, LabelHeadConfig, LoRAConfig, ModelConfig, SpecFormerConfig
from specjax.errors import ModelError
from specjax.models import LabelHead, SpecCLIP, SpecFormer, tokenise
from tests.models.tiny import TINY, random_like, random_system

FLUX = np.random.default_rng(5).normal(0.9, 0.1, (4, TINY.specformer.num_pixels)).astype(np.float32)


@pytest.fixture(scope="module")
def system():
    return random_system()


@pytest.fixture(scope="module")
def adapters(system):
    """Factors of all four groups with B away from zero."""
    return randomised(lora.init_adapters(jax.random.key(1), system["params"], TINY.loras))


def randomised(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.1, tree)


def paths(tree):
    return {"/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def assert_trees_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(with_factors, params, batch_stats):
    loras = TINY.loras if with_factors else dict.fromkeys(LORA_GROUPS)
    variables = {"params": params, "batch_stats": batch_stats}

    def head(name, group, x):
        return LabelHead(TINY.head, lora=loras[group]).apply({k: v[name] for k, v in variables.items()}, x)

    tokens = SpecFormer(TINY.specformer, lora=loras["lora1"]).apply(
        {"params": params["lamost"]["backbone"]}, tokenise(FLUX, TINY.specformer)
    )
    tower = SpecCLIP(TINY, lora1=loras["lora1"], lora3=loras["lora3"])
    z = tower.apply(variables, FLUX, method="encode_lamost")
    return z, head("mlp1", "lora2", tokens.mean(1)), head("mlp2", "lora4", z)


def outputs(system, params):
    """z of LAMOST and both heads, with the factors in `params` or without any."""
    return _outputs("lora_a" in params["mlp1"]["dense_0"], params, system["batch_stats"])


@pytest.fixture(scope="module")
def paper():
    config, key = ModelConfig(), jax.random.key(0)
    params = dict(
        jax.eval_shape(SpecCLIP(config).init, key, jnp.zeros((1, 1462)), jnp.zeros((1, 343)))["params"]
    )
    head = jax.eval_shape(LabelHead(config.head).init, key, jnp.zeros((1, 768)))["params"]
    return config, {**params, "mlp1": head, "mlp2": head}


@pytest.mark.parametrize(
    ("group", "count"), [("lora1", 129_024), ("lora2", 31_752), ("lora3", 147_456), ("lora4", 31_752)]
)
def test_published_counts_of_trainable_parameters(paper, group, count):
    """They fix which layers are adapted; shapes only, no arrays."""
    config, params = paper
    small = jax.eval_shape(
        lambda tree: lora.init_adapters(jax.random.key(0), tree, {group: config.loras[group]}), params
    )
    assert lora.count_parameters(small) == count
    assert set(jax.tree.leaves(lora.partition_labels(small))) == {group}


def test_every_leaf_has_a_label(system, adapters):
    labels = lora.partition_labels(lora.combine(system["params"], adapters))
    assert set(jax.tree.leaves(labels)) == {*LORA_GROUPS, "head", "frozen"}
    assert labels["mlp1"]["dense_0"] == {
        "kernel": "head",
        "bias": "head",
        "lora_a": "lora2",
        "lora_b": "lora2",
    }
    assert labels["mlp2"]["norm_0"]["scale"] == "head"
    assert labels["lamost"]["backbone"]["blocks_0"]["attention"]["q_proj"]["lora_a"] == "lora1"
    assert labels["lamost"]["backbone"]["blocks_0"]["attention"]["q_proj"]["kernel"] == "frozen"
    assert labels["lamost"]["projection"]["mlp"]["encoder"]["lora_b"] == "lora3"


@pytest.mark.parametrize(
    "tree",
    [
        {"desi": {"backbone": {"kernel": 0}}},
        {"mlp3": {"dense_0": {"kernel": 0}}},
        {"mlp1": {"attention": {"kernel": 0}}},
        {"lamost": {"backbone": {"head": {"lora_a": 0}}}},
        {"gaia_xp": {"projection": {"mlp": {"encoder": {"lora_a": 0}}}}},
    ],
)
def test_a_leaf_without_a_rule_is_named(tree):
    (path,) = paths(tree)
    with pytest.raises(ModelError, match=path):
        lora.partition_labels(tree)


@pytest.mark.parametrize("groups", [("lora1",), ("lora2", "head"), LORA_GROUPS, ("frozen",), ()])
def test_split_and_combine_are_inverse(system, adapters, groups):
    params = lora.combine(system["params"], adapters)
    rest, chosen = lora.split(params, groups)
    assert set(jax.tree.leaves(lora.partition_labels(chosen))) == set(groups)
    assert not set(jax.tree.leaves(lora.partition_labels(rest))) & set(groups)
    assert_trees_equal(lora.combine(rest, chosen), params)


def test_combine_refuses_a_leaf_that_is_in_both(system):
    with pytest.raises(ModelError, match="is in both trees"):
        lora.combine(system["params"], system["params"])


def test_fresh_factors_change_nothing(system):
    """B = 0: whatever A is, bit for bit, and the base output (exactly so in one layer, see TestLoRADense)."""
    fresh, other = (
        outputs(
            system,
            lora.combine(
                system["params"], lora.init_adapters(jax.random.key(seed), system["params"], TINY.loras)
            ),
        )
        for seed in (0, 1)
    )
    for a, b, base in zip(fresh, other, outputs(system, system["params"]), strict=True):
        np.testing.assert_array_equal(a, b)
        # Two programs, in which XLA fuses the bias with the matrix product or not: float32 rounding.
        np.testing.assert_allclose(a, base, atol=1e-5)


def test_fresh_factors_are_bounded_distinct_and_reproducible(system):
    one, same, other = (
        lora.init_adapters(jax.random.key(seed), system["params"], TINY.loras) for seed in (0, 0, 1)
    )
    assert_trees_equal(one, same)
    a = one["mlp1"]["dense_0"]["lora_a"]
    assert np.abs(a - other["mlp1"]["dense_0"]["lora_a"]).max() > 0
    blocks = one["lamost"]["backbone"]
    first, second = (blocks[f"blocks_{i}"]["attention"]["q_proj"]["lora_a"] for i in (0, 1))
    assert np.abs(first - second).max() > 0
    assert np.abs(a).max() <= a.shape[0] ** -0.5
    # Uniform within 1/sqrt(in): the standard deviation is 1/sqrt(3 in); 72 draws scatter by some 8%.
    assert np.std(a) == pytest.approx((3 * a.shape[0]) ** -0.5, rel=0.3)
    assert not one["mlp1"]["dense_0"]["lora_b"].any()


def test_a_group_with_nothing_to_adapt_is_an_error(system):
    bare = {"lamost": {"backbone": system["params"]["lamost"]["backbone"]}}
    with pytest.raises(ModelError, match="nothing in this model for lora3"):
        lora.init_adapters(jax.random.key(0), bare, {"lora1": TINY.lora1, "lora3": TINY.lora3})


def test_merged_equals_adapted_and_unmerged_equals_base(system, adapters):
    params = system["params"]
    merged = lora.merge(params, adapters, TINY.loras)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    adapted = outputs(system, lora.combine(params, adapters))
    for a, b, c in zip(outputs(system, merged), adapted, outputs(system, params), strict=True):
        # float32 through two blocks and a head: x W + x A B against x (W + A B)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.abs(a - c).max() > 1e-3
    back = lora.unmerge(merged, adapters, TINY.loras)
    # One rounding each way of numbers of order 1, at 6e-8.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back, params)


def test_merge_names_what_does_not_fit(system, adapters):
    params = system["params"]
    _, lora2 = lora.split(adapters, ["lora2"])
    uneven = jax.tree.map(lambda leaf: leaf, lora2)
    uneven["mlp1"]["dense_0"]["lora_a"] = uneven["mlp1"]["dense_0"]["lora_a"][:, :1]
    with pytest.raises(ModelError, match="'mlp1/dense_0' has shapes"):
        lora.merge(params, uneven, TINY.loras)
    with pytest.raises(ModelError, match="mlp1/dense_0/kernel"):
        lora.merge({"mlp2": params["mlp2"]}, lora2, TINY.loras)
    del lora2["mlp1"]["dense_1"]["lora_b"]
    with pytest.raises(ModelError, match="mlp1/dense_1/lora_b"):
        lora.merge(params, lora2, TINY.loras)


def test_heads_with_members_are_adapted_member_by_member():
    config = LabelHeadConfig(hidden_dims=(6,), members=3)
    x = jnp.ones((2, 5))
    variables = random_like(jax.eval_shape(LabelHead(config).init, jax.random.key(0), x))
    base = {"mlp1": variables["params"]}
    configs = {"lora2": TINY.lora2}
    adapters = lora.init_adapters(jax.random.key(1), base, configs)
    assert adapters["mlp1"]["dense_0"]["lora_a"].shape == (3, 5, 3)
    assert adapters["mlp1"]["dense_0"]["lora_b"].shape == (3, 3, 6)
    adapters = randomised(adapters)
    adapted = {**variables, "params": lora.combine(base, adapters)["mlp1"]}
    merged = {**variables, "params": lora.merge(base, adapters, configs)["mlp1"]}
    np.testing.assert_allclose(
        jax.jit(LabelHead(config, lora=TINY.lora2).apply)(adapted, x),
        jax.jit(LabelHead(config).apply)(merged, x),
        rtol=1e-5,  # float32: x W + x A B against x (W + A B)
        atol=1e-6,
    )


@pytest.fixture(scope="module")
def parts(system):
    base = {"lamost": {"backbone": system["params"]["lamost"]["backbone"]}}
    return base, lora.init_adapters(jax.random.key(3), base, {"lora1": TINY.lora1})


class TestTraining:
    """LoRA1 by masked modelling with optax, on the backbone alone."""

    @staticmethod
    def loss(small, base, tokens):
        params = lora.combine(base, small)["lamost"]["backbone"]
        module = SpecFormer(TINY.specformer, lora=TINY.lora1)
        predicted = module.apply({"params": params}, tokens.at[:, 3:5].set(0), method="predict_tokens")
        return ((predicted - tokens)[:, 3:5] ** 2).mean()

    def test_frozen_leaves_stay_bit_identical_under_multi_transform(self, parts):
        base, small = parts
        params = lora.combine(base, small)
        transforms = {"lora1": optax.adamw(1e-2, weight_decay=0.1), "frozen": optax.set_to_zero()}
        optimizer = optax.multi_transform(transforms, lora.partition_labels)
        tokens = tokenise(jnp.asarray(FLUX), TINY.specformer)

        @jax.jit
        def step(params, state):
            rest, chosen = lora.split(params, ["lora1"])
            grads = jax.grad(self.loss)(chosen, rest, tokens)
            grads = lora.combine(jax.tree.map(jnp.zeros_like, rest), grads)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state, trained = optimizer.init(params), params
        for _ in range(3):
            trained, state = step(trained, state)
        before, after = lora.split(params, ["lora1"]), lora.split(trained, ["lora1"])
        assert_trees_equal(before[0], after[0])
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before[1], after[1])
        assert min(jax.tree.leaves(moved)) > 0

    def test_optimizer_state_and_gradients_exist_for_trainable_leaves_only(self, parts):
        base, small = parts
        optimizer = optax.multi_transform(
            {"lora1": optax.adam(1e-3), "frozen": optax.set_to_zero()}, lora.partition_labels
        )
        state = jax.eval_shape(optimizer.init, lora.combine(base, small))
        # Two moments and one counter of Adam.
        assert lora.count_parameters(state) == 2 * lora.count_parameters(small) + 1
        tokens = jnp.zeros((2, TINY.specformer.num_tokens, TINY.specformer.token_dim))
        grads = jax.eval_shape(jax.grad(self.loss), small, base, tokens)
        assert jax.tree.structure(grads) == jax.tree.structure(small)

    def test_a_seed_inside_the_vmap_equals_that_seed_alone(self, parts):
        base, small = parts
        seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(randomised(small, s) for s in range(3)))
        tokens = tokenise(jnp.asarray(FLUX), TINY.specformer)
        gradient = jax.value_and_grad(self.loss)
        together = jax.jit(jax.vmap(gradient, in_axes=(0, None, None)))(seeds, base, tokens)
        alone = jax.jit(gradient)(jax.tree.map(lambda leaf: leaf[1], seeds), base, tokens)
        # float32: the large product over all seeds may sum in another order than the single one
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-6), together, alone)


@pytest.fixture(scope="module")
def step():
    """A LoRA1 loss with the shapes of its arguments, wide enough that attention is not most of the work."""
    config = SpecFormerConfig(dim=256, num_layers=2, num_heads=4, mlp_dim=1024)
    key, rank = jax.random.key(0), LoRAConfig(rank=4, alpha=8.0)
    tokens = jax.ShapeDtypeStruct((2, config.num_tokens, config.token_dim), jnp.float32)
    base = {"lamost": {"backbone": jax.eval_shape(SpecFormer(config).init, key, tokens)["params"]}}
    small = jax.eval_shape(lambda tree: lora.init_adapters(key, tree, {"lora1": rank}), base)

    def loss(small, base, tokens):
        params = lora.combine(base, small)["lamost"]["backbone"]
        module = SpecFormer(config, lora=rank)
        return (module.apply({"params": params}, tokens, method="predict_tokens") ** 2).mean()

    return loss, small, base, tokens


class TestCost:
    """What XLA says of compiled steps: nothing is run."""

    def test_a_lora_step_costs_under_seven_tenths_of_a_full_step(self, step):
        loss, small, base, tokens = step
        optimizer = optax.adam(1e-3)

        def flops(argnums, trained):
            def update(small, base, state, tokens):
                grads = jax.grad(loss, argnums=argnums)(small, base, tokens)
                norm = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(grads))
                return optimizer.update(grads, state, trained_of(small, base)), norm

            def trained_of(small, base):
                return small if argnums == 0 else (small, base)

            state = jax.eval_shape(optimizer.init, trained)
            return jax.jit(update).lower(small, base, state, tokens).compile().cost_analysis()["flops"]

        ratio = flops(0, small) / flops((0, 1), (small, base))
        assert ratio < 0.70

    def test_seeds_share_the_base(self, step):
        """Arguments of S seeds are one base, S small trees and the tokens; no copy of a frozen leaf."""
        loss, small, base, tokens = step
        seeds = 5
        many = jax.tree.map(lambda s: jax.ShapeDtypeStruct((seeds, *s.shape), s.dtype), small)
        grads = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None, None)))
        memory = grads.lower(many, base, tokens).compile().memory_analysis()
        numbers = lora.count_parameters(base) + seeds * lora.count_parameters(small) + tokens.size
        # The head's bias moves no gradient of the factors and may be dropped by the compiler.
        assert memory.argument_size_in_bytes == pytest.approx(4 * numbers, rel=1e-3)

    def test_members_axis_is_counted(self):
        config = dataclasses.replace(TINY.head, members=4)
        one, four = (
            jax.eval_shape(LabelHead(c).init, jax.random.key(0), jnp.zeros((1, 8)))["params"]
            for c in (TINY.head, config)
        )
        assert lora.count_parameters(four) == 4 * lora.count_parameters(one)


class TestFusing:
    def test_the_products_are_averaged(self, system):
        """Of four seeds and all groups: the merged fused model is the mean of the merged models."""
        keys = jax.random.split(jax.random.key(4), 4)
        many = jax.vmap(lambda key: lora.init_adapters(key, system["params"], TINY.loras))(keys)
        many = randomised(many, seed=5)
        fused = jax.tree.map(lambda leaf: leaf[0], lora.fuse(many))
        each = [
            lora.merge(system["params"], jax.tree.map(lambda leaf, k=k: leaf[k], many), TINY.loras)
            for k in range(4)
        ]
        expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *each)
        found = lora.merge(system["params"], fused, TINY.loras)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)  # float32

    def test_the_mean_of_the_factors_would_be_another_adapter(self, system):
        tree = {"mlp1": {"dense_0": {"lora_a": jnp.ones((2, 3, 1)), "lora_b": jnp.ones((2, 1, 4))}}}
        flipped = jax.tree.map(lambda leaf: leaf.at[1].multiply(-1), tree)  # the same products
        fused = lora.fuse(flipped)["mlp1"]["dense_0"]
        np.testing.assert_allclose((fused["lora_a"] @ fused["lora_b"])[0], 1, rtol=1e-6)
        assert fused["lora_a"].shape == (1, 3, 2)

    def test_other_leaves_are_refused(self):
        """The network of averaged parameters is not the average of the networks."""
        for layer in ("dense_0", "residual_0"):
            tree = {"mlp1": {layer: {"bias": np.array([[1.0, 2.0], [3.0, 6.0]])}}}
            with pytest.raises(
                ModelError, match=f"only low-rank factors can be fused, not 'mlp1/{layer}/bias'"
            ):
                lora.fuse(tree)


class TestRanksByLayer:
    def test_the_first_rule_that_a_path_matches_sets_the_rank(self, system):
        ranks = (("blocks_0/", 0), ("out_proj$", 3))
        groups = {name: TINY.loras[name] for name in ("lora1", "lora2")}
        made = lora.init_adapters(jax.random.key(0), system["params"], groups, ranks)
        blocks = made["lamost"]["backbone"]
        assert "blocks_0" not in blocks
        for layer, factors in blocks["blocks_1"]["attention"].items():
            assert factors["lora_a"].shape[1] == (3 if layer == "out_proj" else TINY.lora1.rank)
        assert made["mlp1"]["dense_0"]["lora_a"].shape[-1] == TINY.lora2.rank

    def test_a_group_without_any_layer_is_an_error(self, system):
        with pytest.raises(ModelError, match=r"nothing in this model for lora1.*rank of 0 .--ranks"):
            lora.init_adapters(
                jax.random.key(0), system["params"], {"lora1": TINY.lora1}, (("attention", 0),)
            )

    def test_layers_without_factors_and_with_fewer_act_as_merged(self, system):
        """The tree decides where the low-rank term is: unmerged and merged models agree."""
        ranks = (("blocks_0/", 0), ("out_proj$", 1))
        groups = {"lora1": TINY.lora1}
        made = randomised(lora.init_adapters(jax.random.key(0), system["params"], groups, ranks))
        tokens = np.random.default_rng(0).normal(size=(3, *tokens_shape())).astype(np.float32)
        network = SpecFormer(TINY.specformer, lora=TINY.lora1)
        merged = lora.merge(system["params"], made, TINY.loras)
        found, expected, base = (
            network.apply({"params": params["lamost"]["backbone"]}, tokens)
            for params in (lora.overlay(system["params"], made), merged, system["params"])
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # float32, in another order
        assert np.abs(found - base).max() > 1e-3


def tokens_shape():
    return TINY.specformer.num_tokens, TINY.specformer.token_dim


def test_finer_labels_name_factors_heads_and_towers():
    assert lora.labels_of("lamost/backbone/blocks_0/attention/q_proj/lora_a") == ("lora1/a", "lora1")
    assert lora.labels_of("mlp2/dense_0/lora_b") == ("lora4/b", "lora4")
    assert lora.labels_of("mlp1/residual_0/kernel") == ("residual/mlp1", "residual")
    assert lora.labels_of("mlp1/norm_0/scale") == ("mlp1", "head")
    assert lora.labels_of("lamost/projection/mlp/encoder/bias") == ("lamost/projection", "frozen")


class TestScalingUpdates:
    def test_leaves_that_replace_the_models_move_between_the_two(self):
        base = {"mlp1": {"dense_0": {"bias": jnp.full(2, 1.0)}}}
        tree = {"mlp1": {"dense_0": {"bias": jnp.full((3, 2), 5.0).at[2].set(jnp.nan)}}}
        moved = lora.scale_updates(tree, jnp.asarray([0.0, 0.25, 0.0]), base)["mlp1"]["dense_0"]["bias"]
        np.testing.assert_array_equal(moved, [[1, 1], [2, 2], [1, 1]])

    def test_a_residual_head_is_scaled_in_its_last_layer(self):
        layer = {"kernel": jnp.ones((1, 2, 2)), "bias": jnp.ones((1, 2))}
        tree = {"mlp1": {"residual_0": layer, "residual_1": layer}}
        half = lora.scale_updates(tree, jnp.asarray([0.5]))["mlp1"]
        chex.assert_trees_all_equal(half["residual_0"], layer)
        chex.assert_trees_all_equal(half["residual_1"], jax.tree.map(lambda leaf: 0.5 * leaf, layer))

    def test_the_product_is_scaled_and_lora_a_kept(self):
        tree = {"mlp1": {"dense_0": {"lora_a": jnp.ones((2, 3, 1)), "lora_b": jnp.ones((2, 1, 4))}}}
        half = lora.scale_updates(tree, jnp.asarray([0.5, 0.0]))["mlp1"]["dense_0"]
        np.testing.assert_array_equal(half["lora_a"], 1)
        np.testing.assert_array_equal(half["lora_b"][0], 0.5)
        np.testing.assert_array_equal(half["lora_b"][1], 0)
        assert half["lora_b"].dtype == jnp.float32

    def test_there_must_be_one_scale_for_each_seed(self):
        tree = {"mlp1": {"dense_0": {"lora_b": jnp.ones((2, 1, 4))}}}
        for scale in (jnp.ones(1), jnp.ones(3)):  # the first would otherwise be broadcast
            with pytest.raises(AssertionError):
                lora.scale_updates(tree, scale)

    def test_a_scale_of_zero_removes_even_nan(self):
        tree = {"mlp1": {"dense_0": {"lora_b": jnp.full((2, 1, 4), jnp.nan)}}}
        np.testing.assert_array_equal(lora.scale_updates(tree, jnp.zeros(2))["mlp1"]["dense_0"]["lora_b"], 0)
