"""`Foundation`: a trained model with its parameters, and what a user asks of it.

The methods take spectra on the model grids as NumPy or JAX arrays and return NumPy arrays, for any number of
spectra and without recompiling (see models/inference.py).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import ArrayLike

from specjax import lora
from specjax.config import LoRAConfig, ModelConfig, from_dict, to_dict
from specjax.errors import ConfigError, DataError, ModelError
from specjax.foundation.inference import (
    DTYPES,
    Placement,
    Summary,
    place,
    run_head,
    run_program,
    run_projection,
    run_summary,
)
from specjax.foundation.inputs import as_array, check_values, pixel_count
from specjax.foundation.ood import Domain
from specjax.typing import BoolArray, Float32Array, FloatArray, StrArray

SURVEYS = ("lamost", "gaia_xp")


@dataclass(frozen=True, kw_only=True, eq=False)
class Foundation:
    """A model that can embed, reconstruct, translate and predict.

    Attributes:
        config: sizes and label names.
        variables: {"params": ..., "batch_stats": ...}, the trees of models/ and of the heads "mlp1", "mlp2".
            A part that is not there (a bare encoder has no projection, no heads) is simply missing.
        stats: for each head feature_mean, feature_std (d,) and label_mean, label_std (labels,), as
            {"mlp1": {...}}; what is missing counts as 0 and 1.
        fill: the basis that replaces masked LAMOST pixels, an object with apply(flux, ivar, mask) -> flux.
            Without one, masked pixels are left out of mean and std and enter the tokens as the mean.
        domain: where the spectra that the heads were trained on lie in the space of the mean token; None
            where that is not known, as for imported weights.
        digest: the digest of the folder that the model was read from; adapters name it.
        dtype: what the matrix products of the towers are computed in, "float32" or "bfloat16"; parameters,
            norms, the softmax and results are float32 with both.
    """

    config: ModelConfig
    variables: Mapping[str, Any]
    stats: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fill: Any | None = None
    domain: Domain | None = None
    digest: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"cannot compute in {self.dtype!r}; there are {' and '.join(DTYPES)}")
        # Onto the device once, not with every call. jnp.asarray would compile a program for every shape, and
        # device_put alone shares the memory of a NumPy array, which its owner may change.
        mine = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else np.array(x), dict(self.variables))
        object.__setattr__(self, "variables", jax.device_put(mine))

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameter tree."""
        return self.variables["params"]

    def embed(
        self,
        flux: ArrayLike,
        survey: str = "lamost",
        *,
        ivar: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Float32Array:
        """Embed spectra (n, pixels) as float32 (n, dim).

        The projected vector (shared then private) of a SpecCLIP model, the mean token of a bare LAMOST
        encoder, the latent of a bare Gaia XP autoencoder (the mean token of its transformer). LAMOST flux is
        (n, 1462), continuum-normalised; Gaia XP flux is (n, 343), divided by the flux at 550 nm. `mask` (n,
        pixels) is True where a pixel must not be used and `ivar` (n, pixels) 0 where it says nothing.

        Raises:
            DataError: another survey, a shape that does not fit, or NaN or infinity in an unmasked pixel.
            ModelError: the model has no encoder for that survey.
        """
        program = ("z" if self._is_projected(survey) else "pooled") + "_" + survey
        return self._run(program, *self.prepare(flux, survey, ivar, mask))

    def tokens(
        self, flux: ArrayLike, *, ivar: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> Float32Array:
        """Return all output tokens (n, 146, dim) of the LAMOST encoder; otherwise as `embed`."""
        return self._run("tokens_lamost", *self.prepare(flux, "lamost", ivar, mask))

    def mean_token(
        self, flux: ArrayLike, *, ivar: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> Float32Array:
        """Return the mean (n, dim) over the tokens of the LAMOST encoder; otherwise as `embed`."""
        return self._run("pooled_lamost", *self.prepare(flux, "lamost", ivar, mask))

    def reconstruct(
        self,
        flux: ArrayLike,
        survey: str = "lamost",
        *,
        ivar: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        raw: bool = False,
    ) -> Float32Array:
        """Send spectra (n, pixels) through the encoder and back: float32 (n, pixels), in units of the input.

        With `raw` the output of the decoder as it stands: standardised flux (n, 1462) from the LAMOST decoder
        of SpecCLIP, flux (n, 343) from the Gaia XP one, tokens (n, 146, 21) from a bare LAMOST encoder and
        [mean, std, standardised flux] (n, 345) from a bare autoencoder. Errors as in `embed`; ModelError
        where a SpecCLIP model has no decoders.
        """
        kind = "decoded" if self._is_projected(survey) else "rebuilt"
        if kind == "decoded":
            self._require_decoders()
        return self._run(f"{kind}_{survey}" + "_raw" * raw, *self.prepare(flux, survey, ivar, mask))

    def translate(
        self,
        flux: ArrayLike,
        *,
        source: str,
        target: str,
        ivar: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Float32Array:
        """Predict the spectra (n, pixels) of survey `target` from those of survey `source`.

        Gaia XP flux comes out divided by the flux at 550 nm, LAMOST flux continuum-normalised. Errors as in
        `embed`; DataError where source and target are the same, ModelError where the model has no decoders.
        """
        prepared = self.prepare(flux, source, ivar, mask)
        if target not in SURVEYS or target == source:
            raise DataError(f"cannot translate {source!r} to {target!r}; surveys are {' and '.join(SURVEYS)}")
        self._require_decoders()
        return self._run(f"translated_{target}", *prepared)

    def predict(
        self,
        flux: ArrayLike,
        head: str = "mlp2",
        *,
        adapters: Mapping[str, Any] | None = None,
        configs: Mapping[str, LoRAConfig] | None = None,
        ivar: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> dict[str, Float32Array]:
        """Predict the labels of LAMOST spectra (n, 1462): label name -> (n,), in physical units (teff in K).

        Head "mlp1" reads the mean token, "mlp2" the projected vector. `adapters` and `configs` are as in
        `adapted`. Errors as in `embed`; ModelError where the model has no such head.
        """
        model = self if adapters is None else self.adapted(adapters, configs)
        features = model.features(flux, head, ivar=ivar, mask=mask)
        return model.predict_from_features(features, head)

    def predict_seeds(
        self,
        flux: ArrayLike,
        head: str = "mlp2",
        *,
        adapters: Mapping[str, Any],
        configs: Mapping[str, LoRAConfig] | None = None,
        ivar: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        summary: Summary | None = None,
    ) -> dict[str, Float32Array]:
        """Predict with the adapters of S seeds, each leaf (S, ...): label name -> (S, n); else as `predict`.

        Where the adapters change nothing that `summarise` runs, as all but LoRA1 do, the seeds share its
        `summary` of the spectra, which is made if it is not given.
        """
        count = len(jax.tree.leaves(adapters)[0])
        shared = None
        if _spares_summary(adapters):
            shared = summary or self.summarise(flux, ivar=ivar, mask=mask)
        each = []
        for seed in range(count):
            model = self.adapted(jax.tree.map(lambda leaf, seed=seed: leaf[seed], adapters), configs)
            own = shared or model.summarise(flux, ivar=ivar, mask=mask)
            each.append(model.predict_from_features(model.head_features(own, head), head))
        return {name: np.stack([one[name] for one in each]) for name in self.config.labels}

    def summarise(
        self, flux: ArrayLike, *, ivar: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> Summary:
        """Send LAMOST spectra (n, 1462) through the backbone once, for both heads and `outside`.

        Errors as in `embed`.
        """
        prepared = self.prepare(flux, "lamost", ivar, mask)
        return run_summary(self.config, self._placed, *prepared, self.dtype)

    def features(
        self,
        flux: ArrayLike,
        head: str,
        *,
        ivar: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Float32Array:
        """Return what a head reads, not yet standardised: mean token (mlp1) or projected vector (mlp2)."""
        self._require_features(head)
        return self.head_features(self.summarise(flux, ivar=ivar, mask=mask), head)

    def head_features(self, summary: Summary, head: str) -> Float32Array:
        """Return the same as `features` from the output of `summarise`."""
        self._require_features(head)
        if head == "mlp1":
            return summary.mean
        projection = {"params": self.params["lamost"]["projection"]}
        return run_projection(self.config, projection, summary.mixed, self.dtype)

    def outside(self, summary: Summary) -> tuple[FloatArray, StrArray] | None:
        """Tell LAMOST spectra unlike those that the heads were trained on, from this model's `summarise`.

        Returns the distance (n,), 1 at the edge, and the flag (n,), "" inside or the kind it seems
        to be: see `domain.Domain`. None where the model does not know its domain.
        """
        if self.domain is None:
            return None
        return self.domain.distance(summary.mean), self.domain.flags(summary.mean)

    def predict_from_features(self, features: ArrayLike, head: str) -> dict[str, Float32Array]:
        """Predict labels from the output (n, d) of `features`."""
        if head not in self.params:
            raise ModelError(f"this model has no head {head!r}")
        variables = {key: tree[head] for key, tree in self.variables.items() if head in tree}
        labels = run_head(self.config, variables, self.stats.get(head, {}), np.asarray(features, np.float32))
        return {name: labels[:, index] for index, name in enumerate(self.config.labels)}

    def adapted(
        self, adapters: Mapping[str, Any], configs: Mapping[str, LoRAConfig] | None = None
    ) -> "Foundation":
        """Return the model with an adapter merged into it.

        `adapters` is a small tree: low-rank factors, which are merged with the alpha and rank of `configs`
        (by default the model's own), and any other leaves, which replace the model's (a head trained as a
        whole).

        Raises:
            ModelError: a leaf that the model does not have, or of another shape.
        """
        leaves, merged = (flatten_dict(tree, sep="/") for tree in (adapters, self.params))
        factors = {path: leaf for path, leaf in leaves.items() if path.rpartition("/")[2] in lora.FACTORS}
        touched = {f"{path.rpartition('/')[0]}/kernel" for path in factors} & merged.keys()
        kernels = unflatten_dict({path: merged[path] for path in touched}, sep="/")
        loras = tuple((configs or self.config.loras).items())
        merged |= flatten_dict(_merged(kernels, unflatten_dict(factors, sep="/"), loras), sep="/")
        for path in leaves.keys() - factors.keys():
            if path not in merged or merged[path].shape != leaves[path].shape:
                raise ModelError(f"the adapter does not fit the model: parameter {path!r}")
            merged[path] = leaves[path]
        return replace(self, variables={**self.variables, "params": unflatten_dict(merged, sep="/")})

    def save(self, folder: str | Path, *, half: bool = False, record: Mapping[str, Any] | None = None) -> str:
        """Write a folder that `load` reads, parameters as float16 with `half`; returns its digest.

        `record` is kept in config.json beside the model's sizes: how it was made.
        """
        from specjax.checkpoints import save_model

        arrays = {**self.variables, "stats": self.stats}
        if self.fill is not None:
            arrays["fill"] = self.fill.to_arrays()
        if self.domain is not None:
            arrays["domain"] = self.domain.to_arrays()
        return save_model(
            folder,
            config={"model": to_dict(self.config), **(record or {})},
            arrays=jax.tree.map(np.asarray, arrays),
            half=("params/*",) if half else (),
        )

    def _is_projected(self, survey: str) -> bool:
        self._require_encoder(survey)
        return "projection" in self.params[survey]

    def _require_encoder(self, survey: str) -> None:
        if survey not in SURVEYS:
            raise DataError(f"unknown survey {survey!r}; surveys are {' and '.join(SURVEYS)}")
        if survey not in self.params:
            raise ModelError(f"this model has no encoder for {survey!r}")

    def _require_features(self, head: str) -> None:
        if head not in lora.HEADS:
            raise ModelError(f"there is no head {head!r}; heads are {' and '.join(lora.HEADS)}")
        if head == "mlp2" and not self._is_projected("lamost"):
            raise ModelError("head 'mlp2' reads the projected vector, which a bare encoder does not have")

    def _require_decoders(self) -> None:
        if "lamost_cross_decoder" not in self.params:
            raise ModelError("this model has no decoders")

    def prepare(
        self, flux: ArrayLike, survey: str, ivar: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> tuple[Float32Array, BoolArray]:
        """Check spectra (n, pixels) and fill masked pixels: what the towers read, (flux float32, valid)."""
        self._require_encoder(survey)
        pixels = pixel_count(self.config, survey)
        values = as_array(flux, "flux", np.float64, pixels)
        masked = np.zeros(values.shape, bool)
        weights = None
        if mask is not None:
            masked |= as_array(mask, "mask", np.bool_, pixels, rows=len(values))
        if ivar is not None:
            weights = as_array(ivar, "ivar", np.float64, pixels, rows=len(values))
            masked |= ~(weights > 0)
        check_values(values, masked)
        values = np.where(masked, 1.0, values)
        if self.fill is not None and survey == "lamost" and masked.any():
            values = self.fill.apply(values, weights, masked)
            masked = np.broadcast_to(masked.all(-1, keepdims=True), masked.shape)
        return np.asarray(values, np.float32), ~masked

    def _run(self, program: str, flux: Float32Array, valid: BoolArray) -> Float32Array:
        return run_program(self.config, program, self._placed, flux, valid, self.dtype)

    @functools.cached_property
    def _placed(self) -> Placement:
        return place(self.variables)


@functools.partial(jax.jit, static_argnums=2)
def _merged(kernels: Any, factors: Any, loras: tuple[tuple[str, LoRAConfig], ...]) -> Any:
    """Merge in one program: operation by operation, every shape of a layer would be compiled."""
    return lora.merge(kernels, factors, dict(loras))


def _spares_summary(adapters: Mapping[str, Any]) -> bool:
    """Whether all that adapters change in the towers comes after `Foundation.summarise`."""
    towers = {name: tree for name, tree in adapters.items() if name not in lora.HEADS}
    return set(jax.tree.leaves(lora.partition_labels(towers))) <= {"lora3"}


def load(model: str | Path = "mini", *, dtype: str = "float32") -> Foundation:
    """Read a model folder; the name "mini" is the small model that ships with the package.

    `dtype` "bfloat16" computes the towers' matrix products in half precision: for accelerators, where it is
    many times as fast and moves the numbers of an embedding by under a hundredth of their spread.

    Raises:
        ModelError: the folder is missing, damaged, or of another kind or version.
        ConfigError: its configuration has keys that this version does not know, or another `dtype`.
    """
    from specjax.checkpoints import load_model

    folder = Path(__file__).parents[1] / "data" / "mini" if str(model) == "mini" else Path(model)
    stored = load_model(folder)
    if "model" not in stored.config or "params" not in stored.arrays:
        raise ModelError(f"{folder} holds no model")
    arrays = dict(stored.arrays)
    stats, fill, domain = arrays.pop("stats", {}), arrays.pop("fill", None), arrays.pop("domain", None)
    if fill is not None:
        from specjax.preprocess.fill import PrincipalFill

        fill = PrincipalFill.from_arrays(fill)
    config = from_dict(stored.config["model"])
    return Foundation(
        config=config,
        variables=arrays,
        stats=stats,
        fill=fill,
        domain=None if domain is None else Domain.from_arrays(domain),
        digest=stored.digest,
        dtype=dtype,
    )
