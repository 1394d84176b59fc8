# One word per job, said the same way on a laptop and in continuous integration. Words work together: `make check test`.
# ARGS go to the job's own program: make test ARGS="-k memory", make lock ARGS=--upgrade.
.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help setup check check-style check-types check-imports check-docs test serve bench accuracy lock clean

BIN := .venv/bin

help: ## say what each word does
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s  %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with every pinned dependency; PYTHON=… chooses which Python
	@sh tools/setup.sh

check: check-style check-types check-imports check-docs ## style, types, import rules, generated docs

check-style: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

check-types: setup
	$(BIN)/mypy

check-imports: setup
	$(BIN)/lint-imports

check-docs: setup
	$(BIN)/python -m app.docs --check

test: setup ## every test; ARGS="-k memory" for some
	$(BIN)/python -m pytest $(ARGS)

serve: setup ## the service on 127.0.0.1:8000 with its own database in .data; PORT=… for another port
	@$(BIN)/tonnage serve --data-dir .data $(if $(PORT),--port $(PORT))

bench: setup ## how fast the main paths are on this machine
	$(BIN)/python benchmarks/run.py $(ARGS)

accuracy: setup ## estimates against all ground truth: docs/accuracy.md, what GET /v1/accuracy serves, what is covered
	$(BIN)/tonnage accuracy tests/ground_truth --page docs/accuracy.md --json app/accuracy/accuracy.json \
		--covered app/planning/covered.py $(ARGS)

lock: setup ## pin the dependencies of pyproject.toml again; ARGS=--upgrade takes the newest
	@sh tools/lock.sh $(ARGS)

clean: ## remove everything that these words made, except .data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage build dist *.egg-info
	find . -name .git -prune -o -name .data -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
