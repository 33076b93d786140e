"""A projector that shares a dataset's name, has options of unusual kinds, and a bug; given with ``--plugin``."""

from torch import nn

from nanovlm import ComponentConfig, hookimpl
from nanovlm.components import Schema


class Inner(Schema):
    depth: int = 3


class Rival(nn.Module):
    """Another [thing] called shapes."""

    class Config(ComponentConfig):
        needed: int
        inner: Inner = Inner()

    def __init__(self, config, grid, text_dim):
        super().__init__()
        config.needed / 0


@hookimpl
def register_projectors(register):
    register("shapes", Rival)
