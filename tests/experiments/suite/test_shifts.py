import dataclasses
import math

import numpy as np
import pytest

from experiments.suite import cases, shifts
from experiments.suite.raw import Raw
from experiments.suite.shifts import FLAWS, NOTHING, recovered, with_recovered
from specjax.errors import ConfigError
from specjax.simulate.flaws import Flaws
from tests import synthetic
from tests.experiments.suite import small

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_every_kind_of_flaw_comes_alone_and_mixed():
    alone = {name: flaws for name, flaws in FLAWS.items() if "mixed" not in name}
    default = Flaws()
    changed = [
        {field for field, value in vars(flaws).items() if value != getattr(default, field)}
        for flaws in alone.values()
    ]
    assert alone[NOTHING] == default
    assert all(len(fields) == 1 for fields in changed[1:])
    kinds = set.union(*changed)
    assert kinds == {"scattered_light", "wavelength_offset", "throughput", "fwhm", "snr"}
    for name in ("mixed, mild", "mixed, severe"):
        assert all(getattr(FLAWS[name], kind) != getattr(default, kind) for kind in kinds)


def test_recovered_is_one_without_loss_and_zero_without_gain():
    assert recovered(0.9, 0.1, 0.9) == 1
    assert recovered(0.1, 0.1, 0.9) == 0
    assert recovered(-0.3, 0.1, 0.9) == pytest.approx(-0.5)
    assert math.isnan(recovered(0.9, 0.95, 0.9))


def test_rows_are_compared_with_the_same_row_without_the_flaw():
    rows = [
        {"target": "t", "flaw": flaw, "name": name, "kind": kind, "r2": r2}
        for flaw, name, kind, r2 in (
            (NOTHING, "zero", "zero-shot", 0.8), (NOTHING, "lora2", "adapted", 0.9),
            ("S/N 5", "zero", "zero-shot", 0.5), ("S/N 5", "lora2", "adapted", 0.7),
        )
    ]  # fmt: skip
    assert [row.get("recovered") for row in with_recovered(rows)] == [None, None, None, pytest.approx(0.5)]


def test_flaws_are_checked_before_anything_runs(tmp_path):
    config = shifts.get_config()
    with pytest.raises(ConfigError, match="no flaw 'rain'"):
        shifts.run(dataclasses.replace(config, flaws=(NOTHING, "rain")), tmp_path, small.silent)
    with pytest.raises(ConfigError, match="no 'none' to compare with"):
        shifts.run(dataclasses.replace(config, flaws=("S/N 5",)), tmp_path, small.silent)


@pytest.mark.slow
def test_the_experiment(monkeypatch, tmp_path):
    """With spectra that are tilted instead of spoilt."""
    small.install(monkeypatch)
    raw = Raw(
        name="tilted", spectra=synthetic.target().labelled, truth=np.empty(0), label="fe_h",
        fe_h=np.empty(0), usable=np.empty(0, bool), fwhm=2.5,
    )  # fmt: skip
    tilt = {NOTHING: 0.0, "scattered light 40%": 0.3}

    def spoilt_target(raw, flaw):
        values = synthetic.labels(40, seed=5)
        return synthetic.target(labelled=synthetic.observed(values, "L", 6, tilt[flaw])[0])

    monkeypatch.setattr(shifts, "load_raw", lambda config: [raw])
    monkeypatch.setattr(shifts, "spoilt_target", spoilt_target)
    monkeypatch.setattr(
        cases, "make_case", lambda config, target: dataclasses.replace(small.case(), target=target)
    )
    config = dataclasses.replace(shifts.get_config(), seeds=small.SEEDS, flaws=tuple(tilt))
    results = shifts.run(config, tmp_path, small.silent)
    results.write(tmp_path)
    by = {(row["flaw"], row["name"]): row for row in results.rows}
    assert len(by) == 2 * 5
    assert math.isfinite(by["scattered light 40%", "lora2"]["recovered"])
    assert "over_heads" in by[NOTHING, "lora1+lora2"]
    assert "scattered light 40%" in results.answers["shifts"]
