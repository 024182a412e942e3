"""The arithmetic behind `twins`: words as 64-bit numbers, keys that survive one changed word, MinHash bands.

Everything works on blocks of rows with numpy, so that a million rows take seconds and not hours. Hashes are
polynomial and fixed: the same rows give the same clusters in every process.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

BLOCK = 4096
SHORT, LEAST = 40, 6
"""Texts of LEAST to SHORT words get keys with one word left out; longer ones are left to MinHash."""
PERMUTATIONS, ROWS = 64, 4
"""16 bands of 4: a pair of similarity 0.7 is met with probability 0.99, one of 0.3 with 0.12."""
NEAR = 0.7
"""Share of common words and word pairs (Jaccard) from which two rows are near twins."""
_B = np.uint64(0x9E3779B97F4A7C15)
_B_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_SEED = 20_240_601


@dataclass(frozen=True)
class Twins:
    """Per row over all parts put together: 64-bit keys of prompt and of prompt with answer, and the cluster."""

    prompts: np.ndarray
    wholes: np.ndarray
    clusters: np.ndarray
    """Number of the near-twin cluster; rows of one cluster say nearly the same."""

    def exact(self) -> int:
        """Rows that repeat an earlier row exactly (up to normalising)."""
        return len(self.wholes) - len(np.unique(self.wholes))


@cache
def _classes() -> np.ndarray:
    """0 white space, 1 part of a word, 2 a word of its own (ideographs, kana, symbols), by code point below 2^16."""
    table = np.zeros(1 << 16, np.uint8)
    for code in range(1 << 16):
        char = chr(code)
        if char.isspace() or 0xD800 <= code < 0xE000:
            continue
        alone = 0x2E80 <= code < 0xA4D0 or 0xF900 <= code < 0xFB00 or 0x0E00 <= code < 0x0E80
        table[code] = 2 if alone or not (char.isalnum() or unicodedata.combining(char)) else 1
    return table


def normal(text: str) -> str:
    """Case, width and composition folded away."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return text.casefold() if not text.islower() else text


def words_of(block: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(word hashes of all texts put together [W] uint64, bounds [len(block)+1])."""
    folded = [normal(text) for text in block]
    codes = np.frombuffer("\n".join([*folded, ""]).encode("utf-32-le", "replace"), np.uint32)
    kinds = _classes()[np.minimum(codes, 0xFFFF)]
    begins = kinds == 2
    begins[1:] |= (kinds[1:] == 1) & (kinds[:-1] != 1)
    begins[:1] |= kinds[:1] == 1
    starts = np.flatnonzero(begins)
    ends = np.cumsum([len(text) + 1 for text in folded])
    bounds = np.concatenate([[0], np.searchsorted(starts, ends)])
    if not len(starts):
        return np.zeros(0, np.uint64), bounds
    sizes = np.diff(np.append(starts, len(codes)))
    inside = np.arange(len(codes), dtype=np.int32)
    inside[starts[0] :] -= np.repeat(starts.astype(np.int32), sizes)
    values = _powers(inside)
    values *= codes + np.uint64(1)
    values[kinds == 0] = 0
    return mixed(np.add.reduceat(values, starts)), bounds


@cache
def _power_table() -> np.ndarray:
    return np.cumprod(np.full(1 << 16, _B, np.uint64))


def _powers(exponents: np.ndarray) -> np.ndarray:
    return _power_table().take(exponents, mode="clip")


def mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: spreads every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Sum of each row's values; 0 for an empty row."""
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values)])
    return total[bounds[1:]] - total[bounds[:-1]]


def _places(bounds: np.ndarray) -> np.ndarray:
    lengths = np.diff(bounds)
    return np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)


def row_keys(words: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """One key a row, of its words in their order."""
    return mixed(_sums(words * _powers(_places(bounds)), bounds) + np.diff(bounds).astype(np.uint64))


def one_out_keys(words: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(keys, row of each key): the row with each one word left out, and the row itself.

    Two rows that differ by one changed, added or removed word share a key.
    """
    lengths = np.diff(bounds)
    place = _places(bounds)
    terms = words * _powers(place)
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])
    row = np.repeat(np.arange(len(lengths)), lengths)
    left = before[:-1] - before[bounds[:-1]][row]
    right = (before[bounds[1:]][row] - before[1:]) * _B_INVERSE
    fits = (lengths >= LEAST) & (lengths <= SHORT)
    used = fits[row]
    out = mixed(left + right + (lengths[row] - 1).astype(np.uint64))[used]
    whole = row_keys(words, bounds)[fits]
    return np.concatenate([out, whole]), np.concatenate([row[used], np.flatnonzero(fits)])


def shingles(words: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words and pairs of neighbours as one bag a row: (hashes, bounds)."""
    lengths = np.diff(bounds)
    pairs = mixed(words[:-1] * _B + words[1:]) if len(words) > 1 else np.zeros(0, np.uint64)
    last = bounds[1:][lengths > 0] - 1
    keep = np.ones(len(words), bool)
    keep[last] = False
    row = np.repeat(np.arange(len(lengths)), lengths)
    rows = np.concatenate([row, row[keep]])
    values = np.concatenate([words, np.append(pairs, np.uint64(0))[keep]])
    order = np.argsort(rows, kind="stable")
    return values[order], np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(lengths)))])


def signatures_of(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """[rows, PERMUTATIONS] uint16: the low halves of the MinHash values, so that a band of 4 is one 64-bit key."""
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.ascontiguousarray(values), np.ascontiguousarray(bounds.astype(np.uint64)), PERMUTATIONS, _SEED
    )
    return np.array(matrix.to_rows(), np.uint32).astype(np.uint16)


def roots(parent: np.ndarray) -> np.ndarray:
    """The root of every row, by pointer jumping."""
    while True:
        up = parent[parent]
        if np.array_equal(up, parent):
            return parent
        parent = up


def unite(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Join the trees of each pair (left[i], right[i]), in place."""
    if not len(left):
        return
    flat = parent.tolist()
    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        while flat[one] != one:
            flat[one] = flat[flat[one]]
            one = flat[one]
        while flat[other] != other:
            flat[other] = flat[flat[other]]
            other = flat[other]
        if one != other:
            flat[max(one, other)] = min(one, other)
    parent[:] = flat


def _blocks(pairs: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    stream = iter(pairs)
    while block := list(islice(stream, BLOCK)):
        yield block


def find(pairs: Iterable[tuple[str, str]], near: bool) -> Twins:
    """Keys and clusters of (prompt, answer) rows."""
    prompts: list[np.ndarray] = []
    wholes: list[np.ndarray] = []
    sketches: list[np.ndarray] = []
    edits = _Edits()
    start = 0
    for block in _blocks(pairs):
        words, bounds = words_of([text for pair in block for text in pair])
        whole = bounds[::2]
        asked = np.repeat(np.arange(len(bounds) - 1) % 2 == 0, np.diff(bounds))
        prompt = np.concatenate([[0], np.cumsum(np.diff(bounds)[::2])])
        prompts.append(row_keys(words[asked], prompt))
        wholes.append(row_keys(words, whole))
        if near:
            edits.add(*one_out_keys(words[asked], prompt), start)
            edits.add(*one_out_keys(words, whole), start)
            sketches.append(signatures_of(*shingles(words, whole)))
        start += len(block)
    if not prompts:
        empty = np.zeros(0, np.uint64)
        return Twins(empty, empty, np.zeros(0, np.int64))
    asked_keys, keys = np.concatenate(prompts), np.concatenate(wholes)
    parent = np.arange(len(keys))
    for same in (keys, asked_keys):
        _join_equal(parent, same, np.arange(len(same)))
    if near:
        edits.join(parent)
        signatures = np.concatenate(sketches)
        sketches.clear()
        _join_similar(parent, signatures)
    return Twins(asked_keys, keys, roots(parent))


class _Edits:
    """Keys with one word left out, in parts by their low bits, so that one part at a time is sorted."""

    PARTS = 32

    def __init__(self) -> None:
        self.keys: list[list[np.ndarray]] = [[] for _ in range(self.PARTS)]
        self.rows: list[list[np.ndarray]] = [[] for _ in range(self.PARTS)]

    def add(self, keys: np.ndarray, rows: np.ndarray, start: int) -> None:
        """Keys of a block whose first row has the number `start`."""
        part = (keys % np.uint64(self.PARTS)).astype(np.int8)
        order = np.argsort(part, kind="stable")
        cuts = np.searchsorted(part[order], np.arange(1, self.PARTS))
        for number, chosen in enumerate(np.split(order, cuts)):
            self.keys[number].append(keys[chosen])
            self.rows[number].append((rows[chosen] + start).astype(np.int32))

    def join(self, parent: np.ndarray) -> None:
        """Unite rows that share a key; forgets the keys."""
        for number in range(self.PARTS):
            if self.keys[number]:
                _join_equal(parent, np.concatenate(self.keys[number]), np.concatenate(self.rows[number]))
            self.keys[number], self.rows[number] = [], []


def _join_equal(parent: np.ndarray, keys: np.ndarray, rows: np.ndarray) -> None:
    order = np.argsort(keys, kind="stable")
    ordered, owner = keys[order], rows[order]
    same = np.flatnonzero((ordered[1:] == ordered[:-1]) & (owner[1:] != owner[:-1]))
    unite(parent, owner[same], owner[same + 1])


def _join_similar(parent: np.ndarray, signatures: np.ndarray) -> None:
    """Unite rows that share a band and whose signatures agree in at least NEAR of the places."""
    for band in range(PERMUTATIONS // ROWS):
        keys = np.ascontiguousarray(signatures[:, band * ROWS : (band + 1) * ROWS]).view(np.uint64)[:, 0]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for step in (1, 2, 3):
            same = np.flatnonzero(ordered[step:] == ordered[:-step])
            left, right = order[same], order[same + step]
            root = roots(parent)
            fresh = root[left] != root[right]
            left, right = left[fresh], right[fresh]
            for start in range(0, len(left), 1 << 16):
                one, other = left[start : start + (1 << 16)], right[start : start + (1 << 16)]
                alike = (signatures[one] == signatures[other]).mean(axis=1) >= NEAR
                unite(parent, one[alike], other[alike])
