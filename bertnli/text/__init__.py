"""Strings become packed token ids."""
