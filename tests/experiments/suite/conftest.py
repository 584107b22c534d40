"""Experiments on a tiny model and synthetic targets in place of the shipped model and the libraries."""

import dataclasses

import numpy as np
import pytest

from experiments.suite import cases
from tests import synthetic

SMALL = {"seeds": 2, "train": 20, "validate": 4, "adapt": synthetic.ADAPT, "targets": ("tilted",)}
"""Settings of any experiment on the synthetic target."""


@pytest.fixture
def on_synthetic(monkeypatch, tmp_path):
    """Let `load_cases` give the synthetic target, and baselines be a straight line in the mean flux."""

    def make_targets(libraries, names):
        return [synthetic.target(name=name) for name in names]

    def baselines(case, splits=None):
        splits = splits or case.splits
        x, y = case.target.labelled.flux.mean(axis=1), case.target.truth
        lines = [np.polyval(np.polyfit(x[rows], y[rows], 1), x) for rows in splits.train]
        return {"gp-target": np.stack(lines), "kernel-ridge": np.stack(lines) + 0.5 * x}

    monkeypatch.setattr(cases, "fetch_stellar_libraries", lambda: tmp_path)
    monkeypatch.setattr(cases.main_table, "make_targets", make_targets)
    monkeypatch.setattr(cases, "_loaded", lambda name: synthetic.foundation())
    monkeypatch.setattr(cases, "baselines", baselines)


def small(config, **changes):
    """Return the settings of an experiment for the synthetic target."""
    return dataclasses.replace(config, **SMALL, **changes)
