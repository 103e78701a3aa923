"""The zoo as ONNX files: what becomes of every family with every mixer, printed and written as a page.

python tests/zoo/onnx_files.py [--page docs/zoo-onnx.md] [--mixers softmax long_short] [--only bert] [--fresh]

What was found is kept as it comes, so that a run that was stopped goes on where it was.
"""

import argparse
import json
import multiprocessing
import os
import re
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import transformers
from families import FAMILIES, KINDS
from family import Family
from inputs import CAPTURE
from inputs import KINDS as INPUTS
from known import KNOWN
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import remixer
from remixer import LongShort
from remixer.errors import NoAttentionError
from remixer.export import ExportError, OnnxMismatchError, to_onnx
from remixer.mixers import MixerConfig

MIXERS: dict[str, str | MixerConfig] = {
    "softmax": "softmax",
    "long_short": LongShort(window=32, segment=8, memory=16),
    "toeplitz": "toeplitz",
}
# Tables of positions get room for the longest input that files are tried on.
ROOM = 600
TABLES = ("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions")
PATIENCE = 240  # seconds for one file
ABSENT = "-"


@dataclass
class Result:
    """What became of one family with one mixer.

    Attributes:
        verdict: "exported", "refused" by an ExportError, "differs" where the file gives something else than torch,
            "nothing" where there is no attention to replace, "failed" for all else.
        error: the largest difference from torch, of the largest number.
        trials: on how many inputs.
        replaced: attentions that were; None where the model was exported as it is.
        kept: those that were not.
        seconds: of remix and to_onnx.
        reason: why there is no file.
    """

    verdict: str
    error: float | None = None
    trials: int = 0
    replaced: int | None = None
    kept: int = 0
    seconds: float = 0.0
    reason: str = ""

    @property
    def told(self) -> str:
        """In a cell."""
        if self.verdict != "exported":
            return self.verdict
        kept = f", {self.kept} kept" if self.kept else ""
        return f"{self.error:.0e}, {self.trials} inputs{kept}"


Results = dict[str, dict[str, Result]]  # by mixer, by family


def with_room(family: Family) -> Family:
    """With tables of positions for the longest input."""
    tables = {name: ROOM for name in TABLES if isinstance(family.options.get(name), int)}
    own = {name: with_tables(each) for name, each in family.options.items() if isinstance(each, dict)}
    return replace(family, options={**family.options, **own, **tables})


def with_tables(options: Any) -> Any:
    """The same for a part of a configuration."""
    return {**options, **{name: ROOM for name in TABLES if name in options}}


def form_of(family: Family) -> str | None:
    """The spelling of attention that is exported: the first that this version can capture."""
    forms = [form for form in family.forms if form not in family.refused and (family.name, form) not in KNOWN]
    return forms[0] if forms else None


def result_of(name: str, mixer: str) -> Result:
    """Rewrite and export one family; runs in a process of its own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    family = next(family for family in FAMILIES if family.name == name)
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        result = _exported(with_room(family), mixer)
    except OnnxMismatchError as error:
        result = Result("differs", reason=str(error))
    except ExportError as error:
        result = Result("refused", reason=str(error))
    except Exception as error:  # whatever stops a model stops its cell only
        result = Result("failed", reason=f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
    result.seconds = round(time.perf_counter() - start, 1)
    return result


def _too_long(*_: object) -> None:
    raise TimeoutError(f"it takes more than {PATIENCE} s")


def _exported(family: Family, mixer: str) -> Result:
    form = form_of(family)
    if form is None:
        return Result("nothing", reason="this version of transformers can't be captured; see zoo-old.md")
    model = family.build(form)
    if getattr(model, "_can_set_experts_implementation", bool)():
        model.set_experts_implementation("batched_mm")  # the default is an operator of transformers' own
    inputs = INPUTS[family.inputs](model, CAPTURE).kwargs
    replaced, kept = None, 0
    try:
        small: Any = remixer.remix(model, MIXERS[mixer], inputs)
        statuses = Counter(site.status for site in small.report.sites)
        replaced, kept = statuses["replaced"], statuses.total() - statuses["replaced"]
    except NoAttentionError as error:
        if mixer != "softmax":
            return Result("nothing", reason=str(error))
        small = remixer.capture(model, inputs).graph_module
    with tempfile.TemporaryDirectory() as folder:
        manifest = to_onnx(small, Path(folder) / "model.onnx")
    return Result("exported", manifest.error, manifest.trials, replaced, kept)


def all_results(mixers: list[str], only: str, cache: Path, fresh: bool) -> Results:
    """Every family of this version whose name holds `only`, one mixer after the other; known ones are read."""
    results: Results = {mixer: {} for mixer in MIXERS}
    if cache.exists() and not fresh:
        for mixer, found in json.loads(cache.read_text()).items():
            results[mixer] = {name: Result(**each) for name, each in found.items()}
    wanted = [
        (family.name, mixer)
        for mixer in mixers
        for family in FAMILIES
        if family.exists and only in family.name and family.name not in results[mixer]
    ]
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("files", total=len(wanted))
        while wanted:
            # One process goes for some cases only: what torch keeps of each graph adds up.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=10) as pool:
                while wanted:
                    name, mixer = wanted.pop(0)
                    progress.update(bar, advance=1, description=f"{mixer}: {name}")
                    try:
                        results[mixer][name] = pool.submit(result_of, name, mixer).result()
                    except BrokenProcessPool:
                        results[mixer][name] = Result("failed", reason="the process died")
                        break
                    finally:
                        cache.parent.mkdir(parents=True, exist_ok=True)
                        cache.write_text(json.dumps(_plain(results), indent=1) + "\n")
    return results


def _plain(results: Results) -> Any:
    return {mixer: {name: asdict(each) for name, each in found.items()} for mixer, found in results.items()}


def shown(results: Results, name: str, mixer: str) -> str:
    """What stands in a cell."""
    found = results[mixer].get(name)
    return ABSENT if found is None else found.told


def printed(results: Results) -> Table:
    """The matrix for a terminal."""
    table = Table("family", *MIXERS, title="The model zoo as ONNX files")
    style = {"failed": "red", "differs": "red", "refused": "yellow", "nothing": "dim", ABSENT: "dim"}
    for families in KINDS.values():
        for family in families:
            words = [shown(results, family.name, mixer) for mixer in MIXERS]
            table.add_row(family.name, *(f"[{style.get(word, 'green')}]{word}[/]" for word in words))
        table.add_section()
    return table


def figures(results: Results) -> list[str]:
    """A line per mixer."""
    lines = []
    for mixer, found in results.items():
        counts = Counter(each.verdict for each in found.values())
        told = ", ".join(f"{counts[word]} {word}" for word in ("exported", "refused", "differs", "failed", "nothing"))
        errors = [each.error for each in found.values() if each.error is not None]
        worst = f"; largest difference {max(errors):.1e}" if errors else ""
        trials = sum(each.trials for each in found.values())
        missing = sum(family.exists for family in FAMILIES) - len(found)
        lines.append(
            f"- `{mixer}`: {len(found)} families: {told}{worst}, on {trials} inputs in all"
            + (f"; {missing} not tried" if missing else "")
        )
    return lines


def reasons(results: Results, *verdicts: str) -> list[str]:
    """Why there is no file: each reason once, with the families that it holds for."""
    told: dict[str, list[str]] = {}
    for mixer, found in results.items():
        for name, each in found.items():
            if each.verdict in verdicts:
                told.setdefault(_brief(each.reason), []).append(f"{name} ({mixer})")
    return [f"- {reason}: {', '.join(names)}" for reason, names in told.items()]


def _brief(reason: str) -> str:
    """A reason in a line, without numbers of layers, so that equal ones are said once."""
    line = " ".join(reason.split())
    return re.sub(r"\.\d+\.", ".*.", line)[:300]


def page(results: Results, command: str) -> str:
    """The page in docs/."""
    configs = "; ".join(f"`{mixer}` is {config}" for mixer, config in MIXERS.items() if not isinstance(config, str))
    lines = [
        "# The model zoo as ONNX files",
        "",
        "Every family of [the zoo](zoo.md), in one form of attention (sdpa where it is offered), rewritten with each",
        "mixer and given to `to_onnx`, which runs the file in onnxruntime beside torch before it returns: at lengths",
        "from 1 to 513, one to three rows, whole and padded on either side, as far as the model itself takes them. A",
        "cell tells the largest difference from torch, of the largest number of an output (1 at least; 1e-4 is",
        "allowed), and on how many",
        f"inputs. Models have random weights and tables of {ROOM} positions; experts are chosen by batched products,",
        "since what transformers chooses them by otherwise is an operator of its own, which `to_onnx` refuses.",
        "*Refused* is an `ExportError` with its reason; *differs* an `OnnxMismatchError`, and no file; *nothing*:",
        "there is no attention to replace.",
        f"Mixers have their defaults, but {configs}.",
        "",
        f"Made by `{command}` with torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__} "
        f"and onnxruntime {onnxruntime.__version__}.",
        "",
        *figures(results),
    ]
    for title, families in KINDS.items():
        lines += ["", f"## {title}", "", f"| family | {' | '.join(MIXERS)} |", f"|---|{'---|' * len(MIXERS)}"]
        for family in families:
            words = " | ".join(shown(results, family.name, mixer) for mixer in MIXERS)
            lines.append(f"| {family.name} | {words} |")
    titles = {"Why some are refused": ("refused", "differs"), "What fails": ("failed",), "Nothing": ("nothing",)}
    for title, verdicts in titles.items():
        lines += ["", f"## {title}", "", *(reasons(results, *verdicts) or ["None."])]
    return "\n".join(lines) + "\n"


def main(arguments: Iterable[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="The model zoo as ONNX files.")
    parser.add_argument("--page", type=Path, help="write the matrix to this Markdown file")
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=list(MIXERS), help="which (default: all)")
    parser.add_argument("--only", default="", help="families whose names hold this")
    parser.add_argument("--cache", type=Path, default=Path("out/zoo-onnx.json"), help="what was found so far")
    parser.add_argument("--fresh", action="store_true", help="find everything again")
    parser.add_argument("--command", default="make zoo-onnx", help="what the page says that it was made by")
    asked = parser.parse_args(list(arguments) if arguments is not None else None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = all_results(asked.mixers, asked.only, asked.cache, asked.fresh)
    console = Console(width=140)
    console.print(printed(results))
    for line in [*figures(results), *reasons(results, "failed", "differs")]:
        console.print(line, markup=False)
    if asked.page is not None:
        asked.page.write_text(page(results, asked.command))


if __name__ == "__main__":
    main()
