"""`pretrain` over two real processes on loopback, with tiny models."""

import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from specjax.checkpoints import load_model
from tests.processes import free_address, start

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "distributed_program.py"


def pair(out):
    host, port = free_address().split(":")
    address = f"{host}:{int(port) + 1}"
    return [start(PROGRAM, 1, str(out), address, str(rank), stderr=subprocess.PIPE) for rank in range(2)]


def outcomes(processes):
    found = [process.communicate(timeout=900) for process in processes]
    for process, (_, said) in zip(processes, found, strict=True):
        assert process.returncode == 0, said
    return found


def close(first, second):
    for one, other in zip(*(jax.tree.leaves(load_model(out).arrays) for out in (first, second)), strict=True):
        # weights are stored in half precision, and parts of a batch are summed in another order
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "model"
    outcomes([start(PROGRAM, 1, str(out), stderr=subprocess.PIPE)])
    return out


def test_two_processes_write_the_model_of_one(alone, tmp_path):
    (printed, said), (nothing, quiet) = outcomes(pair(tmp_path / "model"))
    assert printed == f"{tmp_path / 'model'}\n"
    assert "backbone 4/4" in said
    assert (nothing, quiet) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    close(tmp_path / "model", alone)


def test_a_run_of_which_one_process_was_killed_resumes(alone, tmp_path):
    out = tmp_path / "model"
    both = pair(out)
    for line in both[0].stderr:
        if line.startswith("autoencoder 2/4"):
            break
    both[1].kill()
    _, said = both[0].communicate(timeout=120)
    assert both[0].returncode == 1
    assert "was killed, or its host was lost" in said.splitlines()[-1]
    both[1].communicate()
    (_, said), _ = outcomes(pair(out))
    assert "backbone: resuming after step 4" in said
    close(out, alone)
