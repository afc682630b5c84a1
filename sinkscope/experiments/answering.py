"""What a model answers to questions in a text, under a policy: the likeliest of a few tokens, and of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.arguments import whole_number
from sinkscope.experiments.perplexity import BATCH_TOKENS, Run, check_run, fitting_block, reader_of
from sinkscope.experiments.questions import Asked
from sinkscope.policies import Policy
from sinkscope.progress import progress_bar
from sinkscope.scope.binding import check_limits
from sinkscope.scope.measure import batches_of


class Answers(NamedTuple):
    """Of each question [trial, question].

    Attributes:
        correct: whether the right answer is the likeliest of the choices.
        said: whether it is the likeliest of all tokens.
        nll: its loss in nats.
    """

    correct: np.ndarray
    said: np.ndarray
    nll: np.ndarray


def answers(
    model: nn.Module,
    asked: Sequence[Asked],
    choices: Sequence[int],
    policies: Sequence[Policy],
    run: Run,
    *,
    max_memory: int | None = None,
    progress: bool | None = None,
) -> list[list[Answers]]:
    """The answers under each policy to the questions in each group of texts, [policy][group].

    A text is read once; what stands behind a question in it is the right answer, whatever the model said.

    Args:
        model: a decoder with a language head, in eval mode.
        asked: groups of texts.
        choices: tokens, in the order that the answers count them.
        policies: which keys a query may see.
        run: how texts are read.
        max_memory, progress: as of `perplexity`.

    Raises:
        SinkscopeError: as `perplexity`.
    """
    most = None if max_memory is None else whole_number(max_memory, "max_memory", 1)
    groups = [list(torch.from_numpy(group.texts)) for group in asked]
    check_run(model, [text for texts in groups for text in texts], run)
    for policy in policies:
        check_limits(model, policy, max(len(texts[0]) for texts in groups))
    total = len(policies) * sum(group.texts.size for group in asked)
    with progress_bar(total, "token", progress) as bar:
        found: list[list[Answers]] = []
        for policy in policies:
            bar.set_description(policy.name, refresh=False)
            found.append([])
            for group, texts in zip(asked, groups, strict=True):
                how = replace(run, asked=tuple(group.places))
                how = replace(how, block=fitting_block(model, texts, [policy], how, most))
                parts = []
                for batch in batches_of(texts, BATCH_TOKENS):
                    parts.append(_read(model, batch, policy, how, group.places, torch.tensor(choices)))
                    bar.update(batch.numel())
                picked, likeliest, nll = (np.concatenate(part) for part in zip(*parts, strict=True))
                right = group.answers
                found[-1].append(Answers(picked == right, likeliest == np.array(choices)[right], nll))
    return found


def _read(
    model: nn.Module, batch: Tensor, policy: Policy, run: Run, places: Sequence[int], choices: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[sequence, question] number of the likeliest choice, the likeliest token, and the loss of what stands there."""
    picked, likeliest = (np.full((len(batch), len(places)), -1) for _ in range(2))
    nll = np.full((len(batch), len(places)), np.nan, dtype=np.float32)
    wanted = torch.tensor(places)

    def look(logits: Tensor, queries: Tensor) -> None:
        which, column = (wanted[:, None] == queries).nonzero(as_tuple=True)
        seen = logits[:, column.to(logits.device)].float()
        picked[:, which.tolist()] = seen[..., choices.to(seen.device)].argmax(-1).cpu()
        likeliest[:, which.tolist()] = seen.argmax(-1).cpu()

    reader = reader_of(model, batch, policy, run)
    reader.look = look
    for step in reader.steps():
        which, column = (wanted[:, None] + 1 == step.tokens).nonzero(as_tuple=True)
        nll[:, which.tolist()] = step.losses[:, column]
    return picked, likeliest, nll
