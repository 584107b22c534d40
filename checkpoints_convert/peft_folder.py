"""Adapters of ours as folders of the `peft` library, and the other way round.

PyTorch keeps the factors of a Linear as lora_A (rank, in) and lora_B (out, rank), ours transposed. The names
are those of the published modules, so a folder belongs to one of them: to a network, or to one label head.

The output projection of a torch.nn.MultiheadAttention (LoRA3) is never called as a module, so there PEFT's
factors act only once merged (`merge_adapter` or `merge_and_unload`). PEFT's wrapper of the whole attention is
no way out: it has no form for separate input projections, and version 0.21 adds the output's product twice.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.keys import Row
from checkpoints_convert.model_folder import Leaves, ModelFolder, load_factors
from checkpoints_convert.peft_format import read_peft, scale_of, write_peft
from specjax.checkpoints import save_adapter, unflatten
from specjax.config import LoRAConfig
from specjax.errors import ModelError
from specjax.typing import AnyArray, Float32Array


def export_adapter(
    folder: str | Path, adapter: str | Path, out: str | Path, *, seed: int = 0, part: str | None = None
) -> str:
    """Write one seed of an adapter as a PEFT folder; returns the part of the model that it adapts.

    Raises:
        SpecjaxError: a folder that is missing or does not fit, or an adapter of nothing in that part.
    """
    from specjax.lora import target_group

    model = ModelFolder.load(folder)
    factors = load_factors(adapter, model, seed)
    part = _adapted_part(model, factors, part)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    tensors: Leaves = {}
    for module, layer in _layers(model.rows(part)).items():
        if f"params/{layer}/lora_a" not in factors:
            continue
        group = model.config.loras[str(target_group(layer))]
        ranks[module], alphas[module] = group.rank, group.alpha
        for name, letter in (("lora_a", "A"), ("lora_b", "B")):
            path = f"params/{layer}/{name}"
            scale = model.output_scale(path) if name == "lora_b" else 1.0
            factor = factors[path] if np.all(scale == 1.0) else (factors[path] * scale).astype(np.float32)
            tensors[f"{module}.lora_{letter}.weight"] = np.ascontiguousarray(factor.T)
    write_peft(Path(out), tensors, ranks, alphas)
    return part


def import_adapter(source: str | Path, model: str | Path, out: str | Path, *, part: str | None = None) -> str:
    """Write a PEFT folder for the published modules as an adapter of a model, with one seed.

    Factors of a lower rank than the model's are filled up with zeros, and another alpha goes into lora_b, so
    the adapter acts as it did. Layers of a group that the folder leaves alone get factors of zero.

    Returns:
        The adapter's digest.

    Raises:
        SpecjaxError: not such a folder, or settings, layers or shapes that have no place here.
    """
    base = ModelFolder.load(model)
    config, tensors = read_peft(Path(source))
    modules = sorted({_module_of(key) for key in tensors})
    part = _part_of(base, modules, part)
    layers = _layers(base.rows(part))
    alien = [module for module in modules if module not in layers]
    if alien:
        raise ModelError(f"{source} adapts {', '.join(alien[:8])}, which {model} does not have")
    arrays: Leaves = {}
    groups: dict[str, LoRAConfig] = {}
    for module in modules:
        layer = layers[module]
        name, group = _group(base, layer, module)
        groups[name] = group
        pair = [tensors.get(f"{module}.lora_{letter}.weight") for letter in "AB"]
        down, up = (_plain(factor, module) for factor in pair)
        scale = scale_of(config, module, len(down)) / group.scale
        arrays.update(_fitted(base, layer, group, down.T, up.T, scale))
    for layer in layers.values():
        found = _group_name(layer)
        if found in groups and f"{layer}/lora_a" not in arrays:
            arrays.update(_zero(base, layer, groups[found].rank))
    record = {
        "configuration": "+".join(sorted(groups)),
        "label": base.config.labels[0],
        "target": Path(source).name,
        "seeds": 1,
        "sigma": None,  # of the adaptation's test stars: not known
        "lora": {name: {"rank": group.rank, "alpha": group.alpha} for name, group in groups.items()},
        "imported": {"file": Path(source).name, "part": part},
    }
    stacked = {path: leaf[None] for path, leaf in sorted(arrays.items())}
    return save_adapter(out, config=record, arrays=unflatten(stacked.items()), base=base.digest)


def _layers(rows: list[Row]) -> dict[str, str]:
    """Map the names of the published Linears to the paths of our layers."""
    return {
        row.key.removesuffix(".weight"): row.path.removeprefix("params/").removesuffix("/kernel")
        for row in rows
        if row.transpose and row.rows is None and row.key.endswith(".weight")
    }


def _adapted_part(model: ModelFolder, factors: Mapping[str, Any], part: str | None) -> str:
    """Return the part that an adapter has factors for."""
    adapted = {
        name
        for name in model.parts()
        if any(f"params/{layer}/lora_a" in factors for layer in _layers(_rows_or_none(model, name)).values())
    }
    for name in [part] if part else model.parts():
        if any(path.startswith(f"params/{name}/") for path in factors) and name not in adapted:
            model.rows(name)  # an ensemble says so
    if part is not None and part not in adapted:
        model.part(part)  # says what there is
        raise ModelError(f"the adapter has no factors for {part}")
    if part is None and len(adapted) != 1:
        raise ModelError(
            f"the adapter has factors for {', '.join(sorted(adapted)) or 'nothing'}: give --part"
        )
    return part or adapted.pop()


def _rows_or_none(model: ModelFolder, part: str) -> list[Row]:
    try:
        return model.rows(part)
    except ModelError:  # an ensemble, which no published file holds
        return []


def _part_of(model: ModelFolder, modules: list[str], part: str | None) -> str:
    """Return the part that has most of the modules."""
    if part is not None:
        return model.part(part)
    known = {name: _layers(_rows_or_none(model, name)) for name in model.parts()}
    fitting = [name for name in known if modules and all(module in known[name] for module in modules)]
    if len(fitting) > 1:
        raise ModelError(f"the adapter fits {' and '.join(fitting)}: say which with part")
    return fitting[0] if fitting else model.part(None)


def _group_name(layer: str) -> str | None:
    from specjax.lora import target_group

    return target_group(layer)


def _group(model: ModelFolder, layer: str, module: str) -> tuple[str, LoRAConfig]:
    name = _group_name(layer)
    if name is None:
        raise ModelError(f"the adapter adapts {module}, which no group of low-rank factors here does")
    return name, model.config.loras[name]


def _plain(factor: AnyArray | None, module: str) -> Float32Array:
    if factor is None or factor.ndim != 2 or not min(factor.shape) >= 1:
        raise ModelError(f"the adapter of {module} lacks a factor, or it is no matrix")
    if factor.dtype.kind != "f" and str(factor.dtype) != "bfloat16":
        raise ModelError(f"the adapter of {module} holds {factor.dtype}")
    with np.errstate(over="ignore"):
        return factor.astype(np.float32)


def _fitted(
    model: ModelFolder,
    layer: str,
    group: LoRAConfig,
    down: Float32Array,
    up: Float32Array,
    scale: float,
) -> Leaves:
    """Bring factors (in, r) and (r, out) to the group's rank and scale."""
    kernel, rank = model.leaves[f"params/{layer}/kernel"], down.shape[1]
    if (down.shape[0], up.shape[1]) != kernel.shape or up.shape[0] != rank:
        raise ModelError(f"the adapter of {layer} has shapes {down.shape} and {up.shape}, which do not fit")
    if rank > group.rank:
        raise ModelError(f"the adapter of {layer} has rank {rank}, this model takes up to {group.rank}")
    with np.errstate(over="ignore", invalid="ignore"):
        change = scale / model.output_scale(f"params/{layer}/lora_b")
        up = up if np.all(change == 1.0) else (up * np.float64(change)).astype(np.float32)
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise ModelError(f"the adapter of {layer} has factors that are not finite")
    room = group.rank - rank
    return {
        f"{layer}/lora_a": np.pad(down, ((0, 0), (0, room))),
        f"{layer}/lora_b": np.pad(up, ((0, room), (0, 0))),
    }


def _zero(model: ModelFolder, layer: str, rank: int) -> Leaves:
    inputs, outputs = model.leaves[f"params/{layer}/kernel"].shape
    return {
        f"{layer}/lora_a": np.zeros((inputs, rank), np.float32),
        f"{layer}/lora_b": np.zeros((rank, outputs), np.float32),
    }


def _module_of(key: str) -> str:
    match = re.fullmatch(r"(.+)\.lora_[AB]\.weight", key)
    if match is None:
        raise ModelError(f"the adapter holds {key[:200]}, which is no low-rank factor of a Linear")
    return match[1]
