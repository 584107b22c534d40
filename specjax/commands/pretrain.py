"""`specjax pretrain`: pretrain a foundation model."""

from dataclasses import dataclass
from pathlib import Path

from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pretrain a foundation model on the stellar libraries, which are fetched if necessary."""

    out: Path
    """the model folder to write"""
    preset: str = "mini"
    """sizes of the model; only "mini" can be trained on these libraries"""
    seed: int = 0
    """random seed"""
    degraded_copies: bool = True
    """also train on copies of the stars at lower resolutions (--no-degraded-copies for a model that has seen
    the resolution of MILES only)"""
    resume: bool = False
    """continue the interrupted run of this folder"""

    def run(self) -> None:
        """Pretrain and print the folder."""
        from specjax.cache import use_compilation_cache

        use_compilation_cache()
        from specjax.pretrain.run import pretrain

        pretrain(
            preset=self.preset,
            out=self.out,
            seed=self.seed,
            degraded=self.degraded_copies,
            resume=self.resume,
            say=say,
        )
        print(self.out)
