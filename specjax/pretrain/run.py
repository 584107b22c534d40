"""Pretrain the mini model: fetch the libraries, build the corpus, train and write the model folder."""

import dataclasses
import shutil
from pathlib import Path

from specjax.config import get_preset
from specjax.errors import ConfigError, DataError
from specjax.foundation import Foundation
from specjax.pretrain import corpus
from specjax.pretrain.batches import make_data
from specjax.pretrain.config import PretrainConfig
from specjax.pretrain.stages import Pretraining
from specjax.progress import Say, silent
from specjax.report.results import plain
from specjax.services.stellar_libraries import fetch_stellar_libraries


def pretrain(
    *,
    out: Path,
    preset: str = "mini",
    seed: int = 0,
    held_out: float = 0.1,
    degraded: bool = True,
    resume: bool = False,
    say: Say = silent,
) -> Foundation:
    """Pretrain a model on the stellar libraries and write its folder, with weights in half precision.

    Training states are kept in OUT.training until the folder is written.

    Args:
        out: the model folder.
        preset: sizes of the model; only "mini" can be trained on the stellar libraries.
        seed: random seed.
        held_out: fraction of the stars kept for validation, on which the stages are scored.
        degraded: also train on copies of the stars at lower resolutions; without them the model knows that
            of MILES (FWHM 2.5 A) only, and low resolution is a gap for adaptation to close.
        resume: continue from the states of an interrupted run.
        say: takes lines of progress.

    Raises:
        ConfigError: a preset that does not exist or is too large for the stellar libraries.
        DataError: there are states of an interrupted run and `resume` is False.
        DownloadError: the libraries cannot be fetched.
    """
    if preset != "mini":
        get_preset(preset)
        raise ConfigError(f"689 stars cannot train the preset {preset!r}; only 'mini' can be pretrained here")
    out = Path(out)
    states = out.with_name(out.name + ".training")
    if states.exists() and not resume:
        raise DataError(f"{states} holds an interrupted run: continue it with --resume, or remove it")
    config = PretrainConfig(preset=preset, seed=seed, held_out=held_out)
    if not degraded:
        config = config.without_degraded()
    libraries = fetch_stellar_libraries()
    pairs, fill = corpus.build(libraries, say, degraded=degraded)
    say(f"{len(pairs)} source stars, {int((pairs.labels[:, 2] < -1).sum())} below [Fe/H] = -1")
    outside = corpus.out_of_range_stars(libraries, fill, say, degraded=degraded)
    trainer = Pretraining(make_data(pairs, config), config, states, say, outside)
    variables, stats, ood = trainer.run()
    model = Foundation(config=trainer.model_config, variables=variables, stats=stats, fill=fill, ood=ood)
    model.save(out, half=True, record={"training": plain(dataclasses.asdict(config))})
    shutil.rmtree(states, ignore_errors=True)
    return model
