"""What `bertnli demo` trains answers a visitor: the README's example, and pairs with words that its grammar lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import ROOT

from bertnli import Model
from bertnli.cli import main
from bertnli.data.demo import KNOWN

# Written down before the first model of this grammar was trained.
TYPED = [
    ("A man is sleeping .", "A person is asleep .", "entailment"),  # the README's
    ("Two dogs are running on the beach.", "Some animals are outdoors.", "entailment"),
    ("A woman is cooking in the kitchen.", "The woman is sleeping.", "contradiction"),
    ("A boy is playing football.", "A child is playing.", "entailment"),
    ("A girl is reading a book.", "A girl is reading a book in the park.", "neutral"),
    ("A teacher is drinking coffee.", "The teacher is asleep.", "contradiction"),
    ("A doctor is eating pizza in a restaurant.", "A doctor is eating.", "entailment"),
    ("An old man is sitting on a bench.", "A man is sitting.", "entailment"),
    ("A kid is jumping on a trampoline.", "A kid is sleeping.", "contradiction"),
    ("A man is eating.", "A man is eating sushi.", "neutral"),
    ("A cat is sleeping indoors.", "A cat is outside.", "contradiction"),
]


def made_by_this_code() -> Path | None:
    """What `make demo` wrote, if that was after the last change of the code."""
    folder = ROOT / "runs" / "demo"
    sources = [path for room in ("bertnli", "csrc") for path in (ROOT / room).rglob("*")]
    newest = max(path.stat().st_mtime for path in sources if path.suffix in (".py", ".cpp", ".h", ".inc"))
    config = folder / "config.json"
    return folder if config.exists() and config.stat().st_mtime > newest else None


@pytest.mark.slow
def test_the_demo_answers_what_a_visitor_types(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert KNOWN.isdisjoint(["teacher", "doctor", "old", "bench", "trampoline", "sushi"])
    folder = made_by_this_code() or tmp_path
    assert folder != tmp_path or main(["demo", "--output", str(tmp_path), "--quiet"]) == 0
    model = Model.from_pretrained(folder)
    predictions = model.predict([(premise, hypothesis) for premise, hypothesis, _ in TYPED])
    right = [p.label == label for p, (*_, label) in zip(predictions, TYPED, strict=True)]
    assert right[0]
    # 10 on AVX2; the rounding of another instruction set may change one.
    assert sum(right) >= 9, [pair for pair, is_right in zip(TYPED, right, strict=True) if not is_right]
    assert "lacks" not in caplog.text  # no word is unknown to its pieces
    with pytest.raises(ValueError, match="was trained on pairs; found single texts"):
        model.predict(["A man is sleeping."])
