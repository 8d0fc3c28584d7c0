# What one does with this repository, by name. `make` alone lists it.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
FUZZTIME ?= 1m
BENCHTIME ?= 1s

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: dev
dev: ## Run everything on this machine, to try it
	go run ./cmd/keyledger dev

.PHONY: build
build: ## Build dist/keyledger
	CGO_ENABLED=0 go build -trimpath -o dist/keyledger ./cmd/keyledger

.PHONY: pictures
pictures: ## Take the README's pictures anew, by the browser tests
	KEYLEDGER_PICTURES=$(CURDIR)/build/pictures go test -count=1 ./console
	mkdir -p docs/pictures
	cd build/pictures && cp products-statuses-light-1440.png ../../docs/pictures/keys.png
	cd build/pictures && cp products-analytics-light-1440.png ../../docs/pictures/key.png
	cd build/pictures && cp products-audit-light-1440.png ../../docs/pictures/audit.png
	cd build/pictures && cp time-light-1440.png ../../docs/pictures/time.png
	cd build/pictures && cp keyspace-edit-valid-light-1440.png ../../docs/pictures/keyspace.png
	cd build/pictures && cp products-reveal-dark-390.png ../../docs/pictures/reveal.png

.PHONY: test
test: ## Run all tests
	go test ./...

.PHONY: race
race: ## Run the tests of what runs concurrently, with the race detector
	KEYLEDGER_CI_ONLY=race bash .ci/run

.PHONY: bench
bench: ## Run all benchmarks (BENCHTIME=1s)
	go test -run '^$$' -bench . -benchtime $(BENCHTIME) -benchmem -vet=off ./...

.PHONY: fuzz
fuzz: ## Fuzz every parser (FUZZTIME=1m each)
	KEYLEDGER_CI_ONLY=fuzz KEYLEDGER_FUZZTIME=$(FUZZTIME) bash .ci/run

.PHONY: faults
faults: ## Inject faults for hours: kills, broken streams, races
	KEYLEDGER_FAULTS=long go test ./internal/faults/... -timeout 3h -count=1 -v

.PHONY: lint
lint: ## Format, vet, staticcheck, directions of imports, vulnerabilities
	KEYLEDGER_CI_ONLY="format vet tidy lint imports vulnerabilities" bash .ci/run

.PHONY: openapi
openapi: ## Lint the OpenAPI and the AsyncAPI document
	KEYLEDGER_CI_ONLY="openapi asyncapi" bash .ci/run

.PHONY: ci
ci: ## Everything that must hold before a change lands
	bash .ci/run
