"""What test_session.py runs in processes of its own: python program.py ADDRESS PROCESSES PROCESS MODE."""

import sys
import time

import numpy as np

from specjax import distributed
from specjax.cli import run
from specjax.errors import DataError
from specjax.progress import say

ADDRESS, PROCESSES, PROCESS, MODE = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


def exchange():
    """Arrays that differ in shape, type and name."""
    mine = {"number": np.float64(PROCESS) / 3, "file": np.arange(PROCESS), f"own{PROCESS}": np.array(["é"])}
    everyone = distributed.exchange(mine)
    assert len(everyone) == PROCESSES
    for process, each in enumerate(everyone):
        assert each["number"] == process / 3  # in double precision
        assert each["file"].tolist() == list(range(process))
        assert each[f"own{process}"].tolist() == ["é"]
    with distributed.main_first("order"):
        say(f"turn of {PROCESS} at {time.monotonic()}")
    distributed.agree({"options": {"seeds": 3}})
    distributed.finish()
    if distributed.is_main():
        import jax

        print(float(jax.jit(lambda x: x + 1)(1.0)))  # alone, after the others have gone


def differ():
    distributed.agree({"options": {"seeds": 3 + PROCESS}})


def wait_for_the_others():
    """Wait in Python, and in a collective that the others do not enter."""
    say("ready")
    if PROCESS == 0:
        time.sleep(600)
    distributed.exchange({})


def fail():
    if PROCESS == 1:
        raise DataError("the disk is full")
    distributed.exchange({})


def main():
    with distributed.session(ADDRESS, PROCESSES, PROCESS, wait=120, say=say):
        {"exchange": exchange, "differ": differ, "wait": wait_for_the_others, "fail": fail}[MODE]()


if __name__ == "__main__":
    run(main)
