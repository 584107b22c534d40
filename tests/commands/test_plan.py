import pytest

from specjax import cli


def test_the_options_reach_the_plan(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr("specjax.adapt.plan.plan_survey", lambda **options: calls.append(options) or [])
    line = f"plan --instrument grism --out {tmp_path}/p --stars 10 50 --snr 20 --label teff --label-error 60"
    assert cli.main([*line.split(), "--ranges", "teff 4500 6500"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/p\n"
    (options,) = calls
    config = options["config"]
    assert (config.stars, config.snr, config.label, config.label_error) == ((10, 50), (20.0,), "teff", 60.0)
    assert options["instrument"].name == "grism"
    assert options["population"].ranges == {"teff": (4500.0, 6500.0)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--instrument muse", "no instrument 'muse'"),
        ("--instrument desi --stars 3", "at least 10"),
        ("--instrument desi --label age", "no label 'age'"),
        ("--instrument desi --ranges age 1 2", "no range of 'age'"),
    ],
)
def test_an_error_of_the_user_is_one_line(tmp_path, capsys, line, message):
    assert cli.main(["plan", *line.split(), "--out", str(tmp_path / "p")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
