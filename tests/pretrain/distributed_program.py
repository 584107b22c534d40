"""What test_distributed.py runs in processes of its own: a whole pretraining of a tiny model.

python distributed_program.py OUT [ADDRESS PROCESS]
"""

import contextlib
import dataclasses
import sys
from pathlib import Path

import numpy as np

from specjax import distributed
from specjax.cli import run
from specjax.preprocess import PrincipalFill
from specjax.pretrain import run as pretraining
from specjax.pretrain import stages
from specjax.pretrain.batches import make_data
from specjax.pretrain.config import PretrainConfig
from specjax.progress import say
from tests import synthetic
from tests.pretrain.short_run import CONFIG, corpus

OUT, *HOSTS = sys.argv[1:]


def build(config, degraded, say):
    pairs = corpus()
    fill = PrincipalFill.fit(pairs.flux, np.zeros(pairs.flux.shape, bool), 3)
    return pretraining.Corpus(make_data(pairs, config), fill, {})


def main():
    stages.get_preset = lambda name: synthetic.CONFIG
    PretrainConfig.of = lambda preset, **options: dataclasses.replace(CONFIG, **options)
    pretraining._observed = build
    session = contextlib.nullcontext()
    if HOSTS:
        session = distributed.session(HOSTS[0], 2, int(HOSTS[1]), say=say)
    with session, synthetic.quick_compilation():
        pretraining.pretrain(out=Path(OUT), held_out=0.25, resume=True, say=distributed.say_on_main(say))
        if distributed.is_main():
            print(OUT)


if __name__ == "__main__":
    run(main)
