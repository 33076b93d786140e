"""Datasets of numbers, for the tests of mixtures and steps."""

from PIL import Image

from nanovlm import Dataset, Sample, SkipSample, Turn
from nanovlm.data.dataset import Subset
from nanovlm.data.mixture import Mixture
from nanovlm.experiment import Data


class Numbers(Dataset):
    """Sample ``i`` asks about the number i and has a picture of its shade."""

    def __init__(self, size: int, name: str = "n", broken: dict[int, str] | None = None) -> None:
        self.size, self.name, self.broken = size, name, broken or {}

    def __len__(self) -> int:
        return self.size

    def id(self, index: int) -> str:
        return f"{self.name}-{index}"

    def __getitem__(self, index: int) -> Sample:
        fault = self.broken.get(index)
        if fault == "gone":
            raise SkipSample("gone")
        picture = b"no picture" if fault == "undecodable picture" else Image.new("L", (4, 4), index % 256)
        answer = {"no answer": " ", "too long": "1" * 100}.get(fault, str(index))
        images = [picture] * (3 if fault == "too many pictures" else 1)
        return Sample(images, [Turn("Which?", answer)], self.id(index))


class Parted(Numbers):
    """The same numbers in subsets of 20, 10 and 10."""

    def __init__(self, *weights: float, broken: dict[int, str] | None = None) -> None:
        super().__init__(40, broken=broken)
        self.weights = weights

    def subsets(self) -> list[Subset]:
        return [Subset(*part) for part in zip("abc", (20, 10, 10), self.weights, strict=True)]


def data_of(share: float = 0.0, seed: int = 0, limit: int = 0, **options) -> Data:
    validation = {"share": share, "limit": limit}
    return Data.model_validate(
        {"train": ["numbers"], "validation": validation, "seed": seed, "max_images": 2, **options}
    )


def mixture_of(*datasets: Dataset, weights: list[float] | None = None, seed: int = 0, **options) -> Mixture:
    return Mixture(datasets, weights or [1.0] * len(datasets), data_of(**options), seed)
