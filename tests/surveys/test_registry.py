from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from specjax.errors import DataError
from specjax.prepare import prepare_spectra
from specjax.spectra import Spectra
from specjax.surveys import SURVEYS, read


@pytest.mark.parametrize(
    ("fixture", "survey"),
    [("miles_folder", "miles"), ("stelib_folder", "stelib"), ("mastar_folder", "mastarhc_v2")],
)
def test_folders_are_recognised(fixture, survey, request):
    folder = request.getfixturevalue(fixture)
    assert read(folder).survey == survey
    assert read(str(folder)).survey == survey


def test_a_named_survey_is_not_guessed(miles_folder):
    assert len(read(miles_folder, "miles")) == 6
    with pytest.raises(DataError, match="no STELIB spectra"):
        read(miles_folder, "stelib")


def test_unknown_inputs_are_refused_with_a_list_of_surveys(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"a folder of \.txt files") as caught:
        read(tmp_path)
    assert all(name in str(caught.value) for name in SURVEYS)
    with pytest.raises(DataError, match=r"a \.txt file"):
        read(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(DataError, match="unknown survey 'hst'"):
        read(tmp_path, "hst")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder without files"):
        read(tmp_path / "empty")


def test_contradictory_media_and_units_are_refused(miles_folder):
    assert read(miles_folder, wavelength_medium="air", wavelength_unit="angstrom").medium == "air"
    with pytest.raises(DataError, match="in air, not vacuum"):
        read(miles_folder, wavelength_medium="vacuum")
    with pytest.raises(DataError, match="declare their wavelength unit"):
        read(miles_folder, wavelength_unit="nm")


GRID = np.linspace(4000.0, 5600.0, 161)


def write_csv(path, seed):
    path.parent.mkdir(exist_ok=True)
    flux = np.random.default_rng(seed).normal(1.0, 0.1, GRID.size)
    rows = [f"{wavelength},{value}" for wavelength, value in zip(GRID, flux.tolist(), strict=True)]
    path.write_text("\n".join(["wavelength,flux", *rows]))
    return flux


class TestFoldersOfFilesOfYourOwn:
    def test_all_files_are_read_to_any_depth_each_as_what_it_is(self, tmp_path, caplog):
        first, second = write_csv(tmp_path / "a.csv", 0), write_csv(tmp_path / "night" / "b.csv", 1)
        np.savez(tmp_path / "c.npz", wavelength=GRID, flux=[first + 1, second + 1], id=["c0", "c1"])
        (tmp_path / "labels.csv").write_text("id,fe_h\na,0.1\n")
        write_csv(tmp_path / ".hidden" / "d.csv", 2)
        spectra = read(tmp_path, wavelength_medium="vacuum")
        assert spectra.id.tolist() == ["a", "c0", "c1", "b"]
        np.testing.assert_array_equal(spectra.flux, [first, first + 1, second + 1, second])
        assert spectra.meta["file"].tolist() == ["a.csv", "c.npz", "c.npz", "night/b.csv"]
        assert [message for message in caplog.messages if "labels.csv" in message]
        assert read(tmp_path, "columns", wavelength_medium="vacuum").id.tolist() == ["a", "b"]

    def test_a_table_of_labels_in_fits_does_not_hide_spectra_of_other_formats(self, tmp_path):
        write_csv(tmp_path / "a.csv", 0)
        Table({"id": ["a"], "fe_h": [0.1]}).write(tmp_path / "labels.fits")
        assert read(tmp_path, wavelength_medium="vacuum").id.tolist() == ["a"]
        prepare_spectra([tmp_path], tmp_path / "out.h5", workers=1)
        assert read(tmp_path / "out.h5").id.tolist() == ["a"]
        Table({"wavelength": GRID, "flux": np.ones(GRID.size)}).write(tmp_path / "star.fits")
        assert read(tmp_path, wavelength_medium="vacuum").id.tolist() == ["star"]

    def test_the_first_fits_files_may_be_tables_of_labels(self, tmp_path):
        for number in range(4):
            Table({"id": ["a"], "fe_h": [0.1]}).write(tmp_path / f"a{number}.fits")
        Table({"wavelength": GRID, "flux": np.ones(GRID.size)}).write(tmp_path / "star.fits")
        (tmp_path / "notes.csv").write_text("text\n")
        assert read(tmp_path, wavelength_medium="vacuum").id.tolist() == ["star"]

    def test_a_survey_that_is_named_takes_its_files_only(self, tmp_path):
        write_csv(tmp_path / "a.csv", 0)
        np.savez(tmp_path / "b.npz", wavelength=GRID, flux=np.ones(GRID.size))
        Table({"wavelength": GRID, "flux": np.ones(GRID.size)}).write(tmp_path / "c.fits")
        for survey, name in (("columns", "a"), ("arrays", "b"), ("fits_spectrum", "c"), (None, "c")):
            assert read(tmp_path, survey, wavelength_medium="vacuum").id.tolist() == [name]

    @pytest.mark.parametrize("suffix", [".fits", ".csv", ".npz"])
    def test_files_of_one_name_have_their_folders_in_their_ids(self, tmp_path, suffix, caplog):
        raw = tmp_path / "raw"
        for folder in ("x/a", "x/b", "x/c"):
            path = raw / folder / f"star{suffix}"
            path.parent.mkdir(parents=True)
            columns = {"wavelength": GRID, "flux": np.random.default_rng(0).normal(1.0, 0.1, GRID.size)}
            np.savez(path, **columns) if suffix == ".npz" else Table(columns).write(path)
        Path(raw / f"x/a/star{suffix}").rename(raw / f"x/a/other{suffix}")
        expected = ["other", "b/star", "c/star"]
        spectra = read(raw)
        assert spectra.id.tolist() == expected
        assert spectra.survey == "other+raw"
        assert spectra.meta["file"].tolist() == [
            f"x/a/other{suffix}",
            f"x/b/star{suffix}",
            f"x/c/star{suffix}",
        ]
        assert sum("does not declare" in message for message in caplog.messages) == 1
        assert read(raw / "x" / "b").survey == "star"
        prepare_spectra([raw], tmp_path / "out.h5", workers=1)
        assert sorted(read(tmp_path / "out.h5").id.tolist()) == sorted(expected)

    def test_a_file_where_the_paths_part_keeps_its_name(self, tmp_path):
        for path in (tmp_path / "star.csv", tmp_path / "a" / "star.csv"):
            write_csv(path, 0)
        assert read(tmp_path, wavelength_medium="vacuum").id.tolist() == ["a/star", "star"]

    def test_spectra_of_surveys_keep_their_names(self, tmp_path):
        """The same file twice is the same spectrum twice."""
        for folder in ("a", "b"):
            np.savez(tmp_path / folder, wavelength=GRID, flux=np.ones((2, GRID.size)), id=["s1", "s2"])
        spectra = read(tmp_path, wavelength_medium="vacuum")
        assert spectra.id.tolist() == ["s1", "s2", "s1", "s2"]

    def test_a_damaged_fits_file_beside_other_files_is_not_passed_over(self, tmp_path):
        write_csv(tmp_path / "a.csv", 0)
        (tmp_path / "star.fits").write_bytes(b"SIMPLE")
        with pytest.raises(DataError, match=r"star\.fits"):
            read(tmp_path)

    def test_many_files_have_the_name_of_their_folder(self, tmp_path, monkeypatch):
        for count in range(5):
            write_csv(tmp_path / "my survey" / f"S{count:04d}.csv", count)
        assert read(tmp_path / "my survey").survey == "my survey"
        monkeypatch.chdir(tmp_path / "my survey")
        assert read(".").survey == "my survey"

    def test_prepared_spectra_have_the_name_of_their_file(self, tmp_path):
        for count in range(5):
            write_csv(tmp_path / "raw" / f"S{count:04d}.csv", count)
        prepare_spectra([tmp_path / "raw"], tmp_path / "mine.h5", workers=1)
        assert read(tmp_path / "mine.h5").survey == "mine"

    def test_joined_spectra_name_few_surveys(self):
        parts = [Spectra.build(GRID, np.ones(GRID.size), survey=f"S{count}") for count in range(9)]
        assert Spectra.concatenate(parts).survey == "S0+8 more"
        assert Spectra.concatenate(parts[:2]).survey == "S0+S1"
