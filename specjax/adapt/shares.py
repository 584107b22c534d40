"""A configuration for all seeds of a study: each process trains its share, and finished seeds are kept.

Seeds are independent of each other. Every process runs the whole adaptation for its own ones, on its own
devices: training, scores of the candidates, selection and predictions. They exchange the results only.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from specjax import distributed
from specjax.adapt.adaptation import Adaptation, AdaptationResult
from specjax.adapt.configuration import Configuration
from specjax.adapt.inputs import TargetInputs
from specjax.adapt.parts import Parts, Seeds, from_seeds, hash_of_spectra, joined_seeds, to_seeds
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.adapt.target import Target
from specjax.foundation import Foundation
from specjax.progress import Say, silent
from specjax.spectra import Spectra
from specjax.typing import IntArray


class SharedAdaptation:
    """Runs configurations on one target for the seeds of all processes."""

    def __init__(
        self,
        model: Foundation,
        target: Target,
        splits: Splits,
        config: AdaptConfig,
        parts: Parts,
        say: Say = silent,
        inputs: TargetInputs | None = None,
        name: str | None = None,
    ) -> None:
        """Prepare the target's spectra; see `Adaptation`, and `Parts` for what is kept.

        `name` is that under which finished seeds are kept, by default the target's.
        """
        self.model, self.target, self.splits, self.config = model, target, splits, config
        self.parts, self.say, self.name = parts, say, name or target.name
        self.inputs = TargetInputs(model, target) if inputs is None else inputs
        self._adaptations: dict[bytes, Adaptation] = {}

    def run(self, configuration: Configuration) -> AdaptationResult:
        """Run one configuration; the result has all seeds, in every process.

        Raises:
            SpecjaxError: see `Adaptation.run`.
        """
        rows = np.arange(len(self.splits))[distributed.share(len(self.splits))]
        everyone = distributed.exchange(self._own_seeds(configuration, rows))
        return from_seeds(configuration, joined_seeds(everyone))

    def _own_seeds(self, configuration: Configuration, rows: IntArray) -> Seeds:
        """Return the seeds of this process: those that are finished already, and the others."""
        name, target = configuration.name, self.name
        finished = self.parts.read(target, name, rows) if configuration.is_adapted else None
        missing = rows if finished is None else rows[~np.isin(rows, finished["seed"])]
        if finished is not None:
            self.say(f"{target}: {name}: {len(finished['seed'])} of {len(rows)} seeds are finished already")
        if not len(missing):
            return finished or {}
        trained = to_seeds(self._adaptation(missing).run(configuration), missing)
        if configuration.is_adapted:
            self.parts.write(target, name, trained)
        return joined_seeds([finished or {}, trained])

    def _adaptation(self, rows: IntArray) -> Adaptation:
        key = rows.tobytes()
        if key not in self._adaptations:
            splits = self.splits[rows]
            self._adaptations[key] = Adaptation(
                self.model, self.target, splits, self.config, self.say, self.inputs
            )
        return self._adaptations[key]


def preprocess_shares(preprocess: Callable[[Spectra], Spectra], observed: Spectra, path: Path) -> Spectra:
    """Preprocess spectra, of which each process takes its share.

    Args:
        preprocess: maps n spectra to n spectra, each by itself.
        observed: n spectra, the same in all processes.
        path: where they are from, for the error.

    Returns:
        All n spectra, in every process.

    Raises:
        DifferentProcessesError: the processes have read different spectra.
    """
    if jax.process_count() == 1 or observed.prepared is not None:  # or there is nothing to do
        return preprocess(observed)
    distributed.agree({"contents": {str(path): hash_of_spectra(observed)}})
    if len(observed) < jax.process_count():
        return preprocess(observed)
    part = preprocess(observed[distributed.share(len(observed))])
    arrays = {"flux": part.flux, "ivar": part.ivar, "mask": part.mask, "id": part.id}
    columns = {f"meta/{name}": column for name, column in part.meta.items()}
    everyone = distributed.exchange({**arrays, **columns})
    joined = {name: np.concatenate([each[name] for each in everyone]) for name in everyone[0]}
    meta = {name: joined.pop(f"meta/{name}") for name in part.meta}
    return part.derive(**joined, meta=meta)
