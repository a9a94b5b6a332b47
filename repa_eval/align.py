"""A door: `from repa_eval.align import align, Monitor`. The module itself is callable too: `repa_eval.align(...)`."""

from repa_eval.api.alignment import Monitor as Monitor
from repa_eval.api.alignment import align as align
from repa_eval.api.alignment import align_module as align_module
