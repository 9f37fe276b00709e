"""D2L's algorithms in plain Python, one token at a time: what the fast code must equal."""

import re

LABELS = {"entailment": 0, "contradiction": 1, "neutral": 2}


def extract_text(s):
    return re.sub(r"\s{2,}", " ", s.replace("(", "").replace(")", "")).strip()


def read_snli(path):
    with open(path, encoding="utf-8") as file:
        rows = [line.split("\t") for line in file.readlines()[1:]]
    rows = [row for row in rows if row[0] in LABELS]
    return (
        [extract_text(row[1]) for row in rows],
        [extract_text(row[2]) for row in rows],
        [LABELS[row[0]] for row in rows],
    )


def pop_pair(first, second, budget):
    """Shorten both lists in place: the last token of the longer goes, of the second where they are equal."""
    while len(first) + len(second) > budget:
        longer = first if len(first) > len(second) else second
        longer.pop()


def encode_pair(vocab, premise, hypothesis, max_len):
    first, second = premise.lower().split(), hypothesis.lower().split()
    pop_pair(first, second, max_len - 3)
    tokens = ["<cls>", *first, "<sep>", *second, "<sep>"]
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    padding = max_len - len(tokens)
    return vocab[tokens] + [vocab["<pad>"]] * padding, segments + [0] * padding, len(tokens)


def encode_dataset(vocab, premises, hypotheses, max_len):
    """(token ids, segments, valid lengths) as lists of rows."""
    rows = [encode_pair(vocab, p, h, max_len) for p, h in zip(premises, hypotheses, strict=True)]
    return tuple(list(column) for column in zip(*rows, strict=True))
