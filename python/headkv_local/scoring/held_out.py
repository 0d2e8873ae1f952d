"""Which beta is the best with measured scores: tried on examples that nothing was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..curves import Curves
from ..llama import Llama
from ..retention import Retention
from ..scores import HeadScores
from .ablation import settings_of
from .dataset import Example
from .loss import SavedPrompt
from .options import Bar, Options
from .progress import Progress
from .prompt import Prompter, ask
from .samples import Plan, plan

STAGE = "beta"
BETAS = (1.005, 1.1, 1.3, 2.0, 5.0, 10.0)
BUDGETS = ("3%", "6%")
SHAPE = (1 + len(BETAS), len(BUDGETS))


@dataclass(frozen=True)
class Choice:
    """losses: mean negative log-likelihood of the answers' tokens with each beta, in nats. uniform: of equal
    budgets."""

    beta: float
    losses: tuple[float, ...]
    uniform: float
    n_samples: int
    n_examples: int

    @property
    def pays(self) -> bool:
        return min(self.losses) < self.uniform

    def text(self) -> str:
        """For the file's provenance."""
        tried = ", ".join(f"{beta:g}" for beta in BETAS)
        return (
            f"{self.beta:g} of {tried}: loss {min(self.losses):.4f}, equal budgets {self.uniform:.4f}, on "
            f"{self.n_samples} samples of {self.n_examples} held-out examples at {' and '.join(BUDGETS)}"
        )


def planned(options: Options, lengths: tuple[int, ...], examples: Sequence[Example]) -> list[Plan]:
    """The samples that betas are tried on; none where no example is held out."""
    n_samples = max(4, options.n_samples // 4)
    return plan(examples, n_samples, lengths, options.seed) if examples else []


def choose(
    llm: Llama,
    options: Options,
    lengths: tuple[int, ...],
    examples: Sequence[Example],
    scores: HeadScores,
    progress: Progress,
    bar: Bar,
) -> Choice:
    """scores: of the layers that the model retains. examples: held out."""
    prompter = Prompter(llm, options.plain)
    plans = planned(options, lengths, examples)
    kept = settings_of(options)
    tally = progress.tally(STAGE)
    bar(STAGE, tally.done, len(plans), "sample")
    measured: Curves | object = scores.curves or np.asarray(scores.scores)
    for one in plans[tally.done :]:
        saved = SavedPrompt(llm, ask(one, prompter), kept["window"])
        losses = np.empty(SHAPE)
        for j, budget in enumerate(BUDGETS):
            losses[0, j] = saved.loss(Retention(budget=budget, scores="uniform", fold=None, **kept))
            for i, beta in enumerate(BETAS):
                retention = Retention(budget=budget, scores=measured, beta=beta, fold=None, **kept)  # type: ignore[arg-type]
                losses[1 + i, j] = saved.loss(retention)
        tally.add(one.half, losses)
        progress.save()
        bar(STAGE, tally.done, len(plans), "sample")
    uniform, *by_beta = tally.mean.mean(axis=1).tolist()
    best = int(np.argmin(by_beta))
    return Choice(BETAS[best], tuple(by_beta), uniform, len(plans), len(examples))
