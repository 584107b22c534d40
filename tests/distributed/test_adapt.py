"""`specjax adapt --distributed` in real processes on loopback, and the commands of docs/cluster.md."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.table import Table

from specjax.report.results import read_table
from tests.adapt.test_survey import files, folder  # noqa: F401
from tests.processes import ROOT, free_address, start

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "cluster.md").read_text()
FILES = ("table.json", "predictions.ecsv", "adapters/survey/lora1+lora2/weights.safetensors")


@pytest.fixture(scope="module")
def given(files, tmp_path_factory):  # noqa: F811
    """Options of the adaptation and the environment; compiled programs are shared by all tests."""
    options = {"model": files["model"], "spectra": files["spectra"], "labels": files["labels"]}
    words = [f"--{name}={path}" for name, path in options.items()]
    words += "--seeds 5 --train 10 --validate 2 --steps 20 --configuration lora4 lora1+lora2".split()
    return words, environment(tmp_path_factory.mktemp("cache"))


def environment(cache):
    return {
        "SPECJAX_CACHE": str(cache),
        "SPECJAX_FEATURES_MIB": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def coordinator():
    host, port = free_address().split(":")
    return f"{host}:{int(port) + 1}"


def adapt(given, out, *, processes=2, extra=()):
    """Start the processes of a run, of two devices each."""
    words, env = given
    address = coordinator()
    hosts = ["--distributed", f"--coordinator={address}", f"--processes={processes}"]
    return [
        start(
            "-m", 2, "specjax", "adapt", *words, f"--out={out}", *extra, *hosts, f"--process={rank}",
            env=env, stderr=subprocess.PIPE,
        )
        for rank in range(processes)
    ]  # fmt: skip


def outcomes(processes):
    """Return what all processes printed and said; they must succeed."""
    found = [process.communicate(timeout=900) for process in processes]
    for process, (_, said) in zip(processes, found, strict=True):
        assert process.returncode == 0, said
    return found


def contents(out):
    return [(out / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory):
    words, env = given
    out = tmp_path_factory.mktemp("alone") / "run"
    outcomes([start("-m", 1, "specjax", "adapt", *words, f"--out={out}", env=env, stderr=subprocess.PIPE)])
    return out


@pytest.fixture(scope="module")
def pair(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("pair") / "run"
    return out, outcomes(adapt(given, out))


def test_two_processes_give_the_results_of_one(alone, pair):
    out, ((printed, said), (nothing, quiet)) = pair
    assert printed.endswith(f"{out}\n")
    assert "2 processes with 4 devices" in said
    assert (nothing, quiet) == ("", "")
    assert [path.name for path in out.parent.iterdir()] == ["run"]
    files_of = [sorted(str(p.relative_to(run)) for p in run.rglob("*")) for run in (alone, out)]
    assert files_of[0] == files_of[1]
    check_same_results(alone, out)


def check_same_results(alone, out):
    """Compare a run with that of one process: the programs have fewer seeds each, and round otherwise."""
    first, second = (Table.read(run / "predictions.ecsv") for run in (alone, out))
    for name in ("target", "configuration", "seed", "id", "fe_h"):
        assert first[name].tolist() == second[name].tolist()
    for name in ("zero-shot-mlp2", "zero-shot-mlp1", "lora4", "lora1+lora2"):
        same = np.full(5, True)
        if not name.startswith("zero"):
            chosen = [chosen_by(run / "adapters" / "survey" / name) for run in (alone, out)]
            # Where two candidates are equally good up to rounding, a seed may select the other one.
            same = (chosen[0] == chosen[1]).all(axis=0)
            assert same.sum() >= 4
        rows = (first["configuration"] == name) & same[first["seed"]]
        # float32 through up to 80 steps; [Fe/H] is of the order of 1 dex
        np.testing.assert_allclose(second["fe_h_predicted"][rows], first["fe_h_predicted"][rows], atol=5e-3)


def chosen_by(adapter):
    chosen = json.loads((adapter / "config.json").read_text())["chosen"]
    return np.array([chosen[name] for name in ("tower", "head", "step")])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_of_which_one_process_was_killed_resumes(given, pair, tmp_path, victim):
    out = tmp_path / "run"
    both = adapt(given, out)
    for line in both[0].stderr:
        if line == "survey: lora1+lora2\n":  # it has all seeds of lora4
            break
    both[victim].kill()
    printed, said = both[1 - victim].communicate(timeout=120)
    assert (both[1 - victim].returncode, printed) == (1, "")
    assert said.splitlines()[-1].startswith("specjax: error: ")
    assert "was killed, or its host was lost" in said.splitlines()[-1]
    both[victim].communicate()
    assert not out.exists()
    assert sorted(path.name for path in (tmp_path / ".run.parts" / "survey" / "lora4").iterdir()) == [
        "000000-000002.npz",
        "000003-000004.npz",
    ]
    other = adapt(given, out, extra=["--steps=30"])
    errors = {process.communicate(timeout=300)[1].splitlines()[-1] for process in other}
    assert any("joint.0.steps was 20 and is now 30" in error for error in errors)
    (_, said), _ = outcomes(adapt(given, out))
    assert "survey: lora4: 3 of 3 seeds are finished already" in said
    assert contents(out) == contents(pair[0])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_another_number_of_processes_resumes(given, alone, tmp_path):
    out = tmp_path / "run"
    both = adapt(given, out)
    for line in both[0].stderr:
        if line == "survey: lora1+lora2\n":
            break
    for process in both:
        process.kill()
        process.communicate()
    (_, said), *_ = outcomes(adapt(given, out, processes=1))
    assert "survey: lora4: 5 of 5 seeds are finished already" in said
    check_same_results(alone, out)


def test_files_that_differ_are_named(given, files, tmp_path):  # noqa: F811
    words, env = given
    with np.load(files["spectra"]) as file:
        other = dict(file)
    other["flux"][3, 100] *= 1.01
    np.savez(tmp_path / "survey.npz", **other)
    places, address = [tmp_path / "a", tmp_path / "b"], coordinator()
    for place, source in zip(places, (files["spectra"], tmp_path / "survey.npz"), strict=True):
        place.mkdir()
        (place / "survey.npz").write_bytes(Path(source).read_bytes())
    relative = [word if "--spectra" not in word else "--spectra=survey.npz" for word in words]
    hosts = f"--out=run --distributed --coordinator={address} --processes=2 --process=".split()
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "specjax", "adapt", *relative, *hosts[:-1], f"{hosts[-1]}{rank}"],
            cwd=place,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, place in enumerate(places)
    ]
    for process in both:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 1
        assert said.splitlines()[-1] == "specjax: error: survey.npz differs between process 0 and process 1"


@pytest.fixture
def place(files, tmp_path):  # noqa: F811
    """A folder with the files that the page names, and small seeds in place of a cluster's."""
    Table.read(files["labels"]).write(tmp_path / "labels.ecsv")
    (tmp_path / "survey.npz").write_bytes(Path(files["spectra"]).read_bytes())
    commands = tmp_path / "bin"
    commands.mkdir()
    small = f"--model={files['model']} --seeds=4 --train=10 --validate=2"
    write_command(commands / "specjax", f'exec {sys.executable} -m specjax "$@" {small}')
    return tmp_path


def write_command(path, *lines):
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)


def run_in(place, command, env, **variables):
    return subprocess.Popen(
        command,
        cwd=place,
        env={
            **env,
            "PATH": f"{place / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_slurm_script(given, place):
    """`srun` starts two tasks as Slurm does on one node."""
    (script,) = (block for block in blocks("sh") if "#SBATCH" in block)
    write_command(
        place / "bin" / "srun",
        "shift",  # its own option
        "export SLURM_NTASKS=2 SLURM_STEP_NODELIST=127.0.0.1",
        'for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & started[$task]=$!; done',
        "wait ${started[0]} && wait ${started[1]}",
    )
    port = coordinator().split(":")[1]
    (place / "job.sh").write_text(script)
    job = run_in(
        place, ["/bin/bash", "job.sh"], given[1], SLURM_JOB_ID="4711", JAX_COORDINATOR_PORT=port
    )  # fmt: skip
    ((printed, said),) = outcomes([job])
    assert printed.endswith("run\n")
    assert "2 processes with 2 devices" in said
    assert {row["configuration"] for row in read_table(place / "run")} >= {"lora4", "lora1+lora2"}


def test_the_kubernetes_manifest(given, place):
    """The container's command with its environment, for each index of the Job."""
    (manifest,) = blocks("yaml")
    service, job = yaml.safe_load_all(manifest)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert variables["JAX_COORDINATOR_ADDRESS"].split(":")[0] == host
    assert spec["completions"] == spec["parallelism"] == int(variables["JAX_NUM_PROCESSES"]) == 2
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"]
    variables["JAX_COORDINATOR_ADDRESS"] = coordinator()
    variables["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
    pods = [
        run_in(place, container["command"], given[1], **variables, JOB_COMPLETION_INDEX=str(index))
        for index in range(2)
    ]
    (printed, said), (nothing, _) = outcomes(pods)
    assert printed.endswith("run\n")
    assert nothing == ""
    assert "2 processes with 2 devices" in said
    assert len(list((place / "run").rglob("weights.safetensors"))) == 2


def test_processes_started_by_hand(given, place):
    (block,) = (block for block in blocks("sh") if "--process 0" in block)
    address = coordinator()
    commands = [shlex.split(line.replace("node1:8476", address)) for line in block.splitlines()]
    (printed, _), _ = outcomes([run_in(place, command, given[1]) for command in commands])
    assert printed.endswith("run\n")
    assert os.listdir(place / "run" / "adapters" / "survey") == ["lora4"]
