"""Run the published weights on the authors' test data: their agreement with themselves, and their labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specjax.errors import ConfigError, DataError
from specjax.foundation import DtypeChoice, Foundation, load
from specjax.progress import Say, silent
from specjax.report.agreement import Agreement, compare_labels, compare_pairs
from specjax.services.hub_data import fetch_data
from specjax.services.specclip import (
    HEADS,
    MODELS,
    REPOSITORY,
    TEST_DATA,
    PublishedHead,
    fetch_heads,
    fetch_specclip,
)
from specjax.spectra import Spectra
from specjax.surveys import read, read_xp
from specjax.typing import FloatArray, StrArray

Convert = Callable[..., Mapping[str, Mapping[str, str]]]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the published weights give.

    Attributes:
        agreement: comparisons by model, and of labels under "labels".
        id: (n,) ids of the stars.
        labels: (n,) labels by name, such as fe_h_lamost.
    """

    agreement: Mapping[str, Sequence[Agreement]]
    id: StrArray
    labels: Mapping[str, FloatArray]


def check_published(
    *,
    convert: Convert,
    weights: str = REPOSITORY,
    data: str = TEST_DATA,
    models: Sequence[str] = tuple(MODELS),
    limit: int = 256,
    out: Path | None = None,
    dtype: DtypeChoice = "auto",
    say: Say = silent,
) -> Published:
    """Fetch weights and pairs, translate and reconstruct the spectra, and predict labels from both surveys.

    Args:
        convert: `checkpoints_convert.convert`.
        weights: repository or folder of the published files.
        data: repository, folder or file of pairs of LAMOST and Gaia XP spectra.
        models: keys of `MODELS`; labels are predicted by the heads of these.
        limit: number of pairs, at most.
        out: folder for converted weights, in place of that in the cache.
        dtype: as in `foundation.load`.
        say: receives lines of progress.

    Raises:
        ConfigError: another model, or fewer than two pairs are asked for.
        SpecjaxError: what cannot be fetched, converted or read.
    """
    if unknown := [name for name in models if name not in MODELS] or not models:
        raise ConfigError(f"there is no published model {unknown}: the models are {', '.join(MODELS)}")
    lamost, xp = _pairs(data, limit, say)
    folder = fetch_specclip(weights, out, convert=convert, only=[MODELS[name] for name in models], say=say)
    wanted = [head for head in HEADS if head.model in models]
    heads = fetch_heads(
        weights, None if out is None else Path(out) / "heads", convert=convert, heads=wanted, say=say
    )
    agreement: dict[str, Sequence[Agreement]] = {}
    labels: dict[str, FloatArray] = {}
    for name in models:
        say(f"{name}: {len(lamost)} pairs")
        model = load((folder / MODELS[name]).with_suffix(""), dtype=dtype)
        agreement[name] = compare_pairs(model, lamost, xp)
        mine = {head: path for head, path in heads.items() if head.model == name}
        labels |= _labels(model, mine, {"lamost": lamost, "gaia_xp": xp})
    agreement["labels"] = _compared(labels)
    return Published(agreement=agreement, id=lamost.id, labels=labels)


def _pairs(data: str, limit: int, say: Say) -> tuple[Spectra, Spectra]:
    """Return the first pairs of which both spectra are complete."""
    if limit < 2:
        raise ConfigError(f"at least two pairs are needed to compare, not {limit}")
    path = Path(data).expanduser()
    path = path if path.exists() else fetch_data(data, say=say)
    files = [path] if path.is_file() else sorted(path.rglob("*.h5"))
    for file in files:
        xp = read_xp(file)
        if xp is not None:
            lamost = read(file)
            whole = np.flatnonzero(~lamost.mask.any(axis=1) & ~xp.mask.any(axis=1))[:limit]
            if len(whole) < 2:
                raise DataError(f"{file} has fewer than two pairs without missing pixels")
            return lamost[whole], xp[whole]
    raise DataError(f"{data} has no .h5 file with lamost_spectra and gaia_spectra of the same stars")


def _labels(
    model: Foundation, heads: Mapping[PublishedHead, Path], sides: Mapping[str, Spectra]
) -> dict[str, FloatArray]:
    """Predict the labels of the heads from the vectors of their surveys, by names such as fe_h_lamost."""
    vectors = {survey: model.embed(sides[survey]) for survey in {head.survey for head in heads}}
    found: dict[str, FloatArray] = {}
    for head, folder in heads.items():
        predicted = load(folder).predict_from_features(vectors[head.survey], "mlp2")[head.label]
        found[f"{head.label}_{head.survey}"] = predicted.astype(np.float64)
    return found


def _compared(labels: Mapping[str, FloatArray]) -> list[Agreement]:
    names = dict.fromkeys(head.label for head in HEADS)
    both = [name for name in names if {f"{name}_lamost", f"{name}_gaia_xp"} <= labels.keys()]
    return [
        row
        for name in both
        for row in compare_labels(name, labels[f"{name}_lamost"], labels[f"{name}_gaia_xp"])
    ]
