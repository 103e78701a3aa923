"""Tables of decoders that go on token by token."""

from __future__ import annotations

from result_files import Row, load, source, table


def streaming() -> list[str]:
    """Right tokens, bytes kept, seconds a token, a million of them: as far as they were measured."""
    result = load("streaming")
    made = {"greedy": _greedy, "portions": _portions, "state": _state, "time": _time, "million": _million}
    parts = []
    for name, table_of in made.items():
        if name in result:
            parts += [*table_of(result[name]["rows"]), source(result[name], "streaming")]
    return parts


def _greedy(rows: list[Row]) -> list[str]:
    told = [
        [
            str(row["batch"]),
            f"{row['equal']} of {row['prompts']}",
            f"{row['tokens'] * row['prompts'] / row['seconds']:.0f}",
            f"{row['tokens'] * row['prompts'] / row['transformers_seconds']:.0f}",
        ]
        for row in rows
    ]
    return [
        f'\nSmolLM2-135M, `remix(model, "softmax")`, {rows[0]["tokens"]} tokens written greedily by '
        "`remixer.generate`, beside `model.generate` of transformers; prompts of 24 to 64 tokens, padded on the "
        "left:\n\n",
        table(["batch", "same tokens", "tokens a second", "by transformers"], told),
    ]


def _portions(rows: list[Row]) -> list[str]:
    told = [
        [f"`{row['mixer']}`", f"{row['prompt']:,}", f"{row['error']:.1e}", f"{row['same_argmax']:.4f}"] for row in rows
    ]
    return [
        f"\nSmolLM2-135M, {rows[0]['tokens']:,} tokens: logits from a state, a prompt at once and the rest in "
        "portions of 64, beside those of all tokens at once; the largest difference relative to the largest logit:\n\n",
        table(["mixer", "prompt", "difference", "same most likely token"], told),
    ]


def _state(rows: list[Row]) -> list[str]:
    tokens = sorted({row["tokens"] for row in rows})
    held = {(row["mixer"], row["tokens"]): row["bytes"] for row in rows}
    told = [
        [f"`{mixer}`", *(f"{held[mixer, each] / 2**20:,.1f} MiB" for each in tokens)]
        for mixer in dict.fromkeys(row["mixer"] for row in rows)
    ]
    return [
        "\nWhat the states of all 30 attentions of SmolLM2-135M hold, in float32, after so many tokens; that of "
        "`softmax` is the cache of keys and values that the others stand for:\n\n",
        table(["mixer", *(f"{each:,} tokens" for each in tokens)], told),
    ]


def _time(rows: list[Row]) -> list[str]:
    contexts = sorted({row["context"] for row in rows})
    took = {(row["mixer"], row["context"]): row["seconds"] for row in rows}
    took |= {
        ("transformers", row["context"]): row["transformers_seconds"] for row in rows if "transformers_seconds" in row
    }
    told = []
    for name in dict.fromkeys(name for name, _ in took):
        growth = took[name, contexts[-1]] / took[name, contexts[0]]
        label = name if name == "transformers" else f"`{name}`"
        told.append([label, *(f"{took[name, each] * 1e3:.1f} ms" for each in contexts), f"{growth:.2f}"])
    return [
        "\nSmolLM2-135M, one more token, batch 1, after so many of random keys and values; the least of "
        "several runs:\n\n",
        table(["mixer", *(f"{each:,} tokens" for each in contexts), "growth"], told),
    ]


def _million(rows: list[Row]) -> list[str]:
    told = []
    for name in dict.fromkeys(row["mixer"] for row in rows):
        mine = [row for row in rows if row["mixer"] == name]
        sizes = (
            f"{each['state_bytes'] / 2**10:,.0f} KiB, {each['process_bytes'] / 2**20:,.1f} MiB"
            for each in (mine[0], mine[-1])
        )
        told.append([f"`{name}`", *sizes])
    least, most = (f"{rows[place]['tokens']:,} tokens" for place in (0, -1))
    return [
        "\nA decoder of one layer that is given a million tokens, 64 at a time: what its state holds, and the whole "
        "process:\n\n",
        table(["mixer", least, most], told),
    ]
