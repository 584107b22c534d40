import numpy as np
import pytest

from specjax.simulate.labels import LABELS, VMICRO_MARGIN, Domain, features, microturbulence


def grid(n=400, seed=0):
    rng = np.random.default_rng(seed)
    teff, logg = rng.uniform(4000, 7500, n), rng.uniform(1, 5, n)
    logg = np.maximum(logg, (teff - 4000) / 1500 + 1)  # no hot giants
    fe_h = rng.uniform(-3, 0.5, n)
    alpha_fe = np.interp(fe_h, [-1, 0], [0.35, 0]) + rng.uniform(-0.2, 0.2, n)
    return np.stack([teff, logg, fe_h, alpha_fe, microturbulence(teff, logg, fe_h)], axis=1)


@pytest.fixture(scope="module")
def domain():
    return Domain.around(grid())


def test_the_stars_of_the_grid_are_inside(domain):
    assert domain.contains(grid()).all()


def test_means_of_stars_are_inside(domain):
    stars = grid()
    middle = 0.5 * (features(stars[:-1], np) + features(stars[1:], np))
    middle[:, 0] = 5040 / middle[:, 0]
    middle[:, 4] = microturbulence(*middle.T[:3])
    assert domain.contains(middle).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teff": 9000.0}, "teff, logg, fe_h"),
        ({"teff": 7400.0, "logg": 1.1}, "teff, logg, fe_h"),
        ({"fe_h": -4.0}, "teff, logg, fe_h"),
        ({"alpha_fe": 0.5}, "fe_h, alpha_fe"),
        ({"vmicro": 5.0}, "vmicro"),
        ({"teff": np.nan}, "teff, logg, fe_h"),
        ({"alpha_fe": np.inf}, "fe_h, alpha_fe"),
    ],
)
def test_labels_outside_are_named(domain, change, named):
    star = {"teff": 5500.0, "logg": 4.0, "fe_h": 0.0, "alpha_fe": 0.0, "vmicro": 1.05} | change
    labels = np.array([[5500.0, 4.0, 0.0, 0.0, 1.05], [star[name] for name in LABELS]])
    assert domain.outside(labels).tolist() == ["", named]


def test_a_domain_survives_its_arrays(domain):
    again = Domain.from_arrays(domain.to_arrays())
    shifted = grid(seed=1) * 1.1
    assert (again.outside(shifted) == domain.outside(shifted)).all()
    assert (again.outside(shifted) != "").any()


def test_microturbulence_is_the_published_relation():
    # The constants of the relation at its zero points, and the limits.
    assert microturbulence(5500, 4.0, 0.0) == pytest.approx(1.05)
    assert microturbulence(5500, 3.0, 0.0) == pytest.approx(1.25 + 0.14 - 0.005)
    assert microturbulence(4200, 4.0, 0.0) == microturbulence(5000, 4.0, 0.0)
    assert microturbulence(12000, 4.0, 0.0) == 4.5
    assert VMICRO_MARGIN > 2 * 0.2  # stars of the grid scatter by 0.2 km/s
