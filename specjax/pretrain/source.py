"""Spectra in files as the training data of all stages: feeds, held-out stars and samples."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from specjax.devices import largest_divisor
from specjax.errors import DataError
from specjax.preprocess import PrincipalFill
from specjax.pretrain.augment import AugmentConfig, augment
from specjax.pretrain.batches import Draw, Material, ValidationStars
from specjax.pretrain.order import LANES, Order
from specjax.pretrain.stream import Batch, Stream
from specjax.surveys.training_parts import Part
from specjax.surveys.training_rows import Rows, find, held_out, label_scale
from specjax.typing import Float32Array, Tree

HELD_OUT_BATCHES = 4  # batches of held-out stars that a stage is scored on, at most
SAMPLE = 2048  # stars from which the label scale is computed
FILL_SAMPLE = 512  # stars to which the principal components are fitted


@dataclass(frozen=True, kw_only=True)
class Source:
    """Spectra in files, of which nothing but the list of files is in memory.

    Attributes:
        train: rows to train on.
        held_out: rows to score on.
        labels: columns that the heads learn; () for none.
        seed: of the order.
    """

    train: Sequence[Part]
    held_out: Sequence[Part]
    labels: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def open(
        cls,
        spectra: Sequence[Path],
        xp: Sequence[Path] = (),
        *,
        labels: Sequence[str] = (),
        held_out_share: float = 0.01,
        seed: int = 0,
    ) -> "Source":
        """List the spectra of files, see `training_rows.find` and `training_rows.held_out`."""
        train, kept = held_out(find(spectra, xp, labels), held_out_share)
        return cls(train=train, held_out=kept, labels=tuple(labels), seed=seed)

    def feed(self, towers: Sequence[str], batch: int, *, labels: bool = False, shared: bool = True) -> Stream:
        """Return batches of the spectra of some towers.

        Args:
            towers: "lamost", "gaia_xp" or both; files without spectra of one of them are left out.
            batch: rows, of all processes together.
            labels: also read the labels.
            shared: each process reads its share of a batch; otherwise every one reads all of it.

        Raises:
            DataError: no file has spectra of these towers.
            ConfigError: they do not fill a batch, or the processes cannot share it.
        """
        rows = self._rows(self.train, towers, labels)
        lanes = largest_divisor(batch, LANES)
        order = Order(rows=len(rows), batch=batch, seed=self.seed, lanes=lanes)
        if not shared:
            return Stream(rows, order)
        return Stream(rows, order, process=jax.process_index(), processes=jax.process_count())

    def held_out_batches(self, towers: Sequence[str], batch: int) -> list[Batch]:
        """Read batches of held-out stars, smaller ones if there are fewer; [] if there is none."""
        parts = [part for part in self.held_out if set(towers) <= part.sides.keys()]
        if not parts:
            return []
        rows = Rows(parts, towers)
        size = min(batch, len(rows))
        return [rows.read(k * size, size) for k in range(min(len(rows) // size, HELD_OUT_BATCHES))]

    def material(self, augmented: bool) -> Material:
        """Return what the stages train on; with `augmented`, LAMOST spectra vary as in `augment`."""
        if not self.labels:
            return Material({}, None, {}, streamed_draw(augmented), self)
        values = _sample(self._rows(self.train, (), True))["labels"]
        mean, std = label_scale(values.astype(np.float64))
        if not np.isfinite(mean).all():
            raise DataError(f"no spectrum has all of the labels {', '.join(self.labels)}")
        scaler = {"label_mean": mean.astype(np.float32), "label_std": std.astype(np.float32)}
        return Material({}, self._validation(), scaler, streamed_draw(augmented), self)

    def count(self, tower: str) -> int:
        """Return the number of spectra of a tower to train on."""
        return sum(len(part) for part in self.train if tower in part.sides)

    def fill(self, components: int = 20) -> PrincipalFill | None:
        """Fit the principal components that fill masked pixels to a sample; None without LAMOST spectra."""
        if not self.count("lamost"):
            return None
        sample = _sample(self._rows(self.train, ("lamost",), False), FILL_SAMPLE)
        return PrincipalFill.fit(sample["flux"].astype(np.float64), ~sample["valid"], components)

    def examples(self, towers: Sequence[str], count: int) -> Batch:
        """Read held-out stars, or training stars if none is held out."""
        parts = [part for part in self.held_out or self.train if set(towers) <= part.sides.keys()]
        rows = Rows(parts or self._rows(self.train, towers, False).parts, towers)
        return rows.read(0, min(count, len(rows)))

    def labelled_examples(self, count: int = SAMPLE) -> tuple[Float32Array, Float32Array] | None:
        """Return LAMOST flux (n, p) and labels (n, k) of held-out stars that have all labels."""
        parts = [part for part in self.held_out if "lamost" in part.sides]
        if not parts or not self.labels:
            return None
        rows = Rows(parts, ("lamost",), self.labels)
        found = rows.read(0, min(count, len(rows)))
        known = np.isfinite(found["labels"]).all(axis=1) & found["valid"].all(axis=1)
        return found["flux"][known], found["labels"][known]

    def _validation(self) -> ValidationStars | None:
        found = self.labelled_examples()
        if found is None or len(found[0]) < 2:
            return None
        return ValidationStars(jax.numpy.asarray(found[0]), found[1].astype(np.float64), True)

    def _rows(self, parts: Sequence[Part], towers: Sequence[str], labels: bool) -> Rows:
        fitting = [part for part in parts if set(towers) <= part.sides.keys()]
        if not fitting:
            names = {"lamost": "LAMOST", "gaia_xp": "Gaia XP"}
            raise DataError(
                f"no file has {' and '.join(names[tower] for tower in towers)} spectra to train on"
            )
        return Rows(fitting, towers, self.labels if labels else ())


def _sample(rows: Rows, count: int = SAMPLE) -> Batch:
    """Read rows in 16 blocks evenly spread over all rows, `count` together."""
    count = min(count, len(rows))
    size = max(count // 16, 1)
    starts = np.linspace(0, len(rows) - size, count // size).astype(int)
    blocks = [rows.read(int(start), size) for start in starts]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


@functools.cache
def streamed_draw(augmented: bool) -> Draw:
    """Make the draw of the batch that a feed has put into the data."""

    def draw(key: jax.Array, data: Tree, batch: int, config: AugmentConfig) -> Tree:
        found = data["batch"]
        if not augmented or "flux" not in found:
            return found
        flux, kept = augment(key, found["flux"], config)
        return {**found, "flux": flux, "valid": found["valid"] & kept}

    return draw
