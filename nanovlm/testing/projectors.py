"""What every projector must do."""

from nanovlm.components import PatchGrid
from nanovlm.testing.checks import Subject, Violation, check

GRIDS = (PatchGrid(4, 4, 16), PatchGrid(8, 8, 12), PatchGrid(16, 16, 8), PatchGrid(6, 4, 5))


@check("projector")
def tokens_as_promised(subject: Subject) -> None:
    """gives as many image tokens as `num_tokens` says, each as wide as the text."""
    raise Violation("to be written")
