"""Export adapters to folders of the `peft` library, and import them.

PyTorch stores the factors of a Linear as lora_A (rank, in) and lora_B (out, rank); ours are transposed. Names
are those of the published modules, so that a folder belongs to one network or one label head.

torch.nn.MultiheadAttention never calls its output projection (LoRA3) as a module, so that PEFT's factors act
there only when merged (`merge_adapter` or `merge_and_unload`). PEFT's wrapper of the whole attention does not
help: it does not support separate input projections, and version 0.21 adds the product of the output twice.
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
    """Write one seed of an adapter as a PEFT folder and return the part of the model that it adapts.

    Raises:
        SpecjaxError: A folder is missing or does not fit, or the adapter does not adapt the part.
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
        ranks[module] = factors[f"params/{layer}/lora_a"].shape[-1]
        alphas[module] = group.scale * ranks[module]  # layers of another rank have the group's alpha/rank
        for name, letter in (("lora_a", "A"), ("lora_b", "B")):
            path = f"params/{layer}/{name}"
            scale = model.output_scale(path) if name == "lora_b" else 1.0
            factor = factors[path] if np.all(scale == 1.0) else (factors[path] * scale).astype(np.float32)
            tensors[f"{module}.lora_{letter}.weight"] = np.ascontiguousarray(factor.T)
    write_peft(Path(out), tensors, ranks, alphas)
    return part


def import_adapter(source: str | Path, model: str | Path, out: str | Path, *, part: str | None = None) -> str:
    """Import a PEFT folder for the published modules as an adapter of a model, with one seed.

    The result is equivalent: factors of a lower rank than the model's are padded with zeros, those of a
    higher rank keep it, a different alpha is absorbed in lora_b, and layers of an adapted group that the
    folder does not adapt get zeros.

    Returns:
        The digest of the adapter.

    Raises:
        SpecjaxError: The folder is invalid, or has unsupported settings, layers or shapes.
    """
    from specjax.lora import describe

    base = ModelFolder.load(model)
    config, tensors = read_peft(Path(source))
    modules = sorted({_module_of(key) for key in tensors})
    part = _fitting_part(base, modules, part)
    layers = _layers(base.rows(part))
    unknown = [module for module in modules if module not in layers]
    if unknown:
        raise ModelError(f"{source} adapts {', '.join(unknown[:8])}, which {model} does not have")
    arrays: Leaves = {}
    groups: dict[str, LoRAConfig] = {}
    for module in modules:
        layer = layers[module]
        name, group = _group(base, layer, module)
        groups[name] = group
        pair = [tensors.get(f"{module}.lora_{letter}.weight") for letter in "AB"]
        down, up = (_as_float32(factor, module) for factor in pair)
        scale = scale_of(config, module, len(down)) / group.scale
        arrays |= _fit_to_group(base, layer, group, down.T, up.T, scale)
    for layer in layers.values():
        found = _group_name(layer)
        if found in groups and f"{layer}/lora_a" not in arrays:
            arrays |= _zero_factors(base, layer, groups[found].rank)
    record = {
        "configuration": "+".join(sorted(groups)),
        "label": base.config.labels[0],
        "target": Path(source).name,
        "seeds": 1,
        "sigma": None,  # the scatter of test stars is not known
        "lora": describe(unflatten(sorted(arrays.items())), groups),
        "imported": {"file": Path(source).name, "part": part},
    }
    stacked = {path: leaf[None] for path, leaf in sorted(arrays.items())}
    return save_adapter(out, config=record, arrays=unflatten(stacked.items()), base=base.digest)


def _layers(rows: list[Row]) -> dict[str, str]:
    """Return the paths of our layers by the names of the published Linears."""
    return {
        row.key.removesuffix(".weight"): row.path.removeprefix("params/").removesuffix("/kernel")
        for row in rows
        if row.transpose and row.rows is None and row.key.endswith(".weight")
    }


def _adapted_part(model: ModelFolder, factors: Mapping[str, Any], part: str | None) -> str:
    """Return the part that an adapter adapts, which must be `part` if it is given."""
    adapted = {
        name
        for name in model.parts()
        if any(f"params/{layer}/lora_a" in factors for layer in _layers(_rows_or_none(model, name)).values())
    }
    for name in [part] if part else model.parts():
        if any(path.startswith(f"params/{name}/") for path in factors) and name not in adapted:
            model.rows(name)  # raises for an ensemble
    if part is not None and part not in adapted:
        model.part(part)  # raises if there is no such part
        raise ModelError(f"the adapter has no factors for {part}")
    if part is None and len(adapted) != 1:
        raise ModelError(
            f"the adapter adapts {', '.join(sorted(adapted)) or 'no part'}: choose a part with --part"
        )
    return part or adapted.pop()


def _rows_or_none(model: ModelFolder, part: str) -> list[Row]:
    try:
        return model.rows(part)
    except ModelError:  # an ensemble, which has no published file
        return []


def _fitting_part(model: ModelFolder, modules: list[str], part: str | None) -> str:
    """Return the part that has all modules."""
    if part is not None:
        return model.part(part)
    known = {name: _layers(_rows_or_none(model, name)) for name in model.parts()}
    fitting = [name for name in known if modules and all(module in known[name] for module in modules)]
    if len(fitting) > 1:
        raise ModelError(f"the adapter fits {' and '.join(fitting)}: choose one with `part`")
    return fitting[0] if fitting else model.part(None)


def _group_name(layer: str) -> str | None:
    from specjax.lora import target_group

    return target_group(layer)


def _group(model: ModelFolder, layer: str, module: str) -> tuple[str, LoRAConfig]:
    name = _group_name(layer)
    if name is None:
        raise ModelError(f"the adapter adapts {module}, which no LoRA group of specjax does")
    return name, model.config.loras[name]


def _as_float32(factor: AnyArray | None, module: str) -> Float32Array:
    if factor is None or factor.ndim != 2 or not min(factor.shape) >= 1:
        raise ModelError(f"a factor of {module} in the adapter is missing or not a matrix")
    if factor.dtype.kind != "f" and str(factor.dtype) != "bfloat16":
        raise ModelError(f"a factor of {module} in the adapter has the type {factor.dtype}")
    with np.errstate(over="ignore"):
        return factor.astype(np.float32)


def _fit_to_group(
    model: ModelFolder,
    layer: str,
    group: LoRAConfig,
    down: Float32Array,
    up: Float32Array,
    scale: float,
) -> Leaves:
    """Pad factors (in, r) and (r, out) to at least the rank of a group and rescale them to its alpha."""
    kernel, rank = model.leaves[f"params/{layer}/kernel"], down.shape[1]
    if (down.shape[0], up.shape[1]) != kernel.shape or up.shape[0] != rank:
        raise ModelError(
            f"the factors of {layer} have the shapes {down.shape} and {up.shape}, which do not fit"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        change = scale / model.output_scale(f"params/{layer}/lora_b")
        up = up if np.all(change == 1.0) else (up * np.float64(change)).astype(np.float32)
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise ModelError(f"the factors of {layer} are not finite")
    missing = max(group.rank - rank, 0)
    return {
        f"{layer}/lora_a": np.pad(down, ((0, 0), (0, missing))),
        f"{layer}/lora_b": np.pad(up, ((0, missing), (0, 0))),
    }


def _zero_factors(model: ModelFolder, layer: str, rank: int) -> Leaves:
    inputs, outputs = model.leaves[f"params/{layer}/kernel"].shape
    return {
        f"{layer}/lora_a": np.zeros((inputs, rank), np.float32),
        f"{layer}/lora_b": np.zeros((rank, outputs), np.float32),
    }


def _module_of(key: str) -> str:
    match = re.fullmatch(r"(.+)\.lora_[AB]\.weight", key)
    if match is None:
        raise ModelError(f"the adapter contains {key[:200]}, which is not a low-rank factor of a Linear")
    return match[1]
