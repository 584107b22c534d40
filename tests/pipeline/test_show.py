"""The picture of a spectrum: what is drawn is what was read and predicted."""

import dataclasses

import numpy as np
import pytest
from matplotlib.image import imread

from specjax.adapt.predict import predict_labels
from specjax.checkpoints import load_adapter
from specjax.cli import main
from specjax.errors import ConfigError, DataError, ModelError
from specjax.flags import Flag
from specjax.foundation import load
from specjax.pipeline import show as module
from specjax.pipeline.show import show_spectrum
from specjax.preprocess import to_lamost
from specjax.report import style
from specjax.report.portrait import plot_portrait
from specjax.report.style import COLUMN, PAGE
from specjax.surveys import read

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def _coarse_figures(monkeypatch):
    monkeypatch.setattr(style, "DPI", 50)


@pytest.fixture
def drawn(monkeypatch):
    """The portraits of a test, which are not drawn."""
    portraits = []
    monkeypatch.setattr(module, "plot_portrait", lambda out, portrait, **_: portraits.append(portrait) or [])
    return portraits


def show(files, name, tmp_path, **options):
    path = files.raw / name if isinstance(name, str) else name
    return show_spectrum(spectrum=path, out=tmp_path / "p.png", model=files.model, **options)


def test_what_is_drawn_is_what_was_read_and_predicted(files, tmp_path, drawn):
    show(files, "004.npz", tmp_path, adapter=files.adapter)
    (portrait,) = drawn
    model, stored = load(files.model), load_adapter(files.adapter)
    spectra = read(files.raw / "004.npz")
    lamost = to_lamost(spectra, fwhm=6.0)  # as the adapter was trained
    np.testing.assert_array_equal(portrait.flux, lamost.flux[0])
    np.testing.assert_array_equal(portrait.masked, ~lamost.valid[0])
    np.testing.assert_allclose(portrait.reconstruction, model.reconstruct(lamost)[0], rtol=1e-6)
    columns = predict_labels(model, spectra, [(stored.arrays, stored.config)])
    value, low, high = (columns[name][0] for name in ("fe_h", "fe_h_lo", "fe_h_hi"))
    assert portrait.labels == [f"[Fe/H] = {value:.2f} [{low:.2f}, {high:.2f}] dex".replace("-", "−")]
    assert portrait.warning == f"flag: {columns['flag'][0]}"
    assert columns["flag"][0] == Flag.MASKED_FRACTION
    assert (portrait.title, "lora4" in portrait.about) == ("star 4", True)
    np.testing.assert_array_equal(portrait.observed.flux, spectra.flux[0])
    assert portrait.observed.masked[~spectra.valid[0]].all()
    good = ~portrait.observed.masked
    np.testing.assert_allclose(portrait.observed.error[good], 1e-17, rtol=1e-12)


def test_spikes_count_as_masked(files, tmp_path, drawn):
    with np.load(files.raw / "000.npz") as file:
        content = dict(file)
    content["flux"][0, 500] *= 60
    np.savez(tmp_path / "spike.npz", **content)
    show(files, tmp_path / "spike.npz", tmp_path)
    assert np.flatnonzero(drawn[0].observed.masked).tolist() == [500]


def test_the_model_as_it_is_says_that_errors_are_unknown(files, tmp_path, drawn):
    show(files, "000.npz", tmp_path, head="mlp1", fwhm=6.0)
    labels = drawn[0].labels
    assert [text.partition(" = ")[0] for text in labels] == ["Teff", "[Fe/H]", "(errors unknown)"]
    value = load(files.model).predict(to_lamost(read(files.raw / "000.npz"), fwhm=6.0), "mlp1")["teff"][0]
    assert labels[0] == f"Teff = {value:.0f} K".replace("-", "−")


def test_a_spectrum_that_cannot_be_used_is_drawn_with_its_flag(files, tmp_path, drawn):
    show(files, "002.npz", tmp_path)
    (portrait,) = drawn
    assert portrait.warning == f"flag: {Flag.NO_COVERAGE}"
    assert portrait.reconstruction is None
    assert portrait.labels[0] == "Teff unknown"
    plot_portrait(tmp_path / "blank.png", portrait)
    assert (tmp_path / "blank.png").is_file()


def test_a_spectrum_is_chosen_by_id_or_row(files, tmp_path, drawn):
    show(files, files.arrays, tmp_path, id="s3")
    show(files, files.arrays, tmp_path, row=3)
    assert drawn[0].title == drawn[1].title == "s3"
    np.testing.assert_array_equal(drawn[0].flux, drawn[1].flux)
    for options, error, message in (
        ({}, ConfigError, "holds 10 spectra: choose one by --id"),
        ({"id": "s3", "row": 3}, ConfigError, "not by both"),
        ({"id": "s99"}, DataError, "'s99' is not among"),
        ({"row": 10}, DataError, "rows 0 to 9"),
    ):
        with pytest.raises(error, match=message):
            show(files, files.arrays, tmp_path, **options)


def test_prepared_spectra_are_drawn_without_the_flux_as_read(files, tmp_path, drawn):
    show(files, files.prepared, tmp_path, row=0, adapter=files.adapter)
    assert drawn[0].observed is None
    assert drawn[0].labels[0].startswith("[Fe/H] = ")


def test_models_without_decoders_or_heads_are_drawn_without_them(files, tmp_path, drawn):
    model, folder = load(files.model), tmp_path / "base"
    parts = {name: tree for name, tree in model.params.items() if name in ("lamost", "gaia_xp")}
    dataclasses.replace(model, variables={**model.variables, "params": parts}).save(folder)
    show_spectrum(spectrum=files.raw / "000.npz", out=tmp_path / "p.png", model=folder)
    assert (drawn[0].reconstruction, drawn[0].labels) == (None, [])
    with pytest.raises(ModelError, match="no head 'mlp1'"):
        show_spectrum(spectrum=files.raw / "000.npz", out=tmp_path / "p.png", model=folder, head="mlp1")
    dataclasses.replace(model, variables={"params": {"gaia_xp": parts["gaia_xp"]}}).save(folder)
    with pytest.raises(ModelError, match="no encoder for 'lamost'"):
        show_spectrum(spectrum=files.raw / "000.npz", out=tmp_path / "p.png", model=folder)


@pytest.mark.parametrize(("name", "column"), [("000.npz", True), ("005.npz", False)])  # without ivar
def test_both_files_are_written_in_the_width_of_a_journal(files, tmp_path, name, column):
    written = show(files, name, tmp_path, column=column)
    assert [path.name for path in written] == ["p.png", "p.pdf"]
    image = imread(tmp_path / "p.png")
    assert image.shape[1] == pytest.approx(50 * (COLUMN if column else PAGE), abs=1)
    assert image[..., :3].std() > 0.05  # not an empty page
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.pdf", "p.png"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{raw}/003.npz", "not a readable .npz"),
        ("{raw}/nothing.npz", "does not exist"),
        ("{raw}/000.npz --adapter {model}", "not a specjax-adapter"),
        ("{raw}/000.npz --adapter {adapter} --head mlp1", "leave out head"),
        ("{raw}/000.npz -o p.txt", "a picture is .png and .pdf"),
    ],
)
def test_an_error_of_the_user_is_one_line(files, tmp_path, monkeypatch, capsys, line, message):
    monkeypatch.chdir(tmp_path)
    words = line.format(raw=files.raw, model=files.model, adapter=files.adapter).split()
    assert main(["show", *words, "--model", str(files.model)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_both_paths(files, tmp_path, capsys, monkeypatch):
    paths = [tmp_path / "p.png", tmp_path / "p.pdf"]
    monkeypatch.setattr(module, "plot_portrait", lambda *given, **options: paths)
    words = ["show", str(files.raw / "000.npz"), "--model", str(files.model), "-o", str(paths[1])]
    assert main(words) == 0
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
