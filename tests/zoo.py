"""Check the site aliases of every class of `AutoModel` by value, in tiny random models.

    python -m tests.zoo [--write] [class ...]

Writes docs/zoo.md, one row per class, and what fastcap looks up at run time, one entry per class of
block: fastcap/huggingface/aliases.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastcap.huggingface.verdicts import REFUSED, TABLE, UNVERIFIED, VERIFIED
from tests.support.alias_check import KINDS, UNREACHED, Found, check, merge
from tests.support.tiny_models import NotBuiltError, build, in_short

PAGE = Path(__file__).parent.parent / "docs/zoo.md"
BLOCK = re.compile(r"(<!-- {name} -->\n).*?(<!-- end of {name} -->)".format(name="zoo"), re.DOTALL)
SECONDS = 30
WORDS = {VERIFIED: "verified", REFUSED: "refused", UNVERIFIED: "not verified", UNREACHED: "by name"}


class Result(NamedTuple):
    """What was found in one class: verdicts by class of block, and why there are not more."""

    found: Found
    nowhere: dict[str, str]
    note: str
    """Why the class was not run, or not built; empty if it was."""


def classes() -> dict[str, str]:
    """The classes that `AutoModel` knows, each with the first model type that leads to it."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    found: dict[str, str] = {}
    for model_type, names in MODEL_MAPPING_NAMES.items():
        for name in [names] if isinstance(names, str) else names:
            found.setdefault(name, model_type)
    return dict(sorted(found.items()))


def look(name: str, model_type: str) -> Result:
    """Build one class and check its aliases."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        model, inputs, note = build(CONFIG_MAPPING[model_type], getattr(transformers, name))
    except NotBuiltError as error:
        return Result({}, {}, f"not built: {error}")
    try:
        found, nowhere = check(model, inputs)
    except Exception as error:  # noqa: BLE001 - of any model, for any reason
        return Result({}, {}, f"not checked: {in_short(error)}")
    return Result(found, nowhere, f"not run: {note}" if note else "")


def look_apart(name: str, model_type: str) -> Result:
    """`look` in a process of its own, which may fail or take too long."""
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe()
    process = context.Process(target=_answer, args=(other, name, model_type))
    process.start()
    other.close()
    try:
        answer: Result = (
            mine.recv() if mine.poll(SECONDS) else Result({}, {}, f"takes more than {SECONDS} s")
        )
    except EOFError:
        answer = Result({}, {}, "the process ended")
    process.kill()
    process.join()
    return answer


def _answer(pipe: Connection, name: str, model_type: str) -> None:
    silence()
    pipe.send(look(name, model_type))


def silence() -> None:
    """Nothing of what models say when they are built, and one thread, for the same sums."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def row(name: str, result: Result) -> str:
    """One line of the table."""
    is_empty = not result.found and not result.nowhere
    cells = [""] * len(KINDS) if is_empty else [cell(kind, result) for kind in KINDS]
    return f"| {' | '.join([name, *cells, result.note])} |"


def cell(kind: str, result: Result) -> str:
    """What is said of one alias: by class of block where they differ."""
    if kind in result.nowhere:
        return f"none: {result.nowhere[kind]}"
    said: dict[str, list[str]] = {}
    for key, kinds in result.found.items():
        for verdict, detail in kinds.get(kind, {}).values():
            is_said = detail and not (verdict == UNREACHED and result.note)
            text = f"{WORDS[verdict]}: {detail}" if is_said else WORDS[verdict]
            said.setdefault(text, []).append(key.rpartition(".")[2])
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{text} ({', '.join(dict.fromkeys(who))})" for text, who in said.items())


def merged(results: Iterable[Result]) -> Found:
    """What all classes together say of each class of block."""
    verdicts: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for result in results:
        for key, kinds in result.found.items():
            for kind, insides in kinds.items():
                for inside, verdict in insides.items():
                    places = verdicts.setdefault(key, {}).setdefault(kind, {})
                    places.setdefault(inside, []).append(verdict)
    return {
        key: {
            kind: {inside: merge(each) for inside, each in sorted(insides.items())}
            for kind, insides in sorted(kinds.items())
        }
        for key, kinds in sorted(verdicts.items())
    }


def at_run_time(blocks: Found) -> str:
    """The table that fastcap looks into: `block` is `residual`, and unreached is not verified."""
    import transformers

    known = {
        key: {
            kind: {
                inside: (UNVERIFIED if verdict == UNREACHED else verdict, detail)
                for inside, (verdict, detail) in kinds[source].items()
            }
            for kind, source in (("block", "residual"), *zip(KINDS, KINDS, strict=True))
            if source in kinds
        }
        for key, kinds in blocks.items()
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(known[key])}" for key in known)
    return f'{{"transformers": "{transformers.__version__}", "blocks": {{\n{lines}\n}}}}\n'


def counts(rows: Iterable[str]) -> Iterator[str]:
    """How many classes there are, and what is said of each alias in them."""
    import transformers

    cells = [line.split("|")[2:5] for line in rows]
    run = [line for line in cells if line[0].strip()]
    yield (
        f"transformers {transformers.__version__}: {len(cells)} classes, {len(cells) - len(run)} "
        "of them not built or not checked."
    )
    yield ""
    yield "| alias | verified | in part | not verified | by name | refused | none |"
    yield "|---|---|---|---|---|---|---|"
    for number, kind in enumerate(KINDS):
        found = Counter(group(line[number].strip()) for line in run)
        order = (VERIFIED, "in part", "not verified", "by name", REFUSED, "none")
        yield f"| `{kind}` | {' | '.join(str(found[key]) for key in order)} |"


def group(text: str) -> str:
    """What a cell is counted as."""
    kinds = {part.strip().partition(":")[0].partition(" (")[0] for part in text.split("; ")}
    return kinds.pop() if len(kinds) == 1 else "in part"


def page(rows: list[str]) -> str:
    """What stands between the marks."""
    head = [
        "",
        "| class | `residual`, `block` | `attention` | `mlp` | note |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*counts(rows), *head, *rows]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.zoo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--write", action="store_true", help="write the page and the table")
    parser.add_argument("classes", nargs="*", help="only these, which are shown and not written")
    options = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    silence()
    known = classes()
    for name in ("LlamaModel", "BertModel", "CLIPModel"):
        look(name, known[name])  # so that most of what they import is there before the forks
    results = {}
    for name in options.classes or known:
        start = time.perf_counter()
        results[name] = look_apart(name, known[name])
        took = time.perf_counter() - start
        sys.stderr.write(f"{took:5.1f} s  {row(name, results[name])}\n")
    text = page([row(name, result) for name, result in results.items()])
    if options.write and not options.classes:
        PAGE.write_text(BLOCK.sub(lambda found: found[1] + text + found[2], PAGE.read_text()))
        TABLE.write_text(at_run_time(merged(results.values())))
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
