# Hearth's make targets. `make help` lists them.
#
# Everything a target needs and the machine lacks is installed by
# scripts/setup.sh from package managers; nothing else is downloaded.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# .cache/go is where scripts/setup.sh puts a Go that is new enough if the
# machine has none.
export PATH := $(CURDIR)/.cache/go/bin:$(PATH):/usr/local/go/bin

VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS   := -s -w -X main.version=$(VERSION)
BIN       := bin/hearth
FUZZTIME  ?= 10s
BENCHARGS ?=

step = printf '\n==> %s\n' "$(1)"

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what is missing (Debian, Ubuntu) or say what is
	@scripts/setup.sh --test

.PHONY: generate
generate: # the embedded first processes of sandboxes
	@scripts/build-init.sh

.PHONY: build
build: generate ## build bin/hearth, one static binary
	@$(call step,building $(BIN) $(VERSION))
	@mkdir -p bin
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/hearth

.PHONY: run
run: ## install, build, serve on 127.0.0.1:8080, deploy and call the examples
	@scripts/run.sh

.PHONY: check
check: generate ## formatting, lint, import table, cross-build: fast, no root needed
	@scripts/check.sh

.PHONY: test
test: ## everything, also what needs root
	@scripts/test.sh

.PHONY: fuzz
fuzz: generate ## every fuzz target for FUZZTIME (10s) each
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: build ## measure isolation technologies on this machine (BENCHARGS=…)
	@$(BIN) bench $(BENCHARGS)

.PHONY: docs
docs: generate ## write the generated documentation (docs/cli.md)
	@go test ./cmd/hearth -run '^TestReference$$' -count=1 -update
	@echo docs/cli.md

.PHONY: clean
clean: ## remove what the targets made
	@rm -rf bin driver/*/initbin
