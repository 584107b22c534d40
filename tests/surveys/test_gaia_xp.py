"""The Gaia XP reader on tables laid out like those of the archive and GaiaXPy, and on real files."""

import gzip
import sys

import numpy as np
import pytest
from astropy.table import Table

from specjax.errors import DataError
from specjax.preprocess import to_gaia_xp
from specjax.surveys import gaia_xp, read
from specjax.wavelength import GAIA_XP_WAVELENGTH

IDS = [4408087461749558912, 5853498713190525696]  # beyond 2**53: floats do not represent them exactly
FLUX = 1e-16 * (1 + np.arange(343) / 343 + np.arange(2)[:, None])
ERROR = np.full((2, 343), 2e-18)


def text(array):
    return '"(' + ", ".join(repr(float(value)) for value in array) + ')"'


def write_csv(path, flux=FLUX, error=ERROR, ids=IDS, head=""):
    lines = [head + "source_id,solution_id,ra,dec,flux,flux_error"]
    lines += [
        f"{i},1,{10.0 + k},-5.0,{text(f)},{text(e)}"
        for k, (i, f, e) in enumerate(zip(ids, flux, error, strict=True))
    ]
    content = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def write_table(path, form):
    Table(
        {"source_id": IDS, "ra": [10.0, 11.0], "dec": [-5.0, -5.0], "flux": FLUX, "flux_error": ERROR}
    ).write(path, format=form)
    return path


def write_npz(path):
    np.savez(path, source_id=IDS, flux=FLUX, flux_error=ERROR, wavelength_nm=GAIA_XP_WAVELENGTH / 10)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("XP_SAMPLED_RAW.csv", write_csv),
        ("XpSampledMeanSpectrum.csv.gz", lambda path: write_csv(path, head="# %ECSV 1.0\n# ---\n")),
        ("XP_SAMPLED_RAW.fits", lambda path: write_table(path, "fits")),
        ("XP_SAMPLED_RAW.xml", lambda path: write_table(path, "votable")),
        ("calibrated.npz", write_npz),
    ],
)
def test_every_layout_gives_the_same_spectra(tmp_path, name, write):
    spectra = read(write(tmp_path / name))
    assert spectra.survey == "gaia_xp"
    assert spectra.id.tolist() == [str(source) for source in IDS]
    np.testing.assert_allclose(spectra.wavelength, GAIA_XP_WAVELENGTH, rtol=1e-14)
    np.testing.assert_allclose(spectra.flux, FLUX, rtol=1e-15)
    np.testing.assert_allclose(spectra.ivar, 2.5e35, rtol=1e-14)
    assert not spectra.mask.any()
    if name != "calibrated.npz":
        assert spectra.meta["ra"].tolist() == [10.0, 11.0]


def write_samples(path, form, sources=IDS):
    """Write one row per sample, like DataLink's structures INDIVIDUAL (one source) and COMBINED."""
    count = len(sources)
    columns = {"wavelength": np.tile(GAIA_XP_WAVELENGTH / 10, count)}
    start = IDS.index(sources[0])
    for key, values in (("flux", FLUX), ("flux_error", ERROR)):
        columns[key] = values[start : start + count].ravel()
    table = Table({"source_id": np.repeat(sources, 343), **columns})
    if len(sources) == 1 and form != "fits":
        table.remove_column("source_id")  # it is in the file's name
    table.write(path, format=form)
    return path


@pytest.mark.parametrize(
    ("suffix", "form"), [("csv", "ascii.csv"), ("fits", "fits"), ("xml", "votable"), ("ecsv", "ascii.ecsv")]
)
def test_one_row_per_sample_gives_the_same_spectra(tmp_path, suffix, form):
    spectra = read(write_samples(tmp_path / f"XP_SAMPLED-Gaia DR3 {IDS[0]}.{suffix}", form, IDS[:1]))
    assert spectra.survey == "gaia_xp"
    assert spectra.id.tolist() == [str(IDS[0])]
    np.testing.assert_allclose(spectra.wavelength, GAIA_XP_WAVELENGTH, rtol=1e-14)
    np.testing.assert_allclose(spectra.flux, FLUX[:1], rtol=1e-14)
    np.testing.assert_allclose(spectra.ivar, 2.5e35, rtol=1e-14)


def test_samples_of_several_sources_and_folders_of_files(tmp_path, caplog):
    path = write_samples(tmp_path / "combined.csv", "ascii.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[344:], *lines[1:344]]))
    np.testing.assert_allclose(read(path).select([str(i) for i in IDS]).flux, FLUX, rtol=1e-14)
    for source in IDS:
        write_samples(tmp_path / f"XP_SAMPLED-Gaia DR3 {source}.fits", "fits", [source])
    (tmp_path / "XP_SAMPLED-Gaia DR3 7.csv").write_text("wavelength,flux,flux_error\n336,1,high\n338,1,1\n")
    np.testing.assert_allclose(read(tmp_path).flux, FLUX, rtol=1e-14)
    caplog.clear()
    spectra = read(tmp_path)  # only the files named by DataLink, not combined.csv
    assert spectra.id.tolist() == [str(i) for i in IDS]
    assert spectra.wavelength.shape == (343,)
    assert spectra.meta["file"].tolist() == [f"XP_SAMPLED-Gaia DR3 {i}.fits" for i in IDS]
    assert ["column flux_error does not contain numbers" in text for text in caplog.messages] == [True]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "XP_SAMPLED.csv",
            "wavelength,flux,flux_error\n336,1,1\n338,1,1\n",
            "neither in a column source_id nor in its file name",
        ),
        (
            "x.csv",
            "source_id,wavelength,flux,flux_error\n1,336,1,1\n1,338,1,1\n2,336,1,1\n2,340,1,1\n",
            "2 sources are not sampled at the same",
        ),
        (
            "x.csv",
            "source_id,wavelength,flux,flux_error\n4e18,336,1,1\n4e18,338,1,1\n",
            "not all values of source_id are integers",
        ),
    ],
)
def test_samples_without_a_source_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_invalid_flux_and_errors_are_masked(tmp_path):
    flux, error = FLUX.copy(), ERROR.copy()
    flux[0, 3], error[1, 7], error[1, 8] = np.nan, 0.0, np.nan
    spectra = read(write_csv(tmp_path / "x.csv", flux, error))
    assert np.argwhere(spectra.mask).tolist() == [[0, 3], [1, 7], [1, 8]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": FLUX[:, :300], "error": ERROR[:, :300]}, "300 samples per source"),
        ({"flux": FLUX, "error": [ERROR[0], ERROR[1, :5]]}, r"flux_error should be .* not of \[5, 343\]"),
        ({"ids": [1, 1]}, "occurs more than once"),
        ({"ids": [], "flux": [], "error": []}, "x.csv"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, change, message):
    path = write_csv(tmp_path / "x.csv", **change)
    with pytest.raises(DataError, match=message) as caught:
        read(path, "gaia_xp")
    assert "x.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.csv.gz", "x.fits", "x.xml", "x.npz", "x.csv", "x.txt"])
@pytest.mark.parametrize("content", [b"", b"\x1f\x8b broken", b"source_id,flux\n1,(2\n"])
def test_damaged_files_are_refused_in_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert not gaia_xp.recognise(path)
    with pytest.raises(DataError, match=name) as caught:
        gaia_xp.read(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_gz_is_refused(tmp_path):
    path = write_csv(tmp_path / "x.csv.gz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"x\.csv\.gz"):
        read(path)


def write_coefficients(path, drop=()):
    parts = {"n_parameters": "55", "standard_deviation": "1.0", "coefficients": '"(1.0, 2.0)"'}
    parts |= {"coefficient_errors": '"(1.0, 2.0)"', "coefficient_correlations": '"(0.5)"'}
    names = {
        f"{band}_{key}": value for band in ("bp", "rp") for key, value in parts.items() if key not in drop
    }
    path.write_text(f"source_id,{','.join(names)}\n{IDS[0]},{','.join(names.values())}\n")
    return path


def test_coefficients_require_gaiaxpy(tmp_path, monkeypatch):
    path = write_coefficients(tmp_path / "XP_CONTINUOUS_RAW.csv")
    monkeypatch.setitem(sys.modules, "gaiaxpy", None)
    with pytest.raises(DataError, match=r"reading them needs pip install 'specjax\[gaia\]'"):
        read(path)
    write_coefficients(path, drop=("coefficient_errors",))
    with pytest.raises(DataError, match="no column bp_coefficient_errors, rp_coefficient_errors"):
        read(path)


@pytest.mark.parametrize("name", ["XP_SAMPLED_RAW_dr3int6.csv", "XP_SAMPLED_RAW_dr3int6.fits"])
def test_real_sampled_files(real_data, name):
    spectra = read(real_data / "gaia_xp" / name)
    assert spectra.flux.shape == (2, 343)
    assert spectra.flux[0, 0] == pytest.approx(3.3061049e-16, rel=1e-7)  # single precision in the FITS file
    assert (to_gaia_xp(spectra).meta["flag"] == "good").all()


def test_a_real_calibrated_file(real_data):
    spectra = read(real_data / "gaia_xp" / "xp_calibrated_343.npz")
    assert spectra.survey == "gaia_xp"
    assert spectra.id[-1] == "4345775217221821312"  # 18 Sco
    assert spectra.has_ivar
    normalised = to_gaia_xp(spectra)
    assert (normalised.meta["flag"] == "good").all()
    assert np.abs(normalised.flux[-1, 57:207]).max() < 1.5  # a solar analogue, from 450 to 750 nm


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("XP_CONTINUOUS_RAW.csv", 2),
        ("XP_CONTINUOUS_RAW_colour_eq_dr3int6.csv", 3),
        ("18Sco-XP-spectra.csv", 1),
    ],
)
def test_real_coefficients_are_calibrated_as_gaiaxpy_does(real_data, name, count):
    pytest.importorskip("gaiaxpy", reason="gaiaxpy is not installed: pip install 'specjax[gaia]'")
    spectra = read(real_data / "gaia_xp" / name)
    known = read(real_data / "gaia_xp" / "xp_calibrated_343.npz").select(spectra.id)
    assert len(spectra) == count
    np.testing.assert_allclose(spectra.flux, known.flux, rtol=1e-10)  # another release of GaiaXPy
