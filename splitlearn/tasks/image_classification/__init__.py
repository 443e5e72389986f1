"""One label an image: data sets and how their images are read, networks, and the task that they make."""

from splitlearn.tasks.image_classification.task import ImageClassification

__all__ = ["ImageClassification"]
