import pytest

from specjax.errors import DataError
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
