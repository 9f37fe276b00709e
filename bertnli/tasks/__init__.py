"""One file a task: example encoding, head, loss, metrics, predictions. Importing this room registers the four heads."""

from bertnli.tasks import classification, question_answering, regression, tagging  # noqa: F401
