"""One label an image: data sets, how they are shared out and loaded, networks, and the task that they make."""

from splitlearn.tasks.image_classification.task import ImageClassification

__all__ = ["ImageClassification"]
