"""One thing that is wrong with a configuration."""

from __future__ import annotations

from typing import NamedTuple

from agent.core.errors import ConfigError


class Fault(NamedTuple):
    """Something wrong in the text.

    Attributes:
        key: as an operator writes it, ``sources[0].path``.
        said: what was expected, and what was got.
        hint: what to do next.
    """

    key: str
    said: str
    hint: str | None = None

    def error(self, origin: str) -> ConfigError:
        """The fault, as it is raised."""
        return ConfigError(f"{origin}: {self.key}: {self.said}", hint=self.hint)
