"""Language models: texts and how they become tokens, networks, and the tasks that they make."""

from splitlearn.tasks.language.sequences import SequenceClassification
from splitlearn.tasks.language.task import CausalLM

__all__ = ["CausalLM", "SequenceClassification"]
