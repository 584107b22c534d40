"""The same work in PyTorch with `peft`: the published modules, adapted as in the paper, one seed at a time.

The modules are those of the parity tests. Every method returns a call to time; seeds that specjax trains
together run here one after the other.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from specjax.config import LoRAConfig, ModelConfig
from specjax.typing import Float32Array

Call = Callable[[], Any]

LEARNING_RATE = 1e-3
LOGIT_SCALE = 15.5


def missing_packages() -> str:
    """Return a message on the packages that are not installed, or "" if all are."""
    missing = [name for name in ("torch", "peft") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install '.[bench]'" if missing else ""


class TorchSide:
    """Modules with random weights on the device that PyTorch finds."""

    def __init__(self, config: ModelConfig, half: bool) -> None:
        """Select the device; with `half`, matrix products are in bfloat16."""
        self.torch: Any = importlib.import_module("torch")
        self.modules: Any = importlib.import_module("tests.models.published")
        self.config = config
        self.device = "cuda" if self.torch.cuda.is_available() else "cpu"
        self.half = half
        self.torch.set_default_device(self.device)
        self.torch.manual_seed(0)

    def embed(self, kind: str, flux: Float32Array, *, compile_it: bool = False) -> Call:
        """Embed flux (n, pixels) as "lamost" mean tokens, "gaia_xp" latents or "projected" vectors."""
        tower = self.modules.GaiaXPHead if kind == "gaia_xp" else self.modules.LamostHead
        network = tower(self.config).to(self.device).eval()
        spectra = self._tensor(flux)

        def forward(x: Any) -> Any:
            if kind == "projected":
                return network(x)
            out = network.backbone(x)
            return out["latent"] if kind == "gaia_xp" else out["embedding"].mean(1)

        run = self.torch.compile(forward) if compile_it else forward

        def call() -> Any:
            with self.torch.inference_mode(), self._autocast():
                return self._finished(run(spectra))

        return call

    def masked_modelling(
        self, tokens: Any, hidden: Any, seeds: int, *, full: bool = False, compile_it: bool = False
    ) -> Call:
        """Train one LoRA1 step (with `full`, of all weights) per seed on tokens (n, t, d), hidden (n, t)."""
        network: Any = self.modules.SpecFormer(self.config.specformer)
        if not full:
            network = self._adapted(network, self.config.lora1, r".*attention\.(q_proj|kv_proj|out_proj)")
        network = network.to(self.device).train()
        inner = network if full else network.base_model.model
        given, mask = self._tensor(tokens), self._tensor(hidden)
        position = self.torch.arange(given.shape[1], device=self.device)

        def loss() -> Any:
            x = inner.data_embed(self.torch.where(mask[..., None], 0.0, given))
            x = x + inner.position_embed(position)
            for block in inner.blocks:
                x = block(x)
            error = (inner.head(inner.final_layernorm(x)) - given) ** 2
            return (error.mean(-1) * mask).mean() / mask.float().mean()

        return self._steps(network, self.torch.compile(loss) if compile_it else loss, seeds)

    def joint(self, tokens: Any, labels: Float32Array, seeds: int, *, compile_it: bool = False) -> Call:
        """Train one step of LoRA1 and LoRA2 together per seed on tokens (n, t, d) with labels (n,)."""
        backbone = self._adapted(
            self.modules.SpecFormer(self.config.specformer),
            self.config.lora1,
            r".*attention\.(q_proj|kv_proj|out_proj)",
        )
        head = self.modules.ParamRegressor(self.config.specformer.dim, self.config.head)
        head = self._adapted(head, self.config.lora2, r"network\.\d+", linear_only=True).eval()
        network = self.torch.nn.ModuleList([backbone, head]).to(self.device)
        inner = backbone.base_model.model
        given, y = self._tensor(tokens), self._tensor(labels)
        position = self.torch.arange(given.shape[1], device=self.device)

        def loss() -> Any:
            x = inner.data_embed(given) + inner.position_embed(position)
            for block in inner.blocks:
                x = block(x)
            residual = head(inner.final_layernorm(x).mean(1))[:, 0] - y
            return (0.09 * ((1 + (residual / 0.3) ** 2).sqrt() - 1)).mean()

        return self._steps(network, self.torch.compile(loss) if compile_it else loss, seeds)

    def contrastive(self, tokens: Float32Array, z_xp: Float32Array, seeds: int) -> Call:
        """Train one LoRA3 step per seed on cached tokens (n, t, d) against z_xp (n, d)."""
        tower = self.modules.LamostHead(self.config)
        del tower.backbone
        network = self._adapted(tower, self.config.lora3, r".*mlp\.(encoder|decoder)")
        # peft cannot adapt the output layer inside MultiheadAttention, so only the two layers of the mlp are.
        network = network.to(self.device).train()
        inner = network.base_model.model
        given, other = self._tensor(tokens), self._tensor(z_xp)
        rows = self.torch.arange(len(given), device=self.device)
        functional = self.torch.nn.functional

        def loss() -> Any:
            pooled = inner.cross_attention(given)
            z = functional.normalize(pooled + inner.mlp(pooled), dim=-1)
            logits = LOGIT_SCALE * functional.normalize(other, dim=-1) @ z.T
            return (functional.cross_entropy(logits, rows) + functional.cross_entropy(logits.T, rows)) / 2

        return self._steps(network, loss, seeds)

    def head_run(self, features: Float32Array, labels: Float32Array, seeds: int, steps: int) -> Call:
        """Train LoRA2 or LoRA4 for each seed, on features (n, d) and labels (n,) in full batches."""
        x, y = self._tensor(features), self._tensor(labels)

        def one_seed() -> Any:
            head = self.modules.ParamRegressor(x.shape[1], self.config.head)
            network = self._adapted(head, self.config.lora4, r"network\.\d+", linear_only=True)
            network = network.to(self.device).eval()  # running statistics and no dropout, as in specjax

            def loss() -> Any:
                residual = network(x)[:, 0] - y
                return (0.09 * ((1 + (residual / 0.3) ** 2).sqrt() - 1)).mean()

            return self._steps(network, loss, steps, decay=0.1)()

        return lambda: [one_seed() for _ in range(seeds)][-1]

    def _adapted(self, network: Any, lora: LoRAConfig, targets: str, linear_only: bool = False) -> Any:
        names: Any = targets
        if linear_only:
            names = [n for n, module in network.named_modules() if isinstance(module, self.torch.nn.Linear)]
        peft: Any = importlib.import_module("peft")
        settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
        return peft.get_peft_model(network, settings)

    def _steps(self, network: Any, loss: Call, steps: int, decay: float = 0.0) -> Call:
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = self.torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=decay)

        def call() -> Any:
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                with self._autocast():
                    value = loss()
                value.backward()
                self.torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
            return self._finished(value)

        return call

    def _autocast(self) -> Any:
        return self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.half)

    def _tensor(self, array: ArrayLike) -> Any:
        return self.torch.from_numpy(np.array(array)).to(self.device)

    def _finished(self, value: Any) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        del value
