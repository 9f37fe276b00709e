"""What several tests use: oracles, corpora, and the checkout's folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
