"""`Foundation`: a trained model with its parameters, and the operations that a user asks of it.

Spectra are given as `Spectra` on a model grid, with their masks and uncertainties, or as bare arrays of flux.
Results are NumPy arrays, for any number of spectra and without recompiling (see `inference`).
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import ArrayLike

from specjax import display, lora
from specjax.config import LoRAConfig, ModelConfig, from_dict, to_dict
from specjax.errors import ConfigError, DataError, ModelError
from specjax.foundation.inference import Placement, Program, place, run, run_head, run_projection
from specjax.foundation.inputs import SURVEYS, ModelInput, SpectraLike, model_input, survey_of
from specjax.foundation.networks import DTYPES, BackboneFeatures, DtypeChoice, Networks, choose_dtype
from specjax.foundation.ood import OutOfDomain
from specjax.models.label_head import init_residual
from specjax.preprocess.fill import PrincipalFill
from specjax.typing import Float32Array, FloatArray, StrArray

SHIPPED = ("mini", "mini-physics")
"""Names of the models that ship with the package."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Foundation:
    """A model that can embed, reconstruct, translate and predict.

    Attributes:
        config: sizes and label names.
        variables: {"params": ..., "batch_stats": ...}, the trees of the modules and of the heads "mlp1" and
            "mlp2". A part that the model does not have (a bare encoder has no projection and no heads) is
            missing.
        stats: for each head feature_mean, feature_std (d,) and label_mean, label_std (labels,), as
            {"mlp1": {...}}; missing ones are 0 and 1. Where it is known, label_scatter (labels,) is the
            robust scatter of the head's labels on stars that it was not trained on.
        fill: replaces masked LAMOST pixels. Without it, masked pixels are left out of mean and standard
            deviation and enter the tokens as the mean.
        ood: flags spectra unlike those that the heads were trained on; None if that is not known, as for
            imported weights.
        digest: the digest of the folder that the model was read from; adapters refer to it.
        dtype: the type of the towers' matrix products, "float32" or "bfloat16"; parameters, norms, the
            softmax and results are float32 with both.
    """

    config: ModelConfig
    variables: Mapping[str, Any]
    stats: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fill: PrincipalFill | None = None
    ood: OutOfDomain | None = None
    digest: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be {' or '.join(DTYPES)}, not {self.dtype!r}")
        # Moved to the device once, not in every call. jnp.asarray would compile a program for every shape,
        # and device_put alone shares the memory of a NumPy array, which its owner may change.
        mine = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else np.array(x), dict(self.variables))
        object.__setattr__(self, "variables", jax.device_put(mine))

    def __repr__(self) -> str:
        count = lora.count_parameters(self.params)
        labels = f"; labels {', '.join(self.config.labels)}" if self.params.keys() & set(lora.HEADS) else ""
        return (
            f"<Foundation {self.config.name!r}: {', '.join(sorted(self.params))};"
            f" {count:,} parameters{labels}>"
        )

    def _repr_html_(self) -> str:
        parts = {name: lora.count_parameters(tree) for name, tree in sorted(self.params.items())}
        return display.card(
            f"model {self.config.name}",
            {
                "labels": ", ".join(self.config.labels),
                "parameters": f"{sum(parts.values()):,}",
                **{f"of {name}": f"{count:,}" for name, count in parts.items()},
                "matrix products": self.dtype,
                "out-of-domain flags": "no" if self.ood is None else "yes",
                "digest": self.digest and self.digest[:12],
            },
        )

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameter tree."""
        params: Mapping[str, Any] = self.variables["params"]
        return params

    def embed(self, spectra: SpectraLike, survey: str | None = None) -> Float32Array:
        """Embed spectra as vectors (n, dim).

        The projected vector (shared then private) for a SpecCLIP model, the mean token for a bare LAMOST
        encoder, the latent for a bare Gaia XP autoencoder (the mean token for its transformer).

        Args:
            spectra: n spectra on a model grid, as `preprocess.to_lamost` or `to_gaia_xp` return them; or an
                array of flux without masked pixels, continuum-normalised (n, 1462) for LAMOST, divided by the
                flux at 550 nm (n, 343) for Gaia XP.
            survey: "lamost" or "gaia_xp", for arrays; LAMOST by default.

        Raises:
            DataError: another survey, spectra that are not on a model grid, a shape that does not fit, or NaN
                or infinity in an unmasked pixel.
            ModelError: the model has no encoder for that survey.
        """
        survey = self._survey(spectra, survey)
        if survey == "lamost":
            program: Program = Networks.lamost_z if self._is_projected(survey) else Networks.lamost_mean
        else:
            program = Networks.xp_z if self._is_projected(survey) else Networks.xp_latent
        return self._run(program, spectra, survey)

    def tokens(self, spectra: SpectraLike) -> Float32Array:
        """Return all output tokens (n, 146, dim) of the LAMOST encoder; otherwise as `embed`."""
        return self._run(Networks.lamost_tokens, spectra, self._survey(spectra, "lamost"))

    def mean_token(self, spectra: SpectraLike) -> Float32Array:
        """Return the mean (n, dim) over the tokens of the LAMOST encoder; otherwise as `embed`."""
        return self._run(Networks.lamost_mean, spectra, self._survey(spectra, "lamost"))

    def reconstruct(
        self, spectra: SpectraLike, survey: str | None = None, *, raw: bool = False
    ) -> Float32Array:
        """Encode and decode spectra: flux (n, pixels), in units of the input.

        With `raw`, the output of the decoder itself: standardised flux (n, 1462) from the LAMOST decoder of
        SpecCLIP, flux (n, 343) from the Gaia XP one, tokens (n, 146, 21) from a bare LAMOST encoder and
        [mean, std, standardised flux] (n, 345) from a bare autoencoder. Arguments and errors as in `embed`;
        ModelError if a SpecCLIP model has no decoders.
        """
        survey = self._survey(spectra, survey)
        projected = self._is_projected(survey)
        if projected:
            self._require_decoders()
        return self._run(_RECONSTRUCT[survey, projected, raw], spectra, survey)

    def translate(self, spectra: SpectraLike, *, source: str | None = None, target: str) -> Float32Array:
        """Predict the spectra (n, pixels) of survey `target` from those of survey `source`.

        Gaia XP flux is returned divided by the flux at 550 nm, LAMOST flux continuum-normalised. `source` is
        needed for arrays only. Errors as in `embed`; DataError if source and target are the same, ModelError
        if the model has no decoders.
        """
        source = self._survey(spectra, source)
        if target not in SURVEYS or target == source:
            raise DataError(f"cannot translate {source!r} to {target!r}; surveys are {' and '.join(SURVEYS)}")
        self._require_decoders()
        program = Networks.lamost_translated if target == "lamost" else Networks.xp_translated
        return self._run(program, spectra, source)

    def predict(
        self,
        spectra: SpectraLike,
        head: str = "mlp2",
        *,
        adapters: Mapping[str, Any] | None = None,
        configs: Mapping[str, LoRAConfig] | None = None,
    ) -> dict[str, Float32Array]:
        """Predict the labels of LAMOST spectra: label name -> (n,), in physical units (teff in K).

        Head "mlp1" reads the mean token, "mlp2" the projected vector. `adapters` and `configs` are those of
        `adapted`. Errors as in `embed`; ModelError if the model has no such head.
        """
        model = self if adapters is None else self.adapted(adapters, configs)
        return model.predict_from_features(model.features(spectra, head), head)

    def backbone_features(self, spectra: SpectraLike) -> BackboneFeatures:
        """Run the LAMOST backbone once, for both heads and for `out_of_domain`; errors as in `embed`."""
        flux, valid = self.model_input(spectra, "lamost")
        features: BackboneFeatures = run(
            self.config, Networks.lamost_features, self._placed, flux, valid, self.dtype
        )
        return features

    def features(self, spectra: SpectraLike, head: str) -> Float32Array:
        """Return what a head reads before it is standardised: mean token or projected vector (n, d)."""
        self._require_features(head)
        return self.head_features(self.backbone_features(spectra), head)

    def head_features(self, features: BackboneFeatures, head: str) -> Float32Array:
        """Return the same as `features` from the output of `backbone_features`."""
        self._require_features(head)
        if head == "mlp1":
            mean: Float32Array = features.mean
            return mean
        projection = {"params": self.params["lamost"]["projection"]}
        return run_projection(self.config, projection, features.mixed, self.dtype)

    def label_scatter(self, head: str) -> dict[str, float]:
        """Return the robust scatter of a head's labels on stars that it was not trained on, if it is known.

        In physical units, by label; {} for a model whose folder does not say.
        """
        known = self.stats.get(head, {}).get("label_scatter")
        if known is None:
            return {}
        return dict(zip(self.config.labels, np.asarray(known, np.float64).tolist(), strict=True))

    @property
    def default_head(self) -> str:
        """The head that reads the projected vector, if the model has it, else that of the mean token."""
        return "mlp1" if "mlp1" in self.params and "mlp2" not in self.params else "mlp2"

    def predict_from_features(self, features: ArrayLike, head: str) -> dict[str, Float32Array]:
        """Predict labels from the output (n, d) of `features`."""
        if head not in self.params:
            raise ModelError(f"this model has no head {head!r}")
        variables = {key: tree[head] for key, tree in self.variables.items() if head in tree}
        labels = run_head(self.config, variables, self.stats.get(head, {}), np.asarray(features, np.float32))
        return {name: labels[:, index] for index, name in enumerate(self.config.labels)}

    def out_of_domain(self, features: BackboneFeatures) -> tuple[FloatArray, StrArray] | None:
        """Flag spectra unlike those that the heads were trained on, from this model's `backbone_features`.

        Returns the distance (n,), 1 at the edge of the training domain, and the flag (n,), see
        `ood.OutOfDomain`. None if the model does not know its training domain.
        """
        if self.ood is None:
            return None
        return self.ood.judge(features.mean)

    def adapted(
        self, adapters: Mapping[str, Any], configs: Mapping[str, LoRAConfig] | None = None
    ) -> "Foundation":
        """Return the model with an adapter merged into it.

        Args:
            adapters: low-rank factors, which are merged with the alpha and rank of `configs`; the network of
                a residual head, which is added to a head; and other leaves, such as a whole head, which
                replace the model's.
            configs: by LoRA group; the model's own by default.

        Raises:
            ModelError: a leaf that the model does not have, or of another shape.
        """
        leaves, merged = (flatten_dict(tree, sep="/") for tree in (adapters, self.params))
        factors = {path: leaf for path, leaf in leaves.items() if path.rpartition("/")[2] in lora.FACTORS}
        touched = {f"{path.rpartition('/')[0]}/kernel" for path in factors} & merged.keys()
        kernels = unflatten_dict({path: merged[path] for path in touched}, sep="/")
        loras = tuple((configs or self.config.loras).items())
        merged |= flatten_dict(_merged(kernels, unflatten_dict(factors, sep="/"), loras), sep="/")
        others = {path: leaf for path, leaf in leaves.items() if path not in factors}
        added = self._residual_shapes(others)
        shapes = {path: leaf.shape for path, leaf in merged.items()} | added
        for path in others.keys() | added.keys():
            if path not in others or others[path].shape != shapes.get(path):
                raise ModelError(f"the adapter does not fit the model: parameter {path!r}")
        merged |= others
        return replace(self, variables={**self.variables, "params": unflatten_dict(merged, sep="/")})

    def save(self, folder: str | Path, *, half: bool = False, record: Mapping[str, Any] | None = None) -> str:
        """Write a folder that `load` reads, with `half` the parameters as float16; returns its digest.

        `record`, a description of how the model was made, is kept in config.json beside its sizes.
        """
        from specjax.checkpoints import save_model

        arrays = {**self.variables, "stats": self.stats}
        if self.fill is not None:
            arrays["fill"] = self.fill.to_arrays()
        if self.ood is not None:
            arrays["domain"] = self.ood.to_arrays()
        return save_model(
            folder,
            config={"model": to_dict(self.config), **(record or {})},
            arrays=jax.tree.map(np.asarray, arrays),
            half=("params/*",) if half else (),
        )

    def model_input(self, spectra: SpectraLike, survey: str | None = None) -> ModelInput:
        """Return what the networks read: checked spectra with masked pixels filled; errors as in `embed`."""
        survey = self._survey(spectra, survey)
        return model_input(spectra, survey, self.config, self.fill if survey == "lamost" else None)

    def _residual_shapes(self, paths: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all leaves of the residual heads that any of these paths belongs to."""
        touched = {path.partition("/")[0] for path in paths if "/residual_" in path} & self.params.keys()
        shapes: dict[str, tuple[int, ...]] = {}
        for head in touched & set(lora.HEADS):
            width = self.params[head]["dense_0"]["kernel"].shape[-2]
            make = functools.partial(init_residual, config=self.config.head, width=width)
            leaves = flatten_dict(jax.eval_shape(make, jax.random.key(0)), sep="/")
            shapes |= {f"{head}/{path}": leaf.shape for path, leaf in leaves.items()}
        return shapes

    def _run(self, program: Program, spectra: SpectraLike, survey: str) -> Float32Array:
        flux, valid = self.model_input(spectra, survey)
        result: Float32Array = run(self.config, program, self._placed, flux, valid, self.dtype)
        return result

    def _survey(self, spectra: SpectraLike, survey: str | None) -> str:
        """Return the survey of the spectra, for which the model has an encoder."""
        survey = survey_of(spectra, survey)
        self._require_encoder(survey)
        return survey

    def _require_encoder(self, survey: str) -> None:
        if survey not in self.params:
            raise ModelError(f"this model has no encoder for {survey!r}")

    def _is_projected(self, survey: str) -> bool:
        return "projection" in self.params[survey]

    def _require_features(self, head: str) -> None:
        if head not in lora.HEADS:
            raise ModelError(f"there is no head {head!r}; heads are {' and '.join(lora.HEADS)}")
        self._require_encoder("lamost")
        if head == "mlp2" and not self._is_projected("lamost"):
            raise ModelError("head 'mlp2' reads the projected vector, which a bare encoder does not have")

    def _require_decoders(self) -> None:
        if "lamost_cross_decoder" not in self.params:
            raise ModelError("this model has no decoders")

    @functools.cached_property
    def _placed(self) -> Placement:
        return place(self.variables)


# (survey, with projection, raw) -> program of `Foundation.reconstruct`.
_RECONSTRUCT: Mapping[tuple[str, bool, bool], Program] = {
    ("lamost", True, False): Networks.lamost_decoded,
    ("lamost", True, True): Networks.lamost_decoded_raw,
    ("lamost", False, False): Networks.lamost_rebuilt,
    ("lamost", False, True): Networks.lamost_rebuilt_raw,
    ("gaia_xp", True, False): Networks.xp_decoded,
    ("gaia_xp", True, True): Networks.xp_decoded,
    ("gaia_xp", False, False): Networks.xp_rebuilt,
    ("gaia_xp", False, True): Networks.xp_rebuilt_raw,
}


@functools.partial(jax.jit, static_argnums=2)
def _merged(kernels: Any, factors: Any, loras: tuple[tuple[str, LoRAConfig], ...]) -> Any:
    """Merge in one program: operation by operation, every shape of a layer would be compiled."""
    return lora.merge(kernels, factors, dict(loras))


def shipped_folder(name: str) -> Path:
    """Return the folder of a model that ships with the package."""
    return Path(__file__).parents[1] / "data" / name


def load(model: str | Path = "mini", *, dtype: DtypeChoice = "auto") -> Foundation:
    """Read a model folder; "mini" and "mini-physics" are the small models that ship with the package.

    A model on the Hugging Face hub is named hf://owner/name, or hf://owner/name@revision; it is fetched into
    the cache, and from there without a network the next time.

    With `dtype` "bfloat16" the towers compute their matrix products in half precision, with sums in float32.
    On a GPU that is many times as fast, and it changes an embedding by less than a hundredth of the
    embeddings' spread. It is the default ("auto") on GPUs and TPUs that are fast in it, and "float32"
    elsewhere. Label heads and decoders compute in float32, and no product in float32 is rounded to TF32.

    Raises:
        ModelError: the folder is missing, damaged, or of another kind or version.
        DownloadError: it cannot be fetched from the hub.
        ConfigError: its configuration has keys that this version does not know, or another `dtype`.

    Examples:
        >>> load("mini").config.labels
        ('teff', 'logg', 'fe_h')
    """
    from specjax.checkpoints import load_model

    folder = shipped_folder(str(model)) if str(model) in SHIPPED else model
    stored = load_model(folder)
    if "model" not in stored.config or "params" not in stored.arrays:
        raise ModelError(f"{folder} holds no model")
    arrays = dict(stored.arrays)
    stats, fill, domain = (arrays.pop(name, None) for name in ("stats", "fill", "domain"))
    return Foundation(
        config=from_dict(stored.config["model"]),
        variables=arrays,
        stats=stats or {},
        fill=None if fill is None else PrincipalFill.from_arrays(fill),
        ood=None if domain is None else OutOfDomain.from_arrays(domain),
        digest=stored.digest,
        dtype=choose_dtype(dtype),
    )
