"""The comparison of one process and Dask workers, with few spectra."""

import pytest

from benchmarks import many_spectra
from benchmarks.many_spectra import Options

pytest.importorskip("distributed")


@pytest.mark.slow  # four runs over thousands of spectra, two of them killed twice
def test_runs_that_are_killed_twice_give_the_same_table(tmp_path, capfd):
    many_spectra.main(Options(n=3 * many_spectra.PER_FILE, out=tmp_path))
    printed = capfd.readouterr().out
    assert "one process: killed twice, the same table" in printed
    assert "Dask: killed twice, the same table" in printed
