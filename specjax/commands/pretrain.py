"""`specjax pretrain`: pretrain a foundation model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from specjax.commands.hosts import Hosts
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pretrain a small foundation model on observed or simulated stars; libraries are fetched if needed."""

    out: Path
    """the model folder to write"""
    preset: str = "mini"
    """mini, from observed stars with labels, or mini-physics, from simulated spectra"""
    seed: int = 0
    """random seed"""
    degraded_copies: bool = True
    """also train on lower resolutions (--no-degraded-copies for a model that has seen the resolution of MILES
    only)"""
    resume: bool = False
    """continue the interrupted run of this folder"""
    hosts: Annotated[Hosts, OmitArgPrefixes] = Hosts()

    def run(self) -> None:
        """Pretrain and print the folder."""
        with self.hosts.session():
            self._run()

    def _run(self) -> None:
        from specjax import distributed
        from specjax.cache import use_compilation_cache

        use_compilation_cache()
        from specjax.pretrain.run import pretrain

        pretrain(
            preset=self.preset,
            out=self.out,
            seed=self.seed,
            degraded=self.degraded_copies,
            resume=self.resume,
            say=distributed.say_on_main(say),
        )
        if distributed.is_main():
            print(self.out)
