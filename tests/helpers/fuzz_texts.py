"""Random texts against `tokenizers`: ids of all, places of every tenth. The test suite does a small part of this.

    PYTHONPATH=tests python tests/helpers/fuzz_texts.py 1000000 [seed]

Prints the number of texts compared, or fails with the text that differs.
"""

import random
import sys

from bertnli.text.wordpiece import WordPieceTokenizer
from helpers.texts import SMALL, assert_same_offsets, random_texts, reference

BLOCK = 5000


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    kinds = [(lowercase, split) for lowercase in (True, False) for split in (True, False)]
    pairs = [(reference(SMALL, *kind), WordPieceTokenizer(SMALL, *kind)) for kind in kinds]
    done = 0
    while done < count:
        expected, tokenizer = pairs[done // BLOCK % len(pairs)]
        texts = random_texts(rng, min(BLOCK, count - done))
        encoded = tokenizer.encode_texts(texts, max_len=1 << 30)
        ids, offsets = encoded.ids.tolist(), encoded.offsets.tolist()
        for i, encoding in enumerate(expected.encode_batch_fast(texts, add_special_tokens=False)):
            assert ids[offsets[i] + 1 : offsets[i + 1] - 1] == encoding.ids, ascii(texts[i])
        assert_same_offsets(expected, tokenizer, texts[::10])
        done += len(texts)
    print(f"{done} texts equal")


if __name__ == "__main__":
    main()
