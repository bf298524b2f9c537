# Two commands for a fresh clone. README has the same steps as plain pip and python lines.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: quickstart test

# Trains HybridViP with rotary positions on Digits and tests it. Runs are named by their time: the last is the new one.
quickstart: .venv/installed
	$(BIN)/python main.py fit --config experiments/hybrid_vip_rope.yaml --config experiments/overlays/digits.yaml
	$(BIN)/python main.py test --ckpt_path "$$(ls -d runs/hybrid_vip_rope/* | tail -n 1)"

test: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow and not gpu"

# The stamp is written last, so an interrupted installation is taken up again.
.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer, please: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt -c constraints.txt
	touch $@
