"""A script in the manner of D2L's chapter: loader, dataset and classifier over `d2l`'s names.

Run by test_d2l.py as `python chapter.py DEFINITIONS SNLI_SHA1 BERT_SHA1 URL EPOCHS`. With "own" it defines the three
things itself, as the notebook does; with "d2l" it takes them from there.
"""

import json
import multiprocessing
import os
import sys

import torch
from torch import nn

from bertnli import d2l

OWN, SNLI_SHA1, BERT_SHA1, URL, EPOCHS = sys.argv[1] == "own", *sys.argv[2:5], int(sys.argv[5])


def read_checkpoint(name, num_hiddens, ffn_num_hiddens, num_heads, num_layers, dropout, max_len, devices):
    folder = d2l.download_extract(name)
    vocab = d2l.Vocab()  # built empty, filled by hand
    with open(os.path.join(folder, "vocab.json"), encoding="utf-8") as file:
        vocab.idx_to_token = json.load(file)
    vocab.token_to_idx = {word: i for i, word in enumerate(vocab.idx_to_token)}
    widths = dict.fromkeys(
        ["key_size", "query_size", "value_size", "hid_in_features", "mlm_in_features", "nsp_in_features"], num_hiddens
    )
    bert = d2l.BERTModel(
        len(vocab), num_hiddens, norm_shape=[num_hiddens], ffn_num_input=num_hiddens, ffn_num_hiddens=ffn_num_hiddens,
        num_heads=num_heads, num_layers=num_layers, dropout=dropout, max_len=max_len, **widths,
    )  # fmt: skip
    bert.load_state_dict(torch.load(os.path.join(folder, "pretrained.params")))
    return bert, vocab


class PaddedPairs(torch.utils.data.Dataset):
    """Pads every pair in worker processes, into which the vocabulary is pickled."""

    def __init__(self, dataset, max_len, vocab=None):
        texts = [d2l.tokenize([text.lower() for text in side]) for side in dataset[:2]]
        self.labels = torch.tensor(dataset[2])
        self.vocab, self.max_len = vocab, max_len
        with multiprocessing.Pool(2) as pool:
            rows = pool.map(self.row, [[p, h] for p, h in zip(*texts, strict=True)])
        ids, segments, lens = zip(*rows, strict=True)
        self.token_ids, self.segments, self.lens = torch.tensor(ids), torch.tensor(segments), torch.tensor(lens)
        print("read", len(self.token_ids), "examples")

    def row(self, pair):
        first, second = pair
        while len(first) + len(second) > self.max_len - 3:
            (first if len(first) > len(second) else second).pop()
        tokens, segments = d2l.get_tokens_and_segments(first, second)
        rest = self.max_len - len(tokens)
        return self.vocab[tokens] + [self.vocab["<pad>"]] * rest, segments + [0] * rest, len(tokens)

    def __getitem__(self, i):
        return (self.token_ids[i], self.segments[i], self.lens[i]), self.labels[i]

    def __len__(self):
        return len(self.token_ids)


class OnFirstToken(nn.Module):
    """The encoder's padded output, its first position, the hidden layer, an output layer."""

    def __init__(self, bert):
        super().__init__()
        self.encoder, self.hidden = bert.encoder, bert.hidden
        self.output = nn.Linear(256, 3)

    def forward(self, inputs):
        tokens, segments, valid_lens = inputs
        encoded = self.encoder(tokens, segments, valid_lens)
        return self.output(self.hidden(encoded[:, 0, :]))


def main():
    torch.manual_seed(0)
    d2l.DATA_HUB["SNLI"] = (URL + "snli_1.0.zip", SNLI_SHA1)
    d2l.DATA_HUB["bert.small"] = (URL + "bert.small.torch.zip", BERT_SHA1)
    load = read_checkpoint if OWN else d2l.load_pretrained_model
    dataset = PaddedPairs if OWN else d2l.SNLIBERTDataset
    classifier = OnFirstToken if OWN else d2l.BERTClassifier

    devices = d2l.try_all_gpus()
    bert, vocab = load("bert.small", num_hiddens=256, ffn_num_hiddens=512, num_heads=4, num_layers=2, dropout=0.1,
                       max_len=512, devices=devices)  # fmt: skip
    batch_size, max_len, num_workers = 64, 128, d2l.get_dataloader_workers()
    data_dir = d2l.download_extract("SNLI")
    train_set = dataset(d2l.read_snli(data_dir, True), max_len, vocab)
    test_set = dataset(d2l.read_snli(data_dir, False), max_len, vocab)
    train_iter = torch.utils.data.DataLoader(train_set, batch_size, shuffle=True, num_workers=num_workers)
    test_iter = torch.utils.data.DataLoader(test_set, batch_size, num_workers=num_workers)

    net = classifier(bert)
    frozen = {name: value.clone() for name, value in bert.state_dict().items() if name.startswith(("mlm", "nsp"))}
    lr, num_epochs = 1e-4, EPOCHS
    trainer = torch.optim.Adam(net.parameters(), lr=lr)
    loss = nn.CrossEntropyLoss(reduction="none")
    net(next(iter(test_iter))[0])
    d2l.train_ch13(net, train_iter, test_iter, loss, trainer, num_epochs, devices)
    assert all(torch.equal(value, bert.state_dict()[name]) for name, value in frozen.items())


if __name__ == "__main__":
    main()
