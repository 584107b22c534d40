"""Translations of files: as the model makes them of each spectrum, in every format, with errors and plots."""

import dataclasses

import h5py
import numpy as np
import pytest
from astropy.table import Table
from matplotlib.image import imread

from specjax.cli import main
from specjax.errors import ConfigError, DataError, ModelError
from specjax.flags import Flag
from specjax.foundation import load
from specjax.pipeline import translate_survey
from specjax.pipeline.truth import Truth
from specjax.prepare import Options, plan, prepare_spectra
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.report import style
from specjax.spectra import Spectra
from specjax.surveys import prepared, read
from specjax.wavelength import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH
from tests.prepare.stars import WIDE, star, write_stars

pytestmark = pytest.mark.usefixtures("quick_compilation")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32, in chunks of other shapes
STARS = 5


@pytest.fixture(autouse=True)
def _coarse_figures(monkeypatch):
    monkeypatch.setattr(style, "DPI", 50)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(plan, "_FILES_AT_ONCE", 3)
    monkeypatch.setattr(plan, "_ROWS_AT_ONCE", 4)


def xp_flux(number):
    return star(number, GAIA_XP_WAVELENGTH)


@pytest.fixture(scope="module")
def xp(tmp_path_factory):
    """A file of Gaia XP spectra of the stars s0 to s4 as 0 to 4, the last without flux at 550 nm."""
    path = tmp_path_factory.mktemp("xp") / "xp.npz"
    flux = np.stack([xp_flux(k) for k in range(STARS)])
    flux[-1, 100:115] *= -1
    np.savez(path, source_id=np.arange(STARS), flux=flux, flux_error=0.01 * np.abs(flux))
    return path


def run(files, spectra, out, target="gaia_xp", **options):
    given = spectra if isinstance(spectra, list) else [spectra]
    options = {"model": files.model, "workers": 1, "plots": 0, **options}
    return translate_survey(spectra=given, out=out, target=target, **options)


def flux_in(path):
    """Return id, flux, wavelength and flag of a file that was written."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            columns = {name: item[:] for name, item in file.items()}
            assert file["wavelength"].attrs["unit"] == "Angstrom"
            assert file.attrs["flux_unit"] == "flux over that at 550 nm"
    elif path.suffix == ".npz":
        with np.load(path) as file:
            columns = dict(file)
    else:
        columns = Table.read(path)
        assert str(columns["wavelength"].unit) == "Angstrom"
        assert (columns["wavelength"] == columns["wavelength"][0]).all()
        columns = {name: np.ma.filled(columns[name]) for name in columns.colnames}
        columns["wavelength"] = columns["wavelength"][0]
    return [columns[name] for name in ("id", "flux", "wavelength", "flag")]


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".fits", ".parquet", "folder"])
def test_xp_spectra_are_those_that_the_model_makes_of_each_file(files, tmp_path, suffix):
    folder = suffix == "folder"
    if folder or suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"xp{'.parquet' if folder else suffix}"
    made = run(files, files.raw, out, fwhm=6.0, partitioned=folder)
    assert folder == (made == {})
    model, numbers = load(files.model), (0, 1, 2, 4, 5, 6)
    ids, flux, wavelength, _ = flux_in(out / "part-00000.parquet" if folder else out)
    ids = np.char.decode(ids.astype("S"))
    assert ids.tolist() == [f"star {k}" for k in numbers]
    np.testing.assert_array_equal(wavelength, GAIA_XP_WAVELENGTH)
    assert flux.shape == (6, 343)
    for row, number in enumerate(numbers):
        lamost = to_lamost(read(files.raw / f"{number:03d}.npz"), fwhm=6.0)
        if number == 2:
            assert np.isnan(flux[row]).all()
            continue
        expected = model.translate(lamost, target="gaia_xp")[0]
        np.testing.assert_allclose(flux[row], expected, **CLOSE)
    report = Table.read(out.with_suffix(".report.ecsv"))
    assert [name.rsplit("/")[-1] for name in report["file"]] == ["003.npz"]


def test_lamost_spectra_are_made_of_xp_files_and_of_prepared_ones(files, xp, tmp_path):
    folder = write_stars(tmp_path / "wide", 2, wavelength=WIDE, flux=np.stack([star(9, WIDE)]), ivar=None)
    pair = tmp_path / "pair.h5"
    prepare_spectra([folder], pair, options=Options(fwhm_from=6.0), workers=1)
    made = run(files, [xp, pair, folder], tmp_path / "l.h5", target="lamost", fwhm=6.0)
    model = load(files.model)
    with h5py.File(tmp_path / "l.h5") as file:
        flux, ids = file["flux"][:], file["id"].asstr()[:].tolist()
        np.testing.assert_array_equal(file["wavelength"], LAMOST_WAVELENGTH)
        assert file.attrs["flux_unit"] == "flux over the continuum"
    assert ids == ["0", "1", "2", "3", "4", *["star 0", "star 1"] * 2]
    assert made["flag"].tolist()[:5] == ["good", "good", "good", "good", Flag.NO_REFERENCE]
    parts = [to_gaia_xp(read(xp)), prepared.read_xp(pair)]
    parts += [to_gaia_xp(read(folder / f"00{k}.npz"), fwhm_from=6.0) for k in range(2)]
    expected = np.concatenate([model.translate(part, target="lamost") for part in parts])
    expected[4] = np.nan
    np.testing.assert_allclose(flux, expected, **CLOSE)


@pytest.mark.parametrize("target", ["gaia_xp", "lamost"])
def test_spectra_of_the_wrong_survey_are_refused_by_name(files, xp, tmp_path, target):
    given, other = (files.raw / "000.npz", xp) if target == "gaia_xp" else (xp, files.raw / "000.npz")
    run(files, [given, other], tmp_path / "out.h5", target=target)
    (row,) = Table.read(tmp_path / "out.report.ecsv")
    assert row["file"] == str(other)
    expected = "holds Gaia XP spectra" if target == "gaia_xp" else "holds no Gaia XP spectra"
    assert expected in row["reason"]
    with pytest.raises(DataError, match=expected):
        run(files, other, tmp_path / "none.h5", target=target)


def test_a_prepared_file_without_xp_spectra_is_refused(files, tmp_path):
    narrow = write_stars(tmp_path / "narrow", 1)
    prepare_spectra([narrow], tmp_path / "narrow.h5", options=Options(), workers=1)
    with pytest.raises(DataError, match="has no Gaia XP spectra"):
        run(files, tmp_path / "narrow.h5", tmp_path / "out.h5", target="lamost")


def test_the_written_file_is_read_as_spectra(files, xp, tmp_path):
    for target, name in (("gaia_xp", "xp.h5"), ("lamost", "l.npz")):
        run(files, xp if target == "lamost" else files.arrays, tmp_path / name, target=target)
        spectra = read(tmp_path / name)
        assert (spectra.survey, spectra.medium) == (target, "vacuum")
        assert spectra.flux.shape[1] == {"gaia_xp": 343, "lamost": 1462}[target]
    assert spectra.mask.all(axis=1).tolist() == [False] * 4 + [True]
    back = run(files, tmp_path / "xp.h5", tmp_path / "back.h5", target="lamost")
    assert len(back["id"]) == 10


def test_models_without_both_towers_are_refused_before_anything_is_read(files, tmp_path):
    model, none = load(files.model), [tmp_path / "there is nothing"]
    parts = {name: tree for name, tree in model.params.items() if not name.endswith("decoder")}
    for params, message in (
        (parts, "no decoders"),
        ({name: tree for name, tree in parts.items() if name != "lamost"}, "no encoder for 'lamost'"),
    ):
        folder = tmp_path / "model"
        dataclasses.replace(model, variables={**model.variables, "params": params}).save(folder)
        with pytest.raises(ModelError, match=message) as error:
            translate_survey(model=folder, spectra=none, out=tmp_path / "xp.h5", target="gaia_xp")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "xp.h5").exists()


def test_errors_are_those_of_the_stars_whose_truth_is_known(files, tmp_path):
    run(files, files.arrays, tmp_path / "xp.h5")
    with h5py.File(tmp_path / "xp.h5") as file:
        flux = file["flux"][:].astype(float)
    rng, known = np.random.default_rng(0), np.arange(0, 10, 2)
    truth = Spectra.on_grid(
        flux[known] + 0.1 * rng.normal(size=(5, 343)),
        mask=rng.random((5, 343)) < 0.2,
        id=[f"s{k}" for k in known],
        survey="gaia_xp",
    )
    columns = Truth(spectra=truth).compare(np.array([f"s{k}" for k in range(10)]), flux)
    assert (columns["truth_pixels"] > 0).tolist() == [True, False] * 5
    for place, row in enumerate(known):
        valid = truth.valid[place]
        difference = (flux[row] - truth.flux[place])[valid]
        assert columns["bias"][row] == pytest.approx(difference.mean())
        assert columns["rms"][row] == pytest.approx(np.sqrt((difference**2).mean()))
        others = np.where(truth.valid, truth.flux, np.nan)[np.arange(5) != place]
        mean = np.ma.masked_invalid(others).mean(axis=0)  # masked where no other star is known
        expected = np.sqrt(np.mean((mean - truth.flux[place])[valid] ** 2))
        assert columns["rms_of_mean"][row] == pytest.approx(expected)
    assert np.isnan(columns["rms"][1::2]).all()


def test_the_truth_is_written_to_a_table_and_drawn(files, tmp_path):
    flux, said, out = np.stack([xp_flux(k) for k in range(4)]), [], tmp_path / "xp.h5"
    content = {"wavelength": GAIA_XP_WAVELENGTH, "flux": flux, "id": ["s0", "s7", "star 1", "other"]}
    np.savez(tmp_path / "truth.npz", survey="gaia_xp", wavelength_medium="vacuum", **content)
    options = {"truth": tmp_path / "truth.npz", "plots": 3, "say": said.append}
    columns = run(files, [files.arrays, files.raw], out, **options)
    table = Table.read(tmp_path / "xp.errors.ecsv")
    assert table["id"].tolist() == ["s0", "s7", "star 1"]
    assert (table["truth_pixels"] == 343).all()
    with h5py.File(out) as file:
        made = file["flux"][0]
        np.testing.assert_array_equal(file["rms"], columns["rms"])
    relative = flux[0] / flux[0, 107]
    assert table["rms"][0] == pytest.approx(np.sqrt(((made - relative) ** 2).mean()), rel=1e-5)
    assert f"median rms of 3 stars {np.median(table['rms']):.4f}" in "\n".join(said)
    assert imread(tmp_path / "xp.png")[..., :3].std() > 0.05  # not an empty page
    assert (tmp_path / "xp.pdf").read_bytes().startswith(b"%PDF")
    said.clear()
    run(files, files.raw / "000.npz", out, **{**options, "plots": 0})
    assert "no translated star is in the file of the truth: ids are compared" in said


def test_there_is_a_plot_unless_nothing_can_be_drawn(files, tmp_path):
    run(files, files.raw, tmp_path / "a.h5", plots=1)
    assert (tmp_path / "a.png").is_file()
    run(files, files.raw, tmp_path / "b.h5", plots=0)
    assert not (tmp_path / "b.png").exists()
    said = []
    run(files, files.raw / "002.npz", tmp_path / "c.h5", plots=2, say=said.append)
    assert "no spectrum could be translated, so that there is no plot" in said
    assert not (tmp_path / "c.png").exists()


def test_prepared_files_of_other_options_are_refused(files, tmp_path):
    with pytest.raises(ConfigError, match="prepared with fwhm"):
        run(files, files.prepared, tmp_path / "xp.h5", fwhm=9.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--to gaia_xp -o {tmp}/x.h5", "translate needs spectra"),
        ("{raw} --to gaia_xp -o {tmp}/x.csv", "the suffix must be one of"),
        ("{raw} --to gaia_xp --plots -1 -o {tmp}/x.h5", "cannot plot -1"),
        ("{raw} --to gaia_xp --truth {raw}/000.npz -o {tmp}/x.h5", "no Gaia XP spectra to compare with"),
    ],
)
def test_an_error_of_the_user_is_one_line(files, tmp_path, capsys, line, message):
    words = line.format(tmp=tmp_path, raw=files.raw).split()
    assert main(["translate", *words, "--model", str(files.model), "--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []
