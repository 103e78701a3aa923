"""What a stranger can put into a folder does nothing but raise an error."""

import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from strangers import content_of, copied, example, made, manifest_of, with_content, with_json, with_manifest

import remixer
from remixer import ArtifactError
from remixer.export import typed
from remixer.export.artifacts.operators import called, name_of
from remixer.export.typed import TypedError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "a"
    remixer.save(made(), folder, original=True)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return copied(saved, tmp_path / "a")


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A file that nothing may make; code that would make it; and nothing else may appear beside the folder."""
    monkeypatch.chdir(tmp_path)
    yield f"__import__('os').system('touch {tmp_path / 'trapped'}')"
    assert {file.name for file in tmp_path.iterdir()} <= {"a", "outside"}


def refused(folder, told):
    with pytest.raises(ArtifactError, match=told):
        remixer.load(folder)


def nodes(found, op):
    return [node for node in found["graph"]["nodes"] if node["op"] == op]


def test_it_loads_as_it_is(folder):
    x = example(15)
    assert torch.equal(remixer.load(folder).eval()(**x)["states"], made().eval()(**x)["states"])


@pytest.mark.parametrize("name", [
    "../outside", "/etc/passwd", "graph.0123456789ab.json/../../outside", "graph.json",
    "weights.0123456789ab.safetensors", "graph.0123456789ab.json\n", "..", "", "graph.0123456789AB.json",
])  # fmt: skip
def test_names_of_files_outside(folder, trap, name):
    with_manifest(folder, lambda told: told["files"]["graph"].update(name=name))
    refused(folder, "no artifact has a file")


def test_links_and_what_is_no_file(folder, trap, tmp_path):
    file = folder / manifest_of(folder)["files"]["weights"]["name"]
    data = file.read_bytes()
    for make in (lambda: file.symlink_to("/dev/zero"), lambda: os.mkfifo(file), file.mkdir):
        file.unlink()
        make()
        refused(folder, "no regular file")
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
            file.touch()
    file.unlink()
    refused(folder, "it is missing")
    (tmp_path / "outside").write_bytes(data)
    file.symlink_to(tmp_path / "outside")  # as caches of downloads have them: what counts is the content
    remixer.load(folder)
    (tmp_path / "outside").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(folder, "its checksum is another one")
    (folder / "remixer.json").unlink()
    (folder / "remixer.json").symlink_to("/dev/zero")
    refused(folder, "no regular file")


def test_a_save_does_not_write_through_links(folder, trap, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for file in list(folder.iterdir()):
        file.unlink()
        file.symlink_to(outside)
    remixer.save(made(), folder)
    assert outside.read_text() == "mine"
    assert not any(file.is_symlink() for file in folder.iterdir())


class Trap:
    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return eval, (self.code,)


@pytest.mark.parametrize("part", ["graph", "weights", "example", "original", "original_weights"])
def test_pickles(folder, trap, tmp_path, part):
    with_content(folder, part, pickle.dumps(Trap(trap)))
    refused(folder, "can't read")
    torch.save(Trap(trap), folder / "x")
    data = (folder / "x").read_bytes()
    (folder / "x").unlink()
    with_content(folder, part, data)
    refused(folder, "can't read")


def test_bombs(folder, trap, monkeypatch):
    with zipfile.ZipFile(folder / "x", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("weights", bytes(2**24))
    data = (folder / "x").read_bytes()
    (folder / "x").unlink()
    for part in ("graph", "weights"):
        refused(with_content(folder, part, data), "can't read")


@pytest.mark.parametrize(("text", "told"), [
    (b"[" * 100_000, "no JSON"),
    (b'{"symbols":' * 50_000, "no JSON"),
    (b"9" * 100_000, "no JSON"),
    (b'{"symbols": NaN}', "NaN is no number"),
    (b"\xff\xfe", "no text"),
    (b"", "no JSON"),
    (b"[]", "expected an object"),
])  # fmt: skip
def test_json_that_is_none(folder, trap, text, told):
    refused(with_content(folder, "graph", text), told)


def test_json_that_is_too_large(folder, trap, monkeypatch):
    monkeypatch.setattr(typed, "MOST_BYTES", 1000)
    refused(folder, r"has over 1,000 bytes")


def test_huge_tensors(folder, trap):
    """Headers of safetensors that promise more than there is."""
    for shape in ([2**40], [2**62, 2**62], [-1], [0, 2**63]):
        head = json.dumps({"qkv.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
        refused(with_content(folder, "weights", struct.pack("<Q", len(head)) + head + bytes(4)), "can't read")
    refused(with_content(folder, "weights", struct.pack("<Q", 2**63) + b"{}"), "can't read")


@pytest.mark.parametrize(("change", "told"), [
    (lambda one: one["spec"].update(heads=2**40, kv_heads=2**40), "has the shape|it holds what no artifact"),
    (lambda one: one["spec"].update(heads=-1), "can't read"),
    (lambda one: one["config"].update(rank=2**50), "has the shape|it holds what no artifact"),
    (lambda one: one["config"].update(window="4"), "window: expected int, got '4'"),
    (lambda one: one["config"].update(window=0), "window must be at least 1"),
    (lambda one: one["config"].update(mixer="magic"), "no mixer named 'magic'"),
    (lambda one: one["config"].update(mixer=["magic"]), "for its name"),
    (lambda one: one.update(path="qkv"), "two|no module|missing|a mixer has no weight"),
    (lambda one: one.update(path='mixer"]; import os'), "expected the path"),
    (lambda one: one.update(config=None), "no spec or no config"),
])  # fmt: skip
def test_mixers_that_are_none(folder, trap, change, told):
    def changed(found):
        change(next(each for each in found["modules"] if each["kind"] == "mixer"))

    refused(with_json(folder, "graph", changed), told)


def test_huge_shapes_of_nodes(folder, trap):
    for shape in ([2**62, 2**62], [-5], [2**70], [["Mul", "s0", 2]], ["s999999"], [1] * 65):
        value = {"dtype": "float32", "shape": shape, "stride": [1] * len(shape)}

        def changed(found, value=value):
            nodes(found, "call_function")[0]["val"] = value

        copy = with_json(folder, "graph", changed)
        if shape not in ([2**62, 2**62],):  # says no more than how large it would be
            refused(copy, "can't read")


@pytest.mark.parametrize("size", [
    "CODE", ["CODE", 1], ["Add", "CODE", 1], ["Pow", 10, ["Pow", 10, 10]], ["Pow", 9, 10**9], ["Symbol", "CODE"],
    ["Function", "CODE"], ["sympify", "CODE"], ["Rational", 1, 0], ["Rational", "CODE", 1], 2**80, [], ["Add"],
    {"a": 1},
])  # fmt: skip
def test_code_in_sizes(folder, trap, size):
    size = json.loads(json.dumps(size).replace("CODE", trap))

    def changed(found):
        nodes(found, "placeholder")[0]["val"]["shape"][0] = size

    refused(with_json(folder, "graph", changed), "can't read")


@pytest.mark.parametrize("where", ["symbols", "batch", "limits"])
def test_code_in_names_of_symbols(folder, trap, where):
    def changed(found):
        if where == "symbols":
            found["symbols"][trap] = {"low": 2, "high": None, "hint": 3}
        elif where == "batch":
            found["batch"] = [trap]
        else:
            found["limits"] = {trap: [1, 2]}

    refused(with_json(folder, "graph", changed), "expected the name of a symbol")


@pytest.mark.parametrize("name", [
    "aten.from_file.default", "aten.save.default", "aten.set_.source_Storage", "aten.resize_.default",
    "aten.warn.default", "aten._sparse_coo_tensor_unsafe.default", "aten._nested_view_from_buffer.default",
    "aten.lu_solve.default", "aten.embedding_dense_backward.default", "builtins.eval", "builtins.exec",
    "builtins.getattr", "os.system", "operator.attrgetter", "operator.methodcaller", "operator.setitem",
    "torch.load", "aten.add", "aten.__class__.default", "aten.add.__class__", "higher_order.flex_attention",
    "_c10d_functional.x.default", "higher_order.run_and_save_rng_state", "quantized.add.default",
    "higher_order.__class__", "", None, 3,
])  # fmt: skip
def test_operators_that_no_file_may_call(folder, trap, name):
    with pytest.raises(TypedError):
        called(name)

    def changed(found):
        nodes(found, "call_function")[0]["target"] = name

    refused(with_json(folder, "graph", changed), "can't read")


def test_operators_that_files_may_call():
    aten = torch.ops.aten
    for one in (aten.add.Tensor, aten.relu_.default, aten.gelu.default, aten.scaled_dot_product_attention.default):
        assert called(name_of(one)) is one
    for one in (torch.ops.aten.from_file.default, os.system, eval, torch.ops.aten.set_.source_Tensor):
        with pytest.raises(TypedError, match="none of the operators that a file may hold"):
            name_of(one)


BAD_NAMES = ["a b", "x=1):\n    import os\n    #", "self", "import", "", 'a"', "x: __import__('os')", "0"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("where", ["node", "placeholder", "operand", "argument"])
def test_names_that_are_code(folder, trap, name, where):
    def changed(found):
        if where == "node":
            nodes(found, "call_function")[0]["name"] = name
        elif where == "placeholder":
            nodes(found, "placeholder")[0]["target"] = name
        elif where == "operand":
            nodes(found, "call_function")[0]["kwargs"] = [[name, 1]]
        else:
            found["graph"]["signature"]["names"][0] = name

    if (name, where) == ("self", "operand"):
        return  # operators of torch call theirs so
    refused(with_json(folder, "graph", changed), "can't read")


@pytest.mark.parametrize("path", ['x"); import os; ("', "a\nb", "..", "", "x.'y'", "a.b\\"])
@pytest.mark.parametrize("op", ["get_attr", "call_module"])
def test_paths_that_are_code(folder, trap, op, path):
    def changed(found):
        nodes(found, op)[0]["target"] = path

    refused(with_json(folder, "graph", changed), "expected the path of a module")


@pytest.mark.parametrize("operand", [
    {"object": "os"}, {"node": "nowhere"}, {"dtype": "load"}, {"dtype": "__name__"}, {"device": "cuda:0"},
    {"float": "1e3"}, {"enum": "layout.sparse_coo"}, {"slice": [1]}, {"tuple": 3}, {"node": "x", "more": 1},
    {"dict": [["a b", 1]]}, {"complex": ["1", 2]},
])  # fmt: skip
def test_operands_that_are_none(folder, trap, operand):
    def changed(found):
        nodes(found, "call_function")[0]["args"].append(operand)

    refused(with_json(folder, "graph", changed), "expected")


@pytest.mark.parametrize("outputs", [
    {"class": "os.system", "names": ["states"], "of": ["*"]},
    {"class": "transformers.utils.hub.x", "names": ["states"], "of": ["*"]},
    {"class": "transformers.modeling_outputs.BaseModelOutput.__init__", "names": ["states"], "of": ["*"]},
    {"namedtuple": "a.Pair", "names": ["states"], "of": ["*"]},
])  # fmt: skip
def test_classes_of_outputs(folder, trap, outputs):
    """A name of a class is a name: nothing is imported but classes of outputs of transformers."""

    def changed(found):
        found["graph"]["signature"]["outputs"] = outputs

    given = remixer.load(with_json(folder, "graph", changed)).eval()(**example())
    assert type(given).__name__ in ("Outputs", "Pair")


@pytest.mark.parametrize("outputs", [
    {"namedtuple": "a.import", "names": ["states"], "of": ["*"]},
    {"namedtuple": "a.Pair", "names": ["x y"], "of": ["*"]},
    {"namedtuple": "a.Pair", "names": ["_x"], "of": ["*"]},
    {"class": "a.B", "names": ["a", "b"], "of": ["*"]},
    {"dict": [["a", "*"], ["a", "*"]]},
    {"set": ["*"]}, "states", 3, {"list": ["*", "*"]},
])  # fmt: skip
def test_structures_that_are_none(folder, trap, outputs):
    def changed(found):
        found["graph"]["signature"]["outputs"] = outputs

    refused(with_json(folder, "graph", changed), "expected|other inputs or outputs")


def test_damage(folder, trap):
    file = folder / manifest_of(folder)["files"]["weights"]["name"]
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    refused(folder, r"has [\d,]+ bytes, [\d,]+ were written: it was cut off")
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(folder, "its content is not what was written")
    file.unlink()
    refused(folder, "it is missing")
    text = (folder / "remixer.json").read_text()
    (folder / "remixer.json").write_text(text[: len(text) // 2])
    refused(folder, "no JSON")


@pytest.mark.parametrize(("change", "told"), [
    (lambda told: told.update(format=2), "of format 2, this remixer reads 1"),
    (lambda told: told["versions"].update(torch="99.0.0"), r"by torch 99\.0\.0, this is .*pip install 'torch>=99"),
    (lambda told: told["versions"].update(remixer="99.1"), r"written by remixer 99\.1"),
    (lambda told: told["versions"].update(torch="yesterday's"), "written by torch yesterday's"),
    (lambda told: told["versions"].pop("torch"), "doesn't say which torch"),
    (lambda told: told["mixers"].update({"mixer": {"mixer": "magic"}}), r"is not installed here.*'magic'.*install the"),
    (lambda told: told["files"].pop("weights"), "names no file of the weights"),
    (lambda told: told["files"].update(more=told["files"]["graph"]), "expected one of|has no"),
    (lambda told: told["files"]["graph"].update(bytes=-1), "a number of bytes"),
    (lambda told: told["report"].update(sites=[{"name": 3}]), "report.sites"),
    (lambda told: told.pop("report"), "report: expected an object"),
    (lambda told: told.update(extend={"max_length": "long"}), "extend.max_length: expected int"),
])  # fmt: skip
def test_manifests_that_are_none(folder, trap, change, told):
    refused(with_manifest(folder, change), told)


def test_weights_that_do_not_fit(folder, trap):
    def lost(found):
        found["tensors"].pop()

    refused(with_json(folder, "graph", lost), "missing|can't read")
    kept = content_of(folder, "example")
    refused(with_content(folder, "weights", kept), "is missing")
