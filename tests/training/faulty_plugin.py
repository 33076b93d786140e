"""A dataset of which any sample can be broken; given to runs with ``--plugin``."""

from PIL import Image

from nanovlm import ComponentConfig, Dataset, Sample, SkipSample, Turn, hookimpl


class Faulty(Dataset):
    class Config(ComponentConfig):
        size: int = 8
        broken: list[int] = []

    def __init__(self, config, split):
        self.config = config

    def __len__(self):
        return self.config.size

    def id(self, index):
        return f"faulty-{index}"

    def __getitem__(self, index):
        if index in self.config.broken and index % 2:
            raise SkipSample("odd one out")
        picture = b"broken" if index in self.config.broken else Image.new("L", (4, 4), 20 * index)
        return Sample([picture], [Turn("Which?", f"number {index}")], self.id(index))


@hookimpl
def register_datasets(register):
    register("faulty", Faulty)
