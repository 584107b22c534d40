"""The folder that the `peft` library reads: adapter_config.json and adapter_model.safetensors.

The library checks nothing. Folders written here carry a SHA-256 of tensors and settings in the metadata of
the safetensors file, which the library ignores and `read_peft` checks where it is there.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.model_folder import Leaves
from specjax.atomic import atomic_folder, recover_folder
from specjax.errors import ModelError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_DIGEST = "specjax_sha256"
# Settings under which a factor would mean something else; each must be off.
_MUST_BE_OFF = (
    *("use_dora", "fan_in_fan_out", "use_bdlora", "lora_bias"),
    *("layer_replication", "modules_to_save"),
)
_MAX_ALPHA = 1e9  # no adapter has more; it keeps the factors within float32
_THAT_MATTER = ("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "bias", *_MUST_BE_OFF)


def read_peft(folder: Path) -> tuple[dict[str, Any], Leaves]:
    """Read the settings and the factors, by the names of the modules.

    Raises:
        ModelError: not such a folder, damaged, or with settings that have no place here.
    """
    from safetensors import SafetensorError, safe_open

    recover_folder(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            said = (file.metadata() or {}).get(_DIGEST)
    except OSError as error:
        raise ModelError(f"{folder} is no PEFT folder: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ModelError(f"{folder} is damaged: {reason}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} is no LoRA adapter")
    if said is not None and said != _digest(config, tensors):
        raise ModelError(f"{folder} is damaged: its tensors or settings are not those that were exported")
    on = [name for name in _MUST_BE_OFF if config.get(name)]
    if on or config.get("bias", "none") != "none" or not isinstance(config.get("alpha_pattern") or {}, dict):
        raise ModelError(f"{folder} uses {', '.join(on) or 'biases'}, which has no place here")
    return config, {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}


def write_peft(folder: Path, tensors: Leaves, ranks: dict[str, int], alphas: dict[str, float]) -> None:
    """Write factors by the names of the modules, with each module's rank and alpha; whole or not at all.

    Raises:
        SpecjaxError: the folder holds something else.
    """
    from safetensors.numpy import save_file

    modules = sorted(ranks)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": ranks[modules[0]],
        "lora_alpha": alphas[modules[0]],
        "target_modules": modules,
        "rank_pattern": {re.escape(module): ranks[module] for module in modules},
        "alpha_pattern": {re.escape(module): alphas[module] for module in modules},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
    named = {_PREFIX + key: tensor for key, tensor in tensors.items()}
    with atomic_folder(folder, known=(WEIGHTS, CONFIG)) as temporary:
        metadata = {"format": "pt", _DIGEST: _digest(config, named)}
        save_file(named, temporary / WEIGHTS, metadata=metadata)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what PEFT multiplies the product of a module with: alpha/rank, or alpha/sqrt(rank).

    Raises:
        ModelError: an alpha that is no number, or a pattern that is no name.
    """
    patterns = config.get("alpha_pattern") or {}
    alpha = config.get("lora_alpha", 8)
    for pattern, value in patterns.items():
        # PEFT takes a pattern as a regular expression; names are all that is needed, and all that is taken.
        name = pattern.replace("\\", "")
        if not re.fullmatch(r"[\w.]+", name):
            raise ModelError(f"{CONFIG}: the pattern {pattern[:200]!r} is no name of a module")
        if module == name or module.endswith(f".{name}"):
            alpha = value
            break
    if type(alpha) not in (int, float) or not abs(alpha) <= _MAX_ALPHA:
        raise ModelError(f"{CONFIG}: the alpha of {module} is no number")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _digest(config: Mapping[str, Any], tensors: Leaves) -> str:
    """SHA-256 of the factors and of the settings that say what they mean."""
    digest = hashlib.sha256()
    settings = {name: config.get(name) for name in _THAT_MATTER}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode(errors="replace"))
        digest.update(array.tobytes())
    return digest.hexdigest()
