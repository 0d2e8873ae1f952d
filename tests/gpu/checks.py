"""What has to hold on a GPU with a real model: `checks.py CHECK --model FILE`.

Prints one line and exits with 0 if it holds, with 1 if not. The CPU's side runs in a process that
sees no GPU.
With `--gpu-layers 0` both sides are the CPU's: that the checks themselves work can be tried anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headkv_local import Llama, Retention
from headkv_local._core import native
from headkv_local._core.native.plan import observers, question, sentence_ends
from headkv_local.bench import device_memory
from headkv_local.bench.text import text_tokens
from headkv_local.bench.timing import timed_eval
from headkv_local.demo.material import questions
from headkv_local.devices import require_gpu
from headkv_local.settings import KV_TYPES
from headkv_local.tokens import logits_of

BUDGET = 128
RETENTION = Retention(budget=BUDGET)
"""By the head scores that come with the model: the heads vote."""
LEAST_HELD, LEAST_HELD_BY_A_HEAD = 0.99, 0.9
"""Attention, by the CPU's record, in what a GPU keeps over that in what the CPU keeps. Not the same entries:
products of quantized weights round otherwise on a GPU, and entries that are as good change places."""
LEAST_FREED = 0.9
"""Share of what the cache gave up that the driver shows as free: it gives memory out in large pieces."""
TURN, TURN_BATCH = 150, 50
MOST_ERROR = 1e-6
"""NMSE of logits: the same kernels over the same rows, but a mask that the device makes."""
WRONG_FULL, WRONG_COMPACTED = 1, 3
"""Most wrong answers of the demo's; at 5 % of the cache by scores; on the CPU 0 and 1 of 14 were found."""

Figures = dict[str, Any]
Mask = npt.NDArray[np.bool_]
Attention = npt.NDArray[np.float32]
Ends = npt.NDArray[np.int64]


def opened(options: argparse.Namespace, **kwargs: Any) -> Llama:
    return Llama(
        options.model,
        n_ctx=options.prompt_tokens + 608,
        n_gpu_layers=options.gpu_layers,
        flash_attn=True,
        n_ubatch=512,
        type_k=KV_TYPES[options.type_kv],
        type_v=KV_TYPES[options.type_kv],
        **kwargs,
    )


def as_asked(options: argparse.Namespace, devices: tuple[str, ...]) -> bool:
    """A check that ran on the CPU says nothing about a GPU."""
    return options.gpu_layers == 0 or "CPU" not in devices


def pooled_plainly(attention: Attention, ends: Ends, retention: Retention) -> Attention:
    """Max-pool over the last axis, sentence by sentence; what is further off counts less."""
    pooled = attention.copy()
    sentence = np.cumsum(ends) - ends  # its number, (n,)
    behind = ahead = np.float32(1)
    for d in range(1, min(retention.kernel // 2 + 1, len(ends))):
        behind, ahead = behind * np.float32(0.98), ahead * np.float32(0.9)
        same = sentence[d:] == sentence[:-d]
        np.maximum(pooled[..., d:], behind * attention[..., :-d], out=pooled[..., d:], where=same)
        np.maximum(pooled[..., :-d], ahead * attention[..., d:], out=pooled[..., :-d], where=same)
    return pooled


def select_plainly(
    attention: Attention, ends: Ends, retention: Retention, caps: npt.NDArray[np.int32]
) -> Mask:
    """The library's selection written the plain way: (n_layer, n_head_kv, n_prompt) to the same shape."""
    n = attention.shape[-1]
    first, last = retention.sinks, n - 2 * retention.window
    candidates = attention[..., first:last]
    pooled = pooled_plainly(candidates, ends[first:last], retention)
    shares = pooled / candidates.sum(axis=-1, keepdims=True, dtype=np.float64)
    trust = caps - caps.min()
    votes = (trust[..., None] * shares).sum(axis=(0, 1)) if trust.any() else np.ones(last - first)
    ranks = pooled * votes.astype(np.float32)
    keep = np.zeros(attention.shape, dtype=np.bool_)
    for head in np.ndindex(caps.shape):
        cap = int(caps[head])
        n_first = min(first, cap - retention.window)
        n_last = min(n - last, max(retention.window, cap // 2), cap - n_first)
        best = np.argsort(-ranks[head], kind="stable")[: cap - n_last - n_first]
        keep[head][:n_first] = keep[head][n - n_last :] = keep[head][first + best] = True
    return keep


def attention_held(found: Mask, wanted: Mask, attention: Attention) -> tuple[float, float]:
    """Attention to the chosen entries of one mask over that of the other: of all heads, of the worst."""
    n = attention.shape[-1]
    chosen = slice(RETENTION.sinks, n - 2 * RETENTION.window)
    has, should = ((attention * m)[..., chosen].sum(axis=-1, dtype=np.float64) for m in (found, wanted))
    shares = np.divide(has, should, out=np.ones_like(has), where=should > 0)
    return float(has.sum() / should.sum()), float(shares.min())


class Compacted(NamedTuple):
    """A prompt's mask, the one that numpy selects from the recorded attention, and where the cache was."""

    mask: Mask
    plain: Mask
    attention: Attention
    devices: tuple[str, ...]


def compacted(options: argparse.Namespace) -> Compacted:
    """In steps, with the record at hand before compaction frees it."""
    with opened(options) as llm:
        ctx, tokens = int(llm.ctx), text_tokens(llm, options.prompt_tokens)
        n, text = len(tokens), llm._vocabulary.pieces(tokens)
        ends = sentence_ends(text)
        who = observers(question(text, -1, n, RETENTION.observe), n, 2 * RETENTION.window)
        assert not who.again
        native.observe(ctx, native.OBSERVE_TOKENS, who.first, len(who.weights), who.weights)
        llm.eval(tokens[: who.first])
        at_once = native.get_observe_limit(ctx, n)
        for start in range(who.first, n, at_once):
            llm.eval(tokens[start : start + at_once])
        seen = native.get_attention(ctx), ends.astype(np.int64)
        caps = RETENTION.caps_for(llm.shape, n)
        plan = native.Plan(caps, RETENTION.window, RETENTION.kernel, RETENTION.sinks, ends)
        native.compact(ctx, plan)
        stats = llm.cache_stats()
        plain = select_plainly(*seen, RETENTION, stats.kept)
        return Compacted(llm.retention_mask(), plain, seen[0], stats.devices)


def mask(options: argparse.Namespace) -> tuple[bool, str, Figures]:
    found = compacted(options)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mask.npz"
        command = [sys.executable, __file__, "save-mask", "--model", options.model, "--json", str(path)]
        subprocess.run(
            [
                *command,
                *("--gpu-layers", "0", "--prompt-tokens", str(options.prompt_tokens)),
                *("--type-kv", options.type_kv),
            ],
            check=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )
        with np.load(path) as saved:
            wanted, attention = saved["mask"], saved["attention"]
    total, worst = attention_held(found.mask, wanted, attention)
    overlap = float((found.mask & wanted).sum() / wanted.sum())
    same_selection = bool((found.mask == found.plain).all())
    figures = {"held": total, "held_by_the_worst_head": worst, "overlap": overlap}
    figures |= {"same_selection": same_selection, "devices": found.devices}
    by_numpy = "the same mask" if same_selection else "ANOTHER mask"
    sentence = (
        f"{', '.join(found.devices)}: attention held {total:.2%} of the CPU's (at least {LEAST_HELD:.0%}), "
        f"worst head {worst:.1%} ({LEAST_HELD_BY_A_HEAD:.0%}); {overlap:.1%} the same entries; "
        f"numpy selects {by_numpy}"
    )
    passed = total >= LEAST_HELD and worst >= LEAST_HELD_BY_A_HEAD and same_selection
    return passed and as_asked(options, found.devices), sentence, figures


def splits(options: argparse.Namespace) -> tuple[bool, str, Figures]:
    """A node that falls back to another device would be a part of its own in the graph.

    Observed are the last tokens of a prompt, a few at once, and for head scores each token of an answer.
    """
    counts: dict[str, int] = {}
    with opened(options) as llm:
        *prompt, token = text_tokens(llm, options.prompt_tokens + 1)
        last = 2 * RETENTION.window

        def decode(name: str, tokens: list[int], observed: int = native.OBSERVE_OFF) -> None:
            native.observe(int(llm.ctx), observed, llm.n_tokens, len(tokens))
            llm.eval(tokens)
            native.observe(int(llm.ctx), native.OBSERVE_OFF)
            counts[name] = llm.cache_stats().n_splits

        llm.prefill(prompt[:-last])
        decode("tokens", prompt[-last:])
        decode("token", [token])
        decode("token, observed", [token], native.OBSERVE_ROWS)
        llm.reset()
        llm.prefill(prompt[:-last])
        decode("tokens, observed", prompt[-last:], native.OBSERVE_TOKENS)
        llm.reset()
        llm.retention = Retention(budget=BUDGET, scores="uniform")
        llm.prefill(prompt)
        llm.eval([token])
        stats = llm.cache_stats()
        counts["token, compacted"] = stats.n_splits
    sentence = f"cache on {', '.join(stats.devices)}, parts of the graph: " + "; ".join(
        f"{name} {n}" for name, n in counts.items()
    )
    as_before = all(n <= counts[name.partition(",")[0]] for name, n in counts.items())
    return stats.compacted and as_before and as_asked(options, stats.devices), sentence, counts


def turn(options: argparse.Namespace) -> tuple[bool, str, Figures]:
    """A later turn in several batches: the tail grows while a GPU may still be at the last batch."""
    with opened(options, retention=RETENTION) as llm:
        tokens = text_tokens(llm, options.prompt_tokens + TURN)

        def logits(evaluate: Callable[[Llama, list[int]], object]) -> npt.NDArray[np.float32]:
            llm.reset()
            llm.prefill(tokens[:-TURN])
            for start in range(options.prompt_tokens, len(tokens), TURN_BATCH):
                evaluate(llm, tokens[start : start + TURN_BATCH])
            return logits_of(llm).copy()

        waited, hurried = logits(timed_eval), logits(Llama.eval)
        stats = llm.cache_stats()
    n_differ = int((waited != hurried).sum())
    sentence = (
        f"cache on {', '.join(stats.devices)}, {TURN} tokens in batches of {TURN_BATCH} behind a prompt: "
        f"{n_differ} of {len(waited)} logits differ from those of batches that were waited for"
    )
    passed = stats.compacted and n_differ == 0
    return passed and as_asked(options, stats.devices), sentence, {"logits_that_differ": n_differ}


def memory(options: argparse.Namespace) -> tuple[bool, str, Figures]:
    """The cache's bytes against the rows that it has to hold, and what the driver says was freed."""
    with opened(options) as llm:
        tokens = text_tokens(llm, options.prompt_tokens)
        llm.retention = Retention(budget=BUDGET, scores="uniform")
        llm.prefill(tokens)  # the backend takes memory of its own as it first needs it, and keeps it
        llm.reset()
        llm.retention = None
        llm.eval(tokens[: -RETENTION.observe])  # the cache has its full size again
        llm.retention = Retention(budget=BUDGET, scores="uniform")
        before = device_memory.free_bytes(llm.cache_stats().devices)
        llm.prefill(tokens)
        stats = llm.cache_stats()
        after = device_memory.free_bytes(stats.devices)
        held = sum(native.get_device_bytes(int(llm.ctx)))
    needed = int(stats.kept.sum()) * stats.row_bytes + stats.tail_bytes
    freed = None if before is None or after is None else after - before
    least = LEAST_FREED * (stats.full_bytes - held)
    figures = {"held": held, "needed": needed, "full": stats.full_bytes, "device_freed": freed}
    sentence = (
        f"{', '.join(stats.devices)}: {held / needed:.4f} of kept rows and tail (at most 1.02); full cache "
        f"{stats.full_bytes / 2**20:.1f} MiB, now {held / 2**20:.1f} MiB, freed by the driver's figures: "
        + ("not available" if freed is None else f"{freed / 2**20:.1f} MiB (at least {least / 2**20:.1f})")
    )
    passed = stats.compacted and held <= 1.02 * needed and (freed is None or freed >= least)
    return passed and as_asked(options, stats.devices), sentence, figures


def layers(options: argparse.Namespace) -> tuple[bool, str, Figures]:
    """A prompt and a later turn read layer by layer, against the order of tokens; what is held at most."""
    logits: dict[str, list[npt.NDArray[np.float32]]] = {"tokens": [], "layers": []}
    peaks: dict[str, int] = {}
    for order in logits:
        with opened(options, retention=Retention(budget=BUDGET, order=order, archive="memory")) as llm:
            tokens = text_tokens(llm, options.prompt_tokens + TURN)
            for n in (options.prompt_tokens, len(tokens)):
                llm.prefill(tokens[:n])
                logits[order].append(logits_of(llm).copy())
                peaks.setdefault(order, llm.cache_stats().peak_bytes)
            stats = llm.cache_stats()
    errors = [
        float(((one - other) ** 2).sum() / (other**2).sum())
        for one, other in zip(logits["layers"], logits["tokens"], strict=True)
    ]
    n_cells = options.prompt_tokens + 256  # as many as are padded to
    layer = max(shape.n_head_kv * shape.row_bytes for shape in stats.layers) * n_cells
    record = sum(shape.n_head_kv for shape in stats.layers) * 4 * n_cells
    most = 2 * layer + stats.pool_bytes + stats.tail_bytes + record
    figures = {"nmse": errors, "peak": peaks, "two_layers_and_all_held": most}
    figures |= {"archived": stats.archive_tokens, "devices": stats.devices}
    mib = {order: f"{peak / 2**20:.1f}" for order, peak in peaks.items()}
    sentence = (
        f"{', '.join(stats.devices)}: NMSE of logits to the order of tokens {errors[0]:.1e}, a later turn "
        f"{errors[1]:.1e} (at most {MOST_ERROR:.0e}); K/V at the most {mib['layers']} MiB (two layers and "
        f"all that is held then: {most / 2**20:.1f}), in the order of tokens {mib['tokens']}"
    )
    passed = max(errors) <= MOST_ERROR and peaks["layers"] <= 1.05 * most
    passed = passed and stats.archive_tokens == len(tokens)
    return passed and as_asked(options, stats.devices), sentence, figures


def answers(options: argparse.Namespace) -> tuple[bool, str, Figures]:
    """The demo's questions; the last line of its table says how many answers were right."""
    command = [sys.executable, "-m", "headkv_local.demo", "--budget", "5%"]
    command += ["--gpu-layers", str(options.gpu_layers), "--model", options.model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="\n")
    row = next((line for line in done.stdout.splitlines() if line.startswith("answers right")), "")
    right = [int(word) for word in row.split() if word.isdecimal()][::2]  # "14 of 14  11 of 14  13 of 14"
    n = len(questions())
    least = n - WRONG_FULL, n - WRONG_COMPACTED
    passed = done.returncode == 0 and right[:1] >= [least[0]] and right[-1:] >= [least[1]]
    sentence = f"right of {n}: {right} (full cache, uniform, by scores; at least {least[0]} and {least[1]} "
    sentence += "of the first and the last)"
    return passed, sentence, {"right": right}


def save_mask(options: argparse.Namespace) -> tuple[bool, str, Figures]:
    """For mask(): the CPU's side, in a file for numpy."""
    found = compacted(options)
    np.savez(options.json, mask=found.mask, attention=found.attention)
    return True, "saved", {}


CHECKS: dict[str, Callable[[argparse.Namespace], tuple[bool, str, Figures]]] = {
    "mask": mask,
    "splits": splits,
    "turn": turn,
    "memory": memory,
    "layers": layers,
    "answers": answers,
    "save-mask": save_mask,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--gpu-layers", type=int, default=-1)
    parser.add_argument("--prompt-tokens", type=int, default=4000, metavar="N")
    parser.add_argument(
        "--type-kv", choices=KV_TYPES, default="f16", help="type of the cache; not for answers"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    require_gpu(options.gpu_layers)
    passed, sentence, figures = CHECKS[options.check](options)
    if options.json and options.check != "save-mask":
        Path(options.json).write_text(json.dumps({"passed": passed} | figures, indent=1) + "\n")
    print(sentence)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
