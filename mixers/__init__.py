"""Token mixers: modules that take the place of an attention.

Shape letters: B batch, H query heads, G key/value heads, T query length, S key length, D head size, E value
size, C model width.
"""

from remixer.mixers.base import OPERANDS, Mixer, MixerConfig, Order, Unsupported
from remixer.mixers.errors import MixerConfigError, UnknownMixerError
from remixer.mixers.long_short import LongShort, LongShortMixer
from remixer.mixers.registry import available, get, mixer_of, register
from remixer.mixers.softmax import Softmax, SoftmaxConfig
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.toeplitz import Toeplitz, ToeplitzMixer

__all__ = [
    "OPERANDS",
    "AttentionSpec",
    "LongShort",
    "LongShortMixer",
    "Mixer",
    "MixerConfig",
    "MixerConfigError",
    "Order",
    "Softmax",
    "SoftmaxConfig",
    "Toeplitz",
    "ToeplitzMixer",
    "UnknownMixerError",
    "Unsupported",
    "available",
    "get",
    "mixer_of",
    "register",
]
