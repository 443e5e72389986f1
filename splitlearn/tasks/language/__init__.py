"""Language models: texts and how they become tokens, networks, and the task that they make."""

from splitlearn.tasks.language.task import CausalLM

__all__ = ["CausalLM"]
