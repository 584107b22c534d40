"""The campaigns of damage notice what is not noticed."""

import numpy as np

from benchmarks.reliability import damage, kinds


def counts(kind, change):
    return damage.campaign(kind, change, 60, np.random.default_rng(0))


def test_flips_of_a_file_without_checksums_are_silent_and_of_one_with_them_refused(tmp_path):
    before = kinds.fits_plain(tmp_path).files[0].read_bytes()
    plain, packed = kinds.fits_plain(tmp_path), kinds.fits_gz(tmp_path)
    assert counts(plain, damage.flip)["silent"] > 10
    assert plain.files[0].read_bytes() == before
    found = counts(packed, damage.flip)
    assert found["refused"] > 50
    assert found["silent"] == found["crash"] == 0


def test_an_exception_that_is_not_of_specjax_is_a_crash(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1 2 3")

    def read():
        return {"a": np.array([int(word) for word in path.read_text().split()])}

    found = counts(kinds.Kind(files=[path], read=read, guarded="nothing"), damage.flip)
    assert found["crash"] > 0
    assert found["silent"] > 0
