"""Everything that `remixer` has to offer, under its own name."""

from remixer import evaluation, export, mixers, passes, rewrite
from remixer.distillation.errors import TransferError
from remixer.distillation.transfer_report import TransferReport
from remixer.distillation.transferring import transfer
from remixer.driver import explain, remix
from remixer.errors import AlreadyRemixedError, NoAttentionError, NoOriginalError
from remixer.export.errors import ArtifactError
from remixer.generation.adapting import as_transformers
from remixer.generation.decoding import Decoder
from remixer.generation.errors import GenerationError
from remixer.generation.generating import generate, generate_stream
from remixer.in_place.errors import InPlaceError
from remixer.in_place.placing import undo
from remixer.in_place.putting import put_inside
from remixer.in_place.reading import from_pretrained
from remixer.keeping import load, save
from remixer.mixers import (
    AttentionSpec,
    Distributed,
    FrequencyToeplitz,
    LongShort,
    Mixer,
    MixerConfig,
    MixerConfigError,
    SoftmaxConfig,
    Toeplitz,
    UnknownMixerError,
    Unsupported,
    register,
)
from remixer.passes.base import ApplyRules, Pass, Pipeline, Result
from remixer.passes.errors import ExtendError, PreconditionError, SelectionError, UnsupportedAttentionError
from remixer.passes.recognise_attention import RULES
from remixer.planning.errors import PlanError
from remixer.planning.plan import Plan
from remixer.planning.planning import plan
from remixer.remixed import Remixed
from remixer.report import Report
from remixer.restoring import restore
from remixer.rewrite.capture import capture
from remixer.rewrite.editor import Editor
from remixer.rewrite.errors import CaptureError, PassError, PatternError
from remixer.rewrite.match import Match, Miss
from remixer.rewrite.pattern import Recorder
from remixer.rewrite.program import Program
from remixer.rewrite.rule import Rule
from remixer.viewing.errors import ViewError
from remixer.viewing.viewing import view

__all__ = [
    "RULES",
    "AlreadyRemixedError",
    "ApplyRules",
    "ArtifactError",
    "AttentionSpec",
    "CaptureError",
    "Decoder",
    "Distributed",
    "Editor",
    "ExtendError",
    "FrequencyToeplitz",
    "GenerationError",
    "InPlaceError",
    "LongShort",
    "Match",
    "Miss",
    "Mixer",
    "MixerConfig",
    "MixerConfigError",
    "NoAttentionError",
    "NoOriginalError",
    "Pass",
    "PassError",
    "PatternError",
    "Pipeline",
    "Plan",
    "PlanError",
    "PreconditionError",
    "Program",
    "Recorder",
    "Remixed",
    "Report",
    "Result",
    "Rule",
    "SelectionError",
    "SoftmaxConfig",
    "Toeplitz",
    "TransferError",
    "TransferReport",
    "UnknownMixerError",
    "Unsupported",
    "UnsupportedAttentionError",
    "ViewError",
    "as_transformers",
    "capture",
    "evaluation",
    "explain",
    "export",
    "from_pretrained",
    "generate",
    "generate_stream",
    "load",
    "mixers",
    "passes",
    "plan",
    "put_inside",
    "register",
    "remix",
    "restore",
    "rewrite",
    "save",
    "transfer",
    "undo",
    "view",
]
