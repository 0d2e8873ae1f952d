"""Which beta is the best with measured scores: tried on examples that nothing was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..curves import Curves
from ..llama import Llama
from ..retention import Retention
from ..scores import HeadScores
from .ablation import require_losses, settings_of
from .dataset import Example
from .loss import SavedPrompt
from .options import Bar, Options
from .progress import Progress, Tally
from .prompt import Prompter, ask
from .samples import Plan, plan

STAGE = "beta"
BETAS = (1.005, 1.1, 1.3, 2.0, 3.0, 5.0, 10.0)
BUDGETS = ("3%", "6%")
MOST = 0.05  # nats that a flatter beta may cost, however little its samples tell
SHAPE = (
    2 + len(BETAS),
    1 + len(BETAS),
)  # sums of losses, of equal budgets first, and of products of each two


@dataclass(frozen=True)
class Choice:
    """losses: mean negative log-likelihood of the answers' tokens with each beta, in nats. uniform: of equal
    budgets. beta: the flattest one that is as good as the best, as far as the samples tell."""

    beta: float
    losses: tuple[float, ...]
    uniform: float
    n_samples: int
    n_examples: int

    @property
    def pays(self) -> bool:
        return self.least < self.uniform

    @property
    def least(self) -> float:
        return min(self.losses)

    def text(self) -> str:
        """For the file's provenance."""
        tried = ", ".join(f"{beta:g}" for beta in BETAS)
        return (
            f"{self.beta:g} of {tried}: loss {self.losses[BETAS.index(self.beta)]:.4f}, least "
            f"{self.least:.4f}, equal budgets {self.uniform:.4f}, on {self.n_samples} samples of "
            f"{self.n_examples} held-out examples at {' and '.join(BUDGETS)}"
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
    """scores: of the layers that the model retains. examples: held out. Raises as require_losses()."""
    prompter = Prompter(llm, options.plain)
    plans = planned(options, lengths, examples)
    kept = settings_of(options)
    tally = progress.tally(STAGE)
    bar(STAGE, tally.done, len(plans), "sample")
    measured: Curves | object = scores.curves or np.asarray(scores.scores)
    for one in plans[tally.done :]:
        saved = SavedPrompt(llm, ask(one, prompter), kept["window"])
        losses = np.zeros(1 + len(BETAS))
        for budget in BUDGETS:
            losses[0] += saved.loss(Retention(budget=budget, scores="uniform", fold=None, **kept))
            for i, beta in enumerate(BETAS):
                retention = Retention(budget=budget, scores=measured, beta=beta, fold=None, **kept)  # type: ignore[arg-type]
                losses[1 + i] += saved.loss(retention)
        tally.add(one.half, moments(losses / len(BUDGETS)))
        progress.save()
        bar(STAGE, tally.done, len(plans), "sample")
    require_losses(tally)
    uniform, *by_beta = tally.mean[0].tolist()
    return Choice(flattest(tally), tuple(by_beta), uniform, len(plans), len(examples))


def moments(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of one sample, what flattest() needs the sums of: SHAPE."""
    return np.vstack([losses, np.outer(losses, losses)])


def flattest(tally: Tally) -> float:
    """The largest beta whose loss exceeds the least one by no more than the standard error of the difference,
    and than MOST.

    What is smaller than that is noise: the least loss of a few samples is now with this beta and now with
    that one. Of what does as well the flattest is least bound to the heads that these samples needed.
    """
    (losses, *products), n = tally.mean, tally.n_counted
    squares = np.array(products)
    best = 1 + int(np.argmin(losses[1:]))
    more = losses - losses[best]
    variance = np.diag(squares) - 2 * squares[best] + squares[best, best] - more**2
    noise = np.minimum(np.sqrt(np.maximum(variance, 0) / (n - 1)), MOST)
    return BETAS[int(np.flatnonzero(more[1:] <= noise[1:])[-1])]
