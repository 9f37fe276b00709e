"""Packed token ids become vectors."""
