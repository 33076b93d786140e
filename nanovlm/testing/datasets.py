"""What every dataset must do. Of ``Config.tiny()`` both splits are read, from the first sample to the last."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, NoReturn
from unittest import mock

from PIL import Image

from nanovlm.components import ComponentConfig
from nanovlm.data.conversation import IMAGE_MARK
from nanovlm.data.dataset import Dataset, Sample, Split, Turn
from nanovlm.data.images import open_image
from nanovlm.errors import ConfigError, SkipSample
from nanovlm.testing.checks import NotHere, Subject, Violation, check, doing
from nanovlm.testing.models import few
from nanovlm.testing.surroundings import elsewhere, randomness_untouched

SPLITS: tuple[Split, Split] = ("train", "test")
MOST = 1000  # samples of a tiny split: every check reads all of them
WANTED = 'raise SkipSample("reason") where a sample cannot be used'


class Member(NamedTuple):
    """A sample that is not read yet: its id, what reads it, and where it stands, in words."""

    id: str
    read: Callable[[], Sample]
    where: str


def opened(subject: Subject, split: Split, config: ComponentConfig | None = None) -> Dataset:
    try:
        dataset = subject.cls(config or subject.config, split)
    except ConfigError as error:
        raise Violation(
            f"refuses its {split} split by Config.tiny() ({error}): that is to open both splits without network and "
            "without files of its user's; a split that there is not is empty"
        ) from None
    if not isinstance(dataset, Dataset):
        raise Violation("is no Dataset: derive it from nanovlm.Dataset, or from nanovlm.Benchmark if it can be scored")
    return dataset


def members(dataset: Dataset, split: Split) -> list[Member]:
    """All of a split's samples: of a stream, of one pass."""
    if dataset.streaming:
        rows = list(islice(dataset.stream(), MOST + 1))
        found = [Member(row.id, partial(dataset.sample, row), f"{split} row {n}") for n, row in enumerate(rows)]
    else:
        numbers = range(min(len(dataset), MOST + 1))
        found = [Member(dataset.id(n), partial(dataset.__getitem__, n), f"{split} sample {n}") for n in numbers]
    if len(found) > MOST:
        raise Violation(f"has more than {MOST} samples in its {split} split by Config.tiny(): give it few, for checks")
    return found


def read(member: Member, subject: Subject) -> Sample | SkipSample:
    """A sample, or why it is left out."""
    with doing(f"to read {member.where} ({WANTED})", subject):
        try:
            sample = member.read()
        except SkipSample as skip:
            return skip
    if not isinstance(sample, Sample):
        raise Violation(f"gives {type(sample).__name__} as {member.where}: give a nanovlm.Sample")
    return sample


def samples(subject: Subject, dataset: Dataset, split: Split) -> list[tuple[str, Sample]]:
    """All samples that can be used, each with where it stands."""
    found = [(member.where, read(member, subject)) for member in members(dataset, split)]
    return [(where, sample) for where, sample in found if isinstance(sample, Sample)]


def all_samples(subject: Subject) -> list[tuple[str, Sample]]:
    """Of both splits; a Violation if there is none."""
    found = [each for split in SPLITS for each in samples(subject, opened(subject, split), split)]
    if not found:
        raise Violation(f"has no sample in any split by Config.tiny(): {wanting(subject, SPLITS)}")
    return found


def skips_of(subject: Subject, splits: Sequence[Split]) -> list[tuple[Member, SkipSample]]:
    """All samples that are left out, and why."""
    every = [member for split in splits for member in members(opened(subject, split), split)]
    return [(member, found) for member in every if isinstance(found := read(member, subject), SkipSample)]


def wanting(subject: Subject, splits: Sequence[Split]) -> str:
    """What is to be done where splits have no sample that can be used."""
    reasons = sorted({str(skip.reason) for _, skip in skips_of(subject, splits)})
    skipped = f"all that it has are skipped ({few(reasons)}); " if reasons else ""
    return f"{skipped}let it have a few, for tests and checks"


def content(sample: Sample | SkipSample) -> tuple[object, ...]:
    """All of a sample, to be compared; of one that is left out, the reason."""
    if isinstance(sample, SkipSample):
        return ("skipped", sample.reason)
    return sample.id, seen(sample), sample.choices, sample.category, sample.subcategory, dict(sample.left_out)


def seen(sample: Sample) -> tuple[object, ...]:
    """What a model sees of it."""
    return tuple(sample.turns), tuple(_pixels(image) for image in sample.images)


def _pixels(source: object) -> object:
    try:
        image = open_image(source)  # type: ignore[arg-type]
    except SkipSample as skip:
        return skip.reason
    return image.size, image.tobytes()


@check("dataset")
def opens_anywhere(subject: Subject) -> None:
    """opens and reads `Config.tiny()` without network and without files of its user's, and writes none."""
    with elsewhere() as place:
        with doing("in an empty folder, without network", subject):
            for where, sample in all_samples(subject):
                for picture in sample.images:
                    with doing(f"to open a picture of {where}", subject):
                        _pixels(picture)
        if place.reached:
            raise Violation(f"tries to reach {place.reached[0]} for Config.tiny(): tests and checks have no network")
        if place.written:
            raise Violation(f"writes {place.written[0]} when it is read: nothing is written that nobody asked for")


@check("dataset")
def samples_are_well_formed(subject: Subject) -> None:
    """gives samples whose fields are what `nanovlm.Sample` says."""
    for where, sample in all_samples(subject):
        for fault in _faults(sample):
            raise Violation(f"gives {where} with {fault}")


def _faults(sample: Sample) -> Iterator[str]:
    if not isinstance(sample.id, str) or not sample.id:
        yield f"id={sample.id!r}: an id is a text"
    if not isinstance(sample.images, list):
        yield f"images of type {type(sample.images).__name__}: they are a list"
    for image in sample.images:
        if not isinstance(image, str | Path | bytes | Image.Image):
            yield f"a picture of type {type(image).__name__}: a picture is a path, bytes or a Pillow image"
    for turn in sample.turns:
        if not isinstance(turn, Turn) or not (isinstance(turn.user, str) and isinstance(turn.assistant, str)):
            yield f"the turn {turn!r}: a turn is Turn(user, assistant), both of them texts"
    if not (sample.choices is None or all(isinstance(choice, str) for choice in sample.choices)):
        yield f"choices={sample.choices!r}: choices are texts"
    for name in ("category", "subcategory"):
        if not isinstance(value := getattr(sample, name), str | None):
            yield f"{name}={value!r}: it is a text or None"
    counts = sample.left_out.items() if isinstance(sample.left_out, Mapping) else [(None, None)]
    if not all(isinstance(why, str) and isinstance(count, int) and count > 0 for why, count in counts):
        yield f"left_out={sample.left_out!r}: it is a mapping from a reason to the number of turns left out"


@check("dataset")
def samples_have_answers(subject: Subject) -> None:
    """gives every sample at least one turn, and every turn an answer."""
    for where, sample in all_samples(subject):
        if not sample.turns:
            raise Violation(f"gives {where} without a turn: there is nothing to learn from it; {WANTED}")
        if mute := [number for number, turn in enumerate(sample.turns) if not turn.assistant.strip()]:
            raise Violation(
                f"gives {where} with an empty answer in turn {mute[0]}: leave the turn out and count it in left_out; "
                f"{WANTED}"
            )


@check("dataset")
def pictures_open_and_have_places(subject: Subject) -> None:
    """gives pictures that open, and with marks (`<image>`) for all of them or for none."""
    for where, sample in all_samples(subject):
        for number, image in enumerate(sample.images):
            try:
                open_image(image)
            except SkipSample as skip:
                raise Violation(
                    f"gives {where} with a picture (number {number}) that cannot be used: {skip.reason}"
                ) from None
        marks = sum(turn.user.count(IMAGE_MARK) for turn in sample.turns)
        if sample.images and marks not in (0, len(sample.images)):
            raise Violation(
                f"gives {where} with {len(sample.images)} pictures and {marks} marks ({IMAGE_MARK}) in the user's "
                "words: write one for each picture, or none and all come first"
            )


@check("dataset")
def ids_are_known_unread(subject: Subject) -> None:
    """knows every sample's id without reading it, and gives no id twice."""
    for split in SPLITS:
        dataset = opened(subject, split)
        with mock.patch.object(type(dataset), "__getitem__", _not_to_be_read):
            found = members(dataset, split)
        ids = [member.id for member in found]
        if double := next((known for known in ids if ids.count(known) > 1), None):
            raise Violation(f"gives the id {double!r} to {ids.count(double)} samples of its {split} split")
        for member in members(dataset, split):
            sample = read(member, subject)
            if isinstance(sample, Sample) and sample.id != member.id:
                raise Violation(f"calls {member.where} {member.id!r} before it is read, and {sample.id!r} after")


def _not_to_be_read(self: Dataset, index: int) -> NoReturn:
    raise Violation("reads a sample to know its id: an id decides what is held out, and all of them are asked for")


@check("dataset")
def splits_share_nothing(subject: Subject) -> None:
    """has no sample in both splits, neither by its id nor by what it shows and says."""
    train, test = (opened(subject, split) for split in SPLITS)
    known = {member.id for member in members(train, "train")}
    if both := sorted(known & {member.id for member in members(test, "test")}):
        raise Violation(f"has {len(both)} ids in train and in test, such as {both[0]!r}")
    learnt = {seen(sample): where for where, sample in samples(subject, train, "train")}
    for where, sample in samples(subject, test, "test"):
        if twin := learnt.get(seen(sample)):
            raise Violation(f"has the same pictures and words in {twin} and in {where}: what is asked was trained on")


@check("dataset")
def samples_are_always_the_same(subject: Subject) -> None:
    """gives the same samples whenever it is opened, and in whatever order they are read."""
    for split in SPLITS:
        one, other = (members(opened(subject, split), split) for _ in range(2))
        if [member.id for member in one] != [member.id for member in other]:
            raise Violation(f"gives other ids when its {split} split is opened again")
        forwards = [content(read(member, subject)) for member in one]
        backwards = [content(read(member, subject)) for member in reversed(other)]
        for member, first, second in zip(one, forwards, reversed(backwards), strict=True):
            if first != second or content(read(member, subject)) != first:
                raise Violation(
                    f"gives {member.where} with another content when it is read again: draw from a generator that is "
                    "seeded for each sample, as random.Random(self.id(index))"
                )


@check("dataset")
def travels_to_a_worker(subject: Subject) -> None:
    """is the same in a worker process: pickled and unpickled, it gives the same samples."""
    for split in SPLITS:
        dataset = opened(subject, split)
        with doing("to be pickled for a worker process (open files and locks do not travel)", subject):
            travelled = pickle.loads(pickle.dumps(dataset))
        for member, other in zip(members(dataset, split), members(travelled, split), strict=True):
            if content(read(member, subject)) != content(read(other, subject)):
                raise Violation(f"gives another {member.where} once it was pickled and unpickled")


@check("dataset")
def skips_for_a_reason(subject: Subject) -> None:
    """says by SkipSample why a sample is left out: in words that are counted, so not in each sample's own."""
    skips = skips_of(subject, SPLITS)
    for member, skip in skips:
        if not isinstance(skip.reason, str) or not skip.reason.strip():
            raise Violation(f"skips {member.where} without a reason: {skip.reason!r}")
        if member.id in skip.reason:
            raise Violation(f"skips {member.where} for {skip.reason!r}: leave its id out, reasons are counted")
        if skip.sample is not None and skip.sample.id != member.id:
            raise Violation(f"skips {member.where} by SkipSample with a sample of the id {skip.sample.id!r}")
    if not skips:
        raise NotHere("by Config.tiny() it skips no sample")


@check("dataset")
def subsets_cover_everything(subject: Subject) -> None:
    """has subsets that are all of its samples, each named once and of a weight above 0."""
    for split in SPLITS:
        dataset = opened(subject, split)
        if dataset.streaming:
            raise NotHere("it is a stream, whose rows name their subsets")
        subsets = list(dataset.subsets())
        if (total := sum(subset.size for subset in subsets)) != len(dataset):
            raise Violation(f"has {len(dataset)} samples in its {split} split, and {total} in its subsets")
        names = [subset.name for subset in subsets]
        if double := next((name for name in names if names.count(name) > 1), None):
            raise Violation(f"has {names.count(double)} subsets called {double!r}")
        for subset in subsets:
            if not 0 < subset.weight < math.inf:
                raise Violation(f"gives subset {subset.name!r} the weight {subset.weight}: leave it out, or above 0")


@check("dataset")
def randomness_is_left_alone(subject: Subject) -> None:
    """leaves the random state of torch, numpy and Python as it was."""
    with randomness_untouched("when it is opened"):
        datasets = [(split, opened(subject, split)) for split in SPLITS]
    with randomness_untouched("when it is read"):
        for split, dataset in datasets:
            samples(subject, dataset, split)
