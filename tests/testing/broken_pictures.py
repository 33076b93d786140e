"""Encoders, and what goes for projectors too, that break one promise each: a sound companion with one small change."""

import torch
from torch import nn

from nanovlm.testing.companions import Block, Encoder, Projector


class Centred(Encoder):
    def forward(self, pixels):
        patches = super().forward(pixels)
        return patches - patches.mean(0)


class LeaksALittle(Projector):
    def forward(self, patches):
        return super().forward(patches + 1e-7 * patches.mean(0))


class RemembersItsFirst(Projector):
    def forward(self, patches):
        if not hasattr(self, "mean"):
            self.mean = patches.detach().mean()
        return super().forward(patches - self.mean)


class DividesByZero(Projector):
    def forward(self, patches):
        return super().forward(patches) / 0


class NormalisesOverPictures(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        self.norm = nn.BatchNorm1d(text_dim)

    def forward(self, patches):
        return self.norm(super().forward(patches).transpose(1, 2)).transpose(1, 2)


class Detached(Projector):
    def forward(self, patches):
        return super().forward(patches.detach())


class ChangesItsInput(Projector):
    def forward(self, patches):
        patches -= patches.mean(dim=1, keepdim=True)
        return super().forward(patches)


class Frozen(Projector):
    @torch.no_grad()
    def forward(self, patches):
        return super().forward(patches)


class Blind(Encoder):
    def forward(self, pixels):
        return super().forward(pixels * 0)


class Idle(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        self.unused = nn.Linear(2, 2)


class RootOfZero(Projector):
    def forward(self, patches):
        return super().forward(patches) + (self.linear.bias * 0).sqrt()


class CopiesIntoFp32(Projector):
    def forward(self, patches):
        tokens = super().forward(patches)
        room = tokens.new_zeros(tokens.shape, dtype=torch.float32)
        room[torch.arange(len(tokens))] = tokens
        return room


class Cancels(Projector):
    def forward(self, patches):
        return super().forward(patches) + 1000 - 1000


class OnTheCpu(Projector):
    def forward(self, patches):
        return super().forward(patches) + torch.zeros(patches.shape[0], 1, 1)


class LeavesTheGpu(Projector):
    def forward(self, patches):
        return super().forward(patches.cpu() if patches.is_cuda else patches)


class WithClassToken(Encoder):
    def forward(self, pixels):
        patches = super().forward(pixels)
        return torch.cat((patches[:, :1], patches), dim=1)


class KeepsItsClassToken(Encoder):
    """In the place of the last patch."""

    def forward(self, pixels):
        patches = super().forward(pixels)
        return torch.cat((patches.mean(dim=1, keepdim=True), patches[:, :-1]), dim=1)


class HalfInside(Encoder):
    def forward(self, pixels):
        return super().forward(pixels).bfloat16()


class WithoutGrid(Encoder):
    def __init__(self, config):
        super().__init__(config)
        self.grid = (4, 4)


class Transposed(Encoder):
    def forward(self, pixels):
        return super().forward(pixels.transpose(2, 3))


class WithoutBlocks(Encoder):
    def __init__(self, config):
        super().__init__(config)
        self.only = self.blocks[0]
        del self.blocks

    def forward(self, pixels):
        return self.only(self.patches(pixels / 127.5 - 1).flatten(2).transpose(1, 2))


class PlainList(Encoder):
    def __init__(self, config):
        super().__init__(config)
        del self.blocks
        self.blocks = [Block(config.dim)]


class PastItsBlocks(Encoder):
    def forward(self, pixels):
        blocks = self.blocks
        x = self.patches(pixels / 127.5 - 1).flatten(2).transpose(1, 2)
        return x + blocks[0].mlp(x)


class Branching(Block):
    def forward(self, x):
        return x + self.mlp(x) if x.sum() > 0 else x - self.mlp(x)


class BranchingBlocks(Encoder):
    def __init__(self, config):
        super().__init__(config)
        self.blocks = nn.ModuleList([Branching(config.dim)])


class Different(Block):
    def forward(self, x):
        return x if torch.compiler.is_compiling() else super().forward(x)


class DifferentWhenCompiled(Encoder):
    def __init__(self, config):
        super().__init__(config)
        self.blocks = nn.ModuleList([Different(config.dim)])


BROKEN: dict[str, list[tuple[str, type | str, str]]] = {
    "pictures do not mix": [
        ("vision_encoder", Centred, "something else for a picture among others than for the same alone (off by"),
        ("projector", LeaksALittle, "mixes pictures, if only a little: what it gives for one depends on others"),
        ("projector", RemembersItsFirst, "so compute nothing over it, and keep nothing from one call to the next"),
        ("projector", DividesByZero, "gives numbers that are not finite"),
        ("projector", NormalisesOverPictures, "in training, where the others beside it are other ones (off by"),
        ("projector", Detached, "gives no gradient to the patches, so that the encoder before it learns nothing"),
        ("vision_encoder", Blind, "gives the same for two different pictures"),
    ],
    "input is left alone": [
        ("projector", ChangesItsInput, "changes what it is given: write `x = x + ...`, not `x += ...`"),
    ],
    "every parameter learns": [
        ("projector", Frozen, "gives what no gradient goes through: is it computed under torch.no_grad, or detached?"),
        ("projector", Idle, "gives no gradient to unused.weight, unused.bias: use it in `forward`"),
        ("projector", RootOfZero, "gives gradients that are no finite numbers to linear.bias"),
    ],
    "half precision does": [
        ("projector", CopiesIntoFp32, "fails under autocast in bf16, given torch.float32: RuntimeError"),
        ("projector", Cancels, "gives something else under autocast in bf16 than in fp32: off by"),
    ],
    "runs where its input is": [
        ("projector", OnTheCpu, "fails on `meta`, where every experiment is planned (does it make a tensor without"),
    ],
    "runs on cuda": [("projector", LeavesTheGpu, "fails on a GPU in fp32: RuntimeError")],
    "patches as promised": [
        ("vision_encoder", WithClassToken, "gives (1, 17, 16) for pixels (1, 3, 16, 16); its 4 x 4 grid of 16"),
        ("vision_encoder", HalfInside, "gives torch.bfloat16 outside of autocast"),
        ("vision_encoder", WithoutGrid, "has no `grid`: set self.grid = PatchGrid(...) in __init__"),
    ],
    "patches in reading order": [
        ("vision_encoder", Transposed, "changes patch 12 most where pixels of row 0, column 3 of its 4 x 4 grid"),
        ("vision_encoder", KeepsItsClassToken, "in reading order that is patch 0: is the grid transposed, or are pre"),
    ],
    "blocks are its parts": [
        ("vision_encoder", WithoutBlocks, "has no `blocks`: list its layers there"),
        ("vision_encoder", PlainList, "has 6 weights in its `blocks` that are none of its own"),
        ("vision_encoder", PastItsBlocks, "does not call its blocks 0 as modules"),
    ],
    "blocks compile": [
        ("vision_encoder", BranchingBlocks, "does not compile as one graph: "),
        ("vision_encoder", DifferentWhenCompiled, "computes something else when it is compiled, off by"),
    ],
}  # fmt: skip
