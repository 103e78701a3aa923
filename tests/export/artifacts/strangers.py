"""A small artifact, and what a stranger can do to it who knows how checksums are made."""

import hashlib
import json
import shutil

import torch
from torch import nn

import remixer


class Small(nn.Module):
    """One attention, a buffer, and a window of positions: little to load."""

    def __init__(self):
        super().__init__()
        self.qkv, self.drop = nn.Linear(8, 24), nn.Dropout(0.1)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x, padding=None):
        query, key, value = (
            each.unflatten(-1, (2, 4)).transpose(1, 2) for each in self.qkv(x * self.scale).chunk(3, -1)
        )
        scores = query @ key.transpose(-1, -2) / 2
        if padding is not None:
            scores = scores.masked_fill(~padding[:, None, None], -torch.inf)
        return {"states": self.drop((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))}


def example(T=9):
    torch.manual_seed(T)
    return {"x": torch.randn(2, T, 8), "padding": torch.ones(2, T, dtype=torch.bool)}


def made():
    torch.manual_seed(0)
    return remixer.remix(Small(), remixer.LongShort(window=4), example())


def manifest_of(folder):
    return json.loads((folder / "remixer.json").read_text())


def with_manifest(folder, change):
    """Change the manifest of an artifact."""
    told = manifest_of(folder)
    change(told)
    (folder / "remixer.json").write_text(json.dumps(told))
    return folder


def with_content(folder, part, data):
    """Give a part other content, and all names and checksums that go with it."""
    told = manifest_of(folder)
    record = told["files"][part]
    (folder / record["name"]).unlink()
    found = hashlib.sha256(data).hexdigest()
    record.update(name=f"{part}.{found[:12]}.{record['name'].rpartition('.')[2]}", sha256=found, bytes=len(data))
    (folder / record["name"]).write_bytes(data)
    (folder / "remixer.json").write_text(json.dumps(told))
    return folder


def content_of(folder, part):
    return (folder / manifest_of(folder)["files"][part]["name"]).read_bytes()


def with_json(folder, part, change):
    """Change the JSON of a part, checksums and all."""
    found = json.loads(content_of(folder, part))
    change(found)
    return with_content(folder, part, json.dumps(found).encode())


def copied(folder, to):
    shutil.copytree(folder, to)
    return to
