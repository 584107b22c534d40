"""One training in PyTorch, run in several ways: seeds one by one or batched, compiled or not."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from specjax.typing import Float32Array

Call = Callable[[], Any]

LEARNING_RATE, BETAS, CLIP = 1e-3, (0.9, 0.95), 1.0


class Training:
    """A loss with trained parameters, their initial values for each seed, and the number of steps.

    The network is built once. A call starts from the initial values and trains to the end, as one of specjax
    does, so that it copies the few numbers that are trained and makes an optimizer.
    """

    def __init__(
        self,
        loss: nn.Module,
        start: Mapping[str, Any],
        paths: Mapping[str, str],
        *,
        own: tuple[str, ...],
        steps: int,
        decay: float,
        device: str,
    ) -> None:
        """Store the arguments.

        Args:
            loss: a module that returns its loss, in evaluation mode where specjax has no dropout.
            start: initial values (S, ...) of the trained parameters by name, of all seeds.
            paths: paths of our leaves, which are the transposes, by the same names.
            own: names of the buffers that differ between seeds in specjax; here each seed gets a copy.
            steps: optimizer steps.
            decay: weight decay.
            device: "cpu" or "cuda".
        """
        self.loss, self.start, self.steps, self.decay = loss, dict(start), steps, decay
        self.paths, self.device = dict(paths), device
        self.own = {name: loss.get_buffer(name) for name in own}
        parameters = dict(loss.named_parameters())
        self.trained = {name: parameters[name] for name in self.start}
        self._compiled: dict[str, Any] = {}

    def loop(self, seeds: int, *, fused: bool = False, compiled: bool = False) -> Call:
        """Make the call that trains seeds one after the other."""
        loss = self._once("loss", lambda: torch.compile(self.loss)) if compiled else self.loss

        def call() -> Any:
            for seed in range(seeds):
                optimizer = self._begin(self.trained, seed, fused)
                for _ in range(self.steps):
                    optimizer.zero_grad(set_to_none=True)
                    value = loss()
                    value.backward()
                    nn.utils.clip_grad_norm_(list(self.trained.values()), CLIP)
                    optimizer.step()
            return self._finished(value)

        return call

    def batched(self, seeds: int, *, compiled: bool = False) -> Call:
        """Make the call that trains all seeds together, with one copy of the frozen parameters.

        `torch.func.stack_module_state` would copy these for every seed, so that only what is trained is
        stacked. The optimizer is the fused AdamW.
        """
        step = self._clipped_gradients
        if compiled:
            step = self._once("step", lambda: torch.compile(self._clipped_gradients, dynamic=False))
        own = self._own(seeds)
        stacked = {name: leaf[:seeds].clone().requires_grad_() for name, leaf in self.start.items()}

        def call() -> Any:
            optimizer = self._begin(stacked, slice(seeds), True)
            for _ in range(self.steps):
                with torch.no_grad():
                    gradients, values = step(stacked, own)
                for name, leaf in stacked.items():
                    leaf.grad = gradients[name]
                optimizer.step()
            return self._finished(values)

        return call

    def loss_and_gradients(self, seeds: int) -> tuple[Float32Array, dict[str, Float32Array]]:
        """Return the losses (S,) and the gradients (S, ...) by name, of the initial values, seed by seed."""
        losses, gradients = [], []
        for seed in range(seeds):
            self._begin(self.trained, seed, False)
            value = self.loss()
            gradients.append(torch.autograd.grad(value, list(self.trained.values())))
            losses.append(value.detach())
        by_name = zip(self.trained, zip(*gradients, strict=True), strict=True)
        stacked = {name: torch.stack(each).cpu().numpy() for name, each in by_name}
        return torch.stack(losses).cpu().numpy(), stacked

    def batched_loss_and_gradients(self, seeds: int) -> tuple[Float32Array, dict[str, Float32Array]]:
        """Return the same as `loss_and_gradients`, of all seeds together."""
        with torch.no_grad():
            stacked = {name: leaf[:seeds] for name, leaf in self.start.items()}
            gradients, losses = self._gradients(stacked, self._own(seeds))
        return losses.cpu().numpy(), {name: leaf.cpu().numpy() for name, leaf in gradients.items()}

    def _own(self, seeds: int) -> dict[str, Any]:
        return {name: leaf.expand(seeds, *leaf.shape).clone() for name, leaf in self.own.items()}

    def _gradients(self, stacked: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
        def one_seed(trained: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
            with self._attention():
                return functional_call(self.loss, {**trained, **own}, ())

        return vmap(grad_and_value(one_seed))(stacked, own)

    def _clipped_gradients(self, stacked: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
        """Return gradients, those of each seed clipped by their own norm, and losses (S,)."""
        gradients, losses = self._gradients(stacked, own)
        norm = sum(leaf.flatten(1).square().sum(1) for leaf in gradients.values()).sqrt()
        scale = torch.clamp(CLIP / (norm + 1e-6), max=1.0)
        return {
            name: leaf * scale.view(-1, *[1] * (leaf.ndim - 1)) for name, leaf in gradients.items()
        }, losses

    def _begin(self, trained: Mapping[str, Any], seed: int | slice, fused: bool) -> Any:
        """Copy initial values into the trained parameters, and make their optimizer."""
        with torch.no_grad():
            for name, leaf in trained.items():
                leaf.copy_(self.start[name][seed])
        return torch.optim.AdamW(
            list(trained.values()),
            lr=LEARNING_RATE,
            betas=BETAS,
            weight_decay=self.decay,
            fused=fused or None,
        )

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Keep compiled functions, so that they are compiled once for any number of seeds."""
        if name not in self._compiled:
            self._compiled[name] = make()
        return self._compiled[name]

    def _attention(self) -> Any:
        """Compute attention by matrix products on a CPU, whose fused kernel `vmap` would run seed by seed."""
        return sdpa_kernel(SDPBackend.MATH) if self.device == "cpu" else nullcontext()

    def _finished(self, value: Any) -> Any:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return value.detach()
