"""Files and folders of a few kilobytes, written without torch, for tests that damage them."""

import zipfile
from itertools import pairwise

import numpy as np

from checkpoints_convert.convert import convert
from checkpoints_convert.keys import table
from checkpoints_convert.peft_folder import export_adapter
from checkpoints_convert.torch_writer import write_torch_file
from specjax.checkpoints import load_model, save_adapter
from specjax.config import LabelHeadConfig, ModelConfig, ProjectionConfig, XPAutoencoderConfig

_CONFIG = ModelConfig(
    xp_autoencoder=XPAutoencoderConfig(hidden_dim=6, latent_dim=4, num_blocks=1),
    projection=ProjectionConfig(shared_dim=5, num_heads=(1,)),
    head=LabelHeadConfig(hidden_dims=(6, 4)),
)


def small_model(path, part="gaia_xp"):
    """Write a bare autoencoder, or the label head "mlp2", with the writer that the parity tests check."""
    rng = np.random.default_rng(0)
    state = {row.key: rng.normal(size=row.shape).astype(np.float32) for row in table(_CONFIG, [part])}
    if part == "mlp2":
        write_torch_file(path, {"model_state_dict": state})
    else:
        write_torch_file(path, {"state_dict": state, "hyper_parameters": {"lr": 0.1}})
    return path


def small_folders(place):
    """Write a label head, an adapter of it and this adapter as a PEFT folder; return the three folders."""
    folders = [place / name for name in ("model", "adapter", "peft")]
    convert(small_model(place / "head.pt", "mlp2"), folders[0])
    rng = np.random.default_rng(1)
    sizes = (5, 6, 4, 1)
    factors = {
        f"dense_{i}": {
            "lora_a": rng.normal(size=(2, n, 8)).astype(np.float32),
            "lora_b": rng.normal(size=(2, 8, m)).astype(np.float32),
        }
        for i, (n, m) in enumerate(pairwise(sizes))
    }
    record = {"configuration": "lora4", "label": "label_0", "seeds": 2, "sigma": 0.1}
    base = load_model(folders[0]).digest
    save_adapter(folders[1], config=record, arrays={"mlp2": factors}, base=base)
    export_adapter(folders[0], folders[1], folders[2])
    return folders


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def rewrite(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content if isinstance(content, list) else content.items():
            archive.writestr(name, data)
    return path
