"""AdamW with linear warm-up and cosine decay, the optimizer of all training."""

import optax


def warmup_cosine_adamw(
    steps: int, *, learning_rate: float, weight_decay: float = 0.0, warmup: float = 0.05, final: float = 0.0
) -> optax.GradientTransformation:
    """Make AdamW (b1 0.9, b2 0.95) with linear warm-up to `learning_rate` and cosine decay.

    Args:
        steps: length of the run.
        learning_rate: at the end of the warm-up.
        weight_decay: decoupled, as a multiple of the learning rate.
        warmup: fraction of the steps, at least one step.
        final: learning rate at the end, as a fraction of `learning_rate`.
    """
    warmup_steps = max(1, round(warmup * steps))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, max(steps, warmup_steps + 1), final * learning_rate
    )
    return optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=weight_decay)
