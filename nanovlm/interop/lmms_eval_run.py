"""A benchmark of lmms-eval as one of ours: asked by lmms-eval, kept as items, and read by reports."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanovlm.errors import ConfigError, DataError, join, named
from nanovlm.evaluation.evaluator import Evaluation, Item
from nanovlm.lab.results import ADDED
from nanovlm.training.run import Run
from nanovlm.weights import read_json

PREFIX = "lmms-"  # of a benchmark's name


def ask(
    model_args: Mapping[str, Any], tasks: Sequence[str], limit: int = 0, include: str = ""
) -> tuple[list[Evaluation], list[str]]:
    """Have lmms-eval ask a model (see ``NanoVLM``) its tasks, each whole or its first ``limit`` questions.

    include: a folder with more tasks. Of a group of tasks each one is an evaluation by itself. The second list says in
    words what has no evaluation: by then all has been asked, and nothing of it may be lost.
    """
    try:
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager
        from loguru import logger
        from tenacity import RetryError
    except ImportError as error:
        raise ConfigError(
            f'--lmms-eval needs the library lmms-eval ({error}): pip install "nanovlm[lmms-eval]"'
        ) from None
    from nanovlm.interop.lmms_eval_model import NAME, NanoVLM

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    manager = TaskManager("WARNING", include_path=include or None, model_name=NAME)
    check_tasks(tasks, manager.all_tasks)
    model = NanoVLM(**model_args)
    try:
        found = simple_evaluate(
            model=model, tasks=list(tasks), limit=limit or None, task_manager=manager, bootstrap_iters=0
        )
    except RetryError as error:  # datasets are read, and answers scored, several times before it gives up
        cause = error.last_attempt.exception() or error
        raise ConfigError(f"lmms-eval cannot ask {', '.join(tasks)}: {named(cause)}") from error
    evaluations, problems = [], []
    for task in found["samples"]:
        try:
            evaluations.append(evaluation_of(task, found, model.skipped))
        except DataError as error:
            problems.append(str(error))
    return evaluations, problems


def check_tasks(tasks: Sequence[str], known: Sequence[str]) -> None:
    """ConfigError for each that lmms-eval does not have; it has too many for a list."""
    problems = []
    for task in tasks:
        if task not in known:
            close = difflib.get_close_matches(task, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            problems.append(
                f"--lmms-eval {task}: lmms-eval has no such task.{hint} `lmms-eval tasks list` lists them; "
                "--include-path names a folder with more"
            )
    if problems:
        raise ConfigError(join(problems))


def evaluation_of(task: str, found: Mapping[str, Any], skipped: Mapping[tuple[str, int], str]) -> Evaluation:
    """A task's result. Where it filters answers in several ways, each question counts by the first of them.

    The accuracy is the mean of the questions' scores by one metric; lmms-eval's own figures are kept beside it, since
    a task may weigh its questions otherwise. DataError where no metric scores single questions from 0 to 1.
    """
    samples = list({sample["doc_id"]: sample for sample in reversed(found["samples"][task])}.values())[::-1]
    if not samples:
        raise DataError(f"{task}: lmms-eval asked no question of it")
    better = found["higher_is_better"][task]
    metric = next((name for name in better if _scores(samples, name) and better[name] is not False), "")
    figures = {key: value for key, value in found["results"][task].items() if _is_figure(key, value)}
    if not metric:
        raise DataError(
            f"{task}: none of its metrics ({', '.join(better)}) scores each question from 0 to 1, so that nothing "
            f"of it is kept and compared; lmms-eval says {', '.join(in_words(figures)) or 'nothing'}"
        )
    items = []
    for sample, score in zip(samples, _scores(samples, metric), strict=True):
        reason = skipped.get((task, sample["doc_id"]))
        words = str(sample["arguments"][0]), _said(sample["filtered_resps"]), str(sample["target"])
        items.append(Item(str(sample["doc_id"]), *words, 0.0 if reason else score, skipped=reason))
    about = {
        "task": task,
        "metric": metric,
        "version": str(found["lmms_eval_version"]),
        "task_version": str(found["versions"].get(task, "")),
        "figures": figures,
    }
    return Evaluation(PREFIX + task, items, measures={"lmms_eval": about})


def keep(evaluation: Evaluation, source: str) -> Path | None:
    """Write an evaluation of a run's last model into the run's folder, where reports find it; None for other models."""
    folder = Path(source).resolve()
    run = Run(folder.parent, "")
    if folder != run.model or not run.summary.is_file():
        return None
    step: Any = read_json(run.summary)["steps"]
    file = run.evaluation(evaluation.benchmark, step)
    file.parent.mkdir(parents=True, exist_ok=True)
    evaluation.write(file)
    run.write_json(run.evaluation(evaluation.benchmark, step, ADDED), evaluation.summary())
    return file


def in_words(figures: Mapping[str, float]) -> list[str]:
    return [f"{name} = {value:g}" for name, value in figures.items()]


def _scores(samples: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """Of every sample, by one metric: a number, or a mapping with a ``score``; none unless all are from 0 to 1."""
    found = [sample.get(metric) for sample in samples]
    values = [value.get("score") if isinstance(value, Mapping) else value for value in found]
    numbers = [float(value) for value in values if isinstance(value, int | float) and 0 <= value <= 1]
    return numbers if len(numbers) == len(samples) else []


def _said(responses: Sequence[Any]) -> str:
    """The answer; of choices that were scored, the number of the one with the smallest loss."""
    if isinstance(responses[0], str):
        return responses[0]
    losses = [response[0] for response in responses if isinstance(response, Sequence)]
    return str(losses.index(min(losses))) if losses else str(responses[0])


def _is_figure(key: str, value: Any) -> bool:
    return "," in key and isinstance(value, int | float) and math.isfinite(value)
