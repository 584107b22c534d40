"""The grid of synthetic spectra; the programs and the packages are only needed by the slow test."""

import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from astropy.table import Table

from experiments import emulator, synthetic_grid
from experiments.synthesis import line_lists, packages, turbospectrum
from experiments.synthesis.atmospheres import DEPTHS, Atmospheres, model_metallicity, read_marcs
from experiments.synthesis.line_lists import Line
from experiments.synthesis.turbospectrum import Star, Window
from experiments.synthetic_grid import CONTINUUM_WAVELENGTH, WAVELENGTH
from specjax.errors import DataError, DownloadError, SpecjaxError
from specjax.simulate import emulate
from specjax.simulate.labels import microturbulence
from specjax.wavelength import air_to_vacuum

SUN = Star(teff=5777.0, logg=4.44, fe_h=0.0, alpha_fe=0.0, vmicro=float(microturbulence(5777.0, 4.44, 0.0)))


@pytest.fixture(scope="module")
def draws():
    return synthetic_grid.draw(2000)


@pytest.fixture
def atmospheres():
    """Models that are linear in the labels, one of which is missing."""
    axes = tuple(np.array(axis) for axis in ([4000.0, 5000.0, 6000.0], [3.0, 4.0, 5.0], [-1.0, 0.0, 0.5]))
    teff, logg, metal = np.meshgrid(*axes, indexing="ij")
    value = teff + 100.0 * logg + 10.0 * metal
    models = value[..., None, None] + np.arange(DEPTHS * 5.0).reshape(DEPTHS, 5)
    models[2, 0] = np.nan
    return Atmospheres(axes, models)


# Stars


def test_a_star_does_not_depend_on_how_many_are_drawn(draws):
    fewer = synthetic_grid.draw(37)
    for name in ("labels", "mixing", "population"):
        np.testing.assert_array_equal(getattr(fewer, name), getattr(draws, name)[:37])


def test_the_first_star_is_that_of_the_grid_of_the_shipped_emulator(draws):
    expected = [5084.72511922, 3.38723462, -0.7900818, 0.2918037, 1.14850052]
    np.testing.assert_allclose(draws.labels[0], expected, rtol=1e-7)  # as many digits as are given
    np.testing.assert_allclose(draws.mixing[0], [-0.02416401, 0.04832802], rtol=1e-6)
    assert draws.population[0] == synthetic_grid.GIANT


def test_labels_are_in_their_ranges_and_fill_them(draws):
    low, high = draws.labels.min(axis=0), draws.labels.max(axis=0)
    limits = np.array([[3900.0, 8000.0], [0.5, 5.0], [-3.0, 0.5], [-0.2, 0.6], [0.5, 4.5]])
    assert (low >= limits[:, 0]).all()
    assert (high <= limits[:, 1]).all()
    # 2000 stars come this close to the limits of what they are drawn from, and reach those that clip.
    reach = np.array([20.0, 0.01, 0.01, 0.0, 0.0])
    assert (low <= limits[:, 0] + reach).all()
    assert (high >= limits[:, 1] - reach).all()


def test_shares_of_the_populations(draws):
    shares = np.bincount(draws.population) / len(draws.population)
    # A Sobol sequence is far more even than random numbers, whose shares would scatter by 0.01.
    np.testing.assert_allclose(shares, [0.21, 0.1, 0.19, 0.5], atol=0.005)
    assert np.mean(draws.labels[:, 2] < -1) == pytest.approx(0.4, abs=0.005)


def test_populations_are_where_their_names_say(draws):
    teff, logg = draws.labels[:, 0], draws.labels[:, 1]
    dwarf, subgiant, giant, _ = (draws.population == number for number in range(4))
    assert logg[dwarf].min() > 3.7
    assert logg[giant].max() <= 3.6
    assert ((logg[subgiant] > 3.2) & (logg[subgiant] < 4.6)).all()
    assert teff[giant].max() < 6000 < teff[dwarf].max()


def test_only_giants_are_mixed_and_metal_poor_ones_more():
    carbon, nitrogen = synthetic_grid.mixing(np.array([4.5, 3.5, 2.5, 1.0]), np.full(4, 0.0)).T
    np.testing.assert_allclose(carbon, [0, 0, -0.15, -0.15])
    np.testing.assert_allclose(nitrogen, [0, 0, 0.3, 0.3])
    np.testing.assert_allclose(synthetic_grid.mixing(np.array([1.0]), np.array([-2.0])), [[-0.5, 0.6]])


# Model atmospheres


def test_interpolation_is_exact_at_the_models(atmospheres):
    for i, teff in enumerate(atmospheres.axes[0][:2]):
        for j, logg in enumerate(atmospheres.axes[1]):
            for k, metal in enumerate(atmospheres.axes[2]):
                found = atmospheres.at(teff, logg, metal)
                np.testing.assert_array_equal(found, atmospheres.models[i, j, k])


def test_interpolation_is_linear_between_the_models(atmospheres):
    found = atmospheres.at(4250.0, 3.7, 0.2)
    np.testing.assert_allclose(found[0, 0], 4250.0 + 370.0 + 2.0, rtol=1e-12)
    np.testing.assert_allclose(found - found[0, 0], np.arange(DEPTHS * 5.0).reshape(DEPTHS, 5), atol=1e-9)


@pytest.mark.parametrize("labels", [(3999.0, 4.0, 0.0), (5000.0, 5.1, 0.0), (5500.0, 3.5, 0.0)])
def test_there_is_no_model_outside_or_beside_a_missing_one(atmospheres, labels):
    assert atmospheres.at(*labels) is None


def test_a_missing_model_of_weight_zero_is_not_needed(atmospheres):
    assert atmospheres.at(6000.0, 4.0, 0.0) is not None
    assert atmospheres.at(5000.0, 3.5, 0.0) is not None


def test_the_metallicity_is_limited_to_that_of_the_models(atmospheres):
    np.testing.assert_array_equal(atmospheres.at(4000.0, 4.0, -3.0), atmospheres.at(4000.0, 4.0, -1.0))


def test_alpha_elements_count_as_metals():
    assert model_metallicity(-1.0, 0.0) == pytest.approx(-1.0)
    assert model_metallicity(-1.0, 0.4) == pytest.approx(-0.7, abs=0.01)


def marcs_text(value):
    """A model in the format of MARCS whose quantities are multiples of a number."""
    rows = [
        f"{k + 1} {-5 + 0.1 * k:.2f} {value * k:.4f} {value:.3E} {value * 100} 1E+01 1E+03 0 0"
        for k in range(DEPTHS)
    ]
    return [
        "name\n",
        f"{DEPTHS} Number of depth points\n",
        "Model structure\n",
        " k lgTauR\n",
        *(f"{row}\n" for row in rows),
        "more\n",
    ]


def marcs_table(path, alpha, lines):
    count = len(alpha)
    columns = {"teff": [5000.0] * count, "logg": [4.0] * count, "metal": [0.0] * count, "alpha": alpha}
    Table({**columns, "nlines": [lines] * count}).write(path)
    return path


def test_of_models_with_equal_labels_that_of_solar_alpha_is_read(tmp_path):
    lines = [line for value in (1, 2, 3) for line in marcs_text(value)]
    index = marcs_table(tmp_path / "index.fits", [0.25, 0.0, 0.5], len(marcs_text(1)))
    found = read_marcs(index, iter(lines))
    assert found.models.shape == (1, 1, 1, DEPTHS, 5)
    # lg tau, T, lg Pe, lg Pg, depth of the second model
    np.testing.assert_allclose(found.models[0, 0, 0, 3], [6.0, 200.0, 1.0, 3.0, 2.0])


def test_a_model_without_structure_is_an_error(tmp_path):
    lines = [line.replace("Model structure", "Nothing") for line in marcs_text(1)]
    with pytest.raises(DataError, match="without structure"):
        read_marcs(marcs_table(tmp_path / "index.fits", [0.0], len(lines)), iter(lines))


# Inputs of Turbospectrum


def parsed(text):
    """Read an input as the programs do: keyword and value in quotes, after some keywords further rows."""
    values, rows = {}, iter(text.splitlines())
    following = {"INDIVIDUAL ABUNDANCES": None, "ISOTOPES": None, "NFILES": None, "XIFIX": 1, "SPHERICAL": 4}
    for row in rows:
        key, value = (word for word in row.split("'") if word.strip())
        key = key.removesuffix(":")
        values[key] = value
        if key in following:
            count = int(value) if following[key] is None else following[key]
            values[key] = [next(rows) for _ in range(count)]
    return values


def test_the_inputs_hold_the_labels_of_the_star():
    star = Star(teff=4500, logg=2.0, fe_h=-0.5, alpha_fe=0.2, vmicro=1.5, c_fe=-0.15, n_fe=0.3)
    window = Window(4000.0, 4100.0, 0.03)
    opacity = parsed(turbospectrum.opacity_input(star, window))
    spectrum = parsed(turbospectrum.spectrum_input(star, window, ["a", "b"]))
    for values in (opacity, spectrum):
        assert float(values["METALLICITY"]) == -0.5
        assert float(values["ALPHA/Fe"]) == 0.2
        abundances = dict(row.split() for row in values["INDIVIDUAL ABUNDANCES"])
        assert {key: float(value) for key, value in abundances.items()} == {"6": 7.74, "7": 7.58}
        assert sum(float(row.split()[1]) for row in values["ISOTOPES"]) == pytest.approx(1)
    assert opacity["MODELOPAC"] == spectrum["MODELOPAC"]
    assert float(opacity["XIFIX"][0]) == 1.5
    assert spectrum["NFILES"] == ["a", "b"]
    assert float(opacity["LAMBDA_MIN"]) < float(spectrum["LAMBDA_MIN"]) == 4000
    assert float(opacity["LAMBDA_MAX"]) > float(spectrum["LAMBDA_MAX"]) == 4100


def test_the_model_is_written_in_full(atmospheres):
    model = atmospheres.at(5000.0, 4.0, 0.0)
    header, *rows = turbospectrum.model_text(model, SUN).splitlines()
    assert header.split()[1:3] == [str(DEPTHS), "5000."]
    table = np.array([row.split() for row in rows], np.float64)
    np.testing.assert_allclose(table[:, :4], model[:, :4], atol=0.006)  # two decimals of the temperature
    # Radii fall as the geometrical depth grows; they have nine digits.
    np.testing.assert_allclose(table[0, 5] - table[:, 5], model[:, 4] - model[0, 4], atol=200.0)


def write_spectrum(path, window, relative):
    np.savetxt(path, np.stack([window.wavelength, relative, 1e6 * relative], axis=1)[: len(relative)])


def test_a_spectrum_is_read_back(tmp_path):
    window = Window(4000.0, 4001.0, 0.1)
    relative = np.linspace(0.2, 1.0, 11)
    write_spectrum(tmp_path / "spectrum", window, relative)
    found, flux = turbospectrum.read_spectrum(tmp_path / "spectrum", window)
    np.testing.assert_allclose(found, relative)
    np.testing.assert_allclose(flux, 1e6 * relative)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4000 1.5 1\n" * 11, "of the continuum"),
        ("4000 1 1\n" * 5, "5 wavelengths"),
        ("4000 *** 1\n", "no table"),
    ],
)
def test_an_impossible_spectrum_is_an_error(tmp_path, text, message):
    path = tmp_path / "spectrum"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        turbospectrum.read_spectrum(path, Window(4000.0, 4001.0, 0.1))


def test_a_program_that_stops_without_a_result_is_an_error(tmp_path):
    program = tmp_path / "bsyn_lu"
    program.write_text("#!/bin/sh\necho reading\necho 'Increase NDP'\n")
    program.chmod(0o755)
    with pytest.raises(DataError, match="bsyn_lu ended with status 0: Increase NDP"):
        turbospectrum._run(program, "", tmp_path / "spectrum")


# Lines


LINES = [
    Line("26.000", 1, 4383.545, 1.485, 0.2, 295.238, 11.0, 5e8, ("p", "s")),
    Line("26.000", 2, 4508.288, 2.856, -2.25),
    Line("0106.001012", 1, 4300.123, 0.5, -1.8),
]


def test_lines_are_written_as_they_are_read(tmp_path):
    path = tmp_path / "lines"
    line_lists.write_lines(path, LINES)
    assert list(line_lists.gaia_eso_lines(path.read_text().splitlines())) == LINES
    headers = [line for line in path.read_text().splitlines() if line.startswith("' ")]
    assert [header.split("'")[2].split() for header in headers] == [["1", "1"], ["2", "1"], ["1", "1"]]


def test_the_column_of_the_stark_effect_is_ignored():
    rows = ["'  26.000 '  1  1", "'Fe I  NLTE'"]
    rows += ["  4200.087  3.884 -1.130   -7.420    7.0  5.01E+07  0.000  'p' 'd'   0.0    1.0 'Fe I'  82 0"]
    expected = Line("26.000", 1, 4200.087, 3.884, -1.13, -7.42, 7.0, 5.01e7, ("p", "d"))
    assert list(line_lists.gaia_eso_lines(rows)) == [expected]


def test_lines_of_linemake():
    row = "  4000.009 106.00112     1.962    -4.399               3.464            CX25R165\n"
    tio = "  4500.017 822.01650     0.613    -1.921               6.870                PLEZ\n"
    far = "  8000.017 822.01650     0.613    -1.921               6.870                PLEZ\n"
    found = list(line_lists.linemake_molecules(["a title\n", row, row, tio, tio, far]))
    assert [line.species for line in found] == ["0106.001012", "0822.016050", "0822.016050"]
    assert found[0][1:5] == (1, 4000.009, 1.962, -4.399)


def test_calcium_h_and_k_have_their_own_widths():
    rows = ["  3933.663  20.1  0.000  0.135", "  3933.663  20.0  0.000  0.135", "  3933.000  2.0 0.0 0.0"]
    ion, atom = line_lists.linemake_atoms(rows)
    assert (ion.ion, ion.damping) == (2, 234.223)
    assert (atom.ion, atom.damping) == (1, 1.8)


@pytest.mark.parametrize(
    ("line", "trusted"),
    [
        (Line("0106.001012", 1, 4250.0, 1.0, -0.8), False),
        (Line("0106.001013", 1, 4250.0, 1.0, -0.9), True),
        (Line("0106.001013", 1, 4350.0, 1.0, -0.9), False),
        (Line("0822.016047", 1, 4350.0, 1.0, 0.5), True),
        (Line("0822.016046", 1, 4350.0, 1.0, 0.5), False),
        (Line("26.000", 1, 4250.0, 1.0, 2.0), True),
    ],
)
def test_lines_that_are_left_out(line, trusted):
    assert line_lists.is_trusted(line) is trusted


def test_two_lines_of_iron_are_weakened():
    strong = Line("26.000", 1, 4081.567, 2.0, 0.5)
    assert line_lists.corrected(strong).log_gf == -1.2
    for other in (strong._replace(ion=2), strong._replace(wavelength=4081.566)):
        assert line_lists.corrected(other) == other


# From synthesis to grid


@pytest.mark.parametrize("window", [synthetic_grid.COOL_WINDOW, synthetic_grid.WARM_WINDOW])
def test_smoothing_keeps_a_constant_and_gives_a_line_the_resolution_of_the_grid(window):
    wavelength = window.wavelength
    np.testing.assert_allclose(synthetic_grid.smoothed(wavelength, np.full(wavelength.size, 0.7)), 0.7)
    line = np.zeros(wavelength.size)
    line[np.searchsorted(wavelength, 4800.0)] = 1.0
    found = synthetic_grid.smoothed(wavelength, line)
    area = np.sum(found * np.gradient(WAVELENGTH))
    assert area == pytest.approx(window.step, rel=1e-3)
    # The peak of a Gaussian of this area; the line is at most half a pixel of 0.32 A from a pixel's centre.
    peak = area / (0.6 * np.sqrt(np.pi / (4 * np.log(2))))
    assert 0.8 * peak < found.max() <= peak * 1.001


def test_the_continuum_does_not_follow_the_cores_of_lines():
    wavelength = synthetic_grid.WARM_WINDOW.wavelength
    level = 1e6 * (wavelength / 4800.0) ** 2
    relative = np.where(abs(wavelength - 4800.0) < 3, 0.1, 0.9)
    flux = np.where(relative < 0.3, 1.0, relative * level)
    found = synthetic_grid.continuum(wavelength, relative, flux)
    # Linear interpolation across 6 A of a parabola.
    np.testing.assert_allclose(found, 1e6 * (CONTINUUM_WAVELENGTH / 4800.0) ** 2, rtol=1e-6)


class Synthesis:
    """In place of the programs: a flat spectrum that tells Teff, and a failure of the coolest stars."""

    def __init__(self, coolest=0.0):
        self.coolest, self.seen = coolest, []

    def __call__(self, star):
        self.seen.append(star.teff)
        if star.teff < self.coolest:
            raise DataError("too cool")
        return {
            "flux_norm": np.full(WAVELENGTH.size, star.teff / 8192.0, np.float32),
            "continuum": np.full(CONTINUUM_WAVELENGTH.size, star.teff, np.float32),
        }


def test_an_interrupted_run_continues(draws, tmp_path):
    numbers, whole = np.array([1, 4, 9]), Synthesis()
    synthetic_grid.compute(draws, numbers[:2], whole, tmp_path, 1)
    path = synthetic_grid.spectrum_path(tmp_path, 1)
    before = path.stat().st_mtime_ns
    synthetic_grid.compute(draws, numbers, whole, tmp_path, 2)
    np.testing.assert_array_equal(whole.seen, draws.labels[numbers, 0])
    assert path.stat().st_mtime_ns == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["00001.npz", "00004.npz", "00009.npz"]


def test_a_failure_is_logged_left_out_and_tried_again(draws, tmp_path, capsys):
    numbers = np.arange(6)
    limit = float(np.sort(draws.labels[:6, 0])[1])
    coolest = int(np.argmin(draws.labels[:6, 0]))
    synthetic_grid.compute(draws, numbers, Synthesis(coolest=limit), tmp_path / "spectra", 2)
    log = (tmp_path / "spectra" / "failures.txt").read_text()
    assert f" {coolest} (teff" in log
    assert log.count("too cool") == 1
    assert "6 of 6 spectra" in capsys.readouterr().err
    assert synthetic_grid.write_grid(tmp_path / "grid.npz", draws, numbers, tmp_path / "spectra") == 5
    again = Synthesis()
    synthetic_grid.compute(draws, numbers, again, tmp_path / "spectra", 1)
    assert again.seen == [draws.labels[coolest, 0]]


def test_an_error_that_is_no_failed_synthesis_ends_the_run(draws, tmp_path):
    def broken(star):
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        synthetic_grid.compute(draws, np.arange(3), broken, tmp_path, 1)


def test_the_line_of_progress():
    assert synthetic_grid.progress(30, 90, 120.0) == "30 of 90 spectra, 15.0 per minute, 4 min left"


@pytest.fixture
def grid(draws, tmp_path):
    numbers = np.arange(40)
    synthetic_grid.compute(draws, numbers, Synthesis(), tmp_path / "spectra", 1)
    synthetic_grid.write_grid(tmp_path / "grid.npz", draws, numbers, tmp_path / "spectra")
    return tmp_path / "grid.npz"


def test_the_grid_is_what_the_emulator_is_fitted_to(grid, draws):
    with np.load(grid) as file:
        types = {name: (file[name].shape, file[name].dtype) for name in file}
    labels = {name: ((40,), "f8") for name in ("teff", "logg", "fe_h", "alpha_fe", "vmicro", "c_fe", "n_fe")}
    assert types == {
        "wave": ((5347,), "f8"),
        "flux_norm": ((40, 5347), "f2"),
        "cont_wave": ((80,), "f8"),
        "continuum": ((40, 80), "f4"),
        **labels,
        "pop": ((40,), "i8"),
        "fwhm": ((), "f8"),
    }
    read = emulator.Grid.read(grid)
    np.testing.assert_array_equal(read.labels, draws.labels[:40])
    # float16 has eleven bits
    np.testing.assert_allclose(read.flux[:, 0], draws.labels[:40, 0] / 8192.0, rtol=2**-11)
    np.testing.assert_allclose(read.continuum[:, 5], draws.labels[:40, 0], rtol=1e-6)


def test_spectra_of_other_stars_are_refused(grid, draws, tmp_path):
    shutil.copy(tmp_path / "spectra/00003.npz", tmp_path / "spectra/00004.npz")
    with pytest.raises(DataError, match="of another star"):
        synthetic_grid.write_grid(grid, draws, np.arange(40), tmp_path / "spectra")


def test_a_grid_agrees_with_itself_and_differences_are_found(grid, draws, tmp_path):
    assert synthetic_grid.is_in_grid(draws, grid).sum() == 40
    assert {row["largest_rms"] for row in synthetic_grid.agreement(grid, grid)} == {0.0}
    with np.load(grid) as file:
        arrays = dict(file)
    arrays["flux_norm"] = arrays["flux_norm"] + np.float16(0.125)
    np.savez(tmp_path / "other.npz", **{k: v if v.shape[:1] != (40,) else v[::-2] for k, v in arrays.items()})
    rows = synthetic_grid.agreement(grid, tmp_path / "other.npz")
    assert sum(row["n_spectra"] for row in rows) == 20
    for row in rows:
        assert row["rms"] == pytest.approx(0.125, abs=1e-3)  # rounding of float16 near 1


# Packages


@pytest.mark.parametrize("missing", ["gfortran", "make"])
def test_a_missing_compiler_is_one_line_before_anything_is_downloaded(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None if name == missing else "/bin/" + name)
    monkeypatch.setattr(packages, "fetch_package", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(SpecjaxError, match=f"needs {missing}, which is not installed") as caught:
        synthetic_grid.main(synthetic_grid.Config(work=tmp_path / "work"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "work").exists()


def source_package(path, *members):
    """A source package of small files with these names."""
    with tarfile.open(path, "w:gz") as package:
        for name in members:
            package.addfile(tarfile.TarInfo(name))
    return path


def test_a_source_package_is_unpacked_without_its_outer_folder(tmp_path):
    archive = source_package(tmp_path / "b-1.0.tar.gz", "b-1.0/src/file")
    packages.unpack(archive, tmp_path / "into")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b-1.0.tar.gz", "into"]
    assert (tmp_path / "into/src/file").is_file()


def test_a_wheel_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a/file", "data")
    packages.unpack(tmp_path / "a-1.0-py3-none-any.whl", tmp_path / "into")
    assert (tmp_path / "into/a/file").read_text() == "data"


def test_nothing_is_unpacked_outside_of_the_folder(tmp_path):
    (tmp_path / "work").mkdir()
    archive = source_package(tmp_path / "b-1.0.tar.gz", "b-1.0/file", "../../outside")
    with pytest.raises(tarfile.OutsideDestinationError):
        packages.unpack(archive, tmp_path / "work/into")
    assert not list((tmp_path / "work").iterdir())
    assert not (tmp_path / "outside").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gfortran") is None, reason="needs gfortran")
def test_the_sun_is_that_of_the_shipped_emulator(tmp_path):
    try:
        laboratory = synthetic_grid.Laboratory.prepare(tmp_path)
    except DownloadError as error:
        pytest.skip(str(error))
    found = laboratory.spectrum(SUN)["flux_norm"]
    wavelength, expected = emulate(teff=SUN.teff, logg=SUN.logg, fe_h=SUN.fe_h)
    np.testing.assert_allclose(wavelength, air_to_vacuum(WAVELENGTH), rtol=1e-9)
    difference = np.abs(found - expected[0])
    # The emulator has an error of 0.0002 at low resolution and several times that in single lines.
    assert np.sqrt((difference**2).mean()) < 0.003
    assert np.median(difference) < 0.001
    assert found.min() < 0.1 < 0.99 < found.max()
