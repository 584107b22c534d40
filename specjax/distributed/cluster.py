"""Which processes take part in a run: from options, environment variables, or a cluster that JAX recognises.

Each of the three facts (the address of process 0, the number of processes, the index of this one) comes from
the first source that knows it:

1. an option;
2. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES or JAX_PROCESS_ID;
3. JOB_COMPLETION_INDEX, which Kubernetes sets in an indexed Job, or OMPI_COMM_WORLD_SIZE and
   OMPI_COMM_WORLD_RANK, which all versions of Open MPI set;
4. JAX, which recognises Slurm, Open MPI up to version 4 and, with the package `kubernetes`, a Job with a
   headless service.
"""

import os
import warnings
from dataclasses import dataclass

from specjax.errors import ConfigError

NONE_FOUND = (
    "--distributed finds no cluster: this process was started neither by srun, nor by mpirun of Open MPI, nor"
    " in an indexed Kubernetes Job. Start it so, or give --coordinator HOST:PORT, --processes and --process"
)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The processes of a run.

    Attributes:
        host: where process 0 runs.
        port: where it listens for JAX; `port - 1` is the one that `watch.py` uses.
        processes: how many there are.
        process: the index of this one, from 0.
        devices: local devices that this process may use; None for all that it sees.
    """

    host: str
    port: int
    processes: int
    process: int
    devices: tuple[int, ...] | None = None

    @property
    def coordinator(self) -> str:
        """The address of process 0, HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def find_cluster(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    wait: int = 300,
) -> Cluster:
    """Return the processes of this run.

    Args:
        coordinator: address of process 0, HOST:PORT; None to find it.
        processes: number of processes; None to find it.
        process: index of this one; None to find it.
        wait: seconds to wait for the name of a host, where JAX has to.

    Raises:
        ConfigError: something is neither given nor found, or the values contradict each other.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    if processes is None:
        processes = _number("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE")
    if process is None:
        process = _number("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX", "OMPI_COMM_WORLD_RANK")
    devices = None
    if coordinator is None or processes is None or process is None:
        coordinator, processes, process, devices = _detect(coordinator, processes, process, wait)
    if coordinator is None and processes is None and process is None:
        raise ConfigError(NONE_FOUND + _hint())
    if coordinator is None:
        raise ConfigError("the address of process 0 is unknown: give --coordinator HOST:PORT" + _hint())
    if processes is None or process is None:
        unknown, option = (
            ("index of this process", "--process") if processes else ("number of processes", "--processes")
        )
        raise ConfigError(f"the {unknown} is unknown: give {option}" + _hint())
    if processes < 1 or not 0 <= process < processes:
        raise ConfigError(f"there is no process {process} of {processes}: they are counted from 0")
    host, port = _host_and_port(coordinator)
    return Cluster(host=host, port=port, processes=processes, process=process, devices=devices)


def _detect(
    coordinator: str | None, processes: int | None, process: int | None, wait: int
) -> tuple[str | None, int | None, int | None, tuple[int, ...] | None]:
    """Return the values with those that JAX finds in place of None."""
    from jax._src.clusters import ClusterEnv

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the package kubernetes is missing
            found = ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, processes, process, None, None, wait
            )
    except Exception as error:  # of any client of a cluster
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"the cluster does not say where the processes are: {reason}") from None
    return *found[:3], None if found[3] is None else tuple(found[3])


def _hint() -> str:
    """Return what is likely to be missing in the cluster at hand, "" if there is no sign of one."""
    if "SLURM_JOB_ID" in os.environ and "SLURM_STEP_NODELIST" not in os.environ:
        return " (this is a Slurm job, but the command was not started by srun)"
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        return " (Open MPI 5 does not say where process 0 runs)"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return " (or set JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES in the Kubernetes Job)"
    return ""


def _number(*names: str) -> int | None:
    """Return the number in the first of these environment variables that is set."""
    for name in names:
        if text := os.environ.get(name):
            try:
                return int(text)
            except ValueError:
                raise ConfigError(f"{name} must be a whole number, not {text!r}") from None
    return None


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host.strip("[]") or not port.isdecimal() or not 2 <= int(port) <= 65535:
        raise ConfigError(
            f"the address of process 0 must be HOST:PORT with a port from 2 to 65535, not {address!r}"
        )
    return host.strip("[]"), int(port)
