"""What training and inference share: precision, CUDA graphs, processes, memory."""
