"""What is learned, as an object: data, network, loss and metrics. No role knows more of them than `Task` says.

A new task is a class of its own here and a file in conf/task that names it. Importing this package registers the
networks that the tasks add to the config group `arch`.
"""

from omegaconf import DictConfig

from splitlearn.config import made_from
from splitlearn.tasks.image_classification import ImageClassification
from splitlearn.tasks.language import CausalLM, SequenceClassification
from splitlearn.tasks.task import ClientData, Metric, Task

__all__ = ["CausalLM", "ClientData", "Metric", "SequenceClassification", "Task", "task_from"]


def task_from(cfg: DictConfig) -> Task:
    """The task that the config group `task` describes; image classification where a run was started without one."""
    return made_from(cfg, "task") if "task" in cfg else ImageClassification()
