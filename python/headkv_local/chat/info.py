"""/info and /stats: what holds now, in lines."""

from __future__ import annotations

from collections.abc import Iterator

from headkv_local.chat.options import MEMORY, budget_text
from headkv_local.chat.render import seconds, share
from headkv_local.chat.session import Session
from headkv_local.wording import size


def notes(session: Session) -> Iterator[str]:
    """What its user should know of the model and its archive."""
    trained, ctx = session.llm.trained_tokens, session.options.ctx
    if isinstance(ctx, int) and 0 < trained < ctx:
        yield f"the model was trained for {trained} tokens, it may lose track beyond them"
    if session.archive.reason:
        yield session.archive.told


def attached(session: Session) -> Iterator[str]:
    """The documents that wait."""
    which = "next" if session.turns else "first"
    for document in session.documents:
        yield f"{document.shown} is read with your {which} question."


def told(session: Session) -> Iterator[str]:
    """Model, context and settings."""
    llm, meta, options = session.llm, session.llm.metadata, session.options
    yield f"model: {llm.model_path}"
    name, architecture = meta.get("general.name", "no name"), meta.get("general.architecture", "?")
    yield f"its own name: {name} ({architecture})"
    yield f"context: {session.used_tokens} of {llm.n_ctx()} tokens"
    budget, after = budget_text(session.in_force.budget), budget_text(options.budget)
    yield f"budget: {budget}{f', {after} after /clear' if session.waits('budget') else ''}"
    yield f"head scores: {llm.scores_from or 'none'}"
    yield f"threads: {llm.n_threads}"
    yield f"sampling: {llm.sampling.told()}"
    if options.system:
        yield f"system message: {options.system}"
    if options.config is not None:
        yield f"configuration: {options.config}"
    stats = session.stats()
    yield f"cache on: {', '.join(stats.devices)}"
    if stats.compacted:
        yield f"kept: {share(stats.kept_share)} of {stats.prompt_tokens} tokens, {size(stats.kept_bytes)}"
    yield f"archive: {_archive(session)}"
    yield f"turns: {session.turns}"
    for document in session.documents:
        yield f"attached: {document.shown}"


def figures(session: Session) -> Iterator[str | list[str]]:
    """The KV cache; a list is one line of several figures."""
    stats = session.stats()
    how = f"kept {share(stats.kept_share)} ({stats.policy})" if stats.compacted else "kept whole"
    yield f"prompt: {stats.prompt_tokens} tokens, {how}"
    yield f"tail: {stats.tail_tokens} tokens"
    yield f"context: {session.used_tokens} of {stats.n_ctx} tokens"
    full, now, peak = (size(n) for n in (stats.full_bytes, stats.resident_bytes, stats.peak_bytes))
    yield [f"cache: {full} full", f"{now} now", f"{peak} peak"]
    yield f"archive: {_archive(session)}"
    if stats.compacted:
        work = stats.select_seconds + stats.compact_seconds
        yield f"times: prefill {seconds(stats.prefill_seconds)}, compaction {1000 * work:.0f} ms"


def _archive(session: Session) -> str:
    """What is in it, and where it is."""
    archive, stats = session.archive, session.stats()
    if session.llm.retention is None:
        return "none" if stats.compacted else "none, the cache keeps everything"
    if archive.where is None:
        return f"none, {archive.reason}" if archive.reason else "none"
    place = "in memory" if archive.where == MEMORY else f"in {archive.where}"
    if not stats.archive_tokens:
        return f"empty, {place}"
    return f"{stats.archive_tokens} tokens, {size(stats.archive_bytes)} {place}"
