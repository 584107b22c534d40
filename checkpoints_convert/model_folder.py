"""A model folder, and an adapter of it, as flat arrays: what export starts from. NumPy only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.keys import Row, table
from specjax.checkpoints import flatten, load_adapter, load_model
from specjax.config import ModelConfig, from_dict
from specjax.errors import ModelError
from specjax.typing import AnyArray

Leaves = dict[str, AnyArray]

PARTS = ("lamost", "gaia_xp", "specclip", "mlp1", "mlp2")


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model: arrays by path ("params/...", "batch_stats/...", "stats/...") and what its files were."""

    folder: Path
    config: ModelConfig
    leaves: Leaves
    digest: str
    sources: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> "ModelFolder":
        """Read and verify a folder.

        Raises:
            ModelError: missing or damaged, or no model.
        """
        stored = load_model(folder)
        if "model" not in stored.config or "params" not in stored.arrays:
            raise ModelError(f"{folder} holds no model")
        return cls(
            folder=Path(folder),
            config=from_dict(stored.config["model"]),
            leaves={path: leaf for path, leaf in flatten(stored.arrays) if leaf is not None},
            digest=stored.digest,
            sources=stored.config.get("sources", {}),
        )

    def part(self, wanted: str | None) -> str:
        """Return the part to write: the wanted one, or the main network of the model.

        Raises:
            ModelError: the model has no such part, or several and none is wanted, or the published modules
                would cut spectra into other tokens than the part was trained on.
        """
        there = self.parts()
        if wanted is None:
            networks = [part for part in there if not part.startswith("mlp")] or there
            if len(networks) != 1:
                raise ModelError(f"{self.folder} holds {', '.join(networks)}: say which with --part")
            wanted = networks[0]
        if wanted not in there:
            raise ModelError(f"{self.folder} has no part {wanted!r}; it holds {', '.join(there)}")
        if wanted in ("lamost", "specclip") and self.config.specformer.flux_scale is not None:
            raise ModelError(
                f"{self.folder}: {wanted} reads flux on a scale of its own (flux_scale), published modules"
                " each spectrum in units of its scatter: they cannot hold it; its heads they can"
            )
        return wanted

    def parts(self) -> list[str]:
        """The parts of the model that have a published file."""
        has = {part: any(path.startswith(f"params/{part}/") for path in self.leaves) for part in PARTS}
        has["specclip"] = any(path.startswith("params/lamost/projection/") for path in self.leaves)
        if has["specclip"]:
            has["lamost"] = has["gaia_xp"] = False
        return [part for part in PARTS if has[part]]

    def rows(self, part: str) -> list[Row]:
        """The rows of the key table for a part."""
        return table(self.config, [part])

    def query_scale(self) -> float:
        """What the queries of the LAMOST encoder are multiplied by to give the published attention.

        The published modules divide q.k by the width of a head; a model trained with another factor has it in
        its queries instead. 1 for a published model.
        """
        own = self.config.specformer
        return own.attention_scale / (own.num_heads / own.dim)

    def output_scale(self, path: str) -> Any:
        """What a layer of the published modules puts out, in units of ours, by the path of a parameter of it.

        A number for queries (see `query_scale`), for the last layer of a label head the labels' standard
        deviations (labels,), which a published head does not apply afterwards, and 1 elsewhere.
        """
        if is_query(path):
            return self.query_scale()
        part = path.split("/")[1]
        is_last = path.startswith(f"params/{part}/dense_{len(self.config.head.hidden_dims)}/")
        return self.leaves.get(f"stats/{part}/label_std", 1.0) if is_last else 1.0

    def folded(self) -> "ModelFolder":
        """Return the model with the published factor on q.k and labels in physical units."""
        leaves = dict(self.leaves)
        for path, leaf in self.leaves.items():
            scale = self.output_scale(path) if path.startswith("params/") else 1.0
            if np.all(scale == 1.0):
                continue
            leaves[path] = (leaf * scale).astype(leaf.dtype)
        last = len(self.config.head.hidden_dims)
        for part in ("mlp1", "mlp2"):
            leaves.pop(f"stats/{part}/label_std", None)
            mean, bias = leaves.pop(f"stats/{part}/label_mean", None), f"params/{part}/dense_{last}/bias"
            if mean is not None and bias in leaves:
                leaves[bias] = (leaves[bias] + mean).astype(leaves[bias].dtype)
        config = replace(self.config, specformer=replace(self.config.specformer, logit_scale=None))
        return replace(self, leaves=leaves, config=config)

    def with_member(self, part: str, member: int | None) -> "ModelFolder":
        """Return the model with one member of an ensemble of heads as its head; itself where there is none.

        Raises:
            ModelError: several members and none chosen, or one that does not exist.
        """
        members = self.config.head.members
        if not part.startswith("mlp") or (members == 1 and member in (None, 0)):
            return self
        if member is None or not 0 <= member < members:
            raise ModelError(
                f"head {part!r} has {members} members and a published file one: say which with --member"
                f" (0 to {members - 1})"
            )
        config = replace(self.config, head=replace(self.config.head, members=1))
        return replace(self, leaves=pick_member(self.leaves, part, member), config=config)

    def merged(self, factors: Mapping[str, AnyArray]) -> "ModelFolder":
        """Return the model with an adapter merged: kernel + (alpha/rank) A B, other leaves replaced.

        Raises:
            ModelError: the adapter does not fit.
        """
        from specjax.lora import FACTORS, group_of

        leaves = dict(self.leaves)
        for path, value in factors.items():
            layer, _, name = path.rpartition("/")
            target = f"{layer}/kernel" if name in FACTORS else path
            if target not in leaves:
                raise ModelError(f"the adapter does not fit the model: it has no {target}")
            if name == FACTORS[0]:
                kernel, up = leaves[target], factors[f"{layer}/{FACTORS[1]}"]
                scale = self.config.loras[group_of(path.removeprefix("params/"))].scale
                product = np.matmul(value, up, dtype=np.float64)
                if product.shape != kernel.shape:
                    raise ModelError(f"the adapter does not fit the model: {target} is {list(kernel.shape)}")
                leaves[target] = (kernel + scale * product).astype(kernel.dtype)
            elif name not in FACTORS:
                leaves[target] = value
        return replace(self, leaves=leaves)


def is_query(path: str) -> bool:
    """Whether a path is a parameter that the queries of the LAMOST encoder are linear in."""
    inside = path.startswith("params/lamost/backbone/blocks_") and "/attention/q_proj/" in path
    return inside and not path.endswith("/lora_a")


def pick_member(leaves: Leaves, part: str, member: int) -> Leaves:
    """Take one member of the ensemble `part`, from a model's leaves or an adapter's."""
    return {
        path: leaf[member] if path.startswith((f"params/{part}/", f"batch_stats/{part}/")) else leaf
        for path, leaf in leaves.items()
    }


def load_factors(folder: str | Path, model: ModelFolder, seed: int) -> Leaves:
    """Read one seed's leaves of an adapter, by path ("params/...").

    Raises:
        ModelError: missing, damaged, of another model, or without that seed.
    """
    stored = load_adapter(folder, base=model.digest)
    leaves = {f"params/{path}": leaf for path, leaf in flatten(stored.arrays) if leaf is not None}
    seeds = min((len(leaf) if leaf.ndim else 0 for leaf in leaves.values()), default=0)
    if not 0 <= seed < seeds:
        raise ModelError(f"{folder} has the seeds 0 to {seeds - 1}, not {seed}")
    return {path: leaf[seed] for path, leaf in leaves.items()}
