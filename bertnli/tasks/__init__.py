"""One file a task: encoding, head, loss, metrics, predictions."""
