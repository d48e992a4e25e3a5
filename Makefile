# `make` alone prints what there is. Everything works as root and as an ordinary user; nothing is installed outside
# this folder.
.DEFAULT_GOAL := help
.PHONY: help setup lock demo tour test test-long test-distributed test-unit lint types bench drill zero-downtime crash-matrix growth workers clean
python := .venv/bin/python

# make demo ARGS=--once · make tour STEP=1 · make tour STEP=3 ARGS=--yes · make bench SCALE=full · make setup PYTHON=python3.12
ARGS ?=
STEP ?= 1
SCALE ?= small
export PYTHON

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '  make %-16s %s\n' "$$target" "$$text"; done

setup:  ## make .venv from the lock (quick when it is up to date)
	@scripts/setup

demo: setup  ## PayMe's world and Airflow on this machine; runs the daily backup and shows the proof
	@$(python) -m sandbox demo $(ARGS)

tour: setup  ## one step of docs/tour.md: make tour STEP=1
	@$(python) -m sandbox tour $(STEP) $(ARGS)

# Two at once: they mostly wait. Not more, since each has servers of its own. A file's tests stay together.
test: setup  ## the tests, under 15 minutes
	$(python) -m pytest -m "not long and not distributed" -n 2 --dist loadfile $(ARGS)

test-long: setup  ## the rest: whole DAGs in a real Airflow, every mutant of the drill, what takes long
	$(python) -m pytest -m long -n 2 --dist loadfile $(ARGS)

# One at a time: they share one host with all its workers.
test-distributed: setup  ## many workers, struck in every way: Celery, Redis, a worker for each queue (10 minutes)
	$(python) -m pytest -m distributed tests/distributed $(ARGS)

test-unit: setup  ## the tests that need no services, in seconds
	$(python) -m pytest tests/unit $(ARGS)

lint: setup  ## ruff: rules and format
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types: setup  ## mypy, strict, tests too
	$(python) -m mypy

bench: setup  ## against the old script, the old loop and the limits: make bench SCALE=small|full
	$(python) -m bench --scale $(SCALE) $(ARGS)
	$(python) -m bench.migration --rows $(if $(filter full,$(SCALE)),2000000,200000)
	$(python) -m bench.detect
	$(python) -m bench.health_watch

drill: setup  ## the restore test's mutation score: planted defects caught, false alarms
	$(python) -m bench.drill

zero-downtime: setup  ## the migration and its way back under traffic: failed, wrong, lost (15 minutes)
	$(python) -m bench.zero_downtime

crash-matrix: setup  ## every step of the migration struck at every statement and run again (half an hour)
	$(python) -m bench.crash_matrix

growth: setup  ## the tables of docs/growth.md, from what the benchmarks measured
	$(python) -m bench.growth

workers: setup  ## the backfill by one, two and four workers through Celery (a quarter of an hour)
	$(python) -m bench.workers $(ARGS)

lock:  ## requirements*.in -> requirements*.txt, with hashes, for every platform (needs uv)
	@scripts/lock $(ARGS)

clean:  ## remove what demo, tests and benchmarks left; stops nothing that runs
	@if [ -x $(python) ]; then $(python) -m sandbox clean; fi
	rm -rf .test .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
