"""nanovlm: a research playground for small vision-language models.

A plugin needs nothing beyond these names and the modules that hold them.
"""

from nanovlm.attention import Segments
from nanovlm.components import (
    ComponentConfig,
    ImageSpec,
    LanguageDecoder,
    PatchGrid,
    TextConfig,
    Tracker,
    VisionEncoder,
)
from nanovlm.data.dataset import Benchmark, Dataset, Sample, Turn
from nanovlm.errors import CheckpointError, ConfigError, DataError, NanoVLMError, PluginError, SkipSample, unknown
from nanovlm.experiment import Experiment, load_experiment
from nanovlm.hookspecs import CONTRACT, hookimpl
from nanovlm.model import VisionLanguageModel
from nanovlm.plugins import load_plugins
from nanovlm.training.launch import train
from nanovlm.training.resume import resume

__all__ = [
    "CONTRACT",
    "Benchmark",
    "CheckpointError",
    "ComponentConfig",
    "ConfigError",
    "DataError",
    "Dataset",
    "Experiment",
    "ImageSpec",
    "LanguageDecoder",
    "NanoVLMError",
    "PatchGrid",
    "PluginError",
    "Sample",
    "Segments",
    "SkipSample",
    "TextConfig",
    "Tracker",
    "Turn",
    "VisionEncoder",
    "VisionLanguageModel",
    "hookimpl",
    "load_experiment",
    "load_plugins",
    "resume",
    "train",
    "unknown",
]
