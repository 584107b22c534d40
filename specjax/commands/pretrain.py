"""`specjax pretrain`: a foundation model from nothing."""

from dataclasses import dataclass
from pathlib import Path

from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Train a foundation model from nothing, on the stellar libraries (fetched if they are not there)."""

    out: Path
    """the model folder to write"""
    preset: str = "mini"
    """sizes and schedule"""
    seed: int = 0
    """random seed"""
    resume: bool = False
    """go on where an interrupted run with this folder stopped"""

    def run(self) -> None:
        """Train and print the folder."""
        from specjax.cache import use_compilation_cache

        use_compilation_cache()
        from specjax.pretrain.run import pretrain

        pretrain(preset=self.preset, out=self.out, seed=self.seed, resume=self.resume, say=say)
        print(self.out)
