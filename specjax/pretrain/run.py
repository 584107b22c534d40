"""Make the mini model from nothing: fetch the libraries, build the corpus, train, write the folder."""

import dataclasses
import shutil
from pathlib import Path

from specjax.config import get_preset
from specjax.errors import ConfigError, DataError
from specjax.foundation import Foundation
from specjax.pretrain import corpus
from specjax.pretrain.recipe import PretrainConfig
from specjax.pretrain.stages import Pretraining
from specjax.progress import Say
from specjax.report.results import plain
from specjax.services.stellar_libraries import fetch_stellar_libraries


def pretrain(
    *,
    out: Path,
    preset: str = "mini",
    seed: int = 0,
    held_out: float = 0.1,
    resume: bool = False,
    say: Say = print,
) -> Foundation:
    """Train a foundation on the stellar libraries and write it as a model folder, weights in half precision.

    Training states are kept beside `out`, in OUT.training, until the folder is written.

    Args:
        out: the model folder.
        held_out: share of the stars that is kept for validation and scored as training goes on.
        resume: go on from the states that an interrupted run left.

    Raises:
        ConfigError: a preset that the stellar libraries are too small for.
        DataError: states of another run are there and `resume` was not asked for.
        DownloadError: the libraries cannot be fetched.
    """
    if preset != "mini":
        get_preset(preset)
        raise ConfigError(f"689 stars cannot train the preset {preset!r}: only 'mini' can be made here")
    out = Path(out)
    states = out.with_name(out.name + ".training")
    if states.exists() and not resume:
        raise DataError(f"{states} holds an interrupted run: go on with --resume, or remove it")
    config = PretrainConfig(preset=preset, seed=seed, held_out=held_out)
    libraries = fetch_stellar_libraries()
    pairs, fill = corpus.build(libraries, say, renditions=True)
    say(f"{len(pairs)} source stars, {int((pairs.labels[:, 2] < -1).sum())} below [Fe/H] = -1")
    trainer = Pretraining(pairs, config, states, say, corpus.outside(libraries, fill, say))
    variables, stats = trainer.run()
    model = Foundation(
        config=trainer.model_config, variables=variables, stats=stats, fill=fill, domain=trainer.domain
    )
    model.save(out, half=True, record={"training": plain(dataclasses.asdict(config))})
    shutil.rmtree(states, ignore_errors=True)
    return model
