"""Evaluation, representation analysis and training for representation-aligned diffusion models."""

from pathlib import Path

__version__ = "0.1.0"

# probes/, reports/ and train/ lie at the top of a checkout but are imported as repa_eval.*:
# an installed package maps them (setup.cfg), a bare clone finds them through these lines.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "probes").is_dir():
    __path__.append(str(_root))
