"""Pretrain a small model: fetch the libraries, build the corpus, train and write the model folder."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from specjax import distributed
from specjax.atomic import check_folder, remove_folder
from specjax.config import get_preset
from specjax.errors import ConfigError
from specjax.foundation import Foundation
from specjax.preprocess import PrincipalFill
from specjax.pretrain import corpus, simulated, simulated_batches
from specjax.pretrain.batches import Material, make_data
from specjax.pretrain.config import PretrainConfig
from specjax.pretrain.monitor import LOGS, keep
from specjax.pretrain.programs import LoopOptions
from specjax.pretrain.stages import Pretraining
from specjax.pretrain.states import check_states, states_of
from specjax.progress import Say, silent
from specjax.report.results import plain
from specjax.services.stellar_libraries import fetch_stellar_libraries
from specjax.simulate.emulator import shipped
from specjax.surveys import mastar
from specjax.typing import Float32Array

PRESETS = ("mini", "mini-physics")


class Corpus(NamedTuple):
    """What a run trains on.

    Attributes:
        material: of all stages.
        fill: fills missing pixels, fitted to the same stars.
        out_of_range: spectra of stars to flag, see `corpus.out_of_range_stars`.
    """

    material: Material
    fill: PrincipalFill
    out_of_range: Mapping[str, Float32Array]


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
    """Pretrain a model and write its folder, with weights in half precision and the curves of its stages.

    "mini" is trained on observed stars with labels, "mini-physics" on simulated spectra. Training states are
    kept in OUT.training until the folder is written. In a distributed session the processes share the rows of
    every batch and the folder of states, and process 0 writes the model.

    Args:
        out: the model folder.
        preset: sizes of the model, one of `PRESETS`.
        seed: random seed.
        held_out: fraction of the observed stars kept for validation, on which the stages are scored.
        degraded: also train on lower resolutions; without them the model knows that of MILES (FWHM 2.5 A)
            only, and low resolution is a gap for adaptation to close.
        resume: continue from the states of an interrupted run.
        say: takes lines of progress.

    Raises:
        ConfigError: a preset that does not exist or is too large for this corpus.
        DataError: there are states of an interrupted run and `resume` is False, or they are of other options.
        SpecjaxError: `out` has contents that specjax has not written.
        DownloadError: the libraries cannot be fetched.
    """
    if preset not in PRESETS:
        get_preset(preset)
        raise ConfigError(
            f"there are too few spectra here for the preset {preset!r}: name files with --spectra, or train"
            " on simulated ones with --simulated; the presets that need neither are"
            f" {' and '.join(map(repr, PRESETS))}"
        )
    out = Path(out)
    config = PretrainConfig.of(preset, seed=seed, held_out=held_out)
    if not degraded:
        config = config.without_degraded()
    check_folder(out)
    record = plain(dataclasses.asdict(config))
    distributed.agree({"options": record})
    states = states_of(out)
    with distributed.main_first("states"):
        check_states(states, json.dumps(record, indent=1), resume or not distributed.is_main())
    build = simulated_corpus if preset == "mini-physics" else _observed
    material, fill, outside = build(config, degraded, say)
    options = LoopOptions(resume="repeat the command with --resume to continue", log=states)
    trainer = Pretraining(material, config, states, say, outside, options=options)
    variables, stats, ood = trainer.run()
    distributed.finish()
    model = Foundation(config=trainer.model_config, variables=variables, stats=stats, fill=fill, ood=ood)
    if distributed.is_main():
        model.save(out, half=True, record={"training": record})
        keep(states, out / LOGS)
        remove_folder(states)
    return model


def _fetch() -> Path:
    with distributed.main_first("libraries"):
        return fetch_stellar_libraries()


def _observed(config: PretrainConfig, degraded: bool, say: Say) -> Corpus:
    """Build the corpus of MILES stars with labels."""
    libraries = _fetch()
    pairs, fill = corpus.build(libraries, say, degraded=degraded)
    say(f"{len(pairs)} source stars, {int((pairs.labels[:, 2] < -1).sum())} below [Fe/H] = -1")
    outside = corpus.out_of_range_stars(libraries, fill, say, degraded=degraded)
    return Corpus(make_data(pairs, config), fill, outside)


def simulated_corpus(config: PretrainConfig, degraded: bool, say: Say) -> Corpus:
    """Build the corpus of simulated stars, and of observed ones without their labels.

    Args:
        config: of the run.
        degraded: also simulate lower resolutions.
        say: takes lines of progress.

    Raises:
        DownloadError: the stellar libraries cannot be fetched.
    """
    libraries = _fetch()
    library = mastar.read(libraries / "mastarhc_v2")
    observed = corpus.development_stars(libraries), library
    stars = simulated.build(shipped(), library, say, degraded=degraded, observed=observed)
    say(f"{len(stars.labels)} simulated stars, from which batches are drawn with new labels")
    if stars.observed is not None:
        say(f"{len(stars.observed.flux)} observed stars without labels")
    return Corpus(simulated_batches.make_material(stars, config), simulated.fill_of(stars), {})
