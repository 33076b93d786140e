"""A nanovlm model as lmms-eval asks it: ``lmms-eval --model nanovlm_run --model_args pretrained=RUN --tasks TASK``.

lmms-eval finds it by this package's entry point of the group ``lmms_eval.models``. Only this file and ``lmms_eval_run``
import lmms-eval, and only those who use it import them.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from torch.nn import functional as F

from nanovlm.data.dataset import Turn
from nanovlm.data.images import stack_images
from nanovlm.data.packing import Example, pack_row
from nanovlm.errors import ConfigError, SkipSample, unknown
from nanovlm.evaluation.evaluator import BATCH
from nanovlm.generation import Prompt, evaluating, generate, num_tokens
from nanovlm.interop.opening import find_model, load_model, recorded_experiment
from nanovlm.plugins import load_plugins
from nanovlm.training.precision import Precision, choose_device

NAME = "nanovlm_run"  # lmms-eval has a model of another origin that is called nanovlm
MAX_NEW_TOKENS = 64  # where a task says nothing
DEVICES = ("auto", "cuda", "mps", "cpu")


def manifest() -> ModelManifest:
    """What lmms-eval's registry is told."""
    return ModelManifest(NAME, simple_class_path=f"{__name__}.{NanoVLM.__name__}")


class NanoVLM(lmms):  # type: ignore[misc]
    """Answers greedily, as ``nanovlm evaluate`` does, in batches of its size and in the precision of the model's run.

    pretrained: a run folder, a model folder, or a hub id
    batch_size: lmms-eval says 1 where nobody said anything, so that 1 and ``auto`` are the evaluator's own size
    plugin: files of plugins, separated as in PATH

    skipped: why a question could not be asked, by task and number; its answer is empty.
    """

    is_simple = True  # gets a question's text and its pictures, not a chat

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        tokenizer: str = "",
        batch_size: int | str = 1,
        plugin: str = "",
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(f"lmms-eval asks {NAME} in one process: start it without accelerate and torchrun")
        source, chosen = find_model(str(pretrained)), _device(device or "auto")
        run = recorded_experiment(source)
        self.model = load_model(
            source, load_plugins(plugin.split(os.pathsep) if plugin else ()), str(chosen), tokenizer
        )
        self.precision = Precision(run.training.precision if run else "auto", chosen)
        self.device = chosen
        self.batch_size = BATCH if str(batch_size) in ("1", "auto") else int(batch_size)
        self.skipped: dict[tuple[str, int], str] = {}

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer for each request, up to the first of its ``until``; without ``max_new_tokens``, of 64 tokens."""
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            _, wishes, _, _, task, _ = request.args
            groups[task, json.dumps(wishes, sort_keys=True, default=str)].append(i)
        answers = [""] * len(requests)
        for (task, _), places in groups.items():
            wishes = requests[places[0]].args[1]
            _warn_of_other_decoding(task, wishes)
            for batch in self._batches(places):
                asked = [requests[i].args for i in batch]
                for i, answer in self._answers(batch, asked, int(wishes.get("max_new_tokens") or MAX_NEW_TOKENS)):
                    answers[i] = cut(answer, wishes.get("until"))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """For each continuation its loss, and whether it is what the model would say: a pair.

        The loss is -log p, summed over the continuation's tokens and its end of turn: lmms-eval takes the choice with
        the smallest number, whatever its interface says of log-likelihoods (``Task.process_results``). What cannot be
        asked has an infinite loss. As the text of a GenerationResult the pair stays one: lmms-eval 0.7.3 makes a string
        of a bare one, and fails.
        """
        found = [(float("inf"), False)] * len(requests)
        for batch in self._batches(range(len(requests))):
            examples = dict(self._readable(batch, [requests[i].args for i in batch], self._continued))
            if examples:
                for i, result in zip(examples, self._losses(list(examples.values())), strict=True):
                    found[i] = result
        return [GenerationResult(pair) for pair in found]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise ConfigError(f"{requests[0].task_name}: it asks in several rounds, and {NAME} answers one question alone")

    def _batches(self, places: Sequence[int]) -> Iterator[Sequence[int]]:
        yield from (places[start : start + self.batch_size] for start in range(0, len(places), self.batch_size))

    def _answers(self, batch: Sequence[int], asked: Sequence[Any], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """A task may ask for longer answers than the decoder has room for: they are then as long as there is room."""
        examples = dict(self._readable(batch, asked, self._prompt))
        if not examples:
            return
        longest = max(num_tokens(self.model, example) for example in examples.values())
        room = self.model.language_decoder.max_positions - longest
        with self.precision.autocast():
            answers = generate(self.model, list(examples.values()), min(max_new_tokens, room))
        yield from zip(examples, answers, strict=True)

    def _readable(self, batch: Sequence[int], asked: Sequence[Any], made: Any) -> Iterator[tuple[int, Example]]:
        """What can be asked; the rest is noted as skipped."""
        for i, arguments in zip(batch, asked, strict=True):
            if len(arguments) != 6:
                raise ConfigError(f"{NAME} is asked something without a picture's place; leave out acc_mutual_info")
            _, _, _, number, task, _ = arguments
            try:
                example = made(arguments)
                if num_tokens(self.model, example) >= self.model.language_decoder.max_positions:
                    raise SkipSample("too long")
                yield i, example
            except SkipSample as skip:
                self.skipped[task, number] = skip.reason

    def _prompt(self, arguments: Any) -> Example:
        return Prompt(arguments[0], self._pictures(arguments)).example(self.model.text, self.model.vision_encoder.image)

    def _continued(self, arguments: Any) -> Example:
        """The conversation in which the continuation is said; the space before it is the template's."""
        context, target, _, number, task, split = arguments
        continuation = target if isinstance(target, str) else str(target(self.task_dict[task][split][number]))
        images = self._pictures(arguments)
        tokens = self.model.text.conversation([Turn(context, continuation.strip())], len(images))
        return Example(tokens, stack_images(images, self.model.vision_encoder.image))

    def _pictures(self, arguments: Any) -> list[Any]:
        _, _, doc_to_visual, number, task, split = arguments
        found = doc_to_visual(self.task_dict[task][split][number]) if callable(doc_to_visual) else doc_to_visual
        for visual in found or []:
            if not isinstance(visual, Image.Image):
                raise ConfigError(
                    f"{task}: it shows what is no picture ({type(visual).__name__}); {NAME} sees pictures"
                )
        return list(found or [])

    @torch.inference_mode()
    def _losses(self, examples: list[Example]) -> list[tuple[float, bool]]:
        model, row = self.model, pack_row(examples, self.model.num_image_tokens).to(self.model.device)
        with evaluating(model), self.precision.autocast():
            logits = model.language_decoder.logits(model.hidden(row)[row.target_slots]).float()
        targets, samples = row.targets[row.target_slots], row.segments.sample_ids[row.target_slots].tolist()
        losses = F.cross_entropy(logits, targets, reduction="none").tolist()
        right = (logits.argmax(dim=-1) == targets).tolist()
        sums, greedy = [0.0] * len(examples), [True] * len(examples)
        for sample, loss, is_right in zip(samples, losses, right, strict=True):
            sums[sample] += loss
            greedy[sample] &= is_right
        return list(zip(sums, greedy, strict=True))


def cut(answer: str, until: str | Sequence[str] | None) -> str:
    """An answer up to the first of the texts that end it."""
    for end in [until] if isinstance(until, str) else until or ():
        answer = answer.partition(end)[0] if end else answer
    return answer


def _device(choice: str) -> torch.device:
    """As torch names it, ``cuda:1`` too, or ``auto``."""
    kind = choice.partition(":")[0]
    if kind not in DEVICES:
        raise ConfigError(unknown("device", choice, DEVICES))
    chosen = choose_device(kind)
    return torch.device(choice) if ":" in choice else chosen


def _warn_of_other_decoding(task: str, wishes: Mapping[str, Any]) -> None:
    samples = wishes.get("do_sample", True) and (wishes.get("temperature") or 0) > 0
    if samples or (wishes.get("num_beams") or 1) > 1:
        warnings.warn(f"{task}: it asks for sampling or beams, and {NAME} answers greedily", stacklevel=2)
