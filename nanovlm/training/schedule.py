"""How the learning rate rises and falls over a run."""

import math

from nanovlm.experiment import Training


def schedule(step: int, total_steps: int, config: Training) -> float:
    """The learning rate of a step as a share of its peak.

    Up linearly, then by ``config.schedule``: down a cosine to the end, or constant and down a line over the last
    ``config.decay`` of the steps (warm-up, stable, decay; Hu et al. 2024, arXiv 2404.06395), or constant.
    """
    warmup_steps = round(config.warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.schedule == "constant":
        return 1.0
    stable = total_steps - round(config.decay * total_steps) if config.schedule == "warmup_stable_decay" else 0
    start = max(warmup_steps, stable)
    progress = min(1.0, max(0, step - start) / max(1, total_steps - 1 - start))
    fallen = progress if config.schedule == "warmup_stable_decay" else (1 - math.cos(math.pi * progress)) / 2
    return 1 - (1 - config.final_learning_rate) * fallen
