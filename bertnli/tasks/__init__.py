"""One file a task: example encoding, head, loss, metrics, predictions. Importing this room registers the heads."""

from bertnli.tasks import (  # noqa: F401
    classification,
    embedding,
    multilabel,
    question_answering,
    regression,
    tagging,
)
