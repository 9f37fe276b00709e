"""What training and inference share: precision, CUDA graphs, processes, memory."""

# Here, so that the command line can list them without importing torch.
TRAINING_PRECISIONS = ("fp32", "bf16")
PRECISIONS = (*TRAINING_PRECISIONS, "int8")  # of inference
