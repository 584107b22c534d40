import chex
import jax
import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from specjax.errors import ConfigError, DataError
from specjax.simulate.emulator import shipped
from specjax.simulate.labels import LABELS, microturbulence
from specjax.simulate.population import MAX_VELOCITY, LabelTable, MilkyWay, Ranges, alpha_trend

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def domain():
    return shipped().domain


@pytest.mark.parametrize("population", [MilkyWay(), Ranges({"teff": (4500, 6500), "velocity": (-50, 50)})])
def test_stars_are_inside_the_domain(population, domain):
    stars = population.draw(KEY, 0, 500, domain)
    chex.assert_shape(stars.labels, (500, 5))
    chex.assert_shape(stars.velocity, (500,))
    assert domain.contains(stars.labels).all()
    assert (np.abs(stars.velocity) <= MAX_VELOCITY).all()
    assert stars.rejected > 0


@pytest.mark.parametrize("population", [MilkyWay(), Ranges({"fe_h": (-2, 0)})])
def test_a_star_does_not_depend_on_what_is_drawn_with_it(population, domain):
    whole = population.draw(KEY, 0, 96, domain)
    parts = [population.draw(KEY, first, 32, domain) for first in (0, 32, 64)]
    np.testing.assert_array_equal(whole.labels, np.concatenate([part.labels for part in parts]))
    np.testing.assert_array_equal(whole.velocity, np.concatenate([part.velocity for part in parts]))
    assert whole.rejected == sum(part.rejected for part in parts)
    other = population.draw(jax.random.key(4), 0, 96, domain)
    assert (other.labels[:, 0] != whole.labels[:, 0]).all()


def test_the_milky_way_has_dwarfs_and_giants_disc_and_halo(domain):
    teff, logg, fe_h, alpha_fe, vmicro = MilkyWay().draw(KEY, 0, 4000, domain).labels.T
    # The fractions drawn are 0.35 giants and 0.15 halo stars, before 2% are rejected.
    assert 0.3 < (logg < 3.5).mean() < 0.42
    assert 0.08 < (fe_h < -1).mean() < 0.2
    assert np.abs(logg[(logg < 3.5)] - 2.45 < 0.3).any()
    giants = logg < 3
    assert teff[giants].max() < 5800 < teff[~giants].max()
    metal_poor = fe_h < -1
    assert np.median(alpha_fe[metal_poor]) == pytest.approx(0.35, abs=0.03)
    assert np.abs(np.median(alpha_fe - alpha_trend(fe_h))) < 0.02
    assert np.std(vmicro - microturbulence(teff, logg, fe_h)) == pytest.approx(0.2, abs=0.02)


def test_ranges_are_filled_uniformly(domain):
    population = Ranges.parse(["teff 5000 6000", "logg", "4.0", "4.5", "fe_h -0.5 0 alpha_fe 0 0.1"])
    labels = population.draw(KEY, 0, 2000, domain).labels
    for column, (low, high) in enumerate([(5000, 6000), (4, 4.5), (-0.5, 0), (0, 0.1)]):
        assert low <= labels[:, column].min() < low + 0.05 * (high - low)
        assert high >= labels[:, column].max() > high - 0.05 * (high - low)
        # The mean of 2000 uniform numbers is uncertain by 0.0065 of the range.
        assert labels[:, column].mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    assert (Ranges({"fe_h": (-1, 0)}).draw(KEY, 0, 10, domain).velocity == 0).all()
    assert "teff 5000 to 6000" in population.describe()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teff 4000"], "NAME LOW HIGH"),
        (["teff low high"], "NAME LOW HIGH"),
        (["mass 1 2"], "no range of 'mass'"),
        (["teff 6000 5000"], "must ascend"),
        (["velocity 0 400"], "within 240 km/s"),
    ],
)
def test_impossible_ranges_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        Ranges.parse(words)


def test_a_population_outside_the_grid_is_refused(domain):
    with pytest.raises(DataError, match="outside in teff, logg, fe_h"):
        Ranges({"teff": (9000, 9500)}).draw(KEY, 0, 64, domain)


SUN = {"teff": 5777.0, "logg": 4.44, "fe_h": 0.0}


def table(path, *stars, **more):
    rows = [SUN | star for star in stars]
    Table({name: [row[name] for row in rows] for name in rows[0]} | more).write(path)
    return path


def test_the_stars_of_a_table_come_in_its_order(tmp_path, domain):
    path = table(tmp_path / "t.csv", {}, {"fe_h": -1.0}, id=["a", "01"], velocity=[10.0, -20.0])
    stars = LabelTable.read(path, domain)
    assert len(stars) == 2
    drawn = stars.draw(KEY, 1, 4, domain)
    assert drawn.id.tolist() == ["01", "a-2", "01-2", "a-3"]
    np.testing.assert_allclose(drawn.labels[:2, LABELS.index("fe_h")], [-1, 0])
    np.testing.assert_allclose(drawn.labels[:2, LABELS.index("alpha_fe")], [0.35, 0])
    np.testing.assert_allclose(drawn.velocity[:2], [-20, 10])
    assert drawn.labels[1, 4] == pytest.approx(microturbulence(*SUN.values()))


def test_repeated_stars_have_unique_ids_whatever_the_names(tmp_path, domain):
    names = ["a", "a-2", "a--3", "a-2-2", "7"]
    path = table(tmp_path / "t.csv", *[{}] * len(names), id=names)
    stars = LabelTable.read(path, domain)
    drawn = [stars.draw(KEY, first, 7, domain).id.tolist() for first in (0, 7, 14)]
    ids = [name for part in drawn for name in part]
    assert ids[:6] == [*names, "a---2"]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["a", "b", "a "], "the id a of row 2 is not unique"), (["a", "", ""], "row 1 has no id")],
)
def test_ids_that_do_not_name_one_star_are_refused(tmp_path, domain, ids, message):
    path = table(tmp_path / "t.ecsv", {}, {}, {}, id=ids)
    with pytest.raises(DataError, match=message):
        LabelTable.read(path, domain)


def test_missing_values_follow_the_relations(tmp_path, domain):
    stars = Table({name: [value] * 3 for name, value in (SUN | {"fe_h": -1.0}).items()}, masked=True)
    stars["alpha_fe"] = MaskedColumn([0.3, 0.0, np.nan], mask=[False, True, False])
    stars["vmicro"] = MaskedColumn([0.0, 1.2, -9999.0], mask=[True, False, False])
    stars.write(tmp_path / "t.ecsv")
    labels = LabelTable.read(tmp_path / "t.ecsv", domain).stars.labels
    usual = microturbulence(SUN["teff"], SUN["logg"], -1.0)
    np.testing.assert_allclose(labels[:, 3], [0.3, 0.35, 0.35])
    np.testing.assert_allclose(labels[:, 4], [usual, 1.2, usual])


def test_other_fractions_are_recorded():
    assert MilkyWay().describe() == "milky_way"
    other = MilkyWay(components=(0.5, 0.3, 0.2), dwarfs=0.9, subgiants=0.05)
    assert other.describe() == "milky_way, components 0.5 0.3 0.2, dwarfs 0.9, subgiants 0.05"


def test_stars_outside_are_refused_or_skipped(tmp_path, domain):
    path = table(tmp_path / "t.ecsv", {}, {"teff": 9000.0}, {"teff": np.nan}, id=["a", "b", "c"])
    with pytest.raises(DataError, match=r"2 of 3 stars .* first b \(teff 9000.*\) in teff, logg, fe_h"):
        LabelTable.read(path, domain)
    stars = LabelTable.read(path, domain, skip_outside=True)
    assert (len(stars), stars.skipped) == (1, 2)
    fast = table(tmp_path / "fast.ecsv", {}, velocity=[400.0])
    with pytest.raises(DataError, match=r"first row 0 .* velocity 400 km/s"):
        LabelTable.read(fast, domain, skip_outside=True)
    bare = tmp_path / "bare.csv"
    Table({"teff": [5000.0]}).write(bare)
    with pytest.raises(DataError, match="no column logg, fe_h"):
        LabelTable.read(bare, domain)
    empty = tmp_path / "empty.ecsv"
    Table({name: np.zeros(0) for name in LABELS}).write(empty)
    with pytest.raises(DataError, match="has no stars"):
        LabelTable.read(empty, domain)
