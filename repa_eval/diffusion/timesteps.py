"""The timesteps at which hidden states are measured unless others are named; t = 0 is data, t = 1 is noise."""

from __future__ import annotations

TIMESTEPS = (0.05, 0.1, 0.2, 0.3, 0.5)
