"""What crosses the cut in a step: both halves of an exchange side by side, its messages, its channels."""
