"""Where the page listens."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine's users can reach."""


@dataclass(frozen=True)
class Address:
    """Where the page listens, and who may see it."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: the first free one from 7860."""
    password: str | None = None
