"""Files, tables and frames become examples."""
