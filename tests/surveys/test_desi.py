"""The DESI reader on synthetic files of its two layouts, and on real files if available."""

import numpy as np
import pytest
from astropy.io import fits

from specjax.errors import DataError
from specjax.preprocess import to_lamost
from specjax.surveys import desi, read

IDS = np.array([39633345008634465, 39633345008634466, 39633345008634467])
ARMS = {"B": (3600.0, 2751), "R": (5760.0, 2326), "Z": (7520.0, 2881)}
FLUX = {"B": 2.0, "R": 5.0, "Z": 8.0}
IVAR = {"B": 1.0, "R": 3.0, "Z": 4.0}


def write_native(path, ids=IDS, spoil=None, **columns):
    """Write a coadd with constant flux and ivar in each arm; `spoil` modifies the HDUs first."""
    count = len(ids)
    table = {
        "TARGETID": ids,
        "TARGET_RA": np.full(count, 10.5),
        "TARGET_DEC": np.full(count, -3.0),
        **columns,
    }
    formats = {"i": "K", "f": "D"}
    fibermap = fits.BinTableHDU.from_columns(
        [fits.Column(name, formats[np.asarray(v).dtype.kind], array=v) for name, v in table.items()],
        name="FIBERMAP",
    )
    hdus = {"FIBERMAP": fibermap}
    for arm, (first, pixels) in ARMS.items():
        hdus[f"{arm}_WAVELENGTH"] = fits.ImageHDU(first + 0.8 * np.arange(pixels))
        hdus[f"{arm}_FLUX"] = fits.ImageHDU(np.full((count, pixels), FLUX[arm], dtype=">f4"))
        hdus[f"{arm}_IVAR"] = fits.ImageHDU(np.full((count, pixels), IVAR[arm], dtype=">f4"))
        hdus[f"{arm}_MASK"] = fits.ImageHDU(np.zeros((count, pixels), dtype=">i4"))
    if spoil:
        spoil(hdus)
    for name, hdu in hdus.items():
        hdu.name = name
    fits.HDUList([fits.PrimaryHDU(), *hdus.values()]).writeto(path)
    return path


def write_redrock(path, ids, spectype, zwarn=None, **columns):
    zwarn = np.zeros(len(ids), dtype=int) if zwarn is None else zwarn
    names = [
        fits.Column("TARGETID", "K", array=ids),
        fits.Column("SPECTYPE", "6A", array=spectype),
        fits.Column("SUBTYPE", "20A", array=["K"] * len(ids)),
        fits.Column("Z", "D", array=np.arange(len(ids)) * 1e-4),
        fits.Column("ZWARN", "K", array=zwarn),
        *(fits.Column(name, "D", array=values) for name, values in columns.items()),
    ]
    fits.BinTableHDU.from_columns(names, name="REDSHIFTS").writeto(path)


def write_flux_table(path, ids=IDS[:2]):
    """Write the pixels of all arms in order of wavelength, so that some wavelengths occur twice."""
    parts = [(first + 0.8 * np.arange(pixels), arm) for arm, (first, pixels) in ARMS.items()]
    wavelength = np.concatenate([grid for grid, _ in parts])
    flux = np.concatenate([np.full(grid.size, FLUX[arm]) for grid, arm in parts])
    order = np.argsort(wavelength, kind="stable")
    columns = [fits.Column("WAVELENGTH", "D", array=wavelength[order])]
    columns += [
        fits.Column(f"TARGET{target}", "D", array=flux[order] * (k + 1)) for k, target in enumerate(ids)
    ]
    fits.BinTableHDU.from_columns(columns).writeto(path)
    return path


def at(spectra, wavelength):
    return int(np.abs(spectra.wavelength - wavelength).argmin())


def test_arms_are_coadded_by_inverse_variance(tmp_path):
    spectra = read(write_native(tmp_path / "coadd-1.fits"))
    assert spectra.survey == "desi"
    assert spectra.medium == "vacuum"
    assert spectra.id.tolist() == [str(target) for target in IDS]
    assert spectra.flux.shape == (3, 7781)
    np.testing.assert_allclose(spectra.wavelength[[0, -1]], [3600.0, 9824.0], rtol=1e-15)
    assert not spectra.mask.any()
    for wavelength, flux, ivar in ((4000, 2, 1), (5780, (2 + 3 * 5) / 4, 4), (7000, 5, 3), (9000, 8, 4)):
        np.testing.assert_allclose(spectra.flux[:, at(spectra, wavelength)], flux, rtol=1e-14)
        np.testing.assert_allclose(spectra.ivar[:, at(spectra, wavelength)], ivar, rtol=1e-14)
    assert spectra.meta["ra"].tolist() == [10.5] * 3
    assert spectra.meta["zwarn"].tolist() == [-1] * 3


def test_flagged_pixels_of_an_arm_are_not_used(tmp_path):
    def spoil(hdus):
        first = ARMS["R"][0]
        overlap, alone = round((5780 - first) / 0.8), round((7000 - first) / 0.8)
        hdus["R_FLUX"].data[0, [overlap, alone]] = 1e4
        hdus["R_MASK"].data[0, [overlap, alone]] = 2
        hdus["R_IVAR"].data[1, overlap] = 0
        hdus["R_FLUX"].data[2, overlap] = np.nan

    spectra = read(write_native(tmp_path / "coadd-1.fits", spoil=spoil))
    overlap, alone = at(spectra, 5780), at(spectra, 7000)
    np.testing.assert_allclose(spectra.flux[:, overlap], 2.0)  # only the other arm
    np.testing.assert_allclose(spectra.ivar[:, overlap], 1.0)
    assert spectra.mask[:, alone].tolist() == [True, False, False]
    assert spectra.mask.sum() == 1
    assert spectra.flux.max() <= 8


def test_redrock_beside_the_coadd_is_joined_by_targetid(tmp_path):
    path = write_native(tmp_path / "coadd-1.fits")
    write_redrock(tmp_path / "redrock-1.fits", IDS[[2, 0]], ["GALAXY", "STAR"])
    spectra = read(tmp_path)
    assert spectra.meta["spectype"].tolist() == ["STAR", "", "GALAXY"]
    assert spectra.meta["zwarn"].tolist() == [0, -1, 0]
    np.testing.assert_array_equal(spectra.meta["redshift"], [1e-4, np.nan, 0])
    assert spectra.meta["ra"].tolist() == [10.5] * 3
    assert read(path, "desi-stars").id.tolist() == [str(IDS[0])]


def test_stars_are_classified_by_redrock_or_else_targeted_as_stars(tmp_path):
    target = np.array([1 << 61, 1 << 33, 1 << 2])
    write_native(tmp_path / "coadd-1.fits", SV1_DESI_TARGET=target)
    assert desi.read(tmp_path, stars=True).id.tolist() == [str(IDS[0]), str(IDS[1])]
    write_redrock(tmp_path / "redrock-1.fits", IDS, ["STAR"] * 3, zwarn=[4, 0, 0])
    assert desi.read(tmp_path, stars=True).id.tolist() == [str(IDS[1]), str(IDS[2])]
    write_native(tmp_path / "coadd-2.fits")
    with pytest.raises(DataError, match=r"none of 3 DESI spectra is of a star; redrock"):
        read(tmp_path / "coadd-2.fits", "desi-stars")


def test_the_flux_table_is_put_on_the_grid(tmp_path):
    path = write_flux_table(tmp_path / "coadd-mws-1.fits")
    write_redrock(tmp_path / "zbest-mws-1.fits", IDS[:2], ["STAR", "STAR"], TARGET_RA=[1.0, 2.0])
    spectra = read(path)
    assert spectra.flux.shape == (2, 7781)
    assert not spectra.has_ivar
    assert not spectra.mask.any()
    np.testing.assert_array_equal(
        spectra.flux[:, [at(spectra, w) for w in (4000, 5780, 7000)]], [[2, 3.5, 5], [4, 7, 10]]
    )
    assert spectra.meta["ra"].tolist() == [1.0, 2.0]
    assert np.isnan(spectra.meta["snr"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("R_IVAR"), "no HDU R_IVAR"),
        (lambda h: h.update(B_WAVELENGTH=fits.ImageHDU(3600.3 + 0.8 * np.arange(2751))), "0.8 A grid"),
        (lambda h: h.update(B_WAVELENGTH=fits.ImageHDU(360.0 + 0.08 * np.arange(2751))), "0.8 A grid"),
        (lambda h: h.update(Z_FLUX=fits.ImageHDU(np.ones((2, 2881)))), r"Z_FLUX \(2, 2881\)"),
        (lambda h: [h.pop(name) for name in list(h) if name != "FIBERMAP"], "no HDU \\*_WAVELENGTH"),
        (lambda h: h.pop("FIBERMAP"), "no FIBERMAP"),
    ],
)
def test_invalid_coadds_are_refused_with_a_reason(tmp_path, change, message):
    path = write_native(tmp_path / "coadd-1.fits", spoil=change)
    with pytest.raises(DataError, match=message) as caught:
        read(path, "desi")
    assert "coadd-1.fits" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_a_repeated_target_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"{IDS[0]} occurs more than once: single exposures"):
        read(write_native(tmp_path / "spectra-1.fits", ids=IDS[[0, 1, 0]]))


def test_a_target_in_several_files_is_read_from_the_one_of_highest_snr(tmp_path, caplog):
    def brighten(hdus):
        hdus["B_FLUX"].data[0] *= 10
        hdus["R_FLUX"].data[0] *= 10

    write_native(tmp_path / "coadd-1.fits")
    write_native(tmp_path / "coadd-2.fits", IDS[:2], spoil=brighten)
    spectra = read(tmp_path)
    assert spectra.select([str(IDS[0])]).meta["file"].tolist() == ["coadd-2.fits"]
    assert sorted(spectra.id.tolist()) == [str(target) for target in IDS]
    assert caplog.messages == [
        "left out: coadd-1.fits: 1 targets have a higher S/N in other files",
        "left out: coadd-2.fits: 1 targets have a higher S/N in other files",
    ]


def test_a_damaged_file_is_refused_and_left_out_of_a_folder(tmp_path, caplog):
    write_native(tmp_path / "coadd-1.fits")
    victim = write_native(tmp_path / "coadd-2.fits")
    victim.write_bytes(victim.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"coadd-2\.fits"):
        read(victim)
    assert len(read(tmp_path)) == 3
    assert [r"coadd-2.fits" in record.getMessage() for record in caplog.records] == [True]


def test_real_stars(real_data):
    for name, count in (("coadd-mws-66003-20200315.fits", 5), ("coadd-mws-66003-20200315-wd.fits", 1)):
        spectra = read(real_data / "desi" / name, "desi-stars")
        assert spectra.flux.shape == (count, 7781)
        assert np.isfinite(spectra.meta["ra"]).all()
        normalised = to_lamost(spectra)
        assert (normalised.meta["flag"] == "good").all()
        level = np.median(normalised.flux, axis=1)
        assert ((level > 0.5) & (level < 1.05)).all()  # M stars are far below the continuum fit in the blue


def test_real_folders(real_data):
    spectra = read(real_data / "desi")
    assert len(spectra) == 28  # with the two of the folder below
    assert set(spectra.meta["spectype"].tolist()) == {"STAR", "GALAXY", "QSO"}
    native = read(real_data / "desi" / "fastspecfit")
    assert native.flux.shape == (2, 7781)
    assert native.has_ivar
    assert native.mask.mean() < 0.02
    assert (native.meta["spectype"] == "GALAXY").all()
    assert (native.meta["snr"] > 0).all()
