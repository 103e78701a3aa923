"""What leaves the process: ONNX files so far; artifacts and partitions are not built yet."""

from remixer.export.errors import ExportError, OnnxInstallError, OnnxMismatchError, ProviderError
from remixer.export.onnx.cuda_check import CudaCheck, check_cuda
from remixer.export.onnx.decoder import OnnxDecoder
from remixer.export.onnx.decoder_exporting import to_onnx_decoder
from remixer.export.onnx.effect import Effect
from remixer.export.onnx.exporting import to_onnx
from remixer.export.onnx.manifest import DecoderManifest, Manifest

__all__ = [
    "CudaCheck",
    "DecoderManifest",
    "Effect",
    "ExportError",
    "Manifest",
    "OnnxDecoder",
    "OnnxInstallError",
    "OnnxMismatchError",
    "ProviderError",
    "check_cuda",
    "to_onnx",
    "to_onnx_decoder",
]
