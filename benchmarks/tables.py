"""The tables of docs/results.md and the README, made from the files in benchmarks/results.

Run: python benchmarks/tables.py, after any benchmark.
"""

from __future__ import annotations

from pathlib import Path

from decoding_tables import streaming
from export_tables import distributed, distributed_volumes, onnx_decoder, onnx_encoder, onnx_export
from quality_tables import (
    document_retrieval,
    exactness,
    extrapolation,
    long_range,
    needle,
    perplexity,
    transfer_decoder,
    transfer_encoder,
)
from result_files import HERE, measured
from speed_tables import compile_time, million, mixers, mixers_gpu, mixers_long, others, scaling

README = HERE.parent / "README.md"
RESULTS = HERE.parent / "docs" / "results.md"
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
# Each table is a function that bears the name of its file in results.
SECTIONS = {
    "Exactness": (exactness,),
    "What is lost, and won back": (perplexity, transfer_decoder, needle, transfer_encoder, document_retrieval),
    "Speed and memory": (mixers, mixers_long, mixers_gpu, others, scaling, million),
    "Token by token": (streaming,),
    "ONNX": (onnx_encoder, onnx_decoder, onnx_export),
    "Several processes": (distributed, distributed_volumes),
    "Time of a rewrite": (compile_time,),
    "From scratch": (extrapolation, long_range),
}
SHOWN = (
    exactness,
    perplexity,
    transfer_decoder,
    transfer_encoder,
    document_retrieval,
    mixers_long,
    million,
    onnx_encoder,
)


def page() -> str:
    """All tables, as they stand in docs/results.md."""
    parts = []
    for title, tables in SECTIONS.items():
        found = [part for table_of in tables if measured(table_of.__name__) for part in table_of()]
        parts += [f"\n## {title}\n", *found]
    return "".join(parts).replace("](benchmarks/", "](../benchmarks/")


def headlines() -> str:
    """Those that stand in the README."""
    return "".join(part for table_of in SHOWN if measured(table_of.__name__) for part in table_of()).lstrip("\n")


def between(path: Path) -> str:
    """What stands between the marks in a file."""
    return path.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


def main() -> None:
    """Write the tables into the README and the page of results."""
    for path, found in ((README, headlines()), (RESULTS, page())):
        before, rest = path.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
        path.write_text(before + BEGIN + found + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
