"""Token mixers: modules that take the place of an attention.

Shape letters: B batch, H query heads, G key/value heads, T query length, S key length, D head size, E value
size, C model width.
"""

from remixer.mixers.base import OPERANDS, Mixer, MixerConfig, Order, Unsupported
from remixer.mixers.distributed import Distributed, DistributedMixer
from remixer.mixers.errors import MixerConfigError, UnknownMixerError
from remixer.mixers.frequency_toeplitz import FrequencyToeplitz, FrequencyToeplitzMixer
from remixer.mixers.gated_toeplitz import GatedLinearUnit, GatedToeplitzUnit, SimpleRMSNorm, ToeplitzBlock
from remixer.mixers.long_short import LongShort, LongShortMixer
from remixer.mixers.long_short_2d import LongShort2d
from remixer.mixers.long_short_layer import LongShortAttention
from remixer.mixers.registry import available, get, mixer_of, register
from remixer.mixers.softmax import Softmax, SoftmaxConfig
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.toeplitz import Toeplitz, ToeplitzMixer
from remixer.mixers.toeplitz_2d import Toeplitz2d

__all__ = [
    "OPERANDS",
    "AttentionSpec",
    "Distributed",
    "DistributedMixer",
    "FrequencyToeplitz",
    "FrequencyToeplitzMixer",
    "GatedLinearUnit",
    "GatedToeplitzUnit",
    "LongShort",
    "LongShort2d",
    "LongShortAttention",
    "LongShortMixer",
    "Mixer",
    "MixerConfig",
    "MixerConfigError",
    "Order",
    "SimpleRMSNorm",
    "Softmax",
    "SoftmaxConfig",
    "Toeplitz",
    "Toeplitz2d",
    "ToeplitzBlock",
    "ToeplitzMixer",
    "UnknownMixerError",
    "Unsupported",
    "available",
    "get",
    "mixer_of",
    "register",
]
