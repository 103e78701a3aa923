"""What can go wrong while a model leaves the process."""

from __future__ import annotations


class ExportError(RuntimeError):
    """A model, or a part of it, can't be exported as it was asked for."""


class OnnxMismatchError(ExportError):
    """onnxruntime gives something else than torch does for the same inputs; no file was written."""


class OnnxInstallError(ImportError):
    """A package that ONNX export needs is missing, or installed in a way that can't work."""


class ProviderError(ExportError):
    """onnxruntime can't run on the provider that was asked for."""


class PartitionError(ExportError):
    """A model can't be spread over processes, or these processes can't run it together."""


class ArtifactError(ValueError):
    """A model can't be saved, or what stands in a folder can't be loaded as one."""
