"""Which words does the embedded text encoder know? A closed vocabulary, in the format of CLIP's tokenizer.

CLIP's tokenizer joins letters into words by merges. Here the merges spell each word of the world from
left to right, so that every known word is one token; an unknown word falls apart into letters, which the
models have not been trained on and which carry no meaning.
"""

import itertools
import json
import string
from pathlib import Path
from typing import Any

from controlkit.embedded.world import COLOURS, FLOORS, KINDS

WORDS = (
    *(
        "a",
        "an",
        "and",
        "behind",
        "floor",
        "from",
        "front",
        "in",
        "left",
        "of",
        "on",
        "right",
        "shiny",
        "to",
        ",",
    ),
    *KINDS,
    *COLOURS,
    *FLOORS,
)
LENGTH = 26
"""Tokens per caption, start and end included; the longest caption of the world has 24."""

_END = "</w>"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens with their numbers, and merges in order of rank: whole words first, then letters, then parts."""
    ranks: dict[tuple[str, str], int] = {}
    for word in WORDS:
        pieces = _merge([*word[:-1], word[-1] + _END], ranks)
        while (
            len(pieces) > 1
        ):  # what earlier words' merges leave apart is joined by new ones, which rank lower
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    merges = list(ranks)
    tokens = [*_SPECIAL, *(word + _END for word in WORDS)]
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens += [letter for letter in letters] + [letter + _END for letter in letters]
    tokens += ["".join(merge) for merge in merges]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges


def _merge(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding: join the neighbours of the best rank until there are none."""
    while pairs := [pair for pair in itertools.pairwise(pieces) if pair in ranks]:
        first, second = min(pairs, key=ranks.__getitem__)
        i = next(i for i in range(len(pieces)) if (pieces[i], pieces[i + 1]) == (first, second))
        pieces = [*pieces[:i], first + second, *pieces[i + 2 :]]
    return pieces


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer in the layout that `transformers.CLIPTokenizer.from_pretrained` reads."""
    from transformers import CLIPTokenizer

    tokens, merges = vocabulary()
    folder.mkdir(parents=True, exist_ok=True)
    pairs: Any = merges  # declared as strings, taken as pairs
    tokenizer = CLIPTokenizer(
        vocab=tokens, merges=pairs, unk_token=_SPECIAL[1], pad_token=_SPECIAL[1], model_max_length=LENGTH
    )
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(tokens, indent=0) + "\n")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]) + "\n"
    )


def encode(captions: list[str]) -> list[list[int]]:
    """Token numbers of captions of the world, start, end and padding included, without transformers.

    Raises:
        KeyError: If a word is not in `WORDS`.
    """
    tokens, _ = vocabulary()
    start, end = tokens[_SPECIAL[0]], tokens[_SPECIAL[1]]
    rows = []
    for caption in captions:
        words = caption.replace(",", " ,").split()
        row = [start, *(tokens[word + _END] for word in words), end]
        rows.append(row + [end] * (LENGTH - len(row)))
    return rows
