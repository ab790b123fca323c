# Everything a person or CI runs. `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTHON := $(PYTHON)
VENV   ?= .venv
BIN    := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# What Python has compiled is kept, whatever the environment says: else each of the hundreds of processes that the tests
# start compiles all it imports anew, which is 1.4 s of the 2.2 s that a service takes for its start.
unexport PYTHONDONTWRITEBYTECODE

# Options for `tandem up` and pytest: make up ARGS="--no-sample", make test ARGS=tests/unit
ARGS ?=

# Test processes, each with a PostgreSQL of its own. Tests wait as long as they compute: twice as many as two cores.
WORKERS ?= 4

.DEFAULT_GOAL := help
.PHONY: help install memcached prometheus postgresql pgbouncer patroni chromium pages pictures up test check bench bench-quick bench-profile bench-streams scale cells suggestions fuzz faults faults-quick soak load-generator lint format gen gen-check breaking lock migration docs examples image package pythons audit hooks clean ci iptables redis bench-access bench-growth bench-pythons contenders

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Not compiled ahead, which takes half a minute of a processor: what benchmarks draw with, what has a compiled library
# beside it, and what is used by a tenth. Python compiles what it imports of it.
SELDOM := /(tests|matplotlib|mpl_toolkits|numpy|fontTools|PIL|mypy|mypyc|moto|pip|setuptools)/

# The stamp changes when the lock file or the project file does, so a second `make` installs nothing.
install: $(VENV)/.installed  ## Install everything pinned in requirements.lock into .venv

$(VENV)/.installed: requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Tandem needs Python 3.11 or newer, and '$(PYTHON)' is not. Try: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "'$(PYTHON)' cannot make virtual environments. On Debian: apt-get install python3-venv"; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV) (a minute, once) ..."
	@tools/install.sh $(VENV)
	@$(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM)' $(VENV)/lib || true  # some packages hold files for other Pythons
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

memcached:  ## Install Debian's memcached where it is missing and we may; go on without it otherwise
	@command -v memcached >/dev/null || tools/install_memcached.sh

redis:  ## Install Debian's Redis where it is missing and we may, for the cache's tests
	@command -v redis-server >/dev/null || tools/install_redis.sh

prometheus:  ## Install Debian's Prometheus where it is missing and we may, for the tests of alerts and dashboard
	@command -v promtool >/dev/null || tools/install_prometheus.sh

postgresql:  ## Install Debian's PostgreSQL 15 where it is missing and we may, for the tests of TLS to a database
	@[ -x /usr/lib/postgresql/15/bin/postgres ] || tools/install_postgresql.sh

pgbouncer:  ## Install Debian's PgBouncer where it is missing and we may, for the test of sessions behind it
	@[ -x /usr/sbin/pgbouncer ] || tools/install_pgbouncer.sh

patroni: install  ## Install etcd, and Patroni in an environment of its own, where they are missing and we may, for make scale
	@PYTHON="$(BIN)/python" tools/install_patroni.sh

chromium:  ## Install Debian's Chromium where it is missing and we may, for the tests of the pages
	@command -v chromium >/dev/null || tools/install_chromium.sh

iptables:  ## Install Debian's iproute2 and iptables where they are missing and we may, for the tests of regions
	@command -v ip >/dev/null && command -v iptables >/dev/null || tools/install_iptables.sh

# A stamp of its own: what is built is not in the repository, and is built again when what it is made of changes.
PAGES_SOURCES := $(shell find pages proto examples/typescript/proto -path pages/node_modules -prune -o -path pages/src/gen -prune \
  -o -type f -print 2>/dev/null)
pages: shop/pages/index.html  ## Build the pages for browsers, of pages/, into shop/pages

shop/pages/index.html: $(VENV)/.installed $(PAGES_SOURCES) tools/pages.py
	@echo "Building the pages (npm fetches what it needs, once) ..."
	@python -m tools.pages $(PAGES_OPTIONS)

pictures: pages memcached chromium  ## Make the pictures of docs/pages.md anew
	@WRITE_PICTURES=1 pytest tests/pages/test_looks.py

up test: PAGES_OPTIONS := --if-possible
up: install memcached pages  ## Start everything on this machine, with sample data; Ctrl-C stops it
	@tandem up $(ARGS)

test: install memcached pages  ## Run all tests
	@pytest --numprocesses=$(WORKERS) --dist=worksteal $(ARGS)

check: install  ## Name what is missing or out of date: stubs, pages, rows of tables (some seconds, no servers)
	@pytest --quiet --tb=short --no-header --continue-on-collection-errors tests/architecture \
	  || { echo "docs/adding-a-feature.md goes through all the steps"; exit 1; }

# Some 4 GiB of memory, and as much of disk in the temporary folder.
bench: install memcached load-generator contenders  ## Measure everything against its contenders (benchmarks/README.md)
	@python -m benchmarks $(ARGS)

bench-quick: install memcached load-generator contenders  ## The same with fewer orders, turns and seconds: two minutes
	@python -m benchmarks --quick $(ARGS)

bench-access: install memcached load-generator  ## Measure every way in which callers are known: ten minutes
	@python -m benchmarks --only access-all $(ARGS)

# It says how much disk that takes, and stops where there is less: ARGS="--folder /var/tmp" is another one.
ORDERS ?= 10000000
bench-growth: install memcached load-generator  ## Measure ORDERS orders against ten thousand (10,000,000: half an hour, 40 GiB of disk)
	@python -m benchmarks.growth --orders $(ORDERS) $(ARGS)

bench-pythons: install memcached load-generator  ## Measure the services on each Python that is on the PATH
	@python -m benchmarks.pythons $(ARGS)

bench-profile: install memcached load-generator  ## Show where the time of writes, rebuilds and single orders goes, in a minute
	@python -m benchmarks.profiles $(ARGS)

bench-streams: install memcached  ## Measure what watches and followers of the feed cost
	python -m benchmarks.watches
	python -m benchmarks.feed

# As root: regions are network namespaces. Each scenario alone: make scale ARGS="--only regions".
scale: install memcached load-generator pgbouncer patroni iptables  ## Measure regions, many query servers and a failover, and print docs/scaling.md's tables
	@python -m benchmarks.scale $(ARGS)

cells: install memcached load-generator  ## Measure what one cell takes, and simulate 1, 10 and 100 of them over it
	@python -m benchmarks.scale --only cell cells

suggestions: install  ## Measure what a suggestion takes beside a search; fail where it is more than a quarter
	python -m benchmarks.suggestions

fuzz: install memcached  ## Send crafted requests for a minute, and measure what they cost and what others notice
	@python -m benchmarks.fuzz $(ARGS)

# A cluster that fails prints its seed: make faults ARGS="--seed N --clusters 1" runs it again.
FAULTS_MINUTES ?= 60
faults: install memcached  ## Break everything for an hour, prove that no guarantee broke, write the table of docs/reliability.md
	@GRPC_VERBOSITY=NONE python -m nemesis --minutes $(FAULTS_MINUTES) --json docs/faults.json $(ARGS)
	@python -m tools.faults

faults-quick: install memcached  ## The same with one cluster and seven faults: a minute
	@GRPC_VERBOSITY=NONE python -m nemesis --quick $(ARGS)

SOAK_MINUTES ?= 20
soak: install memcached  ## Let everything run for twenty minutes, fail where memory, descriptors or tables grow too much
	@GRPC_VERBOSITY=NONE python -m nemesis.soak --minutes $(SOAK_MINUTES) $(ARGS)

contenders: install  ## Build what the benchmarks compare with: a twin in Go, an environment with Protean; go on without them
	@command -v go >/dev/null && [ -d /usr/share/gocode/src/google.golang.org/grpc ] || tools/install_go.sh
	@python -m benchmarks.contenders.go_twin || true
	@python -m benchmarks.contenders.protean || true

load-generator:  ## Install Debian's h2load and a C compiler, for the benchmarks, where they are missing and we may
	@command -v h2load >/dev/null && { command -v gcc || command -v cc; } >/dev/null || tools/install_h2load.sh

lint: install  ## Check style, types, import rules and the contract
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	buf lint
	buf format --diff --exit-code

format: install  ## Format the code and the contract
	ruff check --fix --exit-zero .
	ruff format .
	buf format --write

gen: install  ## Regenerate the Python stubs in gen/ and tandem/ from proto/
	buf generate
	buf generate --template buf.gen.tandem.yaml

gen-check: install  ## Check that gen/ and tandem/ have what `make gen` makes
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT \
	  && buf generate --output "$$folder" \
	  && buf generate --template buf.gen.tandem.yaml --output "$$folder" \
	  && diff --recursive --exclude=__pycache__ gen "$$folder/gen" \
	  && (for it in "$$folder"/tandem/*; do \
	        diff --recursive --exclude=__pycache__ --exclude=__init__.py tandem/$${it##*/} "$$it" || exit 1; done) \
	  || { echo "the stubs are not what proto/ makes: run make gen"; exit 1; }

breaking: install  ## Check that the contract breaks no caller of the last release, or of main
	@tools/breaking.sh

lock: install  ## Pin the newest versions that pyproject.toml allows in requirements.lock
	@pip-compile --quiet --upgrade --extra=server --extra=bench --extra=dev --allow-unsafe --generate-hashes --no-emit-find-links \
	  --no-emit-index-url --no-emit-options --no-emit-trusted-host --strip-extras \
	  --output-file=requirements.lock pyproject.toml
	@python -m tools.pythons --wheels

# Of a view in proto/: make migration NAME=product_rating
migration: install  ## Write the migration of the read database for views that have no table yet
	@python -m tandem.testing.migrations projector.app $(NAME)

docs: install  ## Regenerate the pages of settings, contract and metrics in docs/ from the code
	python -m tools.configuration > docs/configuration.md
	python -m tools.contract > docs/contract.md
	python -m tools.metrics > docs/metrics.md

examples: install memcached  ## Run docs/examples.md and write what its commands print into it
	pytest tests/e2e/test_examples.py --write-examples

# As root: it makes a file system. IMAGE_BASE=… builds on an image of yours, ARGS=registry/name:tag names it.
image: install  ## Build the image of the services with buildah, and start each service in it
	@tools/image.sh $(ARGS)

# The wheel, the source and the bill in dist/, then what its extras install, as pip resolves them now: some minutes.
package: install memcached pages  ## Build the wheel with its bill of materials into dist/, install each extra with pip and try it
	@rm -rf dist && hatchling build
	@for wheel in dist/*.whl; do python -m tools.package_sbom "$$wheel" >"$${wheel%-py3-none-any.whl}.cdx.json"; done
	@PACKAGE_WITH_PIP=1 pytest tests/e2e/test_package.py

pythons: install  ## Look for wheels for each Python that is supported, and run the unit tests with each that is on the PATH
	@python -m tools.pythons $(ARGS)

audit: install  ## Look for known vulnerabilities of what requirements.lock pins; ARGS=--strict where it must be able to
	@python -m tools.audit $(ARGS)

hooks: install  ## Check style, types and the contract before each commit
	pre-commit install

clean:  ## Remove caches, builds and the virtual environment; data stays
	rm -rf $(VENV) build dist shop/pages pages/node_modules pages/src/gen *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

ci:  ## Run what CI runs
	.ci/run
