"""Adaptations of one case, whose predictions are kept on disk and whose parts are shared between rows."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.suite import cases
from experiments.suite.cases import Case
from experiments.suite.frame import Kept, Row
from specjax.adapt.adaptation import Adaptation, AdaptationResult
from specjax.adapt.configuration import Configuration
from specjax.adapt.forward import predict_label
from specjax.adapt.inputs import TargetInputs
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.foundation import Foundation
from specjax.progress import Say
from specjax.report.results import Kind
from specjax.typing import AnyArray, FloatArray


class Runner:
    """Runs configurations on a case, or takes what an earlier run has kept.

    The frozen features are computed once. Rows with the same settings and splits also share what
    `Adaptation` shares, such as heads that are trained alone.
    """

    def __init__(self, case: Case, kept: Kept, say: Say, key: str = "") -> None:
        """Store the arguments; nothing is computed before it is needed.

        Args:
            case: model, target and splits.
            kept: finished rows and arrays.
            say: receives lines of progress.
            key: of this case among them, by default the name of its target.
        """
        self.case, self.kept, self.say, self.key = case, kept, say, key or case.name
        self._adaptations: dict[tuple[AdaptConfig, int, int], Adaptation] = {}
        self._alive: list[object] = []  # what the ids in the keys belong to

    @functools.cached_property
    def inputs(self) -> TargetInputs:
        """Features of the frozen model for the labelled stars."""
        return TargetInputs(self.case.model, self.case.target)

    def zero_shot(self, head: str) -> FloatArray:
        """Return the predictions (n,) of the model as it is with one head."""

        def make() -> AnyArray:
            inputs, label = self.inputs, self.case.target.label
            return np.array(
                predict_label(self.case.model, (head,), {}, inputs.labelled, label, inputs.base)[0]
            )

        return self.kept.array(f"{self.key}/zero-shot-{head}", make)

    def zero_shot_row(self, head: str) -> Row:
        """Return the scores of the model as it is with one head."""
        name = f"zero-shot-{head}"
        return self.scored(name, name, self.zero_shot(head), kind="zero-shot")

    def adapt(
        self,
        key: str,
        name: str,
        settings: AdaptConfig,
        *,
        splits: Splits | None = None,
        model: Foundation | None = None,
    ) -> dict[str, AnyArray]:
        """Return "predictions" (S, n), and "step", "tower" and "head" (S,), as selected.

        Args:
            key: of what is kept.
            name: of the configuration.
            settings: of the adaptation.
            splits: in place of those of the case.
            model: the model of the case with other ranks and scales of its factors.
        """

        def make() -> dict[str, AnyArray]:
            self.say(f"{self.key}: {key}")
            result = self.adaptation(settings, splits, model).run(Configuration.parse(name))
            return {"predictions": result.predictions, **result.chosen}

        return self.kept.arrays(f"{self.key}/{key}", make)

    def predictions(self, name: str) -> FloatArray:
        """Return the predictions (S, n) of a configuration with the settings of `specjax adapt`."""
        return self.adapt(name, name, AdaptConfig())["predictions"]

    def run(self, name: str) -> AdaptationResult:
        """Adapt with a configuration and the settings of `specjax adapt`, without keeping the result."""
        self.say(f"{self.key}: {name}")
        return self.adaptation(AdaptConfig()).run(Configuration.parse(name))

    def adaptation(
        self, settings: AdaptConfig, splits: Splits | None = None, model: Foundation | None = None
    ) -> Adaptation:
        """Return the adaptation with these settings, the same one for the same arguments."""
        model, splits = model or self.case.model, splits or self.case.splits
        key = settings, id(splits), id(model)
        if key not in self._adaptations:
            self._alive += [splits, model]
            self._adaptations[key] = Adaptation(model, self.case.target, splits, settings, inputs=self.inputs)
        return self._adaptations[key]

    def baselines(self, key: str = "baselines", splits: Splits | None = None) -> dict[str, AnyArray]:
        """Return predictions (S, n) of the baselines by name, on the same labels."""

        def make() -> dict[str, AnyArray]:
            self.say(f"{self.key}: {key}")
            return {name: np.array(values) for name, values in cases.baselines(self.case, splits).items()}

        return self.kept.arrays(f"{self.key}/{key}", make)

    def baseline_rows(
        self, key: str = "baselines", splits: Splits | None = None, names: Sequence[str] = ()
    ) -> list[Row]:
        """Return the scores of the baselines, of all or of some."""
        made = self.baselines(key, splits)
        return [
            self.scored(f"{key}/{name}", name, made[name], kind="baseline", splits=splits)
            for name in (names or made)
        ]

    def scored(
        self,
        key: str,
        name: str,
        predictions: FloatArray,
        *,
        kind: Kind,
        reference: FloatArray | None = None,
        references: Mapping[str, FloatArray | None] | None = None,
        splits: Splits | None = None,
    ) -> Row:
        """Score predictions on test stars, and keep the row.

        Args:
            key: of what is kept.
            name: of the row.
            predictions: (S, n) or (n,).
            kind: how they were made.
            reference: predictions that sigma_gain and r2_gain refer to.
            references: by another name of the gain in sigma, the predictions that it refers to.
            splits: in place of those of the case.
        """
        case = self.case

        def make() -> Row:
            row = case.score(name, predictions, kind=kind, reference=reference, splits=splits)
            for gain, other in (references or {}).items():
                if other is not None:
                    compared = case.score(name, predictions, kind=kind, reference=other, splits=splits)
                    row |= {f"{gain}{end}": compared[f"sigma_gain{end}"] for end in ("", "_lo", "_hi")}
            return row

        return self.kept.row(f"{self.key}/{key}", make)
