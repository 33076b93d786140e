"""All that a run's next step depends on: what a checkpoint holds, and how a run goes on from it.

Not in it: randomness, which is drawn anew for each step from the seed and the step's number, and the order of the
samples, which is a function of the seed alone (of a stream, with the position that its reader was at).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanovlm.data.origins import samples_by_dataset
from nanovlm.data.ranks import Ranks
from nanovlm.data.tally import Tally
from nanovlm.errors import ConfigError
from nanovlm.flops import Work
from nanovlm.training.checkpoint import Snapshot
from nanovlm.weights import tied_once

if TYPE_CHECKING:
    from nanovlm.training.trainer import Trainer

MODEL, OPTIMIZER = "model", "optimizer"  # files
DONE = ("samples", "flops", *Work._fields)  # by all ranks together


def snapshot(trainer: Trainer) -> Snapshot | None:
    """The state between two steps; training may go on at once. All ranks take part, and the first one has it."""
    positions = trainer.group.gather(trainer.position)
    tallies = trainer.group.gather(trainer.tally.state())
    clocks = trainer.group.gather(trainer.clock.state())
    if not trainer.group.is_main:
        return None
    moments, optimizer = trainer.optimizer.state()
    facts = {
        "positions": positions,
        "optimizer": optimizer,
        "clock": clocks[0] | {key: sum(clock[key] for clock in clocks) for key in DONE},
        "tallies": tallies,
        "results": trainer.evaluations.results,
    }
    return Snapshot.of(trainer.step, {MODEL: tied_once(trainer.model), OPTIMIZER: moments}, facts)


def restore(trainer: Trainer, found: Snapshot) -> None:
    """Go on from ``found``. The model's weights, and the steps to come, were given to the trainer already."""
    facts = found.facts
    trainer.step, trainer.position = found.step, own(facts["positions"], trainer.group.ranks)
    trainer.optimizer.restore(found.tensors[OPTIMIZER], facts["optimizer"])
    trainer.clock.restore(facts["clock"] | {key: _share(facts["clock"][key], trainer.group.ranks) for key in DONE})
    before = Tally.together(facts["tallies"])
    trainer.given |= {f"given/{dataset}": float(n) for dataset, n in samples_by_dataset(before.origins).items()}
    if trainer.group.is_main:  # what was counted by all before is counted by one from here on
        trainer.tally.restore(before.state())
    trainer.evaluations.results = facts["results"]


def own(positions: list[Any], ranks: Ranks) -> Any:
    """Where a rank's reader of a stream was. What is read by number needs none.

    Raises ConfigError for another number of ranks: each had a part of the stream of its own.
    """
    if len(positions) == ranks.world:
        return positions[ranks.rank]
    if any(position is not None for position in positions):
        raise ConfigError(
            f"this run's stream was read by {len(positions)} processes, each a part of its own: go on with as many, "
            f"not with {ranks.world}"
        )
    return None


def _share(total: float, ranks: Ranks) -> float:
    """What one rank counts of what was done by others before; the shares add up."""
    return total * (ranks.rank + 1) // ranks.world - total * ranks.rank // ranks.world
