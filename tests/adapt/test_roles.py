import numpy as np
import pytest
from astropy.table import Column, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from specjax.adapt.roles import SplitConfig, apply_roles, draw_roles, read_roles, split_file, split_table
from specjax.adapt.target import make_target
from specjax.errors import ConfigError, DataError
from specjax.spectra import Spectra
from specjax.surveys.io.tables import write_table
from specjax.wavelength import LAMOST_WAVELENGTH

PAPER = SplitConfig()


def stars(labelled=495, spare=300, seed=0):
    """A table as `label_spectra` makes it, a third of the spare spectra too faint."""
    rng = np.random.default_rng(seed)
    count = labelled + spare
    fe_h = np.where(np.arange(count) < labelled, rng.normal(-0.5, 0.6, count), np.nan)
    snr = np.where(np.arange(count) % 3 == 0, 40.0, 60.0)
    table = Table({"id": [f"s{k}" for k in range(count)], "fe_h": fe_h, "snr": snr})
    table["flag"] = np.full(count, "good", dtype="<U20")
    table["duplicate_of"] = np.full(count, "", dtype="<U20")
    return table


def roles_of(table):
    return np.stack([table[name] for name in table.colnames if name.startswith("split_")], axis=1)


def test_the_sizes_are_the_papers():
    role = roles_of(split_table(stars(), PAPER))
    assert role.shape == (795, 16)
    for name, count in {"train": 89, "validate": 9, "test": 397, "unlabelled": 164}.items():
        assert ((role == name).sum(axis=0) == count).all()
    four = roles_of(split_table(stars(), SplitConfig(test=396)))
    assert ((four == "test").sum(axis=0) == 396).all()


def test_the_unlabelled_are_bright_the_same_in_all_seeds_and_nobody_else():
    table = stars()
    table["duplicate_of"][500], table["flag"][502], table["snr"][503] = "s1", "no_coverage", np.nan
    role = roles_of(split_table(table, SplitConfig(unlabelled=180)))
    kept = (role == "unlabelled").any(axis=1)
    np.testing.assert_array_equal(kept, (role == "unlabelled").all(axis=1))
    assert np.isnan(table["fe_h"][kept]).all()
    assert (table["snr"][kept] > 50).all()
    assert not kept[[500, 502, 503]].any()
    assert not (kept & np.isin(role, ("train", "validate", "test")).any(axis=1)).any()


def test_flagged_spectra_are_left_out():
    table = stars()
    table["flag"][:10] = "masked_fraction"
    assert (roles_of(split_table(table, PAPER))[:10] == "").all()


def test_a_seed_does_not_depend_on_the_others():
    table = stars()
    many = roles_of(split_table(table, PAPER))
    np.testing.assert_array_equal(many[:, :3], roles_of(split_table(table, SplitConfig(seeds=3))))
    shifted = roles_of(split_table(table, SplitConfig(seeds=2, seed=1, unlabelled=0)))
    np.testing.assert_array_equal(shifted == "train", many[:, 1:3] == "train")
    assert len(np.unique(many == "train", axis=1).T) == 16


@settings(deadline=None, max_examples=40)
@given(st.integers(12, 200), st.integers(0, 30), st.integers(10, 60), st.integers(0, 9), st.booleans())
def test_each_star_has_one_part(labelled, spare, train, validate, stratify):
    config = SplitConfig(train=train, validate=validate, unlabelled=min(spare, 5), seeds=2)
    is_labelled = np.arange(labelled + spare) < labelled
    values = np.random.default_rng(0).integers(0, 5, labelled + spare).astype(float) if stratify else None
    if train + validate >= labelled:
        with pytest.raises(DataError, match=f"{labelled} labelled stars are too few"):
            draw_roles(is_labelled, ~is_labelled, config, values)
        return
    role = draw_roles(is_labelled, ~is_labelled, config, values)
    assert ((role == "train").sum(axis=0) == train).all()
    assert ((role == "validate").sum(axis=0) == validate).all()
    assert np.isin(role[is_labelled], ("train", "validate", "test")).all()
    assert np.isin(role[~is_labelled], ("unlabelled", "")).all()


def test_stratified_parts_have_the_metallicities_of_the_whole():
    table = stars()
    fe_h = np.asarray(table["fe_h"])[:495]
    edges = np.sort(fe_h)[[49, 148, 247, 346, 445]]

    def worst(config):
        """The largest error of a share of the training stars below an edge, over edges and seeds."""
        train = roles_of(split_table(table, config))[:495] == "train"
        return max(
            abs((fe_h[column] < edge).mean() - (fe_h < edge).mean()) for column in train.T for edge in edges
        )

    # Within a stratum of 50 the nine that train are drawn at random, and each stratum gives one more or less:
    # 0.03 of 89 is 2.7 stars. Chance alone gives 0.05 (one sigma), and more at the worst of 80.
    assert worst(SplitConfig(stratify="fe_h")) < 0.03
    assert worst(SplitConfig()) > 0.06


def test_stars_without_the_value_to_stratify_by_are_left_out():
    table = stars()
    table["teff"] = np.where(np.arange(len(table)) < 20, np.nan, 5000.0)
    assert (roles_of(split_table(table, SplitConfig(stratify="teff")))[:20] == "").all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": 9}, ConfigError, "9 training stars are too few"),
        ({"seeds": 0}, ConfigError, "must be positive"),
        ({"test": 0}, ConfigError, "at least one test star"),
        ({"train": 490}, DataError, "490 training, 9 validation and at least one test star"),
        ({"test": 398}, DataError, "9 validation and 398 test stars"),
        ({"unlabelled": 201}, DataError, "201 unlabelled spectra are wanted, but there are 200"),
        ({"label": "teff"}, DataError, "no column teff: it has id, fe_h"),
        ({"stratify": "mass"}, DataError, "no column mass"),
    ],
)
def test_what_cannot_be_split_is_one_line(change, error, message):
    with pytest.raises(error, match=message) as caught:
        split_table(stars(), SplitConfig(**change))
    assert "\n" not in str(caught.value)


def test_signal_to_noise_is_needed_only_where_it_is_asked_for():
    table = stars()
    table.remove_column("snr")
    with pytest.raises(DataError, match="no column snr"):
        split_table(table, PAPER)
    split_table(table, SplitConfig(unlabelled=0))
    split_table(table, SplitConfig(min_snr=0))


def test_by_default_there_may_be_fewer_unlabelled_spectra_than_in_the_paper():
    for spare, expected in ((300, 164), (30, 20), (0, 0)):  # a third is too faint
        role = roles_of(split_table(stars(120, spare), SplitConfig(seeds=2)))
        assert ((role == "unlabelled").sum(axis=0) == expected).all()


@pytest.mark.parametrize("suffix", ["ecsv", "csv", "fits"])
def test_the_file_gives_the_roles_back(tmp_path, suffix):
    table = split_table(stars(40, 20), SplitConfig(train=20, validate=4, unlabelled=5, seeds=11))
    path = tmp_path / f"stars.{suffix}"
    write_table(path, {name: table[name] for name in table.colnames})
    roles = read_roles(path)
    assert roles.id.tolist() == table["id"].tolist()
    np.testing.assert_array_equal(roles.role, roles_of(table))
    assert roles.labelled(["s0", "s59", "other"]).tolist() == [True, False, False]
    write_table(path, {"id": ["a"], "fe_h": [1.0]})
    assert read_roles(path) is None
    write_table(path, {"id": ["a"], "split_0": ["training"]})
    with pytest.raises(DataError, match="'training' in its split columns is not train, validate"):
        read_roles(path)


def a_target(table, names, flag=()):
    """A target of flat spectra of these stars, some of them flagged."""
    rows = np.array([table["id"].tolist().index(name) for name in names])
    count = len(rows)
    flags = ["no_coverage" if name in flag else "good" for name in names]
    spectra = Spectra.build(LAMOST_WAVELENGTH, np.ones((count, 1462)), id=names, meta={"flag": flags})
    return make_target("t", spectra, np.asarray(table["fe_h"])[rows], label="fe_h")


def test_roles_become_rows_of_the_target_in_any_order(tmp_path):
    table = split_table(stars(40, 20), SplitConfig(train=20, validate=4, unlabelled=5, seeds=3))
    write_table(tmp_path / "t.ecsv", {name: table[name] for name in table.colnames})
    roles = read_roles(tmp_path / "t.ecsv")
    names = table["id"].tolist()[::-1]
    target, splits = apply_roles(roles, a_target(table, names))
    assert (splits.train.shape, splits.validate.shape, splits.test.shape) == ((3, 20), (3, 4), (3, 16))
    assert len(target.unlabelled) == 5
    for seed in range(3):
        for part in ("train", "validate", "test"):
            found = target.labelled.id[getattr(splits, part)[seed]]
            assert set(found) == set(table["id"][table[f"split_{seed}"] == part])
    with pytest.raises(DataError, match=r"1 of 40 stars of the splits cannot be used, the first s3 \(no_cov"):
        apply_roles(roles, a_target(table, names, flag=["s3"]))
    with pytest.raises(DataError, match=r"the first s0 \(no usable spectrum or no fe_h\)"):
        apply_roles(roles, a_target(table, names[:-1]))


def test_splits_with_too_few_training_stars_are_refused(tmp_path):
    table = split_table(stars(40, 20), SplitConfig(train=10, validate=4, unlabelled=5, seeds=1))
    write_table(tmp_path / "ten.ecsv", {name: table[name] for name in table.colnames})
    target = a_target(table, table["id"].tolist())
    assert apply_roles(read_roles(tmp_path / "ten.ecsv"), target)[1].train.shape == (1, 10)
    row = int(np.flatnonzero(table["split_0"] == "train")[0])
    table["split_0"][row] = "test"
    write_table(tmp_path / "nine.ecsv", {name: table[name] for name in table.colnames})
    with pytest.raises(DataError, match="9 training stars are too few: at least 10 are needed"):
        apply_roles(read_roles(tmp_path / "nine.ecsv"), target)


def test_splits_of_different_sizes_are_refused(tmp_path):
    table = split_table(stars(40, 20), SplitConfig(train=20, validate=4, unlabelled=5, seeds=2))
    row = int(np.flatnonzero(table["split_0"] == "test")[0])
    table["split_0"][row] = "train"
    write_table(tmp_path / "t.ecsv", {name: table[name] for name in table.colnames})
    with pytest.raises(DataError, match="differ in the number of train stars"):
        apply_roles(read_roles(tmp_path / "t.ecsv"), a_target(table, table["id"].tolist()))


def test_labels_in_another_unit_are_converted_in_the_table_of_splits(tmp_path):
    table = stars(40, 20)
    table["teff"] = Column(np.full(len(table), 5.777), unit="kK")
    table.write(tmp_path / "labels.ecsv")
    split_file(tmp_path / "labels.ecsv", tmp_path / "split.ecsv", SplitConfig(train=20, validate=4, seeds=2))
    found = Table.read(tmp_path / "split.ecsv")["teff"]
    np.testing.assert_allclose(found, 5777)
    assert str(found.unit) == "K"
