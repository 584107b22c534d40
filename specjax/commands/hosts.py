"""Options of the commands that can use several processes, on one host or many."""

import contextlib
from dataclasses import dataclass

from specjax.errors import ConfigError
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Training over several processes."""

    distributed: bool = False
    """share the work with the other processes of this Slurm step, mpirun or Kubernetes Job; every one of them
    runs the same command"""
    coordinator: str | None = None
    """HOST:PORT of process 0, where --distributed cannot find it; PORT - 1 must be free as well"""
    processes: int | None = None
    """number of processes, likewise"""
    process: int | None = None
    """index of this process, from 0, likewise"""
    wait: int = 300
    """seconds to wait for all processes"""

    def session(self) -> contextlib.AbstractContextManager[None]:
        """Return the session in which the command runs.

        Raises:
            ConfigError: the other options without --distributed.
        """
        if not self.distributed:
            for name in ("coordinator", "processes", "process"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"--{name} needs --distributed")
            return contextlib.nullcontext()
        from specjax import distributed

        return distributed.session(self.coordinator, self.processes, self.process, wait=self.wait, say=say)
