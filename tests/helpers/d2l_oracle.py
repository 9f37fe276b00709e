"""D2L's algorithms in plain Python, one token at a time: what the fast code must equal."""

import random
import re

import torch

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


# ---- pretraining ----


def next_sentences(paragraphs, max_len):
    """(tokens, segments, whether the second sentence follows) of the pairs that fit."""
    examples = []
    for paragraph in paragraphs:
        for i in range(len(paragraph) - 1):
            second, is_next = paragraph[i + 1], random.random() < 0.5
            if not is_next:
                second = random.choice(random.choice(paragraphs))
            if len(paragraph[i]) + len(second) + 3 > max_len:
                continue
            tokens = ["<cls>", *paragraph[i], "<sep>", *second, "<sep>"]
            segments = [0] * (len(paragraph[i]) + 2) + [1] * (len(second) + 1)
            examples.append((tokens, segments, is_next))
    return examples


def mask_words(tokens, vocab):
    """(input tokens, positions of the predicted words, their labels)."""
    candidates = [i for i, token in enumerate(tokens) if token not in ("<cls>", "<sep>")]
    count, inputs, found = max(1, round(len(tokens) * 0.15)), list(tokens), []
    random.shuffle(candidates)
    for position in candidates:
        if len(found) >= count:
            break
        if random.random() < 0.8:
            inputs[position] = "<mask>"
        elif random.random() < 0.5:
            inputs[position] = tokens[position]
        else:
            inputs[position] = random.choice(vocab.idx_to_token)
        found.append((position, tokens[position]))
    found.sort()
    return inputs, [position for position, _ in found], [label for _, label in found]


def wiki_examples(paragraphs, vocab, max_len):
    """The seven columns of the pretraining examples, as lists."""
    preds, rows = round(max_len * 0.15), []
    pairs = next_sentences([[sentence.split() for sentence in paragraph] for paragraph in paragraphs], max_len)
    for tokens, segments, is_next in pairs:
        inputs, positions, labels = mask_words(tokens, vocab)
        padding, unused = max_len - len(tokens), preds - len(positions)
        rows.append((
            vocab[inputs] + [vocab["<pad>"]] * padding, segments + [0] * padding, float(len(tokens)),
            positions + [0] * unused, [1.0] * len(positions) + [0.0] * unused, vocab[labels] + [0] * unused,
            int(is_next),
        ))  # fmt: skip
    return [list(column) for column in zip(*rows, strict=True)]


def pretraining_losses(net, loss, vocab_size, tokens, segments, valid_lens, positions, weights, labels, nsp_labels):
    """Loss of masked words, and of next sentences, from a model that returns D2L's triple."""
    _, scores, nsp_scores = net(tokens, segments, valid_lens.reshape(-1), positions)
    masked = loss(scores.reshape(-1, vocab_size), labels.reshape(-1)) * weights.reshape(-1, 1)
    return masked.sum() / (weights.sum() + 1e-8), loss(nsp_scores, nsp_labels)


def train_bert(batches, net, loss, vocab_size, num_steps):
    """The losses of each step of D2L's pretraining loop."""
    trainer, losses = torch.optim.Adam(net.parameters(), lr=0.01), []
    while len(losses) < num_steps:
        for batch in batches:
            trainer.zero_grad()
            masked, following = pretraining_losses(net, loss, vocab_size, *batch)
            (masked + following).backward()
            trainer.step()
            losses.append((masked.item(), following.item()))
            if len(losses) == num_steps:
                break
    return losses
