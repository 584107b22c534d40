"""A model folder and its adapters as flat NumPy arrays, to be exported."""

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
    """A model as flat arrays.

    Attributes:
        folder: The folder it was read from.
        config: Its configuration.
        leaves: Arrays by path ("params/...", "batch_stats/...", "stats/...").
        digest: Digest of the folder.
        sources: Records of the files it was converted from, by "model" or head.
    """

    folder: Path
    config: ModelConfig
    leaves: Leaves
    digest: str
    sources: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, folder: str | Path) -> "ModelFolder":
        """Read and verify a model folder.

        Raises:
            ModelError: The folder is missing, damaged or not a model.
        """
        stored = load_model(folder)
        if "model" not in stored.config or "params" not in stored.arrays:
            raise ModelError(f"{folder} does not contain a model")
        return cls(
            folder=Path(folder),
            config=from_dict(stored.config["model"]),
            leaves={path: leaf for path, leaf in flatten(stored.arrays) if leaf is not None},
            digest=stored.digest,
            sources=stored.config.get("sources", {}),
        )

    def part(self, wanted: str | None) -> str:
        """Return the part to export: the given one, or the main network of the model.

        Raises:
            ModelError: There is no such part; no part is given and there are several; or the published
                modules would normalise spectra differently from the part.
        """
        present = self.parts()
        if wanted is None:
            networks = [part for part in present if not part.startswith("mlp")] or present
            if len(networks) != 1:
                raise ModelError(f"{self.folder} contains {', '.join(networks)}: choose one with --part")
            wanted = networks[0]
        if wanted not in present:
            raise ModelError(f"{self.folder} has no part {wanted!r}; it contains {', '.join(present)}")
        if wanted in ("lamost", "specclip") and self.config.specformer.flux_scale is not None:
            raise ModelError(
                f"{self.folder}: {wanted} scales flux by a constant (flux_scale), published modules by the"
                " standard deviation of each spectrum; only the label heads can be exported"
            )
        return wanted

    def parts(self) -> list[str]:
        """Return the parts of the model that correspond to published files."""
        has = {part: any(path.startswith(f"params/{part}/") for path in self.leaves) for part in PARTS}
        has["specclip"] = any(path.startswith("params/lamost/projection/") for path in self.leaves)
        if has["specclip"]:
            has["lamost"] = has["gaia_xp"] = False
        return [part for part in PARTS if has[part]]

    def rows(self, part: str) -> list[Row]:
        """Return the rows of the key table for a part."""
        return table(self.config, [part])

    def query_scale(self) -> float:
        """Return the factor on the queries of the LAMOST encoder that gives the published attention.

        The published modules divide q.k by the width of a head. The factor of a model with another scale is
        folded into its queries; for a published model it is 1.
        """
        own = self.config.specformer
        return own.attention_scale / (own.num_heads / own.dim)

    def output_scale(self, path: str) -> float | AnyArray:
        """Return the ratio of the outputs of the published layer and ours, by the path of a parameter.

        It is `query_scale` for queries; for the last layer of a label head, the standard deviations (labels,)
        of the labels, since published heads return physical units; and 1 otherwise.
        """
        if is_query(path):
            return self.query_scale()
        part = path.split("/")[1]
        is_last = path.startswith(f"params/{part}/dense_{len(self.config.head.hidden_dims)}/")
        return self.leaves.get(f"stats/{part}/label_std", 1.0) if is_last else 1.0

    def folded(self) -> "ModelFolder":
        """Return the model with the published attention scale and heads that return physical units."""
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
        """Return the model with one member of an ensemble of heads; the model itself if it has no ensemble.

        Raises:
            ModelError: There are several members and none is given, or the given one does not exist.
        """
        members = self.config.head.members
        if not part.startswith("mlp") or (members == 1 and member in (None, 0)):
            return self
        if member is None or not 0 <= member < members:
            raise ModelError(
                f"head {part!r} has {members} members, but a published file has one: choose one with --member"
                f" (0 to {members - 1})"
            )
        config = replace(self.config, head=replace(self.config.head, members=1))
        return replace(self, leaves=pick_member(self.leaves, part, member), config=config)

    def merged(self, factors: Mapping[str, AnyArray]) -> "ModelFolder":
        """Return the model merged with an adapter: kernel + (alpha/rank) A B; other leaves are replaced.

        Raises:
            ModelError: The adapter does not fit the model.
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
    """Return whether the queries of the LAMOST encoder are proportional to the parameter at a path."""
    inside = path.startswith("params/lamost/backbone/blocks_") and "/attention/q_proj/" in path
    return inside and not path.endswith("/lora_a")


def pick_member(leaves: Leaves, part: str, member: int) -> Leaves:
    """Select one member of an ensemble of heads, `part`, from the leaves of a model or adapter."""
    return {
        path: leaf[member] if path.startswith((f"params/{part}/", f"batch_stats/{part}/")) else leaf
        for path, leaf in leaves.items()
    }


def load_factors(folder: str | Path, model: ModelFolder, seed: int) -> Leaves:
    """Read the leaves of one seed of an adapter, by path ("params/...").

    Raises:
        ModelError: The adapter is missing, damaged, of another model, or lacks the seed.
    """
    stored = load_adapter(folder, base=model.digest)
    leaves = {f"params/{path}": leaf for path, leaf in flatten(stored.arrays) if leaf is not None}
    seeds = min((len(leaf) if leaf.ndim else 0 for leaf in leaves.values()), default=0)
    if not 0 <= seed < seeds:
        raise ModelError(f"{folder} has no seed {seed}, only seeds 0 to {seeds - 1}")
    return {path: leaf[seed] for path, leaf in leaves.items()}
