VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip
STAMP := $(VENV)/.installed
PYTHON := $(shell command -v python3.11 || command -v python3)
CODE := $(wildcard edgeprune tests benchmarks export examples)

.PHONY: docs demo test lint soak fuzz coverage trust matrix lock audit bench-env clean .venv

.venv: $(STAMP)

# torch goes first and alone: unpinned, as a dependency, it would pull gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(VENV)/bin/edgeprune demo

lint: $(STAMP)
	$(VENV)/bin/ruff check $(CODE)
	$(VENV)/bin/ruff format --check $(CODE)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

# The site, strictly, into site/. An environment of its own: griffe reads the source, and nothing of
# ours is installed for it.
docs:
	test -x .venv-docs/bin/mkdocs || { $(PYTHON) -m venv .venv-docs && \
	    .venv-docs/bin/pip install --quiet -c constraints.txt mkdocs-material 'mkdocstrings[python]'; }
	.venv-docs/bin/mkdocs build --strict --quiet

# A file's tests stay together: they share what they set up. One thread each, or they fight for cores.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Hostile and broken files, resumable: about 15 minutes on one core.
soak: $(STAMP)
	PYTHONPATH=. OMP_NUM_THREADS=1 $(PY) benchmarks/soak.py --json soak.json

# What atheris makes of tests/corpus, for each parser: about 10 minutes on one core.
fuzz: $(STAMP)
	$(PIP) install --quiet -c constraints.txt atheris
	PYTHONPATH=. OMP_NUM_THREADS=1 $(PY) benchmarks/fuzz.py

# Lines and branches that the tests run: 15 minutes. Without the tests that break writing on purpose,
# which breaks what coverage writes too.
coverage: $(STAMP)
	$(PIP) install --quiet pytest-cov
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile \
	    --no-loadscope-reorder --ignore=tests/test_faults.py --cov=edgeprune --cov-report=term

# Faults while writing, random networks, mutants of what proves: resumable, an hour on two cores.
trust: $(STAMP)
	$(PIP) install --quiet cosmic-ray
	PYTHONPATH=. OMP_NUM_THREADS=1 $(PY) benchmarks/faults.py --json faults.json
	PYTHONPATH=. OMP_NUM_THREADS=1 $(PY) benchmarks/random_networks.py --json random.json
	PYTHONPATH=. OMP_NUM_THREADS=1 $(PY) benchmarks/mutants.py --json mutants.json

# The oldest and newest releases that are allowed, on each Python (benchmarks/matrix.py).
matrix: $(STAMP)
	$(PIP) install --quiet uv
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) benchmarks/matrix.py --json matrix.json

# What the image is made of, with the hash of every file. torch has an index of its own, and no hash.
lock: $(STAMP)
	$(PIP) install --quiet uv
	echo torch | $(VENV)/bin/uv pip compile --quiet pyproject.toml requirements.in -c constraints.txt \
	    --excludes - --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --custom-compile-command 'make lock' -o requirements.lock

# Known vulnerabilities of the lock, and a list of its parts in CycloneDX's form: sbom.json.
audit: $(STAMP)
	$(PIP) install --quiet pip-audit cyclonedx-bom
	$(VENV)/bin/pip-audit --disable-pip --require-hashes -r requirements.lock
	$(VENV)/bin/cyclonedx-py requirements --pyproject pyproject.toml -o sbom.json requirements.lock

# Some without their dependencies, which would put another torch in place or disagree: pip complains
# of them, the models that the benchmarks build work.
bench-env: $(STAMP)
	$(PIP) install --quiet --no-deps -c constraints.txt torchvision timm lerobot accelerate datasets \
	    deepdiff orderly-set cachebox transformers tokenizers diffusers
	$(PIP) install --quiet -c constraints.txt huggingface_hub safetensors pillow scipy scikit-learn \
	    einops draccus imageio av multiprocess pyarrow xxhash pyserial psutil regex \
	    mcp playwright axe-playwright-python

clean:
	rm -rf build dist site .venv-docs .pytest_cache .ruff_cache .mypy_cache .hypothesis edgeprune-demo
	find edgeprune tests benchmarks export examples -name __pycache__ -prune -exec rm -rf {} +
