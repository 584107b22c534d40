import os

import pytest

from specjax import cli

ADAPT = "adapt --spectra a --labels b --out {tmp}/run"
PRETRAIN = "pretrain --out {tmp}/model"


@pytest.mark.parametrize("command", [ADAPT, PRETRAIN])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--processes 2", "--processes needs --distributed"),
        ("--process 0", "--process needs --distributed"),
        ("--distributed", "--distributed finds no cluster"),
        ("--distributed --coordinator here --processes 2 --process 0", "must be HOST:PORT"),
    ],
)
def test_hosts_that_cannot_be_used_are_an_error_of_one_line(
    monkeypatch, tmp_path, capsys, command, options, message
):
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JOB_COMPLETION_")):
            monkeypatch.delenv(name)
    assert cli.main(f"{command} {options}".format(tmp=tmp_path).split()) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
