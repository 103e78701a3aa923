"""Tables of seconds and memory."""

from __future__ import annotations

from result_files import by_length, load, source, table


def mixers() -> list[str]:
    """Mixers against fused attention and a compiled sliding window."""
    result = load("mixers")
    parts = [
        "\nOne mixer beside `F.scaled_dot_product_attention` and beside a compiled FlexAttention with a sliding window "
        "(128 to each side), in the same run, batch 1, width 384, 12 heads, `LongShort(window=128, rank=32, sinks=0)` "
        "(causal: rank 1) and `Toeplitz()`: times faster than attention, and milliseconds "
        "([plot](benchmarks/results/mixers.png)):\n"
    ]
    for kind in dict.fromkeys(row["pass"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["pass"] == kind]
        lengths = sorted({row["length"] for row in mine})
        rows = []
        for name, direction, found in by_length([row for row in mine if row["mixer"] != "attention"], "mixer"):
            cells = [f"{found[each]['ratio']:.1f}x ({found[each]['seconds'] * 1e3:.1f})" for each in lengths]
            rows.append([_label(name), direction, *cells])
        head = [kind, "direction", *(f"{length:,} tokens" for length in lengths)]
        parts += ["\n", table(head, rows)]
    return [*parts, source(result, "mixers")]


def mixers_long() -> list[str]:
    """Memory beside time, to longer sequences."""
    result = load("mixers_long")
    lengths = sorted({row["length"] for row in result["rows"]})
    rows = []
    for name, direction, found in by_length(result["rows"], "mixer"):
        cells = [f"{found[each]['ratio']:.1f}x, {found[each]['peak_bytes'] / 2**20:,.0f} MiB" for each in lengths]
        rows.append([_label(name), direction, *cells])
    return [
        "\nOne mixer, forward, batch 1, width 384, 12 heads: times faster than `F.scaled_dot_product_attention` in the "
        "same run, and the most memory a pass takes:\n\n",
        table(["mixer", "direction", *(f"{length:,} tokens" for length in lengths)], rows),
        source(result, "mixers_long"),
    ]


def mixers_gpu() -> list[str]:
    """Mixers on a GPU against FlashAttention and a compiled sliding window."""
    result = load("mixers_gpu")
    lengths = sorted({row["length"] for row in result["rows"]})
    parts = [
        f"\nOn one {result['machine']['gpu']} in bfloat16, batch {result['rows'][0]['batch']}, width 768, 12 heads, "
        "beside FlashAttention and a compiled FlexAttention with a sliding window (256 to each side, or the last 256), "
        "`LongShort(window=256, rank=32, sinks=0)` (causal: rank 1) and `Toeplitz()`: times faster than "
        "FlashAttention, and milliseconds. Short sequences are bound by the launches of kernels, of which "
        "FlashAttention needs one. "
        f"{result.get('note', '')}\n"
    ]
    for kind in dict.fromkeys(row["pass"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["pass"] == kind]
        rows = []
        for name, direction, found in by_length([row for row in mine if row["mixer"] != "attention"], "mixer"):
            some = [found.get(each) for each in lengths]
            cells = [
                "not measured" if row is None else f"{row['ratio']:.2f}x ({row['seconds'] * 1e3:.2f})" for row in some
            ]
            rows.append([_label(name), direction, *cells])
        parts += ["\n", table([kind, "direction", *(f"{length:,} tokens" for length in lengths)], rows)]
    return [*parts, source(result, "mixers_gpu")]


def _label(name: str) -> str:
    return {
        "attention": "fused attention",
        "window": "FlexAttention, window",
        "sliding_window": "FlexAttention, window",
    }.get(name, f"`{name}`")


def others() -> list[str]:
    """Mixers against other implementations of the same."""
    result = load("others")
    lengths = sorted({row["length"] for row in result["rows"]})
    rows = []
    for ours, theirs in dict.fromkeys((row["ours"], row["theirs"]) for row in result["rows"]):
        for backward in (False, True):
            mine = {
                row["length"]: row
                for row in result["rows"]
                if (row["ours"], row["theirs"], row["backward"]) == (ours, theirs, backward)
            }
            cells = [f"{mine[each]['times_faster']:.1f}x ({_times(mine[each]['times_smaller'])})" for each in lengths]
            rows.append([f"`{ours}`", theirs, "forward, backward" if backward else "forward", *cells])
    return [
        "\nAgainst other implementations of the same: times faster (times less memory). The straightforward forms give "
        "the same numbers; `long-short-transformer` from PyPI is compared as a layer, projections included:\n\n",
        table(["mixer", "other", "pass", *(f"{length:,} tokens" for length in lengths)], rows),
        source(result, "others"),
    ]


def _times(smaller: float) -> str:
    """Some passes take no more memory than what a process has already."""
    return f"{smaller:.1f}x" if smaller > 0.05 else "-"


def scaling() -> list[str]:
    """Growth to a million tokens, and the longest sequence in a given memory."""
    result = load("scaling")
    rows = []
    for name in dict.fromkeys(row["mixer"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["mixer"] == name]
        worst = max(row["seconds_ratio"] for row in mine if "seconds_ratio" in row)
        cells = [f"{mine[0]['seconds'] * 1e3:.1f} ms", f"{mine[-1]['seconds']:.2f} s", f"{worst:.2f}"]
        rows.append([f"`{name}`", *cells, str(mine[0]["target"])])
    first, last = (result["rows"][index]["length"] for index in (0, -1))
    longest = ", ".join(f"{row['mixer']} {row['length']:,}" for row in result["longest"])
    return [
        f"\nForward passes from {first:,} to {last:,} tokens ([plot](benchmarks/results/scaling.png)); at most so many "
        "times the seconds for twice the tokens:\n\n",
        table(["mixer", f"{first:,}", f"{last:,}", "at most", "goal"], rows),
        f"\nThe longest sequence trained on within {result['budget_gib']:g} GiB: {longest}.\n",
        source(result, "scaling"),
    ]


def million() -> list[str]:
    """A million tokens."""
    result = load("million")
    rows = [
        [
            f"`{row['mixer']}`",
            f"{row['seconds']:.0f} s",
            f"{row['seconds'] / row['floor']:.2f}",
            f"{row['bytes'] / 2**30:.1f} GiB",
        ]
        for row in result["rows"]
    ]
    return [
        f"\nThe real MiniLM, all six attentions replaced, {result['rows'][0]['tokens']:,} tokens in one forward pass "
        f"([plot](benchmarks/results/million.png)). The original's attentions alone would take "
        f"{result['original_seconds'] / 3600:.1f} hours, extrapolated:\n\n",
        table(["mixer", "seconds", "times the floor", "memory"], rows),
        source(result, "million"),
    ]


def compile_time() -> list[str]:
    """How long a rewrite takes."""
    result = load("compile_time")
    row = result["rows"][0]
    return [
        f"\n`remix` of SmolLM2, all 30 sites, takes {row['ratio']:.2f} times the `torch.export.export` call inside it "
        f"({row['remix']:.1f} s against {row['export']:.1f} s).\n",
        source(result, "compile_time"),
    ]
