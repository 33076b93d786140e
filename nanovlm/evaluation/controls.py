"""The same questions with the wrong picture, and with none: what a model gets right without looking."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch

from nanovlm.data.conversation import IMAGE_MARK
from nanovlm.data.dataset import Sample, Turn
from nanovlm.seeding import generator


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Each sample with the pictures of another one that has as many; the questions and answers stay."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        groups[len(sample.images)].append(i)
    result = list(samples)
    for members in groups.values():
        order = torch.randperm(len(members), generator=generator(seed, "shuffled")).tolist()
        for here, there in zip(order, [*order[1:], order[0]], strict=True):  # one circle: nobody keeps its own
            result[members[here]] = replace(samples[members[here]], images=samples[members[there]].images)
    return result


def without_images(samples: Sequence[Sample]) -> list[Sample]:
    """Each sample without its pictures and without their marks in the text."""
    return [
        replace(
            sample, images=[], turns=[Turn(turn.user.replace(IMAGE_MARK, ""), turn.assistant) for turn in sample.turns]
        )
        if sample.images
        else sample
        for sample in samples
    ]
