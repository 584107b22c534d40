"""The losses of the PyTorch side as modules: what they train is a parameter, their data are buffers.

A module without arguments can be compiled, and called with the factors of another seed by `torch.func`.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

LOGIT_SCALE = 15.5
DELTA = 0.3


class TowerLoss(nn.Module):
    """A loss whose tower computes products in bfloat16 if asked to, and everything after it in float32."""

    half = False

    def half_precision(self, half: bool) -> None:
        """Choose the type of the products of the tower."""
        self.half = half

    def in_tower(self) -> Any:
        """Return the context in which the tower computes."""
        device = next(self.buffers()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.half)


class MaskedModelling(TowerLoss):
    """The masked-modelling loss of a tower for tokens (n, t, d), of which some, (n, t), are hidden."""

    def __init__(self, tower: Any, tokens: Any, hidden: Any) -> None:
        """Store the tower and the batch."""
        super().__init__()
        self.tower = tower
        self.register_buffer("tokens", tokens)
        self.register_buffer("hidden", hidden)

    def forward(self) -> Any:
        """Return the loss."""
        masked = torch.where(self.hidden[..., None], 0.0, self.tokens)
        with self.in_tower():
            encoded = encode(self.tower, masked)
        predicted = self.tower.head(encoded.float())
        error = (predicted - self.tokens) ** 2
        return (error.mean(-1) * self.hidden).sum() / self.hidden.sum()


class Joint(TowerLoss):
    """The label loss of a tower and a head on its mean token, for tokens (n, t, d) with labels (n,)."""

    def __init__(self, tower: Any, head: Any, tokens: Any, labels: Any) -> None:
        """Store the networks and the batch."""
        super().__init__()
        self.tower, self.head = tower, head
        self.register_buffer("tokens", tokens)
        self.register_buffer("labels", labels)

    def forward(self) -> Any:
        """Return the loss."""
        with self.in_tower():
            encoded = encode(self.tower, self.tokens)
        return robust(self.head(encoded.float().mean(1))[:, 0] - self.labels)


class Contrastive(TowerLoss):
    """The contrastive loss of a projection of cached tokens (n, t, d) against z_xp (n, k)."""

    def __init__(self, pool: Any, mlp: Any, tokens: Any, z_xp: Any) -> None:
        """Store the projection and the batch."""
        super().__init__()
        self.pool, self.mlp = pool, mlp
        self.register_buffer("tokens", tokens)
        self.register_buffer("z_xp", z_xp)
        self.register_buffer("rows", torch.arange(len(z_xp), device=z_xp.device))

    def forward(self) -> Any:
        """Return the loss."""
        with self.in_tower():
            pooled = self.pool(self.tokens)
            projected = pooled + self.mlp(pooled)
        z = functional.normalize(projected.float(), dim=-1)
        logits = LOGIT_SCALE * functional.normalize(self.z_xp, dim=-1) @ z.T
        return (
            functional.cross_entropy(logits, self.rows) + functional.cross_entropy(logits.T, self.rows)
        ) / 2


class LabelLoss(TowerLoss):
    """The label loss of a head on features (n, d) with labels (n,)."""

    def __init__(self, head: Any, features: Any, labels: Any) -> None:
        """Store the head and the batch."""
        super().__init__()
        self.head = head
        self.register_buffer("features", features)
        self.register_buffer("labels", labels)

    def forward(self) -> Any:
        """Return the loss."""
        return robust(self.head(self.features)[:, 0] - self.labels)


class FrozenNorm(nn.Module):
    """A BatchNorm with its running statistics, as one product and one sum.

    `torch.func` would run the library's own seed by seed, for lack of a batching rule.
    """

    def __init__(self, norm: Any) -> None:
        """Take over the statistics and parameters."""
        super().__init__()
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", (norm.bias - norm.running_mean * scale).detach())

    def forward(self, x: Any) -> Any:
        """Normalise x (n, d)."""
        return torch.addcmul(self.shift, x, self.scale)


class Pool(nn.Module):
    """Attention pooling with the weights of the published module, whose output layer LoRA can adapt.

    The library's MultiheadAttention reads the weight of its output layer without calling the layer, so that
    `peft` cannot adapt it. With `folded`, neither keys nor values are computed, as in specjax: q.(x W) is
    (q W^T).x, and the mean of the values is the value of the mean.
    """

    def __init__(self, published: Any, *, folded: bool) -> None:
        """Take over the parameters of the published `CrossAttention`."""
        super().__init__()
        inner = published.multihead_attn
        if inner._qkv_same_embed_dim:
            weights = inner.in_proj_weight.detach().chunk(3)
        else:
            weights = (inner.q_proj_weight, inner.k_proj_weight, inner.v_proj_weight)
        biases = inner.in_proj_bias.detach().chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            self.register_buffer(f"{name}_weight", weight.detach().clone())
            self.register_buffer(f"{name}_bias", bias.clone())
        self.register_buffer("query", published.query.detach()[0].clone())
        self.heads, self.folded = inner.num_heads, folded
        self.out_proj = nn.Linear(inner.embed_dim, inner.embed_dim)
        self.out_proj.load_state_dict(inner.out_proj.state_dict())
        self.layernorm = published.layernorm

    def forward(self, tokens: Any) -> Any:
        """Pool tokens (n, t, in) to (n, dim)."""
        q = functional.linear(self.query, self.q_weight, self.q_bias)  # (1, dim)
        mixed = self._mixed_tokens(q, tokens) if self.folded else self._mixed_values(q, tokens)
        return self.layernorm(self.out_proj(mixed).float())

    def _mixed_values(self, q: Any, tokens: Any) -> Any:
        n = len(tokens)
        k, v = (
            functional.linear(tokens, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for weight, bias in ((self.k_weight, self.k_bias), (self.v_weight, self.v_bias))
        )
        q = q.unflatten(-1, (self.heads, -1)).transpose(0, 1).expand(n, -1, -1, -1)  # (n, h, 1, d/h)
        return functional.scaled_dot_product_attention(q, k, v).flatten(1)

    def _mixed_tokens(self, q: Any, tokens: Any) -> Any:
        q = q.view(self.heads, -1)  # (h, d/h)
        keys = torch.einsum("hd,hdi->hi", q, self.k_weight.unflatten(0, (self.heads, -1)))
        weights = torch.softmax(tokens @ keys.T * q.shape[-1] ** -0.5, dim=1)  # (n, t, h)
        mean = weights.transpose(1, 2) @ tokens  # (n, h, in)
        values = torch.einsum("nhi,hdi->nhd", mean, self.v_weight.unflatten(0, (self.heads, -1)))
        return values.flatten(1) + self.v_bias


def encode(tower: Any, tokens: Any) -> Any:
    """Run tokens (n, t, d) through the published SpecFormer: (n, t, dim)."""
    x = tower.data_embed(tokens) + tower.position_embed.weight[: tokens.shape[1]]
    for block in tower.blocks:
        x = block(x)
    return tower.final_layernorm(x)


def robust(residual: Any) -> Any:
    """Return the mean pseudo-Huber loss of residuals."""
    return (DELTA**2 * (torch.sqrt(1 + (residual / DELTA) ** 2) - 1)).mean()
