"""Pretrain a model of any size on spectra in files, or on simulated ones.

The published stages run alone or in sequence.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from specjax import distributed
from specjax.atomic import check_folder, remove_folder
from specjax.checkpoints import load_model
from specjax.config import ModelConfig, get_preset
from specjax.errors import ConfigError, ModelError
from specjax.foundation import Foundation
from specjax.foundation.networks import DtypeChoice, choose_dtype
from specjax.preprocess import PrincipalFill
from specjax.pretrain import run
from specjax.pretrain.board import require_tensorboard
from specjax.pretrain.config import Compute, PretrainConfig, StageConfig
from specjax.pretrain.heads import Trained
from specjax.pretrain.monitor import LOGS, keep
from specjax.pretrain.probes import probe
from specjax.pretrain.programs import LoopOptions
from specjax.pretrain.source import Source
from specjax.pretrain.stages import TOWERS, Pretraining
from specjax.pretrain.states import check_interrupted, check_states, states_of
from specjax.progress import Say, silent
from specjax.report.results import plain
from specjax.train.speed import matrix_peak
from specjax.typing import Tree

STAGES = tuple(TOWERS)
SIMULATED_LABELS = ("teff", "logg", "fe_h", "alpha_fe")


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """A pretraining run on files.

    Attributes:
        preset: sizes of the model, see `config.PRESETS`.
        spectra: files with LAMOST spectra, see `surveys.training_rows.find`.
        xp: files with Gaia XP spectra, row for row those of `spectra` unless that is empty.
        simulated: train without files, on simulated spectra, which are drawn on the device, and on observed
            ones without labels, as "mini-physics" is. The labels are those of the simulation.
        stages: the stages to run, of STAGES; they run in that order.
        start: model folders whose parameters are the start, later ones before earlier ones.
        labels: columns that the heads learn.
        seed: of the initial parameters, the order of the spectra and the masks.
        steps: of every stage; the published number by default.
        batch: spectra of a batch, of all devices together; the published number by default.
        learning_rate: the published one by default.
        held_out: fraction of the rows held out, unless the files have a split "val".
        augment: vary the LAMOST spectra of every batch, see `augment.AugmentConfig`.
        dtype: type of the towers' matrix products, see `foundation.networks.choose_dtype`.
        remat: see `Compute`.
        accumulate: see `Compute`.
        ema: see `LoopOptions`.
        fsdp: see `LoopOptions`.
        report_every: steps between reports.
        save_every: steps between saved states.
        tensorboard: write the scores for TensorBoard, too.

    Raises:
        ConfigError: an option out of range, or stages that do not go together.
    """

    preset: str = "paper"
    spectra: tuple[Path, ...] = ()
    xp: tuple[Path, ...] = ()
    simulated: bool = False
    stages: tuple[str, ...] = ("backbone", "autoencoder", "alignment")
    start: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()
    seed: int = 0
    steps: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    held_out: float = 0.01
    augment: bool = False
    dtype: DtypeChoice = "auto"
    remat: str = "none"
    accumulate: int = 1
    ema: float = 0.0
    fsdp: int = 1
    report_every: int = 100
    save_every: int = 1000
    tensorboard: bool = False

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise ConfigError(f"there is no stage {', '.join(unknown)}; the stages are {', '.join(STAGES)}")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out must be a fraction in [0, 1), not {self.held_out}")
        for name in ("steps", "batch", "report_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if self.simulated and (self.spectra or self.xp or self.labels):
            raise ConfigError("simulated spectra come without files and with labels of their own")
        if "heads" in self.stages and not (self.labels or self.simulated):
            raise ConfigError("the stage heads needs the columns that it learns, --labels")

    def model(self) -> ModelConfig:
        """Return the sizes of the model.

        Raises:
            ConfigError: an unknown preset, or a stage that it does not have.
        """
        config = get_preset(self.preset)
        transformer = config.xp_transformer is not None
        impossible = {"autoencoder", "alignment"} if transformer else {"xp-transformer"}
        for stage in self.stages:
            if stage in impossible:
                raise ConfigError(f"the preset {self.preset!r} has no stage {stage}")
        labels = SIMULATED_LABELS if self.simulated else self.labels
        if not labels:
            return config
        head = dataclasses.replace(config.head, num_labels=len(labels))
        return dataclasses.replace(config, labels=labels, head=head)

    def training(self) -> PretrainConfig:
        """Return schedules and objectives."""
        config = PretrainConfig.published(self.preset, seed=self.seed, held_out=self.held_out)
        names = ("backbone", "autoencoder", "alignment", "heads")
        changes: dict[str, Any] = {name: self._stage(getattr(config, name)) for name in names}
        if self.simulated:
            varied = PretrainConfig.of("mini-physics")
            changes |= {name: getattr(varied, name) for name in ("augment", "head_augment", "cool_weight")}
        return dataclasses.replace(config, **changes)

    def compute(self) -> Compute:
        """Return how the networks compute on this machine."""
        return Compute(dtype=choose_dtype(self.dtype), remat=self.remat, accumulate=self.accumulate)

    def _stage(self, stage: StageConfig) -> StageConfig:
        names = ("steps", "batch", "learning_rate")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(stage, chunk=self.report_every, **given)


def pretrain_from_files(
    config: FilesConfig, *, out: Path, resume: bool = False, say: Say = silent
) -> Foundation:
    """Run the stages and write a model folder, with the curves in its subfolder `training`.

    Training states and metrics are kept in OUT.training until the folder is written. In a distributed session
    all processes call this with the same arguments and a shared `out`, and process 0 writes the model.

    Raises:
        ConfigError: an option that is not possible.
        DataError: files that cannot be used, or states of another or an interrupted run.
        ModelError: a model to start from does not fit the preset.
        TrainingError: the loss is not finite.
        Terminated: SIGTERM; the run is saved.
        SpecjaxError: `out` has contents that specjax has not written.
    """
    model_config, training, compute = config.model(), config.training(), config.compute()
    out = Path(out)
    states = states_of(out)
    check_folder(out)
    if distributed.is_main():
        check_interrupted(states, resume)
    if config.tensorboard:
        require_tensorboard()
    source = None if config.simulated else _open(config, say)
    if source is None:
        material, fill, _ = run.simulated_corpus(training, True, say)
    else:
        material, fill = source.material(config.augment), None
    start = _start_from(config.start)
    options = LoopOptions(
        accumulate=config.accumulate,
        ema=config.ema,
        fsdp=config.fsdp,
        save_every=config.save_every,
        resume="repeat the command with --resume to continue",
        log=states,
        peak=matrix_peak(compute.dtype),
        tensorboard=config.tensorboard,
    )
    trainer = Pretraining(
        material,
        training,
        states,
        say,
        model_config=model_config,
        compute=compute,
        options=options,
    )
    _check_encoders(start["params"], config.stages)
    _check_shapes(trainer, config.stages, start)
    if source is not None:
        trainer.check_input(config.stages)
    record = _record(config, training, compute)
    settings = {**record, **_contents(config, source)}
    distributed.agree({"options": settings})
    with distributed.main_first("states"):
        check_states(states, json.dumps(settings, indent=1), resume or not distributed.is_main())
    variables = _joined(trainer.initial_parts(config.stages), start)
    trained = trainer.run_stages(config.stages, variables)
    distributed.finish()
    model = _foundation(model_config, trained, fill if source is None else source.fill())
    if distributed.is_main():
        model.save(out, record={"training": record})
        keep(states, out / LOGS)
        if source is not None:
            probe(model, source, out / LOGS, say)
        remove_folder(states)
    return model


def _count(parts: Sequence[Any]) -> int:
    return sum(len(part) for part in parts)


def _open(config: FilesConfig, say: Say) -> Source:
    """List the spectra in the files, and say how many there are."""
    source = Source.open(
        config.spectra,
        config.xp,
        labels=config.labels if "heads" in config.stages else (),
        held_out_share=config.held_out,
        seed=config.seed,
    )
    say(f"{_count(source.train)} spectra to train on, {_count(source.held_out)} held out")
    return source


def _foundation(config: ModelConfig, trained: Trained, fill: PrincipalFill | None) -> Foundation:
    variables = {"batch_stats": {}, **trained.variables}
    return Foundation(config=config, variables=variables, stats=trained.stats, fill=fill, ood=trained.ood)


def _record(config: FilesConfig, training: PretrainConfig, compute: Compute) -> dict[str, Any]:
    """Return how a model was made, for its config.json."""
    about: dict[str, Any] = plain(dataclasses.asdict(training))
    files = {name: [str(path) for path in getattr(config, name)] for name in ("spectra", "xp", "start")}
    how = {name: getattr(config, name) for name in ("stages", "augment", "ema", "simulated")}
    return {**about, **plain({**dataclasses.asdict(compute), **how, **files})}


def _contents(config: FilesConfig, source: Source | None) -> dict[str, Any]:
    """Return what else a resumed run must have in common with the interrupted one."""
    if source is None:
        return {}
    rows = [[str(part.path), part.split, len(part)] for part in (*source.train, *source.held_out)]
    return {"labels": list(config.labels), "rows": rows}


def _start_from(folders: Sequence[Path]) -> Tree:
    """Return the parameters and batch statistics of model folders as flat dicts, later ones first."""
    found: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
    for folder in folders:
        stored = load_model(folder)
        if "params" not in stored.arrays:
            raise ModelError(f"{folder} holds no model")
        for name, leaves in found.items():
            leaves |= flatten_dict(stored.arrays.get(name) or {}, sep="/")
    return found


def _check_shapes(trainer: Pretraining, stages: Sequence[str], start: Tree) -> None:
    """Check that the parameters to start from fit the model.

    Raises:
        ModelError: a parameter of another shape.
    """
    shapes = jax.eval_shape(lambda: trainer.initial_parts(stages))
    for name, given in start.items():
        leaves = flatten_dict(shapes.get(name, {}), sep="/")
        for path in leaves.keys() & given.keys():
            if leaves[path].shape != np.shape(given[path]):
                raise ModelError(
                    f"the model to start from does not fit the preset {trainer.model_config.name!r}:"
                    f" {path} has the shape {np.shape(given[path])}, not {leaves[path].shape}"
                )


def _joined(initial: Tree, start: Tree) -> Tree:
    """Replace initial parameters and batch statistics by those of the models to start from."""
    leaves = {name: flatten_dict(initial.get(name, {}), sep="/") for name in start}
    return {name: unflatten_dict({**leaves[name], **given}, sep="/") for name, given in start.items()}


# What provides the encoders that a stage reads and does not train.
_ENCODERS = {
    "alignment": {"lamost/backbone": "backbone", "gaia_xp/backbone": "autoencoder"},
    "heads": {"lamost/backbone": "backbone"},
}


def _check_encoders(start: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Check that a stage or a model to start from provides the trained encoders that a stage reads."""
    for stage in stages:
        for encoder, maker in _ENCODERS.get(stage, {}).items():
            if maker not in stages and not any(path.startswith(f"{encoder}/") for path in start):
                raise ConfigError(
                    f"the stage {stage} needs a trained {encoder}: add the stage {maker},"
                    " or name a model that has it with --from"
                )
