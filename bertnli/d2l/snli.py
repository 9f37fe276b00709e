"""D2L's SNLI data for models of padded words, and the prediction of one pair."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bertnli.d2l.dataset import download_extract, get_dataloader_workers, get_tokens_and_segments, tokenize
from bertnli.data import snli
from bertnli.encoder.bert import BERTEncoder
from bertnli.tasks import classification
from bertnli.text.vocab import Vocab


def read_snli(data_dir: str | os.PathLike[str], is_train: bool = True) -> tuple[list[str], list[str], list[int]]:
    """`bertnli.read_snli` with lists of premises and hypotheses, which can be changed."""
    premises, hypotheses, labels = snli.read_snli(data_dir, is_train)
    return list(premises), list(hypotheses), labels


class BERTClassifier(classification.BERTClassifier):
    """`bertnli.BERTClassifier` whose three classes have SNLI's names, unless others are given."""

    def __init__(
        self,
        bert: Any,
        num_labels: int | None = None,
        label_names: Sequence[str] | None = None,
        dropout: float | None = None,
    ) -> None:
        if num_labels is None and label_names is None:
            label_names = snli.SNLI_LABELS
        super().__init__(bert, num_labels, label_names, dropout)


def truncate_pad(line: list[Any], num_steps: int, padding_token: Any) -> list[Any]:
    """The first `num_steps` items of a list, padded to that number."""
    return (line + [padding_token] * (num_steps - len(line)))[:num_steps]


def load_array(data_arrays: Sequence[Tensor], batch_size: int, is_train: bool = True) -> DataLoader[Any]:
    """Batches of tensors that have their first dimension in common, shuffled if `is_train`."""
    return DataLoader(TensorDataset(*data_arrays), batch_size, shuffle=is_train)


class SNLIDataset(Dataset[Any]):
    """Premises and hypotheses as ids of words, each padded or cut to `num_steps`: the input of D2L's attention model.

    dataset     (premises, hypotheses, labels) of `read_snli`
    vocab       default: the words that occur five times or more in this dataset

    Items are ((premise [num_steps], hypothesis [num_steps]), label []), all int64.
    """

    def __init__(self, dataset: Sequence[Any], num_steps: int, vocab: Vocab | None = None) -> None:
        self.num_steps = num_steps
        premises, hypotheses = tokenize(dataset[0]), tokenize(dataset[1])
        self.vocab = vocab or Vocab(premises + hypotheses, min_freq=5, reserved_tokens=["<pad>"])
        self.premises, self.hypotheses = self._pad(premises), self._pad(hypotheses)
        self.labels = torch.tensor(dataset[2])
        print(f"read {len(self)} examples")

    def _pad(self, lines: list[list[str]]) -> Tensor:
        pad_id = self.vocab["<pad>"]
        return torch.tensor([truncate_pad(self.vocab[line], self.num_steps, pad_id) for line in lines])

    def __getitem__(self, index: Any) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return (self.premises[index], self.hypotheses[index]), self.labels[index]

    def __len__(self) -> int:
        return len(self.premises)


def load_data_snli(batch_size: int, num_steps: int = 50) -> tuple[DataLoader[Any], DataLoader[Any], Vocab]:
    """Download SNLI; loaders of its training pairs, shuffled, and test pairs as SNLIDataset has them, and the Vocab."""
    folder, num_workers = download_extract("SNLI"), get_dataloader_workers()
    train_set = SNLIDataset(read_snli(folder, True), num_steps)
    test_set = SNLIDataset(read_snli(folder, False), num_steps, train_set.vocab)
    train_iter = DataLoader(train_set, batch_size, shuffle=True, num_workers=num_workers)
    return train_iter, DataLoader(test_set, batch_size, num_workers=num_workers), train_set.vocab


def predict_snli(
    net: Callable[[Any], Tensor], vocab: Any, premise: str | Sequence[str], hypothesis: str | Sequence[str]
) -> str:
    """SNLI's name of the class that a model gives one pair of texts, or of lists of words.

    net     a model of two tensors of ids [1, n], as D2L's attention model; or one on a BERTEncoder, whether
            `d2l.BERTClassifier` or the notebook's own
    vocab   its Vocab
    """
    words = [text.split() if isinstance(text, str) else list(text) for text in (premise, hypothesis)]
    device = torch.device("cpu")
    if isinstance(net, nn.Module):
        net.eval()
        device = next((p.device for p in net.parameters()), device)
    if isinstance(getattr(net, "encoder", None), BERTEncoder):
        tokens, segments = get_tokens_and_segments(*([word.lower() for word in line] for line in words))
        inputs = [torch.tensor([vocab[tokens]]), torch.tensor([segments]), torch.tensor([len(tokens)])]
    else:
        inputs = [torch.tensor([vocab[line]]) for line in words]
    with torch.no_grad():
        label = int(net([ids.to(device) for ids in inputs]).argmax(1))
    return snli.SNLI_LABELS[label]
