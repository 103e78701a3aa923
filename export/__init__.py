"""What leaves the process: ONNX files, and models that several processes run together."""

from remixer.export.errors import (
    ArtifactError,
    ExportError,
    OnnxInstallError,
    OnnxMismatchError,
    PartitionError,
    ProviderError,
)
from remixer.export.onnx.cuda_check import CudaCheck, check_cuda
from remixer.export.onnx.decoder import OnnxDecoder
from remixer.export.onnx.decoder_exporting import to_onnx_decoder
from remixer.export.onnx.effect import Effect
from remixer.export.onnx.exporting import to_onnx
from remixer.export.onnx.manifest import DecoderManifest, Manifest
from remixer.export.partitions.loading import load_partition
from remixer.export.partitions.partitioning import Partition, partition

__all__ = [
    "ArtifactError",
    "CudaCheck",
    "DecoderManifest",
    "Effect",
    "ExportError",
    "Manifest",
    "OnnxDecoder",
    "OnnxInstallError",
    "OnnxMismatchError",
    "Partition",
    "PartitionError",
    "ProviderError",
    "check_cuda",
    "load_partition",
    "partition",
    "to_onnx",
    "to_onnx_decoder",
]
