"""The same work in PyTorch with `peft`: the published modules with the weights and factors of the JAX side.

The modules are those of the parity tests. They are built once, outside the timing, and are in evaluation
mode, because specjax too trains without dropout and with the running statistics of the heads.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import ArrayLike

from benchmarks import torch_modules
from benchmarks.timing import Call
from benchmarks.torch_training import Training
from checkpoints_convert.export import state_dict
from checkpoints_convert.keys import table
from checkpoints_convert.model_folder import ModelFolder
from specjax.checkpoints import flatten
from specjax.config import LoRAConfig, ModelConfig
from specjax.foundation import Foundation
from specjax.prepare.pool import core_count
from specjax.typing import Float32Array, Tree

_ATTENTION = ("q_proj", "kv_proj", "out_proj")
_TOWER, _PROJECTION = "lamost_lrs_encoder.backbone.", "lamost_lrs_encoder."


class TorchSide:
    """Modules on the device that PyTorch finds, with as many threads as specjax."""

    def __init__(self, config: ModelConfig, *, half: bool, model: Foundation | None = None) -> None:
        """Select device and precision.

        Args:
            config: sizes.
            half: compute the matrix products of the towers in bfloat16; others are in float32, without TF32.
            model: takes over its parameters; random ones without it, which take the same time.
        """
        self.modules: Any = importlib.import_module("tests.models.published")
        self.config, self.half = config, half
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(core_count())
        torch.set_float32_matmul_precision("highest")  # specjax does not use TF32 either
        # One module is compiled for several losses, precisions and numbers of seeds.
        torch._dynamo.config.recompile_limit = 256
        torch.manual_seed(0)
        self.state = {} if model is None else _published_state(model)

    def embed(self, kind: str, flux: Float32Array, *, compiled: bool = False) -> Call:
        """Embed flux (n, pixels) as "lamost" mean tokens, "gaia_xp" latents or "projected" vectors."""
        tower = self.modules.GaiaXPHead if kind == "gaia_xp" else self.modules.LamostHead
        prefix = "gaia_xp_encoder." if kind == "gaia_xp" else _PROJECTION
        network, spectra = self._ready(tower(self.config), prefix), self._tensor(flux)

        def forward(x: Any) -> Any:
            if kind == "projected":
                return network(x)
            out = network.backbone(x)
            return out["latent"] if kind == "gaia_xp" else out["embedding"].mean(1)

        run = torch.compile(forward) if compiled else forward

        def call() -> Any:
            with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self.half):
                return run(spectra).float().cpu().numpy()

        return call

    def masked_modelling(
        self, tokens: ArrayLike, hidden: ArrayLike, *, factors: Tree | None = None, full: bool = False
    ) -> Training:
        """Train LoRA1, or with `full` all weights, for a step on tokens (n, t, d) with hidden (n, t)."""
        tower = self._ready(self.modules.SpecFormer(self.config.specformer), _TOWER)
        if full:
            tower.requires_grad_(True)
        else:
            self._adapt(tower, self.config.lora1, _names_ending(tower, _ATTENTION))
        loss = torch_modules.MaskedModelling(tower, self._tensor(tokens), self._tensor(hidden))
        return self._training(loss, {"tower": ("lamost", "")}, factors, own=("tokens", "hidden"))

    def joint(self, tokens: ArrayLike, labels: Float32Array, *, factors: Tree | None = None) -> Training:
        """Train LoRA1 and LoRA2 together for a step on tokens (n, t, d) with labels (n,)."""
        tower = self._ready(self.modules.SpecFormer(self.config.specformer), _TOWER)
        self._adapt(tower, self.config.lora1, _names_ending(tower, _ATTENTION))
        head = self._head(self.config.specformer.dim, self.config.lora2, "mlp1")
        loss = torch_modules.Joint(tower, head, self._tensor(tokens), self._tensor(labels))
        places = {"tower": ("lamost", ""), "head": ("mlp1", "")}
        return self._training(loss, places, factors, own=("tokens", "labels"))

    def contrastive(
        self, tokens: ArrayLike, z_xp: ArrayLike, *, factors: Tree | None = None, folded: bool = False
    ) -> Training:
        """Train LoRA3 for a step on cached tokens (n, t, d) against z_xp (n, d).

        With `folded`, the pooling computes neither keys nor values, as in specjax.
        """
        tower = self._ready(self.modules.LamostHead(self.config), _PROJECTION)
        pool = torch_modules.Pool(tower.cross_attention, folded=folded).to(self.device).eval()
        self._adapt(pool, self.config.lora3, ["out_proj"])
        self._adapt(tower.mlp, self.config.lora3, ["encoder", "decoder"])
        loss = torch_modules.Contrastive(pool, tower.mlp, self._tensor(tokens), self._tensor(z_xp))
        attention = f"{_PROJECTION}cross_attention.multihead_attn."
        places = {"pool": ("specclip", attention), "mlp": ("specclip", f"{_PROJECTION}mlp.")}
        return self._training(loss, places, factors)

    def head_run(
        self, features: Float32Array, labels: Float32Array, steps: int, *, factors: Tree | None = None
    ) -> Training:
        """Train LoRA4 on features (n, d) and labels (n,) in full batches."""
        head = self._head(features.shape[1], self.config.lora4, "mlp2")
        loss = torch_modules.LabelLoss(head, self._tensor(features), self._tensor(labels))
        places = {"head": ("mlp2", "")}
        return self._training(loss, places, factors, own=("features", "labels"), steps=steps, decay=0.1)

    def _head(self, inputs: int, lora: LoRAConfig, part: str) -> Any:
        head = self._ready(self.modules.ParamRegressor(inputs, self.config.head), f"{part}:")
        for name, module in list(head.network.named_children()):
            if isinstance(module, torch.nn.BatchNorm1d):
                head.network[int(name)] = torch_modules.FrozenNorm(module)
        layers = [each for each, module in head.named_modules() if isinstance(module, torch.nn.Linear)]
        self._adapt(head, lora, layers)
        return head

    def _ready(self, network: Any, prefix: str) -> Any:
        """Load the parameters with a prefix, and freeze and move the network."""
        own = {
            name.removeprefix(prefix): leaf for name, leaf in self.state.items() if name.startswith(prefix)
        }
        if own:
            network.load_state_dict({name: torch.from_numpy(np.array(leaf)) for name, leaf in own.items()})
        return network.to(self.device).eval().requires_grad_(False)

    def _adapt(self, network: Any, lora: LoRAConfig, layers: list[str]) -> None:
        """Put factors beside layers, in place; only they are trained."""
        settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=layers)
        peft.inject_adapter_in_model(settings, network)
        network.eval().to(self.device)

    def _training(
        self,
        loss: Any,
        places: Mapping[str, tuple[str, str]],
        factors: Tree | None,
        *,
        own: tuple[str, ...] = (),
        steps: int = 1,
        decay: float = 0.0,
    ) -> Training:
        """Make a training from the factors of specjax, or from the module's own.

        Args:
            loss: the module.
            places: part and prefix of the published names by submodule of the loss.
            factors: leaves (S, ...) of the trained tree; without them, one seed trains those of the module,
                further in every call.
            own: data that differ between seeds in specjax.
            steps: optimizer steps.
            decay: weight decay.
        """
        trained = {name: leaf for name, leaf in loss.named_parameters() if leaf.requires_grad}
        paths: dict[str, str] = {}
        if factors is None:
            start = {name: leaf.detach()[None] for name, leaf in trained.items()}
        else:
            leaves, paths = dict(flatten(factors)), factor_paths(self.config, trained, places)
            start = {
                name: self._tensor(np.swapaxes(leaves[path], -1, -2)).contiguous()
                for name, path in paths.items()
            }
        loss.to(self.device).half_precision(self.half)
        return Training(loss, start, paths, own=own, steps=steps, decay=decay, device=self.device)

    def _tensor(self, array: ArrayLike) -> Any:
        return torch.from_numpy(np.array(array)).to(self.device)


def factor_paths(
    config: ModelConfig, names: Mapping[str, Any], places: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """Return the path of our factor, the transpose, for the name of each factor in PyTorch."""
    paths = {}
    for name in names:
        inside, _, rest = name.partition(".")
        part, prefix = places[inside]
        layer, _, factor = rest.removesuffix(".default.weight").rpartition(".")
        rows = {row.key: row.path for row in table(config, [part])}
        kernel = rows[f"{prefix}{layer}.weight"]
        paths[name] = f"{kernel.removeprefix('params/').removesuffix('kernel')}{factor.lower()}"
    return paths


def _names_ending(network: Any, endings: tuple[str, ...]) -> list[str]:
    return [name for name, _ in network.named_modules() if name.rpartition(".")[2] in endings]


def _published_state(model: Foundation) -> dict[str, Any]:
    """Return the parameters of a model by their published names, those of heads after "mlp1:" or "mlp2:"."""
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(dict(model.variables))}
    folder = ModelFolder(folder=Path("memory"), config=model.config, leaves=leaves, digest="", sources={})
    state = dict(state_dict(folder, "specclip"))
    for head in ("mlp1", "mlp2"):
        state |= {f"{head}:{name}": leaf for name, leaf in state_dict(folder, head).items()}
    return state
