"""kvpress on the very prompts of a run of `headkv bench quality --suite`: adds its rows to the run's results.

    pip install torch kvpress                      # beside headkv_local; torch for the CPU is enough
    python docs/results/peers.py RESULTS.jsonl [--presses LIST] [--budgets LIST] [--samples N]

RESULTS.jsonl is what `--results` wrote, in one run or several. The prompts of its answers are made again from
its settings, and are token for token the same: the results say so by their digests. What cannot be made again
is said, and another model is refused. The weights are those of the GGUF, dequantized to float32 by
transformers. SnapKV, Ada-SnapKV and Expected attention see the question,
as `with` does: they compress all of the prompt but its last token. KVzip
compresses the document before its question is known, as `before` does. Budgets are the same entries per KV
head as ours. An answer is greedy and judged as ours are. What the file holds already is not measured again;
the command of the run prints the table with these rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import torch
from kvpress import AdaKVPress, ExpectedAttentionPress, KVzipPress, SnapKVPress
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, logging

from headkv_local import HeadKVError, Llama, Retention
from headkv_local.bench.policies import label_of, parse_budgets
from headkv_local.bench.suites import again, prompts, results
from headkv_local.bench.suites.names import BEFORE, PEER, WITH
from headkv_local.budgets import ModelShape
from headkv_local.models import retained_shape


class Peer(NamedTuple):
    """make: a press that drops this share of the entries and keeps so many in each KV head."""

    chosen: str
    make: Callable[[float, int], Any]


def snapkv(share: float, n_kept: int) -> Any:
    """Its window of 64 tokens is always kept: here at most half of what a head keeps."""
    return SnapKVPress(share, window_size=max(8, min(64, n_kept // 2)))


PEERS = {
    "full-torch": Peer(WITH, lambda _share, _n: None),  # what the weights in float32 say without any press
    "snapkv": Peer(WITH, snapkv),
    "ada-snapkv": Peer(WITH, lambda share, n: AdaKVPress(snapkv(share, n))),
    "expected": Peer(WITH, lambda share, _: ExpectedAttentionPress(share)),
    "kvzip": Peer(BEFORE, lambda share, _: KVzipPress(share)),
}


def load(path: Path, folder: Path) -> Any:
    """The model, with a tokenizer in the folder: KVzip writes its own instructions with one."""
    given = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    AutoTokenizer.from_pretrained(**given).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32, attn_implementation="sdpa")
    model.config.name_or_path = str(folder)
    model.config.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def answer(
    model: Any, press: Any, tokens: list[int], n_context: int, max_tokens: int, is_end: Callable[[int], bool]
) -> list[int]:
    """Compress the first n_context tokens, read the others, and take the likeliest ones after them."""
    cache = DynamicCache()
    ids = torch.tensor([tokens])
    with nullcontext() if press is None else press(model):
        model.model(input_ids=ids[:, :n_context], past_key_values=cache)
    given, position, out = ids[:, n_context:], n_context, []
    while True:
        positions = torch.arange(position, position + given.shape[1])[None]
        found = model(input_ids=given, past_key_values=cache, position_ids=positions, logits_to_keep=1)
        token = int(found.logits[0, -1].argmax())
        if is_end(token):
            return out
        out.append(token)
        if len(out) == max_tokens:
            return out
        position += given.shape[1]
        given = torch.tensor([[token]])


def measure(options: argparse.Namespace) -> Iterator[results.Outcome]:
    first = results.header_of(options.results)
    said = first["settings"]
    found = results.Results(options.results, first["header"], said)
    path = again.model_of(first, options.model)
    with tempfile.TemporaryDirectory() as folder, Llama(path, vocab_only=True, n_ctx=64) as llm:
        model = load(path, Path(folder))
        shape = retained_shape(path)  # rows of F16
        vocab = llama_cpp.llama_model_get_vocab(llm.model)
        asked, others = again.prompts_of(llm, said, found)
        for task, length, number in others:
            print(f"peers: cannot be made again: {task} {length} {number}", file=sys.stderr)
        for prompt in asked:
            if options.samples is not None and prompt.item.number >= options.samples:
                continue
            for name in options.presses:
                for budget in [None] if name == "full-torch" else options.budgets:
                    outcome = _outcome(model, llm, vocab, shape, prompt, name, budget, found)
                    if outcome is not None:
                        found.add(outcome)
                        yield outcome


def _outcome(
    model: Any,
    llm: Llama,
    vocab: Any,
    shape: ModelShape,
    prompt: prompts.Prompt,
    name: str,
    budget: int | str | None,
    found: results.Results,
) -> results.Outcome | None:
    """None where the file holds it."""
    peer, item = PEERS[name], prompt.item
    n_context = len(prompt.tokens) - 1 if peer.chosen == WITH else prompt.n_document
    n_all = len(prompt.tokens)
    kept = float(n_all)
    if budget is not None:
        kept = float(Retention(budget=budget, scores="uniform").caps_for(shape, n_all).mean())
    dropped = max(0.0, 1 - (int(kept) + 0.5) / n_context)  # in the middle of what rounds to these entries
    policy, recipe = f"{PEER}{name}", f"kvpress {version('kvpress')} {name} {budget}"
    key = (*item.key, label_of(policy, budget, peer.chosen), peer.chosen)
    found.require_same({key[3]: recipe})
    if found.found(key, prompt.digest) is not None:
        return None
    started = time.perf_counter()
    tokens = answer(
        model,
        peer.make(dropped, int(kept)),
        prompt.tokens,
        n_context,
        item.max_tokens,
        lambda token: bool(llama_cpp.llama_vocab_is_eog(vocab, token)),
    )
    text = str(llm.detokenize(tokens), "utf-8", errors="replace")
    n_bytes = int(kept * shape.n_heads * shape.row_bytes)
    return results.Outcome.of(
        prompt,
        text,
        policy=policy,
        budget=budget,
        chosen=peer.chosen,
        recipe=recipe,
        answer_tokens=len(tokens),
        kept_share=kept / n_all,
        kept_bytes=n_bytes,
        resident_bytes=n_bytes,
        archive_bytes=0,
        seconds=time.perf_counter() - started,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.jsonl")
    parser.add_argument("--model", metavar="FILE", help="the GGUF file, where it has moved")
    parser.add_argument("--presses", default=",".join(PEERS), help="of %(default)s")
    parser.add_argument("--budgets", default="2%,5%,10%", help="(default: 2%%,5%%,10%%)")
    parser.add_argument("--samples", type=int, metavar="N", help="the first N of each task and length")
    options = parser.parse_args(arguments)
    options.presses = options.presses.split(",")
    if unknown := [name for name in options.presses if name not in PEERS]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(PEERS)}")
    options.budgets = parse_budgets(options.budgets)
    if in_bytes := [one for one in options.budgets if isinstance(one, str) and not one.endswith("%")]:
        parser.error(f"{in_bytes[0]} is no number of entries or percentage: rows have another size here")
    logging.disable_progress_bar()
    try:
        for outcome in measure(options):
            print(f"{outcome.label}: {outcome.task} {outcome.length} {outcome.sample}: {outcome.score:.2f}")
            sys.stdout.flush()
    except HeadKVError as error:
        raise SystemExit(f"peers: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
