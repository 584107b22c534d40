"""Files of users are never replaced; those of specjax are."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.table import Table

from specjax import cli, overwrite
from specjax.errors import SpecjaxError
from specjax.overwrite import check_replaceable
from specjax.report import html
from specjax.report.style import paper_figure, save_figure
from specjax.surveys.arrays import HDF5, NPZ
from specjax.surveys.io.tables import SUFFIXES, write_table

TABLES = [".ecsv", ".fits", ".vot", ".parquet", ".csv"]
PREDICTED = {
    "id": np.array(["a", "b"]),
    "fe_h": np.array([0.1, -2.5]),
    "flag": np.array(["good", "too_fast"]),
    "masked_fraction": np.zeros(2),
    "distance": np.ones(2),
}


@pytest.mark.parametrize("suffix", TABLES)
def test_tables_of_specjax_are_replaced_and_others_are_not(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    own, users = tmp_path / f"own{suffix}", tmp_path / f"users{suffix}"
    write_table(own, PREDICTED, {"model": "mini"})
    Table({"id": ["a"], "fe_h": [0.1], "flag": ["specjax"]}).write(
        users, format={".ecsv": "ascii.ecsv", ".vot": "votable", ".csv": "ascii.csv"}.get(suffix)
    )
    check_replaceable(own, tmp_path / f"none{suffix}")
    with pytest.raises(SpecjaxError, match=rf"users\{suffix} exists and was not written by specjax"):
        check_replaceable(own, users)


def test_pictures_and_pages_of_specjax_are_replaced_and_others_are_not(tmp_path):
    from matplotlib.figure import Figure

    with paper_figure(3, 2) as figure:
        own = save_figure(figure, tmp_path / "own.png")
    (tmp_path / "own.html").write_text(html.page("title", []))
    check_replaceable(*own, tmp_path / "own.html")
    for form in ("png", "pdf"):
        Figure().savefig(tmp_path / f"users.{form}")
    (tmp_path / "users.html").write_text("<p>by hand</p>")
    for form in ("png", "pdf", "html"):
        with pytest.raises(SpecjaxError, match=f"users.{form} exists"):
            check_replaceable(tmp_path / f"users.{form}")


def test_files_that_cannot_be_read_are_left_alone_and_empty_ones_are_replaced(tmp_path):
    for suffix in (*TABLES, ".h5", ".npz", ".png", ".txt"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"")
        check_replaceable(path)
        path.write_bytes(b"\x93 no such format")
        with pytest.raises(SpecjaxError, match="left unchanged"):
            check_replaceable(path)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("predict none -o", "t.ecsv"),
        ("predict none -o", "t.h5"),
        ("embed none -o", "t.h5"),
        ("translate none --to gaia_xp -o", "t.npz"),
        ("similar --catalogue none --id a -o", "t.csv"),
        ("label none --catalogue none -o", "t.fits"),
        ("split none -o", "t.csv"),
        ("prepare none -o", "t.h5"),
        ("simulate --instrument grism --n 1 --out", "t.npz"),
        ("show none -o", "t.pdf"),
        ("report", "report.html"),
    ],
)
def test_every_command_leaves_the_files_of_users_alone(
    tmp_path, tmp_path_factory, monkeypatch, capsys, line, name
):
    """Before anything is read: the file `none` is empty, so that reading it would be another error."""
    monkeypatch.chdir(tmp_path_factory.mktemp("inputs"))
    Path("none").touch()
    path = tmp_path / name
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["flux"] = np.ones(3)
    elif path.suffix == ".npz":
        np.savez(path, flux=np.ones(3))
    elif path.suffix == ".fits":
        Table({"id": ["a"]}).write(path)
    else:
        path.write_text("id,fe_h,split_0,remark\na,0.1,train,hand-made\n")
    before = path.read_bytes()
    assert cli.main([*line.split(), str(tmp_path if name == "report.html" else path)]) == 1
    assert f"{name} exists and was not written by specjax" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_every_format_that_is_written_is_recognised():
    assert overwrite._RECOGNISED.keys() >= {*SUFFIXES, *HDF5, *NPZ}


def test_labels_of_published_weights_are_replaced_as_csv_too(tmp_path):
    names = [f"{label}_{tower}" for label in ("teff", "fe_h") for tower in ("lamost", "gaia_xp")]
    write_table(tmp_path / "own.csv", {"id": np.array(["a"]), **{name: np.ones(1) for name in names}})
    check_replaceable(tmp_path / "own.csv")


def test_a_second_simulation_replaces_what_the_first_has_written(tmp_path):
    out = tmp_path / "s.npz"
    for name in ("s.npz", "s.h5", "s.hdf"):
        for seed in ("0", "1"):
            line = f"simulate --instrument grism --n 2 --seed {seed} --out {out.with_name(name)}"
            assert cli.main(line.split()) == 0
    Table({"id": ["a"], "fe_h": [0.1]}).write(tmp_path / "s_labels.ecsv", overwrite=True)
    assert cli.main(f"simulate --instrument grism --n 2 --out {out}".split()) == 1
