"""`specjax pretrain`: pretrain a foundation model."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from specjax.commands.hosts import Hosts
from specjax.commands.options_file import FromFile, write_options
from specjax.errors import ConfigError
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Pretrain(FromFile):
    """Pretrain a foundation model on spectra in files, by the published stages.

    With --simulated it trains on simulated spectra instead. Without any of these it makes a model that ships,
    mini or mini-physics; of the options below, these take --preset, --seed, --degraded-copies and --resume.
    For both, stellar libraries are fetched if needed.
    """

    out: Path
    """the model folder to write"""
    preset: str = "mini"
    """sizes of the model: paper, base, split, xp-transformer, mini or mini-physics"""
    spectra: tuple[Path, ...] = ()
    """files with LAMOST spectra: SpecCLIP's training files, files of specjax prepare, or Parquet tables"""
    xp: tuple[Path, ...] = ()
    """files with Gaia XP spectra of the same stars, row for row, if --spectra does not have them"""
    simulated: bool = False
    """train on simulated spectra instead of files, as mini-physics is"""
    stages: tuple[Literal["backbone", "autoencoder", "xp-transformer", "alignment", "heads"], ...] = ()
    """stages to run; by default backbone, autoencoder and alignment, and heads if there are labels"""
    start: Annotated[tuple[Path, ...], arg(name="from")] = ()
    """model folders to start from, also converted published ones"""
    labels: tuple[str, ...] = ()
    """columns of the files that the heads learn, such as teff logg fe_h"""
    steps: int | None = None
    """steps of every stage (default: as published)"""
    batch: int | None = None
    """spectra of a batch, of all devices together (default: as published)"""
    learning_rate: float | None = None
    """largest learning rate (default: as published)"""
    held_out: float = 0.01
    """fraction of the spectra to score on, unless the files have a split val"""
    augment: bool = False
    """vary resolution, velocity, continuum and noise of the LAMOST spectra in every batch"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the towers' matrix products: auto is bfloat16 on a GPU that is fast in it, else float32"""
    remat: Literal["none", "dots", "full"] = "none"
    """what is computed twice to save memory: nothing, all but matrix products, or everything"""
    accumulate: int = 1
    """parts of a batch that are computed one after the other"""
    ema: float = 0.0
    """decay of an average of the parameters over the steps, such as 0.999; 0 for none"""
    fsdp: int = 1
    """devices among which parameters and optimizer state are divided"""
    report_every: int = 100
    """steps between reports"""
    save_every: int = 1000
    """steps between saved states"""
    tensorboard: bool = False
    """also write the scores for TensorBoard, to the folder training/tensorboard"""
    seed: int = 0
    """random seed"""
    degraded_copies: bool = True
    """also train on lower resolutions (--no-degraded-copies for a model that has seen the resolution of MILES
    only); for mini and mini-physics without files"""
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
        if self.spectra or self.xp or self.simulated:
            self._from_files()
        else:
            self._shipped()
        if distributed.is_main():
            write_options(self.out, self)
            print(self.out)

    def _shipped(self) -> None:
        from specjax import distributed
        from specjax.pretrain.from_files import FilesConfig
        from specjax.pretrain.run import pretrain

        shared = {"preset", "seed"}
        for option in fields(FilesConfig):
            value = getattr(self, option.name)
            if option.name not in shared and value != (() if option.name == "stages" else option.default):
                name = {"start": "from"}.get(option.name, option.name.replace("_", "-"))
                raise ConfigError(f"--{name} needs spectra in files: name them with --spectra or --xp")
        pretrain(
            preset=self.preset,
            out=self.out,
            seed=self.seed,
            degraded=self.degraded_copies,
            resume=self.resume,
            say=distributed.say_on_main(say),
        )

    def _from_files(self) -> None:
        from specjax import distributed
        from specjax.pretrain.from_files import FilesConfig, pretrain_from_files

        names = {field.name for field in fields(FilesConfig)} - {"stages"}
        heads = ("heads",) if self.labels or self.simulated else ()
        usual = ("backbone", "autoencoder", "alignment", *heads)
        config = FilesConfig(stages=self.stages or usual, **{name: getattr(self, name) for name in names})
        pretrain_from_files(config, out=self.out, resume=self.resume, say=distributed.say_on_main(say))
