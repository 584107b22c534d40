import dataclasses
import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from astropy.table import Table, vstack

from specjax.adapt import predict as predict_module
from specjax.adapt import survey
from specjax.adapt.roles import SplitConfig, split_table
from specjax.calibration.calibration import SUFFIXES, Calibration
from specjax.checkpoints import load_adapter, save_adapter
from specjax.cli import main
from specjax.errors import ConfigError, DataError, ModelError
from specjax.foundation import Foundation, inference, load
from specjax.foundation.networks import Networks
from specjax.foundation.ood import OutOfDomain
from specjax.pipeline import predict_survey
from specjax.pipeline.predict import _predict_work
from specjax.pipeline.work import raw_options
from specjax.preprocess import to_lamost
from specjax.report.page import make_page
from specjax.report.results import read_table
from specjax.spectra import Spectra
from specjax.surveys import read
from tests import synthetic
from tests.models.tiny import SMALL, head_stats, random_system

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = dataclasses.replace(synthetic.ADAPT, seeds=2, train=12, validate=2)
SEQUENTIAL = dataclasses.replace(CONFIG, objective="sequential")
WAVELENGTH = np.arange(3750.0, 5800.0, 2.0)


def observed(n, seed=0):
    """Flux-calibrated spectra with fifty lines that follow [Fe/H], and their [Fe/H]."""
    shapes, rng = np.random.default_rng(1), np.random.default_rng(seed)
    places, depths = shapes.uniform(3900, 5700, 50), shapes.uniform(0.05, 0.3, 50)
    fe_h = rng.uniform(-2, 0.5, n)
    lines = np.exp(-0.5 * ((WAVELENGTH - places[:, None]) / 4) ** 2)
    flux = np.exp(-(10 ** (0.4 * fe_h))[:, None] * depths @ lines) * (WAVELENGTH / 5000) ** -1.5
    return 1e-15 * (flux + 0.01 * rng.normal(size=flux.shape)), fe_h


def write(path, flux, ids, wavelength=WAVELENGTH, **more):
    np.savez(path, wavelength=wavelength, flux=flux, id=ids, medium="vacuum", unit="angstrom", **more)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def files(folder):
    """A model, a survey of 24 stars of which 18 have a label, and the labels."""
    values = np.array([[5000.0, -2.0], [6000.0, 0.5]])
    scale = {"label_mean": values.mean(0).astype(np.float32), "label_std": values.std(0).astype(np.float32)}
    flux, fe_h = observed(24)
    ids = np.array([f"star {k}" for k in range(24)])
    spectra = write(folder / "survey.npz", flux, ids)
    model = Foundation(config=SMALL, variables=random_system(SMALL))
    given = read(spectra)
    stats = head_stats(model, to_lamost(given), scale)
    dataclasses.replace(model, stats=stats).save(folder / "model")
    Table({"id": ids[:18], "fe_h": fe_h[:18]}).write(folder / "labels.csv")
    return {"model": folder / "model", "spectra": spectra, "labels": folder / "labels.csv"}


@pytest.fixture(scope="module")
def adapted(files, folder):
    said = []
    rows = survey.adapt_survey(
        **files, out=folder / "run", configurations=["lora4"], config=CONFIG, say=said.append,
        wavelength_medium="vacuum", wavelength_unit="angstrom",
    )  # fmt: skip
    return folder / "run", rows, said


def predict(files, adapter, spectra, out, **options):
    return predict_survey(
        model=files["model"], adapter=adapter, spectra=[spectra], out=out,
        wavelength_medium="vacuum", wavelength_unit="angstrom", **options,
    )  # fmt: skip


def test_adapting_writes_the_folder(adapted):
    out, rows, said = adapted
    assert read_table(out)[0]["configuration"] == "zero-shot-mlp2"
    assert {row["configuration"] for row in rows} == {"zero-shot-mlp2", "lora4"}
    assert any("18 labelled and 6 unlabelled" in line for line in said)
    content = json.loads((out / "config.json").read_text())
    assert content["refused"] == {}
    page = make_page(out)  # of a run with all its files
    for part in ("lora4", "Calibration of the intervals", content["made"]["date"]):
        assert part in page
    assert page.count("<img") == len(list(out.glob("*.png"))) == 3


def test_a_folder_of_one_file_per_star_gives_what_one_file_of_all_gives(files, adapted, tmp_path):
    whole = read(files["spectra"], wavelength_medium="vacuum")
    (tmp_path / "my stars, 2024").mkdir()
    for row, (name, flux) in enumerate(zip(whole.id.tolist(), whole.flux, strict=True)):
        write(tmp_path / "my stars, 2024" / f"{row:03d}.npz", flux[None], [name])
    rows = survey.adapt_survey(
        **{**files, "spectra": tmp_path / "my stars, 2024"}, out=tmp_path / "run", configurations=["lora4"],
        config=CONFIG, wavelength_medium="vacuum", wavelength_unit="angstrom",
    )  # fmt: skip
    assert (tmp_path / "run" / "adapters" / "my-stars-2024" / "lora4").is_dir()
    assert [row["sigma"] for row in rows] == [row["sigma"] for row in adapted[1]]


def test_the_command_writes_a_report_if_asked_to(files, tmp_path, capsys):
    words = [f"--{name}={files[name]}" for name in ("model", "spectra", "labels")]
    words += ["--configuration=zero-shot-mlp2", "--seeds=2", "--train=12", "--validate=2"]
    for out, report in ((tmp_path / "with", ["--report"]), (tmp_path / "without", [])):
        assert main(["adapt", *words, f"--out={out}", *report]) == 0
        assert (out / "report.html").exists() == bool(report)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == str(tmp_path / "without")
    assert "; 2 seeds; 4 test stars per seed" in printed.out
    assert "zero-shot-mlp2 minus labels: " in printed.err
    assert "the intervals will be for [Fe/H] as the table gives it" in printed.err


def test_the_splits_of_a_table_of_labels_are_followed(files, tmp_path):
    table = Table.read(files["labels"])
    spare = Table({"id": [f"star {k}" for k in range(18, 24)], "fe_h": np.full(6, np.nan)})
    config = SplitConfig(train=11, validate=1, test=4, unlabelled=5, min_snr=0, seeds=3, stratify="fe_h")
    split = split_table(vstack([table, spare]), config)
    split.write(tmp_path / "stars.ecsv")
    said = []
    rows = survey.adapt_survey(
        **{**files, "labels": tmp_path / "stars.ecsv"}, out=tmp_path / "run", configurations=["lora4"],
        config=CONFIG, say=said.append, wavelength_medium="vacuum", wavelength_unit="angstrom",
    )  # fmt: skip
    assert any("11 training, 1 validation and 4 test stars per split" in line for line in said)
    assert any("18 labelled and 5 unlabelled" in line for line in said)
    assert {row["n_stars"] for row in rows if row["subset"] == "all"} == {4}
    scored = Table.read(tmp_path / "run" / "predictions.ecsv")
    for seed in range(2):  # of the three, as many as CONFIG has seeds
        tested = split["id"][split[f"split_{seed}"] == "test"]
        assert set(scored["id"][scored["seed"] == seed]) == set(tested)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["adapt"]
    assert (saved["seeds"], saved["train"], saved["validate"]) == (2, 11, 1)


@pytest.fixture
def two_splits(files, tmp_path):
    """The files with a table of labels that holds two splits, and these splits."""
    config = SplitConfig(train=11, validate=1, unlabelled=0, seeds=2)
    split = split_table(Table.read(files["labels"]), config)
    split.write(tmp_path / "stars.ecsv")
    return {**files, "labels": tmp_path / "stars.ecsv"}, split


@pytest.mark.parametrize("one_split", [False, True])
def test_a_table_with_fewer_splits_than_seeds(two_splits, tmp_path, one_split):
    """All of them are used and it is said, unless the first is asked for in all seeds."""
    files, split = two_splits
    said = []
    survey.adapt_survey(
        **files, out=tmp_path / "run", configurations=["zero-shot-mlp2"], say=said.append,
        config=dataclasses.replace(CONFIG, seeds=3, one_split=one_split),
        wavelength_medium="vacuum", wavelength_unit="angstrom",
    )  # fmt: skip
    scored = Table.read(tmp_path / "run" / "predictions.ecsv")
    columns = ["split_0"] * 3 if one_split else ["split_0", "split_1"]
    assert set(scored["seed"]) == set(range(len(columns)))
    for seed, column in enumerate(columns):
        tested = split["id"][split[column] == "test"]
        assert set(scored["id"][scored["seed"] == seed]) == set(tested)
    wanted = "the first split for all seeds" if one_split else "splits for only 2 of the 3 seeds"
    assert any(wanted in line for line in said)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["adapt"]
    assert (saved["seeds"], saved["one_split"]) == (len(columns), one_split)


@pytest.mark.parametrize(
    ("names", "objective", "said_so"),
    [
        (["lora4"], "joint", True),
        (["lora1+lora2"], "sequential", True),
        (["lora2", "lora1+lora2"], "joint", False),
    ],
)
def test_steps_without_joint_training_of_a_tower_are_reported(
    files, tmp_path, monkeypatch, names, objective, said_so
):
    said, configs = [], []
    monkeypatch.setattr(survey, "run_study", lambda model, targets, config, *_, **__: configs.append(config))
    survey.adapt_survey(
        **files, out=tmp_path / "run", configurations=names, steps=120, say=said.append,
        config=dataclasses.replace(CONFIG, objective=objective),
        wavelength_medium="vacuum", wavelength_unit="angstrom",
    )  # fmt: skip
    assert any(line.startswith("--steps has no effect") for line in said) == said_so
    assert configs[0].joint[0].steps == 120


@pytest.mark.parametrize("options", [{}, {"fwhm": 3.0}, {"xp": "others.npz"}])
def test_what_needs_gaia_xp_does_not_stop_the_others(files, tmp_path, monkeypatch, options):
    """Whether there are no XP spectra, too little flux to make them from, or none of an unlabelled star."""
    given, said = [], []
    monkeypatch.setattr(survey, "run_study", lambda *_, configurations, **__: given.extend(configurations))
    if "xp" in options:
        options = {"xp": tmp_path / options["xp"]}
        grid = np.arange(3360.0, 10201, 20)
        write(options["xp"], np.ones((1, 343)) + 0.1 * np.sin(grid), ["star 0"], grid, survey="gaia_xp")
    survey.adapt_survey(
        **files, out=tmp_path / "run", configurations=["lora2", "lora1+lora3+lora4", "lora1"],
        config=SEQUENTIAL, say=said.append, wavelength_medium="vacuum", wavelength_unit="angstrom", **options,
    )  # fmt: skip
    assert [one.name for one in given] == ["lora2", "lora1"]
    (line,) = [line for line in said if line.startswith("skipped")]
    assert line.startswith("skipped lora1+lora3+lora4: ")


def test_metallicity_sorts_the_stars_whatever_the_label(files, tmp_path):
    """The run of another label must hand fe_h on, or the table's metal-poor rows are empty."""
    observed = read(files["spectra"])
    Table({"id": observed.id, "teff": np.full(24, 5e3), "fe_h": np.arange(24.0), "note": ["x"] * 24}).write(
        tmp_path / "two.ecsv"
    )
    joined = survey._joined_labels(observed, tmp_path / "two.ecsv", ["teff"])
    np.testing.assert_array_equal(joined["fe_h"], np.arange(24))
    assert list(survey._joined_labels(observed, tmp_path / "two.ecsv", ["fe_h"])) == ["fe_h"]


@pytest.mark.parametrize("label", ["teff", "fe_h"])
def test_errors_of_the_labels_are_read(files, tmp_path, monkeypatch, label):
    """Those that are unknown or not positive count as 0."""
    ids, errors = read(files["spectra"]).id, np.linspace(0.01, 0.24, 24)
    errors[:4] = np.nan, -9999.0, -0.1, 0.0
    values = np.linspace(4000, 6300, 24) if label == "teff" else np.linspace(-2, 0.3, 24)
    table = Table({"id": ids, label: values, f"{label}_err": errors, "logg_err": errors})
    table.write(tmp_path / "labels.ecsv")
    targets = []
    monkeypatch.setattr(survey, "run_study", lambda model, given, *_, **__: targets.extend(given))
    options = {"wavelength_medium": "vacuum", "wavelength_unit": "angstrom", "label": label}
    for labels in (tmp_path / "labels.ecsv", files["labels"]):
        given = {**files, "labels": labels}
        if labels == files["labels"] and label == "teff":
            continue
        survey.adapt_survey(**given, out=tmp_path / "run", configurations=["lora4"], config=CONFIG, **options)
    np.testing.assert_array_equal(targets[0].truth_error, [0, 0, 0, 0, *errors[4:]])
    assert all(target.truth_error is None for target in targets[1:])


def test_predicting_gives_what_was_scored(files, adapted, tmp_path):
    """The same stars through the file and the adapter: what the run wrote for them."""
    out, _, _ = adapted
    (adapter,) = (out / "adapters").glob("*/lora4")
    columns = predict(files, adapter, files["spectra"], tmp_path / "labels.ecsv")
    ends = ["fe_h_lo", "fe_h_hi", "fe_h_lo95", "fe_h_hi95"]
    errors = ["fe_h_std", "fe_h_err", *ends]
    assert list(columns) == ["id", "fe_h", *errors, "flag", "masked_fraction", "distance"]
    scored = Table.read(out / "predictions.ecsv")
    scored = scored[scored["configuration"] == "lora4"]
    config = load_adapter(adapter).config
    assert config["label"] == "fe_h"
    assert config["wavelength"] == {"medium": "vacuum", "unit": "angstrom"}
    for name in sorted(set(scored["id"])):
        part = scored[scored["id"] == name]
        if len(part) == 2:  # tested by both seeds
            row = columns["id"].tolist().index(name)
            # merged and unmerged factors: float32
            np.testing.assert_allclose(columns["fe_h"][row], part["fe_h_predicted"].mean(), atol=1e-3)
            np.testing.assert_allclose(
                columns["fe_h_std"][row], part["fe_h_predicted"].std(ddof=1), atol=1e-3
            )
    expected = Calibration.from_json(config["calibration"]).intervals(
        columns["fe_h"], spread=columns["fe_h_std"]
    )
    for name, values in expected.columns("fe_h").items():
        np.testing.assert_array_equal(columns[name], values)
    table = Table.read(tmp_path / "labels.ecsv")
    assert {str(table[name].unit) for name in ("fe_h", *errors)} == {"dex"}
    assert table["fe_h_hi95"].description == "upper end of the 95% interval of [Fe/H]"
    assert table.meta["intervals"] == "of the literature label, calibrated on 18 stars"
    np.testing.assert_array_equal(table["fe_h"], columns["fe_h"])


@pytest.mark.parametrize("calibration", ["absent", None, {"version": 99}])
def test_adapters_without_a_calibration_give_what_they_gave(files, adapted, calibration, tmp_path):
    """Those of earlier versions, imported ones, and those of a later version of the calibration."""
    (adapter,) = (adapted[0] / "adapters").glob("*/lora4")
    stored = load_adapter(adapter)
    config = {name: value for name, value in stored.config.items() if name != "calibration"}
    if calibration != "absent":
        config["calibration"] = calibration
    save_adapter(tmp_path / "old", config=config, arrays=stored.arrays, base=stored.base)
    said = []
    columns = predict(files, tmp_path / "old", files["spectra"], tmp_path / "labels.fits", say=said.append)
    errors = ["fe_h_std", "fe_h_err"]
    assert list(columns) == ["id", "fe_h", *errors, "flag", "masked_fraction", "distance"]
    np.testing.assert_allclose(columns["fe_h_err"], np.hypot(columns["fe_h_std"], config["sigma"]), rtol=1e-6)
    assert any("stores no calibration" in line for line in said)


@pytest.mark.parametrize("name", ["labels.fits", "labels.parquet", "labels.csv", "labels.h5"])
def test_every_format_has_the_intervals(files, adapted, name, tmp_path):
    (adapter,) = (adapted[0] / "adapters").glob("*/lora4")
    said = []
    columns = predict(files, adapter, files["spectra"], tmp_path / name, say=said.append)
    assert not any("calibration" in line for line in said)
    if name.endswith(".h5"):
        with h5py.File(tmp_path / name) as file:
            np.testing.assert_array_equal(file["fe_h_lo95"], columns["fe_h_lo95"])
            described = {key: file["fe_h_lo95"].attrs[key] for key in ("unit", "description")}
            assert described == {"unit": "dex", "description": "lower end of the 95% interval of [Fe/H]"}
        return
    table = Table.read(tmp_path / name)
    np.testing.assert_array_equal(table["fe_h_lo95"], columns["fe_h_lo95"])
    if not name.endswith(".csv"):
        assert table["fe_h_lo95"].description.startswith("lower end of the 95% interval of [Fe/H]")


def test_predictions_of_stars_that_the_adapter_knows_are_announced(files, adapted, tmp_path):
    out, said = adapted[0], []
    (adapter,) = (out / "adapters").glob("*/lora4")
    assert load_adapter(adapter).config["labelled"] == [f"star {k}" for k in range(18)]
    predict(files, adapter, files["spectra"], tmp_path / "labels.ecsv", say=said.append)
    assert sum(line.startswith("18 of 24 spectra have the id of a star") for line in said) == 1
    new = write(tmp_path / "new.npz", observed(3)[0], np.array(["a", "b", "c"]))
    said.clear()
    predict(files, adapter, new, tmp_path / "new.ecsv", say=said.append)
    assert not any("have the id" in line for line in said)


@pytest.fixture(scope="module")
def adapted_twice(files, folder):
    """A run with two labels; three of the stars lack Teff."""
    table = Table.read(files["labels"])
    table["teff"] = 5500 + 400 * table["fe_h"]
    table["teff"][:3] = np.nan
    table.write(folder / "two.ecsv")
    survey.adapt_survey(
        **{**files, "labels": folder / "two.ecsv"}, out=folder / "two", label=("teff", "fe_h"),
        configurations=["lora4"], config=CONFIG, wavelength_medium="vacuum", wavelength_unit="angstrom",
    )  # fmt: skip
    return folder / "two"


def test_all_labels_of_a_run_are_predicted_in_one_table(files, adapted_twice, tmp_path):
    """From the run folder, from two adapters, and as each adapter alone does."""
    (folder,) = (adapted_twice / "adapters").glob("*/lora4")
    found = predict(files, adapted_twice, files["spectra"], tmp_path / "labels.fits")
    assert list(found) == [
        "id", "fe_h", "fe_h_std", *(f"fe_h{end}" for end in SUFFIXES),
        "teff", "teff_std", *(f"teff{end}" for end in SUFFIXES), "flag", "masked_fraction", "distance",
    ]  # fmt: skip
    named = predict(files, [folder / "teff", folder / "fe_h"], files["spectra"], tmp_path / "labels.ecsv")
    for label in ("teff", "fe_h"):
        alone = predict(files, folder / label, files["spectra"], tmp_path / f"{label}.ecsv")
        for column in (label, *(f"{label}{end}" for end in ("_std", *SUFFIXES))):
            np.testing.assert_allclose(found[column], alone[column], rtol=1e-5)  # float32
            np.testing.assert_array_equal(found[column], named[column])
    meta = Table.read(tmp_path / "labels.ecsv").meta
    assert meta["teff_configuration"] == meta["fe_h_configuration"] == "lora4"
    assert str(Table.read(tmp_path / "labels.fits")["teff"].unit) == "K"


def test_adapters_that_cannot_predict_together_are_refused(files, adapted, adapted_twice, tmp_path):
    (one,) = (adapted[0] / "adapters").glob("*/lora4")
    with pytest.raises(ConfigError, match="predict fe_h: give --adapter one of them"):
        predict(files, [one, adapted_twice], files["spectra"], tmp_path / "labels.ecsv")
    with pytest.raises(ModelError, match="not a specjax adapter"):
        predict(files, tmp_path, files["spectra"], tmp_path / "labels.ecsv")


def test_predictions_take_the_medium_that_the_adapter_was_made_with(files, adapted, tmp_path):
    """Of a file that declares none; an option wins."""
    (adapter,) = (adapted[0] / "adapters").glob("*/lora4")
    with np.load(files["spectra"]) as arrays:
        bare = {name: arrays[name] for name in ("flux", "id")}
    np.savez(tmp_path / "bare.npz", wavelength=WAVELENGTH / 10, **bare)
    given, said = {"model": files["model"], "adapter": adapter, "spectra": [tmp_path / "bare.npz"]}, []
    options = _predict_work(files["model"], [adapter], None, "auto", raw_options(None, None, None)).options
    assert (options.assumed_medium, options.assumed_unit) == ("vacuum", "angstrom")
    options = _predict_work(files["model"], [adapter], None, "auto", raw_options(None, "air", "nm")).options
    assert (options.assumed_medium, options.assumed_unit) == (None, None)
    predict_survey(**given, out=tmp_path / "labels.ecsv", wavelength_unit="nm", workers=1, say=said.append)
    assert sum("vacuum is taken, as in the spectra of the adapter" in line for line in said) == 1


def test_adapters_that_record_rank_and_alpha_are_read(files, adapted):
    """As earlier versions did."""
    (adapter,) = (adapted[0] / "adapters").glob("*/lora4")
    stored, model, given = load_adapter(adapter), load(files["model"]), read(files["spectra"])
    former = {**stored.config, "lora": {"lora4": {"rank": 8, "alpha": 8.0}}}
    now, before = (
        predict_module.predict(model, given, stored.arrays, config) for config in (stored.config, former)
    )
    np.testing.assert_array_equal(now["fe_h"], before["fe_h"])


def test_spectra_outside_the_models_domain_keep_their_number_and_are_flagged(files, adapted):
    """Whatever the preprocessing has flagged keeps that flag."""
    (adapter,) = (adapted[0] / "adapters").glob("*/lora4")
    flux, _ = observed(5, seed=9)
    mask = np.zeros(flux.shape, bool)
    mask[2, (WAVELENGTH > 4200) & (WAVELENGTH < 4700)] = True
    spectra = Spectra(
        wavelength=WAVELENGTH, flux=np.where(mask, 0, flux), ivar=np.where(mask, 0.0, 1.0), mask=mask,
        id=np.array(list("abcde")), has_ivar=False,
    )  # fmt: skip
    stored, model = load_adapter(adapter), load(files["model"])
    grid = to_lamost(spectra)
    features = model.mean_token(grid)
    plain = predict_module.predict(model, spectra, stored.arrays, stored.config)
    assert np.isnan(plain["distance"]).all()  # a model that knows no domain flags nothing
    d, apart = features.shape[1], np.linalg.norm(features - features[0], axis=1)
    domain = OutOfDomain(
        mean=features[0].astype(float),
        whitening=np.eye(d),
        limit=float(np.median(apart[[1, 3, 4]])) * 1.001,
        sides={"hotter_than_training": np.zeros(d)},
    )
    columns = predict_module.predict(replace(model, ood=domain), spectra, stored.arrays, stored.config)
    outside = apart > domain.limit
    assert outside[[1, 3, 4]].sum() == 1
    expected = np.where(outside, "unlike_training", "good")
    expected[2] = "masked_fraction"
    assert columns["flag"].tolist() == expected.tolist()
    np.testing.assert_array_equal(columns["fe_h"], plain["fe_h"])
    # float32 features, in batches of other sizes
    np.testing.assert_allclose(columns["distance"], apart / domain.limit, rtol=1e-3, atol=1e-3)
    side = (features[3] - features[0]).astype(float)
    domain = replace(domain, sides={"hotter_than_training": 2 * side / (side**2).sum()})
    flag = predict_module.predict(replace(model, ood=domain), spectra, stored.arrays, stored.config)["flag"]
    assert flag[3] == "hotter_than_training"
    assert flag[0] == "good"


def test_labels_and_domain_come_from_one_pass_through_the_tower(files, adapted, monkeypatch):
    (adapter,) = (adapted[0] / "adapters").glob("*/lora4")
    stored, model = load_adapter(adapter), load(files["model"])
    d = model.config.specformer.dim
    model = replace(model, ood=OutOfDomain(mean=np.zeros(d), whitening=np.eye(d), limit=1.0))
    ran, run = [], inference._run
    monkeypatch.setattr(inference, "_run", lambda *given: ran.append(given[1]) or run(*given))
    one_batch = read(files["spectra"])[: inference.FEW_ROWS[0]]
    columns = predict_module.predict(model, one_batch, stored.arrays, stored.config)
    assert ran == [Networks.lamost_features]
    assert np.isfinite([columns["fe_h"], columns["distance"]]).all()


def test_flagged_rows_have_no_number(files, adapted):
    (adapter,) = (adapted[0] / "adapters").glob("*/lora4")
    flux, _ = observed(4, seed=9)
    mask = np.zeros(flux.shape, bool)
    mask[1] = True  # nothing
    mask[2, (WAVELENGTH > 4200) & (WAVELENGTH < 4700)] = True  # a third of the grid
    spectra = Spectra(
        wavelength=WAVELENGTH, flux=np.where(mask, 0, flux), ivar=np.where(mask, 0.0, 1.0), mask=mask,
        id=np.array(list("abcd")), has_ivar=False,
    )  # fmt: skip
    stored = load_adapter(adapter)
    columns = predict_module.predict(load(files["model"]), spectra, stored.arrays, stored.config)
    assert columns["flag"].tolist() == ["good", "no_coverage", "masked_fraction", "good"]
    for name in ("fe_h", "fe_h_std", "fe_h_err"):
        np.testing.assert_array_equal(np.isfinite(columns[name]), [True, False, True, True])
    assert columns["masked_fraction"][1] == 1
    assert 0.2 < columns["masked_fraction"][2] < 0.5
    nothing = predict_module.predict(
        load(files["model"]), spectra[np.array([1])], stored.arrays, stored.config
    )
    assert np.isnan(nothing["fe_h"]).all()


def test_an_unknown_format_is_refused_before_anything_is_read(tmp_path):
    nothing = tmp_path / "nothing"
    with pytest.raises(DataError, match=r"the suffix must be one of \.ecsv"):
        predict_survey(model=nothing, adapter=nothing, spectra=[nothing], out=tmp_path / "labels.txt")


def test_an_adapter_of_another_model_is_refused(files, adapted, tmp_path):
    (adapter,) = (adapted[0] / "adapters").glob("*/lora4")
    other = dataclasses.replace(load(files["model"]), stats={})
    other.save(tmp_path / "other")
    with pytest.raises(ModelError, match="another base model"):
        predict({"model": tmp_path / "other"}, adapter, files["spectra"], tmp_path / "labels.ecsv")
    assert not (tmp_path / "labels.ecsv").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"configurations": ["lora3+lora4"], "config": SEQUENTIAL},
            DataError,
            "needs Gaia XP spectra.*leave out",
        ),
        ({"configurations": ["lora3"], "config": SEQUENTIAL, "fwhm": 3.0}, DataError, "give --xp"),
        ({"configurations": ["lora7"]}, ConfigError, "no configuration"),
        ({"label": "logg"}, ConfigError, "predicts teff, fe_h, not 'logg'"),
        ({"label": ("fe_h", "teff")}, DataError, "no column teff"),
        ({"config": dataclasses.replace(CONFIG, train=16)}, DataError, "18 labelled stars"),
    ],
)
def test_a_survey_that_cannot_be_adapted_is_an_error_of_one_line(files, tmp_path, options, error, message):
    given = {"configurations": ["lora4"], "config": CONFIG} | options
    with pytest.raises(error, match=message) as caught:
        survey.adapt_survey(
            **files, out=tmp_path / "run", say=lambda text: None, wavelength_medium="vacuum",
            wavelength_unit="angstrom", **given,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def labels_like(files, path, change):
    """A table of labels that `change` has changed, as the argument of `adapt_survey`."""
    table = Table.read(files["labels"])
    change(table)
    table.write(path)
    return {**files, "labels": path}


def refused(files, tmp_path, **options):
    """The message with which a run ends, and the table that it leaves beside the folder."""
    with pytest.raises(DataError) as caught:
        survey.adapt_survey(
            **files, out=tmp_path / "run", configurations=["lora4"], config=CONFIG,
            wavelength_medium="vacuum", wavelength_unit="angstrom", **options,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
    beside = tmp_path / "run.left_out.ecsv"
    return str(caught.value), Table.read(beside) if beside.exists() else None


@pytest.mark.parametrize(("label", "factor"), [("fe_h", 1000), ("teff", 1e-3)])
def test_labels_in_another_unit_are_refused(files, tmp_path, label, factor):
    def change(table):
        table["teff"] = 5000 + 500 * table["fe_h"]
        table[label] *= factor

    given = labels_like(files, tmp_path / "labels.ecsv", change)
    message, table = refused(given, tmp_path, label=label)
    assert f"{label} of " in message
    assert "they may be in another unit" in message
    assert f"{tmp_path / 'run.left_out.ecsv'} lists them" in message
    values = Table.read(given["labels"])
    assert len(table) == (values[label] < -999).sum() + (table["reason"] == "out of range").sum() > 9
    assert set(table["label"]) == {label}


def test_too_few_stars_are_counted_by_reason_and_listed(files, tmp_path):
    def change(table):
        table["fe_h"][:3] = np.nan
        table["fe_h"][3] = 40.0
        table["id"][4] = "nobody"

    given = labels_like(files, tmp_path / "labels.ecsv", change)
    message, table = refused(given, tmp_path)
    assert "13 labelled stars are too few for 12 training, 2 validation and at least one test star" in message
    for count in (
        "left out are 5 of 18 stars",
        "3 without a value",
        "1 out of range",
        "1 without a spectrum",
    ):
        assert count in message
    assert table["id"].tolist() == ["star 0", "star 1", "star 2", "star 3", "nobody"]
    assert table["reason"].tolist()[3:] == ["out of range", "without a spectrum"]


def test_a_run_lists_the_stars_that_it_left_out(files, tmp_path, monkeypatch):
    """And an earlier refusal's table beside the folder goes."""
    made, said = {}, []
    monkeypatch.setattr(survey, "run_study", lambda *_, files, **__: made.update(files(CONFIG)))

    def change(table):
        table["fe_h"][:2] = [np.nan, -99.0]

    (tmp_path / "run.left_out.ecsv").write_text("of an earlier run")
    survey.adapt_survey(
        **labels_like(files, tmp_path / "labels.ecsv", change), out=tmp_path / "run", config=CONFIG,
        say=said.append, wavelength_medium="vacuum", wavelength_unit="angstrom",
    )  # fmt: skip
    found = Table.read(made["left_out.ecsv"], format="ascii.ecsv")
    assert found["id"].tolist() == ["star 0", "star 1"]
    assert found["reason"].tolist() == ["without a value", "out of range"]
    assert any("left out are 2 of 18 stars" in line for line in said)
    assert not (tmp_path / "run.left_out.ecsv").exists()


@pytest.mark.parametrize("spread", [0.0, 1e-7])
def test_labels_without_a_spread_are_refused(files, tmp_path, spread):
    def change(table):
        table["fe_h"] = -0.5 + spread * np.arange(18) / 18

    message, table = refused(labels_like(files, tmp_path / "labels.ecsv", change), tmp_path)
    assert "the fe_h of all 18 labelled stars is -0.5" in message
    assert table is None
