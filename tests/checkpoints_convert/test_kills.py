"""Programs killed while they save always leave a loadable folder."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from checkpoints_convert.convert import convert
from specjax.checkpoints import load_model
from tests.checkpoints_convert.smallest import small_model

CONVERTER = textwrap.dedent(
    """
    import sys
    from checkpoints_convert.convert import convert
    print("ready", flush=True)
    while True:
        for source in sys.argv[2:]:
            convert(source, sys.argv[1])
    """
)


def kill_while_saving(tmp_path, count):
    """Kill a program that repeatedly overwrites one model with another, at random times."""
    first, second = small_model(tmp_path / "a.ckpt"), small_model(tmp_path / "b.ckpt")
    digests = set()
    for source in (first, second):  # they differ in the name of the source, which is in the record
        convert(source, tmp_path / "model")
        digests.add(load_model(tmp_path / "model").digest)
    rng = np.random.default_rng(0)
    for _ in range(count):
        command = [sys.executable, "-c", CONVERTER, tmp_path / "model", first, second]
        environment = os.environ | {"PYTHONPATH": os.getcwd()}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.2))
            os.kill(child.pid, signal.SIGKILL)
        assert load_model(tmp_path / "model").digest in digests


def test_a_kill_while_saving(tmp_path):
    kill_while_saving(tmp_path, 3)


@pytest.mark.slow
def test_fifty_kills_while_saving(tmp_path):
    kill_while_saving(tmp_path, 50)
