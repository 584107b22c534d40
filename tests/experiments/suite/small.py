"""A small model on a synthetic target, in place of what the experiments load by default."""

import functools

import numpy as np

from experiments.suite import cases, runner
from experiments.suite.cases import Case
from specjax.adapt.splits import draw_splits
from tests import synthetic

SEEDS = 2


def case(**changes):
    """The target of `synthetic`, with two splits."""
    splits = draw_splits(40, seeds=SEEDS, train=20, validate=4)
    target = synthetic.target(name="tilted", **changes)
    return Case(model=synthetic.foundation(), target=target, splits=splits)


def baselines(one, splits=None):
    """Two predictions without training: the truth with noise, and another one with more."""
    rng = np.random.default_rng(0)
    truth, shape = one.target.truth, (len(splits or one.splits), len(one.target.truth))
    return {name: truth + noise * rng.normal(size=shape) for name, noise in (("good", 0.3), ("bad", 0.6))}


def install(monkeypatch):
    """Let experiments adapt quickly, and take these baselines."""
    monkeypatch.setattr(cases, "load_cases", lambda config: [case()])
    monkeypatch.setattr(cases, "baselines", baselines)
    quick = functools.partial(runner.AdaptConfig, **_quick())
    monkeypatch.setattr(runner, "AdaptConfig", quick)


def _quick():
    names = ("folds", "tower_folds", "head", "joint", "lora1", "lora3", "head_scales", "tower_scales")
    return {name: getattr(synthetic.ADAPT, name) for name in names}


def silent(line):
    """Say nothing."""
