"""Pages that show what a run learned and what a model gets wrong."""
