"""Adaptation of a foundation model to a target survey.

By default one program trains all groups of a configuration together, on the labels, through every layer that
is adapted (`joint`). The paper's sequence of stages is the other choice (`sequential`): LoRA1 by masked
modelling, LoRA3 by alignment with Gaia XP, then the factors of the heads on the labels.

Training on sixty stars can make a model worse as easily as better. The adaptation strength is therefore
selected for each seed by cross-validation within its training stars and on its validation stars: after how
many steps training stops, and by what factors the updates of tower and heads are multiplied. To train the
heads alone, or nothing at all, is always among the candidates. Test stars are not used.
"""

import dataclasses

import jax
import numpy as np

from specjax import display
from specjax.adapt import forward
from specjax.adapt.buckets import seed_groups
from specjax.adapt.checks import check_label, check_model, check_ranks
from specjax.adapt.configuration import Configuration
from specjax.adapt.group import SeedGroup
from specjax.adapt.inputs import TargetInputs
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.adapt.target import Target
from specjax.foundation import Foundation
from specjax.progress import Say, silent
from specjax.typing import BoolArray, FloatArray, Tree


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AdaptationResult:
    """The result of one configuration, for S seeds.

    Attributes:
        configuration: what was adapted and the heads that predict.
        predictions: (S, n) the label of all labelled stars, in physical units.
        unseen: (S, a + b) that of the training and validation stars of each seed, as predicted without having
            seen them: the former out of fold, and all by a candidate that the star did not help to select.
            Zero-shot predictions have seen none.
        adapters: the trained leaves (S, ...); {} for zero-shot.
        chosen: "tower" and "head", the factors on the updates, and "step", after which training stopped, each
            (S,), as selected; 0 for what remains as it is.
        of_seeds: (S, n) the predictions of the seeds from which one prediction (1, n) was made; else None.
    """

    configuration: Configuration
    predictions: FloatArray
    unseen: FloatArray
    adapters: Tree
    chosen: dict[str, FloatArray]
    of_seeds: FloatArray | None = None

    def __repr__(self) -> str:
        seeds, stars = self.predictions.shape
        return f"<AdaptationResult {self.configuration.name!r}: {seeds} seeds, {stars} labelled stars>"

    def _repr_html_(self) -> str:
        seeds, stars = self.predictions.shape
        rows = {"seeds": str(seeds), "labelled stars": str(stars)}
        for name, values in self.chosen.items():
            rows[f"selected {name}, median"] = f"{np.median(values):g}"
        return display.card(self.configuration.name, rows)


class Adaptation:
    """Runs configurations on one target; results that several of them share are computed once.

    Seeds are adapted in groups of a fixed size (see `buckets`), so that the programs of one number of seeds
    serve any other.
    """

    def __init__(
        self,
        model: Foundation,
        target: Target,
        splits: Splits,
        config: AdaptConfig,
        say: Say = silent,
        inputs: TargetInputs | None = None,
    ) -> None:
        """Prepare the target's spectra, or take those that are prepared already.

        Raises:
            ConfigError: the model does not predict the target's label, or a rule of the ranks matches no
                layer.
        """
        check_ranks(config.ranks, model.params)
        check_label(model, target.label)
        self.model, self.target, self.splits, self.config, self.say = model, target, splits, config, say
        self.inputs = TargetInputs(model, target) if inputs is None else inputs
        self._zero_shot: dict[tuple[str, ...], FloatArray] = {}
        self._groups = [
            SeedGroup(model, self.inputs, splits[seeds], size, config, self._say_for(seeds))
            for seeds, size in seed_groups(len(splits))
        ]

    def run(self, configuration: Configuration) -> AdaptationResult:
        """Run one configuration for all seeds.

        Raises:
            ConfigError: the settings cannot train the configuration.
            ModelError: the model lacks a part that the configuration needs.
            DataError: the target lacks the unlabelled spectra or Gaia XP spectra that it needs.
        """
        self.config.trainings(configuration)
        check_model(self.model, [configuration], self.config)
        seeds, zero_shot = len(self.splits), self._as_it_is(configuration.heads)
        if not configuration.is_adapted:
            return AdaptationResult(
                configuration=configuration,
                predictions=np.tile(zero_shot, (seeds, 1)),
                unseen=zero_shot[self.splits.unseen],
                adapters={},
                chosen={name: np.zeros(seeds) for name in ("tower", "head", "step")},
            )
        results = [group.run(configuration, zero_shot) for group in self._groups]
        self._warn_of_short_training(np.concatenate([result.at_the_end for result in results]))
        return AdaptationResult(
            configuration=configuration,
            predictions=np.concatenate([result.predictions for result in results]),
            unseen=np.concatenate([result.unseen for result in results]),
            adapters=_joined([result.adapters for result in results]),
            chosen=_joined([result.chosen for result in results]),
        )

    def _warn_of_short_training(self, at_the_end: BoolArray) -> None:
        """Say if most seeds selected the end of a training of the tower, at its full strength."""
        count = int(at_the_end.sum())
        if count > len(at_the_end) / 2:
            self.say(
                f"{self.target.name}: {count} of {len(at_the_end)} seeds selected the end of the training:"
                " more steps may help (--steps)"
            )

    def _say_for(self, seeds: slice) -> Say:
        """Return what reports the progress of some seeds."""
        total = len(self.splits)
        if seeds.stop - seeds.start == total:
            return self.say
        return lambda line: self.say(f"{line} (seeds {seeds.start + 1} to {seeds.stop} of {total})")

    def _as_it_is(self, heads: tuple[str, ...]) -> FloatArray:
        """Return the prediction (n,) of the unadapted model, averaged over heads."""
        if heads not in self._zero_shot:
            single = [
                forward.predict_label(
                    self.model, (head,), {}, self.inputs.labelled, self.target.label, self.inputs.base
                )[0]
                for head in heads
            ]
            self._zero_shot[heads] = np.asarray(np.mean(single, axis=0))
        return self._zero_shot[heads]


def _joined(trees: list[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)
