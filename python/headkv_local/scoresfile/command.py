"""`headkv scores show|diff|embed|import`: their options. What does the work is imported when it runs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from typing import Any

from ..bench.options import positive

_FORMATS = ("headkv", "retrieval-head", "duo", "compaction")


def add_parser(commands: Any) -> None:
    scores = commands.add_parser("scores", help="look at, compare, embed and import head scores")
    kinds = scores.add_subparsers(dest="kind", required=True, metavar="KIND")

    show = kinds.add_parser("show", help="provenance and a heat map of all heads")
    add = show.add_argument
    add("file", metavar="FILE", help="sidecar, or a model with scores in it or beside it")
    add("--json", action="store_true", help="everything as JSON instead")
    add("--png", metavar="OUT", help="write the heat map there too (needs matplotlib)")
    add("--force", action="store_true", help="let --png replace a file")
    show.set_defaults(run=_show)

    diff = kinds.add_parser("diff", help="how far two files agree: rank correlation, and the top heads")
    add = diff.add_argument
    add("a", metavar="A", help="a file as for show")
    add("b", metavar="B", help="another, of a model of the same shape")
    add(
        "--top",
        type=positive,
        metavar="K",
        help="compare the K highest scores too, not only the top 10 %%; at most the number of KV heads",
    )
    add("--json", action="store_true", help="JSON instead of a table")
    diff.set_defaults(run=_diff)

    embed = kinds.add_parser("embed", help="write a copy of a model that carries its scores")
    add = embed.add_argument
    add("file", metavar="SCORES", help="a file as for show")
    add("model", metavar="MODEL", help="the GGUF file that they were measured on")
    _add_output(embed)
    embed.set_defaults(run=_embed)

    imported = kinds.add_parser("import", help="make a sidecar from what other projects published")
    add = imported.add_argument
    add(
        "file",
        metavar="FILE",
        help="JSON of HeadKV, Retrieval_Head or compaction, or a TSV pattern of DuoAttention",
    )
    add("model", metavar="MODEL", help="the GGUF file that they are meant for")
    add("--format", required=True, choices=_FORMATS, help="whose file it is")
    _add_output(imported)
    imported.set_defaults(run=_import)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="GGUF file to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def _show(options: argparse.Namespace) -> None:
    from . import files, plot, show

    found = files.find(options.file)
    if options.png:
        plot.write_png(found.scores, options.png, force=options.force, read=[options.file, found.path])
    if options.json:
        _print_json(show.document(found))
    else:
        width = shutil.get_terminal_size().columns
        encoding = getattr(sys.stdout, "encoding", None)  # stdout may be closed
        print(show.text(found, min(width, 100), encoding or "ascii"))


def _diff(options: argparse.Namespace) -> None:
    from . import diff, files

    a, b = files.find(options.a).scores, files.find(options.b).scores
    found, moved = diff.compare(a, b, options.top), diff.moves(a, b)
    if options.json:
        _print_json(diff.document(found, moved))
    else:
        print(diff.text(found, moved))


def _embed(options: argparse.Namespace) -> None:
    from ..files import target
    from ..models import retained_shape
    from . import files

    found = files.find(options.file)
    target(options.output, force=options.force, model=options.model, inputs=[options.file, found.path])
    found.scores.for_model(retained_shape(options.model), options.model)
    found.scores.embed(options.model, options.output, force=options.force)


def _import(options: argparse.Namespace) -> None:
    from ..files import target
    from . import importers

    target(options.output, force=options.force, model=options.model, inputs=[options.file])
    scores = importers.read(options.file, options.model, options.format)
    scores.to_sidecar(options.output, force=options.force)


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))
