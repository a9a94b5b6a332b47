# What type checkers read in place of __init__.py, whose names are imported when they are first used.
from repa_eval import checkpoints as checkpoints
from repa_eval import data as data
from repa_eval import extractors as extractors
from repa_eval import teachers as teachers
from repa_eval.api.alignment import Monitor as Monitor
from repa_eval.api.alignment import align as align
from repa_eval.api.alignment import align_module as align_module
from repa_eval.api.frechet import FrechetDistance as FrechetDistance
from repa_eval.api.hidden_states import features as features
from repa_eval.api.image_arrays import images as images
from repa_eval.api.probing import probe as probe
from repa_eval.api.results import LayerMap as LayerMap
from repa_eval.api.results import Measurement as Measurement
from repa_eval.api.sample_quality import fid as fid
from repa_eval.api.sampling import sample as sample
from repa_eval.api.wrapping import wrap as wrap
from repa_eval.checkpoints import load as load
from repa_eval.errors import UserError as UserError
from repa_eval.interfaces.checkpoint_layout import Checkpoint as Checkpoint
from repa_eval.results import Row as Row
from repa_eval.train.callbacks import Callback as Callback
from repa_eval.train.start import train as train

__version__: str
__all__: list[str]
