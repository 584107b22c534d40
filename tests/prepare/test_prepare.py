"""Preparation of files: the prepared file, refusals, and interrupted runs."""

import logging
import re

import h5py
import numpy as np
import pytest
from astropy.table import Table

from specjax.cli import main
from specjax.errors import ConfigError, DataError, SpecjaxError
from specjax.flags import Flag
from specjax.prepare import Options, assemble, plan, pool, prepare_spectra, run
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.spectra import Spectra
from specjax.surveys import read, read_xp
from specjax.wavelength import GAIA_XP_WAVELENGTH
from tests.prepare.stars import GRID, WIDE, star, write_star, write_stars

SINGLE = 1e-6  # relative precision of float32 in the file, with a margin


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(plan, "_FILES_AT_ONCE", 3)


def prepare(sources, out, **more):
    said = []
    given = [sources] if not isinstance(sources, list) else sources
    result = prepare_spectra(given, out, workers=1, say=said.append, **more)
    return result, said


def raw(folder):
    return Spectra.concatenate([read(file) for file in sorted(folder.rglob("*.npz"))])


def same_pixels(prepared, expected):
    np.testing.assert_array_equal(prepared.mask, expected.mask)
    np.testing.assert_allclose(prepared.flux, expected.flux, rtol=SINGLE)
    np.testing.assert_allclose(prepared.ivar, expected.ivar, rtol=SINGLE)


def test_a_prepared_file_equals_preprocessing_each_file(tmp_path):
    folder = write_stars(tmp_path / "raw", 7)
    write_stars(folder / "deeper", 1, id=["another"])
    result, _ = prepare(folder, tmp_path / "all.h5")
    prepared, expected = read(tmp_path / "all.h5"), to_lamost(raw(folder))
    assert prepared.id.tolist() == expected.id.tolist()
    same_pixels(prepared, expected)
    assert prepared.prepared == expected.prepared
    assert to_lamost(prepared) is prepared
    assert (prepared.survey, prepared.has_ivar) == ("stars", True)
    assert prepared.meta["ra"].tolist() == expected.meta["ra"].tolist()
    assert prepared.meta["file"][1] == str(folder / "001.npz")
    assert (result.files, result.spectra, result.refused, result.flagged) == (8, 8, 0, {})
    assert len(Table.read(result.report)) == 0
    assert not list(tmp_path.glob(".*"))


def test_the_file_is_mapped_into_memory_and_declares_units(tmp_path):
    prepare(write_stars(tmp_path / "raw", 2), tmp_path / "all.h5")
    prepared = read(tmp_path / "all.h5")
    for array in (prepared.flux, prepared.ivar, prepared.mask):
        assert isinstance(array.base, np.memmap)
        assert not array.flags.writeable
    with h5py.File(tmp_path / "all.h5") as file:
        assert file["wavelength"].attrs["unit"] == "Angstrom"
        assert file["meta/ra"].attrs["unit"] == "deg"


def bad_files(folder):
    """Write files that cannot be prepared; return {name: a part of the reason}."""
    write_star(folder, 100, wavelength=GRID / 10)
    write_star(folder, 101, flux=np.ones((1, 5)))
    write_star(folder, 102, wavelength=None)
    write_star(folder, 103, wavelength=np.r_[GRID[1], GRID[1:]])
    whole = write_star(folder, 104).read_bytes()
    (folder / "104.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "105.npz").write_bytes(b"")
    (folder / "106.h5").write_bytes(b"not HDF5")
    (folder / "107.csv").write_text("a,b\n1,2\n")
    return {
        "100.npz": "in nm",
        "101.npz": "does not fit",
        "102.npz": "no wavelength",
        "103.npz": "occur twice",
        "104.npz": "not a readable .npz",
        "105.npz": "not a readable .npz",
        "106.h5": "not a readable HDF5",
        "107.csv": "does not recognise",
    }


def test_bad_files_are_reported_and_do_not_stop_the_run(tmp_path):
    folder = write_stars(tmp_path / "raw", 4)
    expected = to_lamost(raw(folder))
    reasons = bad_files(folder)
    write_star(folder, 200, flux=np.full((1, GRID.size), np.nan))
    write_star(folder, 201, mask=(np.abs(GRID - 4800) < 250)[None])
    result, said = prepare(folder, tmp_path / "all.h5")
    prepared = read(tmp_path / "all.h5")
    same_pixels(prepared[:4], expected)
    report = Table.read(result.report)
    refused = {row["file"].rsplit("/")[-1]: row["reason"] for row in report if row["outcome"] == "refused"}
    assert refused.keys() == reasons.keys()
    for name, part in reasons.items():
        assert part in refused[name]
    assert prepared.meta["flag"].tolist() == [
        "good",
        "good",
        "good",
        "good",
        "no_coverage",
        "masked_fraction",
    ]
    assert report[report["outcome"] == "flagged"]["id"].tolist() == ["star 200", "star 201"]
    assert result.refused == len(reasons)
    assert any("8 refused" in line for line in said)


def test_an_unexpected_error_of_a_reader_is_a_refusal(tmp_path, monkeypatch):
    folder = write_stars(tmp_path / "raw", 3)
    whole = pool.prepare_chunk.__globals__["read_in_place"]

    def broken(path, *given, **more):
        if path.name == "001.npz":
            raise ZeroDivisionError("something unforeseen")
        return whole(path, *given, **more)

    monkeypatch.setitem(pool.prepare_chunk.__globals__, "read_in_place", broken)
    result, _ = prepare(folder, tmp_path / "all.h5")
    assert (result.spectra, result.refused) == (2, 1)
    assert Table.read(result.report)["reason"].tolist() == ["ZeroDivisionError: something unforeseen"]


def test_without_usable_spectra_there_is_one_error_and_no_file(tmp_path):
    (tmp_path / "raw").mkdir()
    bad_files(tmp_path / "raw")
    with pytest.raises(DataError, match=r"none of 8 files could be used \(see .*\); the first: .*nm"):
        prepare(tmp_path / "raw", tmp_path / "all.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.report.ecsv", "raw"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files of spectra"):
        prepare(tmp_path / "empty", tmp_path / "all.h5")
    with pytest.raises(DataError, match="there is nothing at"):
        prepare(tmp_path / "absent", tmp_path / "all.h5")


@pytest.fixture
def interrupted_run(tmp_path, monkeypatch):
    """Interrupt a run over eight files in the second of three chunks; return the folder and later parts."""
    folder, done = write_stars(tmp_path / "raw", 8), []
    whole = pool.prepare_chunk

    def interrupted(sources, options, path):
        if path.name == "000001.npz":
            raise KeyboardInterrupt
        return whole(sources, options, path)

    monkeypatch.setattr(pool, "prepare_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, tmp_path / "all.h5")
    monkeypatch.setattr(pool, "prepare_chunk", lambda *given: done.append(given[2].name) or whole(*given))
    return folder, done


def test_an_interrupted_run_is_resumed(tmp_path, interrupted_run):
    folder, done = interrupted_run
    assert not (tmp_path / "all.h5").exists()
    _, said = prepare(folder, tmp_path / "all.h5")
    assert done == ["000001.npz", "000002.npz"]
    assert "resuming: 1 of 3 chunks are already prepared" in said
    prepare(folder, tmp_path / "anew.h5")
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "anew.h5").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: write_star(folder, 0, ra=[5.0], dec=[1.0]), "000.npz changed"),
        (lambda folder: write_star(folder, 50), "050.npz is new"),
        (lambda folder: (folder / "003.npz").unlink(), "003.npz is no longer given"),
    ],
)
def test_a_run_is_not_resumed_with_other_files(tmp_path, interrupted_run, change, said):
    folder, done = interrupted_run
    change(folder)
    with pytest.raises(ConfigError, match=said):
        prepare(folder, tmp_path / "all.h5")
    assert done == []


def test_a_run_is_not_resumed_with_other_options(tmp_path, interrupted_run):
    folder, _ = interrupted_run
    with pytest.raises(ConfigError, match="fwhm_from was None and is now 8"):
        prepare(folder, tmp_path / "all.h5", options=Options(fwhm_from=8.0))
    (tmp_path / ".all.h5.parts" / "plan.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        prepare(folder, tmp_path / "all.h5")


def test_a_finished_file_is_kept(tmp_path):
    folder, out = write_stars(tmp_path / "raw", 2), tmp_path / "all.h5"
    prepare(folder, out)
    before = out.read_bytes()
    result, said = prepare(folder, out)
    assert result is None
    assert "already" in said[0]
    with pytest.raises(ConfigError, match="exists"):
        prepare(folder, out, options=Options(method="interpolate"))
    assert out.read_bytes() == before
    (tmp_path / "other.h5").write_text("a file of the user")
    with pytest.raises(SpecjaxError, match="exists and was not written by specjax"):
        prepare(folder, tmp_path / "other.h5")


class KilledError(Exception):
    """Ends a run as a kill does, but without ending the test."""


def kill_at(monkeypatch, module, function, folder, out):
    """Let a run end where it calls a function."""

    def killed(*_given):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(module, function, killed)
        with pytest.raises(KilledError):
            prepare(folder, out)


def test_a_file_that_exists_has_its_report(tmp_path, monkeypatch):
    folder, out = write_stars(tmp_path / "raw", 2), tmp_path / "all.h5"
    kill_at(monkeypatch, assemble, "write_report", folder, out)
    assert not out.exists()
    assert prepare(folder, out)[0].report.exists()


def test_parts_that_a_kill_has_left_of_a_finished_run_are_removed(tmp_path, monkeypatch):
    folder, out = write_stars(tmp_path / "raw", 2), tmp_path / "all.h5"
    kill_at(monkeypatch, run, "remove_folder", folder, out)
    before = out.read_bytes()
    assert list(tmp_path.glob(".*"))
    assert prepare(folder, out)[0] is None
    assert not list(tmp_path.glob(".*"))
    assert out.read_bytes() == before


def test_a_prepared_file_among_the_raw_ones_is_not_an_input(tmp_path):
    folder = write_stars(tmp_path / "raw", 2)
    prepare(folder, folder / "all.h5")
    assert prepare(folder, folder / "all.h5")[0] is None


def test_several_processes_give_the_same_file_as_one(tmp_path):
    folder = write_stars(tmp_path / "raw", 7)
    prepare(folder, tmp_path / "one.h5")
    prepare_spectra([folder], tmp_path / "two.h5", workers=2, say=lambda line: None)
    assert (tmp_path / "two.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()


def test_the_first_spectrum_of_each_id_is_kept(tmp_path):
    folder = write_stars(tmp_path / "raw", 4)
    write_star(folder, 9, id=["star 1"])
    result, _ = prepare(folder, tmp_path / "all.h5")
    assert (result.spectra, result.duplicates) == (4, 1)
    (row,) = Table.read(result.report)
    assert row["outcome"] == "duplicate"
    assert re.search(r"already occurs in .*001\.npz", row["reason"])


def test_large_array_files_are_prepared_in_ranges_of_rows(tmp_path, monkeypatch):
    many, path = np.stack([star(k) for k in range(10)]), tmp_path / "many.h5"
    with h5py.File(path, "w") as file:
        file.update(wavelength=GRID, flux=many, ra=np.arange(10.0), id=[f"s{k}" for k in range(10)])
    expected = to_lamost(read(path))
    monkeypatch.setattr(plan, "_BYTES_AT_ONCE", 1000)
    monkeypatch.setattr(plan, "_ROWS_AT_ONCE", 4)
    made = plan.make_plan([path], Options(), out=tmp_path / "all.h5")
    assert [source.rows for chunk in made.chunks for source in chunk] == [(0, 4), (4, 8), (8, 10)]
    monkeypatch.setattr(plan, "_PIXELS_AT_ONCE", 3 * GRID.size)  # the next smaller power of two is 2
    narrow = plan.make_plan([path], Options(), out=tmp_path / "all.h5")
    assert [source.rows for chunk in narrow.chunks for source in chunk][:2] == [(0, 2), (2, 4)]
    result, _ = prepare(path, tmp_path / "all.h5")
    prepared = read(tmp_path / "all.h5")
    assert (result.files, prepared.has_ivar) == (1, False)
    assert prepared.id.tolist() == expected.id.tolist()
    assert prepared.meta["ra"].tolist() == list(range(10))
    same_pixels(prepared, expected)


def test_surveys_with_different_columns_share_a_table(tmp_path):
    folder = write_stars(tmp_path / "raw", 2)
    write_star(folder, 2, survey="others", ra=None, dec=[3.5], zwarn=[4], name=["x/y"], ivar=None)
    _, said = prepare(folder, tmp_path / "all.h5")
    prepared = read(tmp_path / "all.h5")
    assert not prepared.has_ivar
    assert any("1 spectrum without uncertainties" in line for line in said)
    assert prepared.survey == "others+stars"
    np.testing.assert_array_equal(prepared.meta["ra"], [0.0, 1.0, np.nan])
    np.testing.assert_array_equal(prepared.meta["zwarn"], [np.nan, np.nan, 4.0])
    assert prepared.meta["name"].tolist() == ["", "", "x/y"]


def xp_file(path, ids, holes=()):
    flux = np.stack([star(len(name), GAIA_XP_WAVELENGTH) for name in ids])
    flux[list(holes), 200:] = np.nan
    np.savez(path, source_id=ids, flux=flux, flux_error=0.01 * flux)
    return path


def test_xp_files_give_the_xp_side_by_id(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(4):
        write_star(folder, number, id=[str(1000 + number)])
    xp = xp_file(tmp_path / "xp.npz", ["1002", "1000", "7", "1003"], holes=[3])
    result, _ = prepare(folder, tmp_path / "all.h5", xp=[xp])
    side, given = read_xp(tmp_path / "all.h5"), to_gaia_xp(read(xp))
    assert result.partners == 2
    assert side.id.tolist() == ["1000", "1001", "1002", "1003"]
    assert side.meta["flag"].tolist() == ["good", "no_partner", "good", "masked_fraction"]
    assert side.mask[[1, 3]].all()
    assert (side.flux[[1, 3]] == 0).all()
    same_pixels(side[[0, 2]], given[[1, 0]])
    with pytest.raises(DataError, match="no id of the 1 Gaia XP spectra"):
        prepare(folder, tmp_path / "later.h5", xp=[xp_file(tmp_path / "wrong.npz", ["7"])])
    result, said = prepare(folder, tmp_path / "later.h5", xp=[xp])  # only the assembly is repeated
    assert (result.partners, said[0]) == (2, "resuming: 2 of 2 chunks are already prepared")


def test_spectra_that_cover_the_xp_range_give_their_own_xp_side(tmp_path):
    folder = write_stars(tmp_path / "raw", 2)
    write_star(folder, 2, WIDE)
    result, _ = prepare(folder, tmp_path / "all.h5", options=Options(fwhm_from=8.0))
    side = read_xp(tmp_path / "all.h5")
    assert (result.partners, side.prepared["fwhm_from"]) == (1, 8.0)
    assert (side.meta["flag"] == Flag.GOOD).tolist() == [False, False, True]
    expected = to_gaia_xp(read(folder / "002.npz"), fwhm_from=8.0)
    same_pixels(side[2], expected)
    prepare(folder, tmp_path / "plain.h5")
    assert read_xp(tmp_path / "plain.h5") is None


def test_options_are_applied_to_the_spectra(tmp_path):
    folder = write_stars(tmp_path / "raw", 3, rv=[150.0])
    write_star(folder, 5)  # without a velocity
    options = Options(fwhm_from=4.0, fwhm_to=6.0, velocity_column="rv", method="interpolate")
    result, _ = prepare(folder, tmp_path / "all.h5", options=options)
    prepared = read(tmp_path / "all.h5")
    how = {"method": "interpolate", "fwhm": 4.0, "fwhm_to": 6.0, "velocity_column": "rv"}
    assert prepared.prepared == {"tower": "lamost", **how}
    same_pixels(prepared[0], to_lamost(read(folder / "000.npz"), **how))
    assert (result.spectra, result.refused) == (3, 1)
    assert "no column 'rv'" in Table.read(result.report)["reason"][0]


def test_prepared_files_and_xp_files_are_refused_as_sources(tmp_path):
    folder = write_stars(tmp_path / "raw", 1)
    prepare(folder, tmp_path / "first.h5")
    xp = xp_file(tmp_path / "xp.npz", ["12"])
    result, _ = prepare([folder, tmp_path / "first.h5", xp], tmp_path / "all.h5")
    reasons = Table.read(result.report)["reason"]
    assert "is already prepared" in reasons[0]
    assert "Gaia XP" in reasons[1]


def test_patterns_and_lists_stand_for_files(tmp_path):
    folder = write_stars(tmp_path / "raw", 3)
    write_stars(folder / "deeper", 1)
    (tmp_path / "list.txt").write_text(f"# stars\n{folder}/00[12].npz\n\n{folder}/deeper\n")
    found = list(plan.given_paths([f"@{tmp_path}/list.txt", folder / "**" / "000.npz"]))
    names = ["001.npz", "002.npz", "deeper", "000.npz", "deeper/000.npz"]
    assert found == [folder / name for name in names]
    (folder / "[x].npz").touch()
    assert list(plan.given_paths([folder / "[x].npz"])) == [folder / "[x].npz"]
    for wrong, said in ((folder / "*.fits", "nothing matches"), ("@none.txt", "not a readable list")):
        with pytest.raises(DataError, match=said):
            list(plan.given_paths([wrong]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"survey": "sloan"}, "unknown survey"),
        ({"fwhm_to": 3.0}, "lowering the resolution"),
        ({"fwhm_from": 4.0, "fwhm_to": 3.0}, "lowering the resolution"),
        ({"max_masked": 1.5}, "from 0 to 1"),
    ],
)
def test_invalid_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Options(**options)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"should end in \.h5"):
        prepare(write_stars(tmp_path / "raw", 1), tmp_path / "all.parquet")


def test_only_fits_files_are_used_from_a_folder_that_has_them(tmp_path, caplog):
    folder = write_stars(tmp_path / "raw", 2)
    (folder / "visits.csv").write_text("a,b\n1,2\n")
    (folder / "broken.fits").write_bytes(b"not FITS")
    (folder / "redrock-1.fits").write_bytes(b"beside a coadd")
    (folder / ".hidden.fits").write_bytes(b"")
    made = plan.make_plan([folder], Options(), out=tmp_path / "all.h5")
    assert [source.path.name for chunk in made.chunks for source in chunk] == ["broken.fits"]
    with caplog.at_level(logging.ERROR), pytest.raises(DataError, match="none of 1 files"):
        prepare(folder, tmp_path / "all.h5")


def test_the_command_prints_the_path_and_reports_the_counts(tmp_path, capsys):
    folder, out = write_stars(tmp_path / "raw", 3), tmp_path / "all.h5"
    (folder / "bad.npz").write_bytes(b"")
    assert main([*f"prepare {folder} --out {out} --fwhm-from 4 --fwhm-to 5 --workers 1".split()]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "1 refused" in printed.err
    assert read(out).prepared["fwhm_to"] == 5.0
    assert main(["prepare", "--out", str(out)]) == 1
    assert "needs spectra" in capsys.readouterr().err
