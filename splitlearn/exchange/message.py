"""What the messages of a client and the server have in common; messages.py has all of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from splitlearn.exchange.agreement import Agreement, Unfit, as_sent


@dataclass
class Message:
    """Base of the messages: a dataclass whose fields cross as a tuple."""

    kind: ClassVar[str]  # the word for it, on the wire and to users

    def body(self) -> tuple:
        """What crosses."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @classmethod
    def parse(cls, body: Any, sender: str, agreement: Agreement, *context: Any) -> Any:
        """
        Args:
            body: as it came.
            sender: who sent it, in words.
            agreement: what was agreed.
            context: what `check` of this kind of message has to know beside.

        Raises:
            PeerError: it is not what was agreed; says what is wrong.
        """
        with as_sent(sender, cls.kind):
            if not isinstance(body, tuple) or len(body) != len(fields(cls)):
                raise Unfit(f"it does not have {len(fields(cls))} parts")
            message = cls(*body)
            message.check(agreement, *context)
            return message

    def check(self, agreement: Agreement) -> None:
        """Raises Unfit, with what is wrong."""
