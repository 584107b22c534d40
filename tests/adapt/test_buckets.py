"""Other numbers of stars and seeds find their programs compiled, and seeds do not notice their group."""

import dataclasses

import jax
import numpy as np
import pytest

from specjax.adapt import buckets
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import Configuration
from specjax.adapt.splits import draw_splits
from tests import synthetic
from tests.adapt.test_adaptation import CLOSE, CONFIG

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("count", [1, 10, 16, 17, 60, 64, 65, 89, 126, 128, 129, 500, 5000])
def test_stars_are_padded_little_and_to_few_sizes(count):
    size = buckets.padded(count)
    assert count <= size <= max(count + 15, 1.5 * count)
    assert buckets.padded(size) == size


def test_the_sizes_for_stars():
    sizes = sorted({buckets.padded(count) for count in range(1, 400)})
    assert sizes == [16, 32, 48, 64, 96, 128, 192, 256, 384, 512]


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 16, 33])
def test_groups_hold_each_seed_once_and_have_few_sizes(monkeypatch, count, devices):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    groups = buckets.seed_groups(count)
    held = np.concatenate([np.arange(count)[seeds] for seeds, _ in groups])
    np.testing.assert_array_equal(held, np.arange(count))
    for seeds, size in groups:
        assert seeds.stop - seeds.start <= size <= buckets.CPU_SEEDS * devices
        assert size >= devices


def adapt(seeds, train, labelled, name):
    whole = synthetic.target()
    part = {
        "labelled": whole.labelled[:labelled],
        "truth": whole.truth[:labelled],
        "fe_h": whole.fe_h[:labelled],
    }
    splits = draw_splits(labelled, seeds=seeds, train=train, validate=4)
    adaptation = Adaptation(synthetic.foundation(), dataclasses.replace(whole, **part), splits, CONFIG)
    return adaptation.run(Configuration.parse(name))


@pytest.mark.slow
def test_a_seed_adapts_the_same_in_any_group():
    """The sixth seed is in the second group of six, and alone in the other run."""
    splits = draw_splits(40, seeds=6, train=20, validate=4)
    results = [
        Adaptation(synthetic.foundation(), synthetic.target(), some, CONFIG).run(
            Configuration.parse("lora1+lora2")
        )
        for some in (splits, splits[5:])
    ]
    assert results[0].predictions.shape[0] == 6
    np.testing.assert_allclose(results[0].predictions[5:], results[1].predictions, **CLOSE)
    for name, chosen in results[1].chosen.items():
        np.testing.assert_array_equal(results[0].chosen[name][5:], chosen)


@pytest.mark.parametrize("name", ["lora4", "lora1+lora2"])
def test_another_number_of_stars_and_seeds_compiles_no_program_again(name, caplog):
    """Only small ones, such as the sum of two arrays, which take milliseconds."""

    def programs(*sizes):
        caplog.clear()
        with jax.log_compiles():
            result = adapt(*sizes, name)
        assert len(result.predictions) == sizes[0]
        return [
            record.getMessage()
            for record in caplog.records
            if "Compiling jit(one_seed)" in record.getMessage()
        ]

    jax.clear_caches()
    assert len(programs(4, 20, 40)) > 3  # the guard of the guard
    assert not programs(7, 18, 37)
