"""Options of the commands around a model reach the functions that they call."""

import pytest

from specjax import cli


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a command line with its function replaced; return the options that the function was given."""
    monkeypatch.chdir(tmp_path)
    for name in ("s.fits", "a.fits", "b.fits", "v.h5", "t.h5", "m", "a"):
        (tmp_path / name).touch()

    def run(target, line, result=None):
        given = []
        monkeypatch.setattr(target, lambda **options: given.append(options) or result)
        monkeypatch.setattr("specjax.cache.use_compilation_cache", lambda: None)
        assert cli.main(line.split()) == 0
        return {name: str(value) if name == "out" else value for name, value in given[0].items()}

    return run


def test_show(call):
    line = "show s.fits --model m --adapter a --id s1 --column --wavelength-medium air -o p.pdf"
    options = call("specjax.pipeline.show.show_spectrum", line, [])
    assert (str(options["spectrum"]), options["out"]) == ("s.fits", "p.pdf")
    assert [str(path) for path in options["adapter"]] == ["a"]
    assert (options["model"], options["id"], options["row"], options["head"]) == ("m", "s1", None, None)
    assert (options["column"], options["wavelength_medium"]) == (True, "air")


def test_similar(call):
    line = "similar a.fits b.fits --catalogue v.h5 --model m -k 3 --exact --fwhm 6 -o s.ecsv"
    options = call("specjax.pipeline.similar.find_similar", line)
    assert [str(path) for path in options["spectra"]] == ["a.fits", "b.fits"]
    assert (options["nearest"], options["exact"], options["ids"], options["fwhm"]) == (3, True, (), 6.0)
    line = "similar --id s1 s2 --catalogue v.h5 -o s.ecsv"
    options = call("specjax.pipeline.similar.find_similar", line)
    assert (options["ids"], options["nearest"], options["exact"]) == (("s1", "s2"), 10, False)


def test_translate(call):
    line = "translate a.fits --to lamost --truth t.h5 --plots 2 --dask local:2 --partitioned -o x.parquet"
    options = call("specjax.pipeline.translate.translate_survey", line)
    assert (options["target"], str(options["truth"]), options["plots"]) == ("lamost", "t.h5", 2)
    assert (options["dask"], options["partitioned"], options["model"]) == ("local:2", True, "mini")


def test_predict_without_an_adapter(call):
    line = "predict a.fits --label teff fe_h --head mlp1 -o l.ecsv"
    options = call("specjax.pipeline.predict.predict_survey", line)
    assert (options["labels"], options["head"], options["adapter"]) == (("teff", "fe_h"), "mlp1", ())
    assert call("specjax.pipeline.predict.predict_survey", "predict a.fits -o l.ecsv")["labels"] is None


@pytest.mark.parametrize("line", ["translate a.fits -o x.h5", "similar a.fits -o x.ecsv", "show"])
def test_what_is_required_is_named(line, capsys):
    with pytest.raises(SystemExit):
        cli.main(line.split())
    assert "required" in capsys.readouterr().err.lower()
