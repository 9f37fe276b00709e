"""The libraries that the benchmarks compare bertnli with: one small file a peer."""
