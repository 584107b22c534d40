import pytest

from specjax.catalogues.star_names import common_stars, crossmatch, normalise_star_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HD 025825         Cl", "HD25825"),
        ("HD025825", "HD25825"),
        ("hd 25825", "HD25825"),
        ("HD001326B", "HD1326B"),
        ("BD+002058A", "BD+002058A"),
        ("NGC 7789 859(853) Cl", "NGC7789859(853)"),
        ("M71 1-09          Cl", "M711-09"),
        ("  HR 0718 ", "HR718"),
        ("Clio", "CLIO"),
    ],
)
def test_names_are_normalised(name, expected):
    assert normalise_star_name(name) == expected
    assert normalise_star_name(expected) == expected


def test_every_pair_is_found():
    left, right = ["HD 1", "HD 2", "HD 2", "HD 3"], ["HD002", "HD004", "HD0003"]
    i, j = crossmatch(left, right)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(1, 0), (2, 0), (3, 2)]
    assert common_stars(left, right) == {"HD2", "HD3"}
    assert [len(side) for side in crossmatch(["a"], ["b"])] == [0, 0]
