"""Read and write folders of the `peft` library: adapter_config.json and adapter_model.safetensors.

The library does not verify its files. Folders written here have a SHA-256 of tensors and settings in the
metadata of the safetensors file, which the library ignores and `read_peft` verifies if it is present.
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
# Settings that would change the meaning of the factors.
_UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "modules_to_save",
)
_MAX_ALPHA = 1e9  # far above any real alpha; keeps scaled factors within float32
_HASHED_SETTINGS = ("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "bias", *_UNSUPPORTED)


def read_peft(folder: Path) -> tuple[dict[str, Any], Leaves]:
    """Read the settings, and the factors by the names of the modules.

    Raises:
        ModelError: The folder is not a PEFT folder, is damaged, or has unsupported settings.
    """
    from safetensors import SafetensorError, safe_open

    recover_folder(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            digest = (file.metadata() or {}).get(_DIGEST)
    except OSError as error:
        raise ModelError(f"{folder} is not a PEFT folder: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ModelError(f"{folder} is damaged: {reason}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} is not a LoRA adapter")
    if digest is not None and digest != _digest(config, tensors):
        raise ModelError(f"{folder} is damaged: its tensors or settings differ from those that were exported")
    used = [name for name in _UNSUPPORTED if config.get(name)]
    used += ["bias"] if config.get("bias", "none") != "none" else []
    used += ["alpha_pattern"] if not isinstance(config.get("alpha_pattern") or {}, dict) else []
    if used:
        raise ModelError(f"{folder} has unsupported settings: {', '.join(used)}")
    return config, {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}


def write_peft(folder: Path, tensors: Leaves, ranks: dict[str, int], alphas: dict[str, float]) -> None:
    """Write factors by the names of the modules, with the rank and alpha of each module, atomically.

    Raises:
        SpecjaxError: The folder has other contents.
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
    """Return the factor of PEFT on the low-rank product of a module: alpha/rank, or alpha/sqrt(rank).

    Raises:
        ModelError: The alpha is not a number, or a pattern is not the name of a module.
    """
    patterns = config.get("alpha_pattern") or {}
    alpha = config.get("lora_alpha", 8)
    for pattern, value in patterns.items():
        # PEFT interprets patterns as regular expressions; only plain names are supported here.
        name = pattern.replace("\\", "")
        if not re.fullmatch(r"[\w.]+", name):
            raise ModelError(f"{CONFIG}: the pattern {pattern[:200]!r} is not the name of a module")
        if module == name or module.endswith(f".{name}"):
            alpha = value
            break
    if type(alpha) not in (int, float) or not abs(alpha) <= _MAX_ALPHA:
        raise ModelError(f"{CONFIG}: the alpha of {module} is not a number up to {_MAX_ALPHA:g}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _digest(config: Mapping[str, Any], tensors: Leaves) -> str:
    """Return the SHA-256 of the factors and of the settings that determine their meaning."""
    digest = hashlib.sha256()
    settings = {name: config.get(name) for name in _HASHED_SETTINGS}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode(errors="replace"))
        digest.update(array.tobytes())
    return digest.hexdigest()
