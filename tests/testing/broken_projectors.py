"""Projectors that break one promise each: a sound companion with one small change."""

from dataclasses import replace

from nanovlm import ComponentConfig, ConfigError, PatchGrid
from nanovlm.testing.companions import Projector


class OneTooMany(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        self.num_tokens += 1


class Uncounted(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        del self.num_tokens


class GivesTwo(Projector):
    def forward(self, patches):
        return super().forward(patches), patches


class CountsByWeights(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        self.num_tokens = 1 if self.linear.weight.is_meta else self.num_tokens


class LargeGridsOnly(Projector):
    def __init__(self, config, grid, text_dim):
        if grid.height < 8:
            raise ConfigError("a grid of 8 rows at least")
        super().__init__(config, grid, text_dim)


class Halving(Projector):
    """A sound one: averages two rows into a token."""

    class Config(ComponentConfig):
        factor: int = 2
        """How many rows are averaged."""

    def __init__(self, config, grid: PatchGrid, text_dim):
        self.check(config, grid)
        rows = grid.height // config.factor
        super().__init__(config, replace(grid, height=rows, width=grid.width * config.factor), text_dim)

    def check(self, config, grid):
        grid.blocks(config.factor)


class RaisesValueError(Halving):
    def check(self, config, grid):
        if grid.height % config.factor:
            raise ValueError("bad grid")


class NoticesTooLate(Halving):
    def check(self, config, grid):
        pass


class RefusesWithoutAdvice(Halving):
    def check(self, config, grid):
        if grid.height % config.factor:
            raise ConfigError(f"factor={config.factor} does not divide {grid.height}")


class RefusesWithoutAWord(Halving):
    def check(self, config, grid):
        if grid.height % config.factor:
            raise ConfigError("this cannot work")


class BranchingProjector(Projector):
    def forward(self, patches):
        return super().forward(patches if patches.sum() > 0 else -patches)


BROKEN: dict[str, list[tuple[str, type | str, str]]] = {
    "tokens as promised": [
        ("projector", OneTooMany, "gives (1, 4, 24) for patches (1, 16, 16) of a 4 x 4 grid; with num_tokens=5"),
        ("projector", Uncounted, "has num_tokens=None: set self.num_tokens in __init__"),
        ("projector", GivesTwo, "gives tuple from `forward`, where one tensor is expected"),
        ("projector", CountsByWeights, "has num_tokens=1 on `meta`, and 4 for real"),
        ("projector", LargeGridsOnly, "refuses the 4 x 4 grid (a grid of 8 rows at least): `Config.tiny()`"),
    ],
    "unsuited grids are refused": [
        ("projector", RaisesValueError, "raises ValueError (bad grid) when it is built for a 5 x 7 grid: raise a"),
        ("projector", NoticesTooLate, "fails on the 5 x 7 grid that it was built for (refuse it in __init__ by a"),
        ("projector", RefusesWithoutAdvice, "refuses factor=2 for the 5 x 7 grid by 'factor=2 does not divide 5':"),
        ("projector", RefusesWithoutAWord, "refuses the 5 x 7 grid by 'this cannot work': name the option"),
    ],
    "compiles": [("projector", BranchingProjector, "does not compile as one graph: ")],
}  # fmt: skip
