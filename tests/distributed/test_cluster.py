"""Which processes take part, from the environment that each kind of cluster sets; no cluster is needed."""

import os
import sys
import types

import pytest

from specjax.distributed.cluster import Cluster, find_cluster
from specjax.errors import ConfigError

PREFIXES = ("SLURM_", "OMPI_", "JAX_", "KUBERNETES_", "JOB_COMPLETION_")
SLURM = {  # the third of four tasks on two nodes
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
OPEN_MPI_4 = {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
POD = {**KUBERNETES, "JAX_COORDINATOR_ADDRESS": "adapt-0.adapt:8476", "JAX_NUM_PROCESSES": "4"}


@pytest.fixture(autouse=True)
def _outside_of_a_cluster(monkeypatch):
    for name in os.environ:
        if name.startswith(PREFIXES) and name != "JAX_PLATFORMS":
            monkeypatch.delenv(name)


@pytest.fixture
def given(monkeypatch):
    def put(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "host", "port", "processes", "process", "devices"),
    [
        # JAX's rule for the port: 61440 + job modulo 4096
        (SLURM, "node07", 61440 + 4711 - 4096, 4, 2, (0,)),
        ({**SLURM, "JAX_COORDINATOR_PORT": "9000"}, "node07", 9000, 4, 2, (0,)),
        (OPEN_MPI_4, "10.96.0.1", 61440 + (1531576320 // 4096) % 4096, 3, 1, (1,)),
        ({**OPEN_MPI, "JAX_COORDINATOR_ADDRESS": "n1:9000"}, "n1", 9000, 3, 1, None),
        (POD, "adapt-0.adapt", 8476, 4, 3, None),
    ],
)
def test_the_environment_of_a_cluster_is_read(given, variables, host, port, processes, process, devices):
    given(variables)
    expected = Cluster(host=host, port=port, processes=processes, process=process, devices=devices)
    assert find_cluster() == expected


def test_options_come_before_the_environment(given):
    given(SLURM)
    found = find_cluster("other:1234", 8, 7)
    assert (found.coordinator, found.processes, found.process) == ("other:1234", 8, 7)
    assert find_cluster("other:1234").process == 2


def test_addresses_of_the_sixth_internet_protocol_keep_their_brackets():
    found = find_cluster("[fe80::1]:1234", 2, 0)
    assert (found.host, found.coordinator) == ("fe80::1", "[fe80::1]:1234")


def test_a_job_with_the_kubernetes_client_is_asked(given, monkeypatch):
    """JAX asks the cluster's interface for the Job; this one has a Job of four with a headless service."""
    labels = {"job-name": "adapt"}
    pod = types.SimpleNamespace(
        metadata=types.SimpleNamespace(
            name="adapt-3-x",
            labels=labels,
            owner_references=[types.SimpleNamespace(controller=True, kind="Job")],
        ),
        spec=types.SimpleNamespace(subdomain="hosts"),
    )
    job = types.SimpleNamespace(
        metadata=types.SimpleNamespace(name="adapt", labels=labels),
        spec=types.SimpleNamespace(parallelism=4),
    )
    from jax._src.clusters.k8s_cluster import K8sCluster

    for name, value in {"_pod": pod, "_job": job, "_controller": pod.metadata.owner_references[0]}.items():
        monkeypatch.setattr(K8sCluster, name, classmethod(lambda cls, value=value: value))
    monkeypatch.setattr("socket.gethostbyname", lambda name: {"adapt-0.hosts": "10.1.1.1"}[name])
    client = types.ModuleType("kubernetes")
    client.config = types.SimpleNamespace(load_incluster_config=lambda: None)
    client.client = types.SimpleNamespace(
        CoreV1Api=lambda: None,
        BatchV1Api=lambda: None,
        exceptions=types.SimpleNamespace(ApiException=Exception),
    )
    monkeypatch.setitem(sys.modules, "kubernetes", client)
    given(KUBERNETES)
    expected = Cluster(host="adapt-0.hosts", port=55527, processes=4, process=3)
    assert find_cluster() == expected


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({}, {}, "finds no cluster"),
        ({"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4"}, {}, "not started by srun"),
        (OPEN_MPI, {}, "give --coordinator HOST:PORT .Open MPI 5 does not say where"),
        (KUBERNETES, {}, "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"),
        ({}, {"coordinator": "a:99"}, "number of processes is unknown: give --processes"),
        ({}, {"coordinator": "a:99", "processes": 2}, "index of this process is unknown: give --process"),
        ({}, {"coordinator": "a", "processes": 2, "process": 0}, "must be HOST:PORT"),
        ({}, {"coordinator": "a:1", "processes": 2, "process": 0}, "port from 2"),
        ({}, {"coordinator": "a:99", "processes": 2, "process": 2}, "no process 2 of 2"),
        ({"JAX_NUM_PROCESSES": "two"}, {}, "JAX_NUM_PROCESSES must be a whole number, not 'two'"),
        ({**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1.0;"}, {}, "does not say where the processes are"),
    ],
)
def test_what_is_missing_is_said_in_one_line(given, variables, options, message):
    given(variables)
    with pytest.raises(ConfigError, match=message) as caught:
        find_cluster(**options)
    assert "\n" not in str(caught.value)
