"""`python -m checkpoints_convert.export DIR --out FILE`: write a model folder as a PyTorch file.

With --adapter, low-rank factors are merged into the weights. With --peft, they are written on their own, as a
folder that the `peft` library applies to the PyTorch modules.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_convert.__main__ import run
from checkpoints_convert.keys import projection_parts
from checkpoints_convert.model_folder import ModelFolder, load_factors, pick_member
from checkpoints_convert.peft_folder import export_adapter
from checkpoints_convert.torch_writer import write_torch_file
from specjax.config import ModelConfig, SpecFormerConfig
from specjax.errors import ModelError
from specjax.typing import AnyArray

_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64}


def export_checkpoint(
    folder: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    seed: int = 0,
    part: str | None = None,
    member: int | None = None,
) -> str:
    """Write a model as a file in the published layout, which torch loads with strict=True.

    Args:
        folder: The model folder.
        out: The file to write, atomically.
        adapter: Adapter folder to merge.
        seed: Seed of the adapter.
        part: "lamost", "gaia_xp", "specclip", "mlp1" or "mlp2"; by default the network without label heads.
        member: Member of an ensemble of label heads; a file contains one.

    Returns:
        The part that was written.

    Raises:
        SpecjaxError: A folder is missing, damaged or does not fit, or the part cannot be exported.
    """
    model = ModelFolder.load(folder)
    part = model.part(part)
    whole, model = model, model.with_member(part, member)
    paths = {row.path for row in model.rows(part)}
    if adapter is not None:
        factors = load_factors(adapter, model, seed)
        if model is not whole:
            factors = pick_member(factors, part, member or 0)
        layers = {path.rpartition("/")[0] for path in paths}
        if not any(path.rpartition("/")[0] in layers for path in factors):
            parts = sorted({path.split("/")[1] for path in factors})
            raise ModelError(f"{adapter} adapts {', '.join(parts)}, not {part}: choose a part with --part")
        model = model.merged(factors)
    write_torch_file(out, _content(model.folded(), part))
    return part


def _content(model: ModelFolder, part: str) -> dict[str, Any]:
    state = state_dict(model, part)
    if part.startswith("mlp"):
        stats = {
            name: model.leaves[f"stats/{part}/feature_{name}"]
            for name in ("mean", "std")
            if f"stats/{part}/feature_{name}" in model.leaves
        }
        return {"model_state_dict": state, **({"stats": stats} if stats else {})}
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state,
        "hyper_parameters": _hyper_parameters(model.config, part),
    }


def state_dict(model: ModelFolder, part: str) -> dict[str, AnyArray]:
    """Return the tensors of a part by their published names, in the types of the file they came from.

    Raises:
        ModelError: The model lacks a parameter of the part, or a parameter has a wrong shape.
    """
    source = model.sources.get(part if part.startswith("mlp") else "model", {})
    counters, dtypes = source.get("num_batches_tracked", {}), source.get("dtypes", {})
    rows = model.rows(part)
    state: dict[str, AnyArray] = {}
    for row in rows:
        if row.path not in model.leaves:
            raise ModelError(f"{model.folder} has no parameter {row.path}")
        leaf = model.leaves[row.path]
        dtype = np.dtype(_DTYPES.get(dtypes.get(row.key, ""), leaf.dtype))
        if row.rows is None:
            state[row.key] = (leaf.T if row.transpose else leaf).astype(dtype, copy=False)
        else:
            row.write(leaf, state.setdefault(row.key, np.empty(row.shape, dtype)))
        if row.key.endswith(".running_var"):
            counter = row.key.removesuffix("running_var") + "num_batches_tracked"
            state[counter] = np.array(counters.get(counter, 0), np.int64)
    for row in rows:
        shape = state[row.key].shape
        if shape != row.shape:
            raise ModelError(f"{model.folder}: {row.key} would be {list(shape)}, not {list(row.shape)}")
    return state


def _hyper_parameters(config: ModelConfig, part: str) -> dict[str, Any]:
    """Return what shapes do not determine, under the published names and nested as in the modules."""
    if part == "specclip":
        pools = {
            (f"{name}attention" if name else "cross_attention"): {"multihead_attn": {"num_heads": heads}}
            for name, heads in zip(projection_parts(config), config.projection.num_heads, strict=False)
        }
        return {"lamost_lrs_encoder": {"backbone": encoder_hyper_parameters(config.specformer), **pools}}
    if part == "lamost":
        return encoder_hyper_parameters(config.specformer)
    return {} if config.xp_transformer is None else encoder_hyper_parameters(config.xp_transformer)


def encoder_hyper_parameters(config: SpecFormerConfig) -> dict[str, Any]:
    """Return the hyper-parameters of a masked transformer of LAMOST or Gaia XP by their published names."""
    lamost = config.statistics == ("log10_std",)
    windows = {"slice_section_length": config.window, "slice_overlap": config.window - config.stride}
    return {
        "input_dim": config.token_dim if lamost else config.window,
        "embed_dim": config.dim,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "max_len": config.max_len,
        "mask_num_chunks": config.mask_chunks,
        "mask_chunk_width": config.mask_width,
        "dropout": 0.0,
        "norm_first": True,
        **(windows if lamost else {"include_stats": True}),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m checkpoints_convert.export", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="model folder")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="file or PEFT folder to write"
    )
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="adapter of the model")
    parser.add_argument("--seed", type=int, default=0, help="seed of the adapter")
    parser.add_argument("--part", help="part to write: lamost, gaia_xp, specclip, mlp1 or mlp2")
    parser.add_argument("--member", type=int, help="member of an ensemble of label heads")
    parser.add_argument("--peft", action="store_true", help="write only the adapter, as a PEFT folder")
    return run(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    if options.peft:
        if options.adapter is None:
            raise ModelError("--peft writes an adapter: give it as --adapter DIR")
        if options.member is not None:
            raise ModelError(
                "--peft cannot export members: merge the adapter of an ensemble instead, one file per member"
            )
        part = export_adapter(
            options.folder, options.adapter, options.out, seed=options.seed, part=options.part
        )
    else:
        chosen = {name: getattr(options, name) for name in ("adapter", "seed", "part", "member")}
        part = export_checkpoint(options.folder, options.out, **chosen)
    print(f"wrote {options.out}: {part}")


if __name__ == "__main__":
    sys.exit(main())
