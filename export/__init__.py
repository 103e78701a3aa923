"""What leaves the process: artifacts, ONNX, partitions. Nothing of it is built yet."""
