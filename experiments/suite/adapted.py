"""Predictions of a case by configurations and baselines, kept as they come; nothing is prepared twice."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from experiments.suite import cases
from experiments.suite.cases import Case
from experiments.suite.frame import Kept
from specjax.adapt.adaptation import Adaptation, AdaptationResult
from specjax.adapt.configuration import Configuration
from specjax.adapt.settings import AdaptConfig
from specjax.progress import Say
from specjax.typing import AnyArray, FloatArray


class Adapted:
    """Runs configurations on a case, each once; finished ones are read from disk."""

    def __init__(
        self, case: Case, kept: Kept, key: str, say: Say, settings: AdaptConfig | None = None
    ) -> None:
        """Store the arguments; the target is prepared when it is first needed.

        Args:
            case: model, target and splits.
            kept: finished arrays.
            key: of this case among them.
            say: receives lines of progress.
            settings: of the adaptation; the defaults of `specjax adapt`.
        """
        self.case, self.kept, self.key, self.say = case, kept, key, say
        self.settings = settings or AdaptConfig()

    @functools.cached_property
    def _adaptation(self) -> Adaptation:
        settings = dataclasses.replace(self.settings, seeds=len(self.case.splits))
        return Adaptation(self.case.model, self.case.target, self.case.splits, settings, self.say)

    def run(self, name: str) -> AdaptationResult:
        """Adapt with a configuration, without keeping the result."""
        self.say(f"{self.key}: {name}")
        return self._adaptation.run(Configuration.parse(name))

    def zero_shot(self, name: str) -> str:
        """Return the name of the zero-shot configuration that the gains of another one refer to."""
        return Configuration.parse(name).zero_shot.name

    def predictions(self, name: str) -> FloatArray:
        """Return the predictions (S, n) of a configuration for all labelled stars."""
        return self.kept.array(f"{self.key}/{name}", lambda: self.run(name).predictions)

    def baselines(self) -> Mapping[str, FloatArray]:
        """Return predictions (S, n) by baseline, see `cases.baselines`."""

        def make() -> Mapping[str, AnyArray]:
            self.say(f"{self.key}: baselines")
            found = cases.baselines(self.case)
            return {name: np.asarray(values) for name, values in found.items()}

        return self.kept.arrays(f"{self.key}/baselines", make)
