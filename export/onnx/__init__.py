"""From a rewritten model to an ONNX file that stock onnxruntime runs."""
