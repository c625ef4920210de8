# A newcomer types `make test` or `make demo`: each target first installs what it needs and lacks
# (scripts/setup), then does its work. `make help` lists the targets.

export PATH := $(PATH):$(HOME)/.cargo/bin
REBAR3 ?= rebar3

.DEFAULT_GOAL := build
.PHONY: help build test ct check plugin bench sizes demo fault shell setup fmt clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## compile the Rust library and the Erlang modules
	@scripts/setup build
	$(REBAR3) compile

test: ## every test, Rust and Erlang; ends with 'N passed, N failed'
	@scripts/setup test
	@scripts/test cargo ct

ct: ## the Erlang suites alone, or some: make ct SUITES=test/a_SUITE,test/b_SUITE
	@scripts/setup test
	@SUITES="$(SUITES)" scripts/test ct

check: ## formatting, lints with warnings denied, xref, dialyzer
	@scripts/setup build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	scripts/check_style
	$(REBAR3) xref
	$(REBAR3) dialyzer

plugin: build ## the package that EMQX installs; VERSION=X.Y.Z gives it another version
	@VERSION="$(VERSION)" scripts/plugin

bench: ## the benchmark, side by side with the baselines; QUICK=1 takes some minutes
	@scripts/setup bench
	@QUICK="$(QUICK)" scripts/bench

sizes: ## what a session, a message and a route take of Redis's memory
	@scripts/setup demo
	@scripts/sizes

demo: ## kill a node in mid-write, a fresh one has everything; TOPOLOGY=sentinel or cluster kills a master too
	@scripts/setup demo
	@scripts/demo --topology "$(or $(TOPOLOGY),single)"

fault: ## write while Redis is killed, frozen, cut off, failed over; see that nothing is lost
	@scripts/setup demo
	@scripts/fault

shell: ## an Erlang shell with the storage running on a throw-away Redis
	@scripts/setup demo
	@scripts/shell

setup: ## install whatever any target needs
	@scripts/setup bench

fmt: ## format the Rust code
	cargo fmt --all

clean: ## remove what was built
	cargo clean
	rm -rf _build priv/*.so
