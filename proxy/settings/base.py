"""What all settings have in common, and what routes and SLOs do."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from proxy.settings.types import Glob, HeaderName


class Settings(BaseModel):
    """Base of all: unknown keys are errors, values are never changed, only replaced."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Match(Settings):
    """Every condition that is given must hold; globs know `*`, `?` and `[...]`."""

    path: Glob | None = Field(default=None, description="Path glob; `*` also matches `/`.")
    model: str | None = Field(
        default=None, description="Model glob; a request that names no model does not match."
    )
    header: dict[HeaderName, str] = Field(
        default={}, description="Header name to value glob; all of them must match."
    )

    @property
    def everything_else(self) -> bool:
        """Neither path nor model nor header decides."""
        return self.path in (None, "*", "/*") and self.model is None and not self.header

    @property
    def everything(self) -> bool:
        """No request can fail to match."""
        return self.everything_else
