# make run     start a node with the defaults (ARGS= passes options)
# make test    everything that CI runs
# make venv    .venv/bin/twistd and .venv/bin/orama, from the wheel
# make fuzz    every parser and the TURN server by coverage, TIME= seconds each
# make bench   side-by-side benchmarks with coturn and Janus
# make soak    a node under churn, TIME= seconds, in which nothing may grow

VENV := .venv
BIN := $(VENV)/bin
WHEELS := build/wheel
SOURCES := $(shell find orama twisted -name __pycache__ -prune -o -name '*.cache' -prune -o -print 2>/dev/null)

.PHONY: run venv test lint fuzz bench soak clean test-venv
.DEFAULT_GOAL := venv

run: venv
	@exec $(BIN)/twistd -n --pidfile= orama-webrtc $(ARGS)

venv: $(VENV)/.installed

# The newest Python that orama supports, with the packages' floors as setup.cfg has them.
$(VENV)/.python:
	@etc/python/make-venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25' 'setuptools>=77'
	@touch $@

# The real wheel, not an editable install: only then does twistd find the plugin.
$(VENV)/.installed: $(VENV)/.python setup.cfg pyproject.toml MANIFEST.in README.rst LICENSE $(SOURCES)
	@echo "Installing orama into $(VENV)"
	@rm -rf build/lib build/bdist.* *.egg-info $(WHEELS)
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir $(WHEELS) .
	@rm -rf build/lib build/bdist.* *.egg-info
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(WHEELS)/*.whl
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(WHEELS)/*.whl
	@touch $@

test-venv: $(VENV)/.tested

$(VENV)/.tested: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(echo $(WHEELS)/*.whl)[test,docs,dev]"
	@touch $@

test: test-venv
	@etc/debian/install
	@etc/lab/build
	@$(BIN)/python -m tests

lint: test-venv
	@$(BIN)/python -m tests --checks

fuzz: TIME ?= 60
fuzz: test-venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(echo $(WHEELS)/*.whl)[fuzz]"
	@$(BIN)/python -m tests.fuzz --time $(TIME) $(ARGS)

bench: test-venv
	@etc/debian/install
	$(BIN)/python -m bench.turn_relay
	$(BIN)/python -m bench.sfu_fanout
	$(BIN)/python -m bench.sfu_workers --rate 6000
	$(BIN)/python -m bench.networks
	$(BIN)/python -m bench.data_channels

soak: TIME ?= 1800
soak: test-venv
	$(BIN)/python -m bench.soak --seconds $(TIME) $(ARGS)

clean:
	rm -rf build dist .tox docs/_build *.egg-info $(VENV)
