"""What the programs are on an H200, asked of its compiler: no card is needed.

They need `pip install 'specjax[cuda]'`, in this environment or in one of its own whose interpreter
SPECJAX_CUDA_PYTHON names.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest

from specjax.config import get_preset
from tests.processes import ROOT

pytestmark = pytest.mark.slow
PAPER = get_preset("paper")
TOWER = PAPER.specformer


@pytest.fixture(scope="module")
def facts():
    """Compile a program, once, in a process of its own: the compiler is set by the environment."""
    python = os.environ.get("SPECJAX_CUDA_PYTHON", sys.executable)
    if python == sys.executable and importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("needs jax[cuda12], here or at SPECJAX_CUDA_PYTHON")
    known = {}

    def compiled(name):
        if name not in known:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            command = [python, "-m", "tests.gpu.compiled", name]
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, done.stderr[-2000:]
            known[name] = json.loads(done.stdout)
        return known[name]

    return compiled


def dims(shape):
    kind, _, sizes = shape.rstrip("]").partition("[")
    return kind, tuple(map(int, sizes.split(",")))


@pytest.mark.parametrize("name", ["embed", "project", "lora1+lora2"])
def test_tokens_are_not_transposed(facts, name):
    """(n, t, d) stays as the products write it; a mean over t once cost 22 GB of copies per 1024 spectra."""
    turned = [
        shape for shape in facts(name)["shapes"] if dims(shape)[1][-2:] == (TOWER.dim, TOWER.num_tokens)
    ]
    assert not turned


@pytest.mark.parametrize(("name", "part"), [("embed", "entry"), ("lora1+lora2", "step")])
def test_the_towers_products_are_in_half_precision(facts, name, part):
    """All that are as long as the tokens of the batch, except that of the embedding's output with itself."""
    products = [dims(shape) for shape in facts(name)[part]["products"]]
    long = [kind for kind, sizes in products if math.prod(sizes) >= 16 * TOWER.num_tokens * TOWER.dim]
    assert len(long) >= 5 * TOWER.num_layers
    assert set(long) == {"bf16"}


@pytest.mark.parametrize(("name", "part"), [("embed", "entry"), ("lora1+lora2", "step")])
def test_attention_is_one_kernel_per_block(facts, name, part):
    kinds = facts(name)[part]["kinds"]
    assert kinds["__cudnn$fmhaSoftmax"] == TOWER.num_layers
    assert kinds.get("__cudnn$fmhaSoftmaxBackward", 0) == (TOWER.num_layers if part == "step" else 0)


def test_keys_and_values_are_not_cut_out_of_one_array(facts):
    """A copy of (n, t, 2 d) per block; the kernels are cut instead."""
    for name in ("embed", "lora1+lora2"):
        assert not [shape for shape in facts(name)["shapes"] if dims(shape)[1][-1] == 2 * TOWER.dim
                    and math.prod(dims(shape)[1]) > 4 * TOWER.dim**2]  # fmt: skip


def test_the_joint_step_of_32_seeds_fits_into_small_cards(facts):
    assert facts("lora1+lora2")["temporary"] < 10e9


def test_the_number_of_kernels(facts):
    """Each costs some microseconds to start; the limits are 5% above what there is."""
    counts = {name: facts(name)["step"]["count"] for name in ("lora1+lora2", "lora4")}
    assert counts["lora1+lora2"] < 660
    assert counts["lora4"] < 96
    assert facts("embed")["entry"]["count"] < 143


def test_seeds_on_two_cards_do_not_talk_to_each_other(facts):
    assert facts("two-cards")["collectives"] == []
