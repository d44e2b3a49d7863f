"""How all sections are checked: an unknown key fails, and so do infinite numbers."""

from __future__ import annotations

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
