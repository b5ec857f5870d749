"""What travels between the rooms: clips, samples, batches, token grids, masked views, loss reports, training state.

Shape letters, one legend for the whole project:

====  =======================================  ====  =======================================
B     clips in a batch                         N     tokens of one modality
C     colour channels (3)                      K     visible tokens of one modality
T     video frames                             P     raw values in one patch
H Wd  pixel rows and columns                   D     encoder width
S     spectrogram steps (10 ms hop)            E     decoder width
M     mel bins                                 Z     embedding width
L     waveform samples (16 kHz)                R     ranks
V     views (masked selections) of one clip
====  =======================================  ====  =======================================
"""

from mavil.structs.basics import MODALITIES, SAMPLE_RATE, Modality, UserError
from mavil.structs.clips import Batch, Clip, Inputs, Sample
from mavil.structs.grids import MaskedView, MaskedViews, TokenGrid
from mavil.structs.training import LossReport, TrainState

__all__ = [
    "MODALITIES",
    "SAMPLE_RATE",
    "Batch",
    "Clip",
    "Inputs",
    "LossReport",
    "MaskedView",
    "MaskedViews",
    "Modality",
    "Sample",
    "TokenGrid",
    "TrainState",
    "UserError",
]
