import torch

from remixer.export.onnx.names import input_names, output_names

ONE = torch.zeros(1)


def test_inputs_are_called_by_keyword_or_place():
    assert input_names(((ONE,), {})) == ["input"]
    assert input_names(((ONE, ONE), {"mask": ONE, "use_cache": False, "ids": None})) == ["input", "input_1", "mask"]
    assert input_names(((), {"images": {"left": ONE, "right": [ONE, ONE]}})) == [
        "images_left",
        "images_right_0",
        "images_right_1",
    ]


def test_outputs_are_called_by_field_or_place():
    assert output_names(ONE) == ["output"]
    assert output_names((ONE, None, ONE)) == ["output_0", "output_2"]
    assert output_names({"last_hidden_state": ONE, "pooler": None}) == ["last_hidden_state"]
    assert output_names({"hidden_states": (ONE, ONE)}) == ["hidden_states_0", "hidden_states_1"]
