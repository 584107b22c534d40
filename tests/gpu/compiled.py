"""Print facts of programs compiled for an H200, as JSON, on a machine that has none.

XLA's GPU compiler runs without a device if it is told what the device is like. Autotuning, which would time
kernels, is off, and so are Triton products, which need it.

    python -m tests.gpu.compiled embed
"""

import json
import os
import re
import sys
from collections import Counter

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import xla_bridge
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from specjax import devices
from specjax.config import get_preset
from specjax.foundation.networks import Networks
from tests.adapt.programs import shapes_of, training

PAPER = get_preset("paper")
ROWS = 1024
SEEDS, BATCH, STARS, STEPS = 32, 16, 60, 8

# The data sheet of the card, in the fields that the compiler asks for.
H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
}
"""
# Nothing runs for these.
NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "partition-id"}


def pretend_to_have_gpus(count):
    """Return the devices of a host with `count` of the cards, and let JAX choose as if they were there."""
    known = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name == "cuda" else known(name)
    cudnn.check_compute_capability = lambda capability: True
    cudnn.is_cuda_compute_capability_equal = lambda capability: False
    cudnn.check_cudnn_version = lambda: 91000
    jax.default_backend = lambda: "gpu"
    devices.has_bfloat16_units = lambda device=None: True
    shape = f"1x1x{count}"
    return topologies.get_topology_desc(platform="cuda", topology=shape, target_config=H200).devices


def placed(tree, sharding):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def embed(cards, program):
    """Compile the embedding of `ROWS` spectra in bfloat16."""
    flux, valid = (
        jax.ShapeDtypeStruct((ROWS, PAPER.specformer.num_pixels), kind) for kind in (jnp.float32, bool)
    )

    def run(variables, flux, valid):
        return program(Networks(PAPER, variables, "bfloat16"), flux, valid)

    one = jax.sharding.SingleDeviceSharding(cards[0])
    return jax.jit(run).lower(*placed((shapes_of(PAPER), flux, valid), one)).compile()


def steps(cards, name):
    """Compile the training of a configuration in bfloat16, the seeds spread over all cards."""
    run, (frozen, start, shared, own, keys) = training(
        PAPER, shapes_of(PAPER), name, seeds=SEEDS, batch=BATCH, stars=STARS, steps=STEPS, dtype="bfloat16"
    )
    mesh = Mesh(np.array(cards), (devices.AXIS,))
    whole, cut = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (devices.AXIS,)))
    arguments = (
        *placed((frozen,), whole), *placed((start,), cut), *placed((shared,), whole),
        *placed((own, keys), cut),
    )  # fmt: skip
    return run.lower(*arguments).compile()


PROGRAMS = {
    "embed": lambda: embed(pretend_to_have_gpus(1), Networks.lamost_mean),
    "project": lambda: embed(pretend_to_have_gpus(1), Networks.lamost_z),
    "lora1+lora2": lambda: steps(pretend_to_have_gpus(1), "lora1+lora2"),
    "lora4": lambda: steps(pretend_to_have_gpus(1), "lora4"),
    "two-cards": lambda: steps(pretend_to_have_gpus(2), "lora1+lora2"),
}


def facts(compiled):
    """Return what the tests ask of a program."""
    text = compiled.as_text()
    bodies = re.findall(r"body=%([\w.\-]+)", text)
    return {
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "shapes": sorted(set(re.findall(r"\b(?:f32|bf16)\[[\d,]+\]", text))),
        "collectives": re.findall(r"\b(?:all-reduce|all-gather|all-to-all|collective-permute)\S*", text),
        "entry": kernels(text, "ENTRY"),
        "step": kernels(text, f"%{bodies[-1]} ") if bodies else {},
    }


def kernels(text, start):
    """Count the kernels of a computation, and list the shapes of its matrix products and attentions."""
    lines = text[text.index(f"\n{start}") :].split("\n}")[0].splitlines()[2:]
    found, products = Counter(), []
    for line in lines:
        match = re.match(r"\s+(?:ROOT )?%\S+ = (\(.*?\)|\S+) ([\w\-]+)\(", line)
        if not match or match.group(2) in NO_WORK:
            continue
        target = re.search(r'custom_call_target="([^"]+)"', line)
        found[target.group(1) if target else match.group(2)] += 1
        if target and ("cublas" in target.group(1) or "fmha" in target.group(1)):
            products.append(re.search(r"(?:f32|bf16)\[[\d,]+\]", match.group(1)).group())
    return {"count": sum(found.values()), "kinds": dict(found), "products": products}


if __name__ == "__main__":
    print(json.dumps(facts(PROGRAMS[sys.argv[1]]())))
