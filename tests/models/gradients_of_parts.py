"""What tests let each process do with the parts of a real model."""

from safetensors.torch import load_file

from remixer.export import load_partition
from remixer.export.onnx.compare import largest_difference


def differences(folder, given, wanted):
    """How far outputs and averaged gradients are from those of one process, over the largest of each."""
    inputs, expected = load_file(given), load_file(wanted)
    model = load_partition(folder)
    outputs = model(**inputs)
    found = {name: largest_difference(outputs[name].detach(), expected[name]) for name in outputs}
    sum(outputs[name].square().mean() for name in outputs).backward()
    model.average_gradients()
    for name, weight in model.module.named_parameters():
        want = expected[f"gradient.{name}"]
        found[f"gradient.{name}"] = float((weight.grad - want).abs().max() / want.abs().max().clamp(min=1e-3))
    return max(found.values()), max(found, key=found.get)
