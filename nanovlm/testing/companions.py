"""The smallest correct component of each kind: what a component under test is trained with, and an example of each
contract.

They are registered by no plugin, since nobody should train a model of them: ``beside`` puts them into registries of
their own, next to the one component that is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from nanovlm.attention import Segments, attention, suits_flash
from nanovlm.components import (
    ComponentConfig,
    ImageSpec,
    LanguageDecoder,
    PatchGrid,
    TextConfig,
    Tracker,
    VisionEncoder,
)
from nanovlm.data.dataset import Benchmark, Sample, Split, Turn
from nanovlm.errors import ConfigError
from nanovlm.evaluation.evaluator import Answered
from nanovlm.kv_cache import KVCache
from nanovlm.plugins import Registries
from nanovlm.registry import Entry, Plugin
from nanovlm.training.run import Run

NAME = "companion"  # of each of them, in an experiment
COLOURS = {"train": ("red", "green", "blue", "white"), "test": ("yellow", "black", "cyan", "magenta")}


class Encoder(VisionEncoder):
    """Looks at each patch by itself."""

    class Config(ComponentConfig):
        image_size: int = 16
        """Pixels along each side of the (square) picture."""
        patch_size: int = 4
        """Pixels along each side of a patch."""
        dim: int = 16
        """C, the width of a patch."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        side = config.image_size // config.patch_size
        self.image = ImageSpec(config.image_size)
        self.grid = PatchGrid(side, side, config.dim)
        self.patches = nn.Conv2d(3, config.dim, config.patch_size, stride=config.patch_size)
        self.blocks = nn.ModuleList([Block(config.dim)])

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, H, W) uint8
        normalised = pixels.to(self.patches.weight.dtype) / 127.5 - 1
        x = self.patches(normalised).flatten(2).transpose(1, 2)  # (B, N, C)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    """A residual MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:  # (..., C)
        return x + self.mlp(x)


class Projector(nn.Module):
    """Averages each row of patches into one image token."""

    class Config(ComponentConfig):
        pass

    def __init__(self, config: Config, grid: PatchGrid, text_dim: int) -> None:
        super().__init__()
        self.rows = (grid.height, grid.width)
        self.num_tokens = grid.height  # M
        self.linear = nn.Linear(grid.dim, text_dim)

    def forward(self, patches: Tensor) -> Tensor:  # (B, N, C)
        return self.linear(patches.unflatten(1, self.rows).mean(dim=2))  # (B, M, D)


class Decoder(LanguageDecoder):
    """Two layers of attention over learnt positions; every byte of text is a token."""

    class Config(TextConfig):
        vocab_size: int = 257
        """V, the number of token embeddings: the 256 bytes, and the end of text."""
        dim: int = 32
        """D, the width of a token."""
        num_layers: int = 2
        """Layers of attention, each with an MLP."""
        num_heads: int = 2
        """Attention heads of each layer."""
        max_positions: int = 2048
        """The longest sample, in tokens."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim, self.max_positions = config.dim, config.max_positions
        self.varlen = suits_flash(config.dim // config.num_heads)
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.max_positions, config.dim)
        self.blocks = nn.ModuleList(Layer(config, number) for number in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def load_pretrained(self) -> None:
        if self.config.weights != "random":
            raise ConfigError(f"weights={self.config.weights!r}: this decoder was never pretrained; use random")

    def embed(self, token_ids: Tensor) -> Tensor:  # (T,)
        return self.embedding(token_ids)  # (T, D)

    def forward(self, x: Tensor, segments: Segments, cache: KVCache | None = None) -> Tensor:  # (T, D)
        x = x + self.positions(segments.positions)
        for block in self.blocks:
            x = block(x, segments, cache)
        if cache is not None:
            cache.advance(segments)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:  # (..., D)
        return self.head(hidden)  # (..., V)

    def new_cache(self, samples: int, max_tokens: int) -> KVCache:
        heads, like = self.config.num_heads, self.embedding.weight
        return KVCache(self.config.num_layers, samples, max_tokens, heads, self.dim // heads, like)


class Layer(nn.Module):
    """Causal attention within each sample, then an MLP."""

    def __init__(self, config: Decoder.Config, number: int) -> None:
        super().__init__()
        self.number, self.num_heads = number, config.num_heads
        self.norm = nn.LayerNorm(config.dim)
        self.query, self.key, self.value, self.output = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.mlp = Block(config.dim)

    def forward(self, x: Tensor, segments: Segments, cache: KVCache | None) -> Tensor:  # (T, D)
        seen = self.norm(x)
        q, k, v = (part(seen).unflatten(-1, (self.num_heads, -1)) for part in (self.query, self.key, self.value))
        attended = attention(q, k, v, segments) if cache is None else cache.attention(self.number, q, k, v, segments)
        return self.mlp(x + self.output(attended.flatten(1)))  # attended: (T, heads, D/heads)


class Data(Benchmark):
    """Pictures of one colour each, and what that is."""

    class Config(ComponentConfig):
        image_size: int = 16
        """Pixels along each side of a picture."""

    max_new_tokens = 8

    def __init__(self, config: Config, split: Split) -> None:
        self.config, self.colours = config, COLOURS[split]

    def __len__(self) -> int:
        return len(self.colours)

    def id(self, index: int) -> str:
        return f"companion/{self.colours[index]}"

    def __getitem__(self, index: int) -> Sample:
        colour, size = self.colours[index], self.config.image_size
        return Sample([Image.new("RGB", (size, size), colour)], [Turn("What colour?", colour)], self.id(index))


class Diary(Tracker):
    """Keeps what it is told."""

    class Config(ComponentConfig):
        pass

    def __init__(self, config: Config, run: Run) -> None:
        super().__init__(config, run)
        self.entries: list[tuple[str, Any]] = []

    def started(self, facts: dict[str, Any]) -> None:
        self.entries.append(("started", dict(facts)))

    def step_finished(self, metrics: dict[str, float]) -> None:
        self.entries.append(("step_finished", dict(metrics)))

    def evaluated(self, results: dict[str, Any], answered: Sequence[Answered] = ()) -> None:
        self.entries.append(("evaluated", dict(results)))

    def finished(self, summary: dict[str, Any]) -> None:
        self.entries.append(("finished", dict(summary)))

    def failed(self, error: BaseException) -> None:
        self.entries.append(("failed", error))


COMPANIONS: dict[str, type] = {
    "vision_encoder": Encoder,
    "projector": Projector,
    "language_decoder": Decoder,
    "dataset": Data,
    "tracker": Diary,
}
PLUGIN = Plugin(__name__, "nanovlm", "", __file__, "")


def beside(kind: str, entry: Entry, files: Sequence[str] = ()) -> Registries:
    """Registries with one component that is tested, and of every other kind its companion.

    files: the plugins that were given by path.
    """
    registries = Registries(files=tuple(files))
    for registry in registries:
        if registry.kind == kind:
            registry.register(entry.name, entry.cls, entry.plugin)
        else:
            registry.register(NAME, COMPANIONS[registry.kind], PLUGIN)
    return registries
