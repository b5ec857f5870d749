# make demo   set-up and the whole main job on the CPU, in minutes: runs/demo/report.html    (CLIPS=folder: your own clips)
# make test   set-up and the tests                                  make lint   formatting, style and types
# make test-slurm   the tests that start a private SLURM, slow ones included
# The set-up happens once; it is repeated when requirements.txt or pyproject.toml change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Many tests wait, or work on one core; those that start several processes of their own share the cores.
TEST_PROCESSES ?= 2
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-slurm slurm-packages lint clean

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "mavil needs Python 3.10 to 3.12, $(PYTHON) is `$(PYTHON) -V`: make setup PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/mavil demo $(if $(CLIPS),--clips '$(CLIPS)') $(if $(OUT),--out '$(OUT)')

test: $(STAMP) slurm-packages
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile $(ARGS)

test-slurm: $(STAMP) slurm-packages
	$(BIN)/python -m pytest -q --runslow tests/slurm $(ARGS)

# Some tests start a private SLURM. Where it cannot be installed they skip and say why, so a failure here is none.
slurm-packages:
	@export DEBIAN_FRONTEND=noninteractive; if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! { command -v slurmctld && command -v munged; } > /dev/null; then \
		{ apt-get install --yes --no-install-recommends slurm-wlm munge || \
			{ apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; }; } > /dev/null 2>&1 < /dev/null || true; \
	fi

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
