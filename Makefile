# What a developer runs. `make` alone lists the targets; the work is in scripts/, each usable by itself.

# How much `make fuzz` does: messages, seconds for each fuzzer.
CASES =
SECONDS_EACH =

# How often `make bench` measures each row.
ROUNDS = 5

# The specs to run: make test-lua SPEC=spec/mutex_spec.lua
SPEC = spec
# What the demo surveys, instead of the sources of Rust's crates: make demo DIR=/usr/share
DIR =

MSYS_TOOLS ?= $(HOME)/.cache/msys-tools
export MSYS_TOOLS

.DEFAULT_GOAL := help
# The suites measure time and use every core: one after the other, also under -j.
.NOTPARALLEL:
.PHONY: help setup build rock demo test test-rust test-vm test-loom test-lua test-lua-joff test-lua-shuffle \
	test-luajit2 test-api test-properties test-stress test-soak test-rock fuzz stress stress-cancel soak bench bench-curves bench-check bench-values bench-code bench-sync bench-cancel check setup-check check-rust check-lua check-text format clean

# Runs a script with what `make build` made.
with_build = LUA_PATH='lua/?.lua;lua/?/init.lua;./?.lua;;' LUA_CPATH='build/lib/?.so;;'
say = @printf '\n== %s: %s\n' '$@'

help:
	@awk -F ':[^#]*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install LuaJIT, LuaRocks and busted, where missing
	$(say) 'LuaJIT, LuaRocks and busted'
	@scripts/setup.sh

build: setup ## build the native module into build/lib
	$(say) 'the native module'
	scripts/build.sh

rock: setup ## install msys into ./lua_modules with LuaRocks
	$(say) 'luarocks make into lua_modules'
	luarocks --lua-version 5.1 make --tree lua_modules msys-dev-1.rockspec

demo: rock ## survey the sources of Rust's crates (DIR=<directory> for others) on all cores
	$(say) 'examples/survey.lua $(DIR)'
	LUA_PATH='lua_modules/share/lua/5.1/?.lua;lua_modules/share/lua/5.1/?/init.lua;;' \
	LUA_CPATH='lua_modules/lib/lua/5.1/?.so;;' luajit examples/survey.lua $(DIR)

test: setup build test-rust test-vm test-loom test-lua test-lua-joff test-lua-shuffle test-luajit2 test-api test-properties \
	test-stress test-soak test-rock ## all the tests

test-rust: ## the Rust tests
	$(say) 'cargo test'
	cargo test --locked

test-vm: setup ## the Rust tests that make a VM: hostile bytes, memory that runs out
	$(say) 'cargo test with libluajit'
	cargo test --locked --no-default-features --test hostile

test-loom: ## the concurrency layer under loom, which tries every interleaving
	$(say) 'cargo test under loom'
	RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR=target/loom cargo test --locked --release --test loom --test loom_locks

test-lua: build ## the specs (SPEC=<file or directory> for some of them)
	$(say) '$(SPEC)'
	scripts/busted.sh $(SPEC)

test-lua-joff: build ## the specs with the JIT compiler off, in random order
	$(say) '$(SPEC) with -joff'
	MSYS_SPEC_SHORT=1 LUAJIT_FLAGS=-joff scripts/busted.sh --shuffle $(SPEC)

test-lua-shuffle: build ## the specs twice in one process, in random order
	$(say) '$(SPEC) twice in random order'
	MSYS_SPEC_SHORT=1 scripts/busted.sh --shuffle --repeat=2 $(SPEC)

test-luajit2: build ## the specs on OpenResty's LuaJIT, in random order
	$(say) "$(SPEC) on OpenResty's LuaJIT"
	luajit2=$$(scripts/luajit2.sh) && MSYS_SPEC_SHORT=1 LUAJIT=$$luajit2 scripts/busted.sh --shuffle $(SPEC)

test-api: build ## the specs of values where tables are read by LuaJIT's API, as on an unknown LuaJIT
	$(say) 'specs of values, tables read by the API'
	MSYS_DIRECT=off scripts/busted.sh $(wildcard spec/values_*.lua spec/in_place*.lua spec/globals_spec.lua spec/pack_spec.lua \
		spec/object_systems_spec.lua spec/long_strings_spec.lua spec/refusal*.lua)

test-properties: build ## 10,000 random graphs there and back, and as many programs run as if in place
	$(say) 'random graphs and programs'
	MSYS_SPEC_CASES=10000 scripts/busted.sh spec/values_property_spec.lua spec/in_place_property_spec.lua

fuzz: build ## a million of those and of changed messages, and fuzzers (CASES=, SECONDS_EACH=): hours
	$(say) 'random graphs and programs, changed messages, fuzzers'
	CASES=$(CASES) SECONDS_EACH=$(SECONDS_EACH) scripts/fuzz.sh

stress: build ## a minute of programs of a thousand sessions that lock, send, sleep, nest and fail (SECONDS=)
	$(say) 'programs of a thousand sessions'
	MSYS_SPEC_SESSIONS=1000 MSYS_SPEC_SECONDS=$(or $(SECONDS),60) scripts/busted.sh spec/sync_stress_spec.lua

test-stress: build ## the same for five seconds
	$(say) 'programs of a thousand sessions'
	MSYS_SPEC_SESSIONS=1000 MSYS_SPEC_SECONDS=5 scripts/busted.sh spec/sync_stress_spec.lua

stress-cancel: build ## ten thousand stops of mixed runaways in one process (CANCELS=)
	$(say) 'stops of mixed runaways'
	MSYS_SPEC_CANCELS=$(or $(CANCELS),10000) scripts/busted.sh spec/cancel_stress_spec.lua

soak: build ## a million jobs of all kinds: nothing grows
	$(say) 'a million jobs'
	$(with_build) luajit bench/soak.lua

test-soak: build ## the same with thirty thousand
	$(say) 'thirty thousand jobs'
	$(with_build) luajit bench/soak.lua 30000

test-rock: setup ## install with LuaRocks, pack a binary rock, use it where there is no Rust
	$(say) 'a rock, made and packed'
	scripts/test-rock.sh

bench: build ## msys beside its peers, into BENCHMARKS.md (ROUNDS=), and the survey on one core and on all
	$(say) 'the peers, where missing'
	@for peer in lua-luv lua-cqueues love curl; do scripts/apt.sh install $$peer || echo "bench: without $$peer"; done
	@bench/peers/nginx.sh setup || echo 'bench: without nginx'
	$(say) 'msys and its peers'
	$(with_build) luajit bench/peers.lua $(ROUNDS)
	$(say) 'examples/survey.lua, five times in turn'
	$(with_build) bench/survey.sh $(DIR)

bench-curves: build ## what a job costs as jobs, sessions, workers and pools grow in number
	$(say) 'curves'
	$(with_build) luajit bench/curves.lua

bench-check: build ## instructions a job: fails where one is more than 5 % above what is recorded
	$(say) 'instructions a job'
	@scripts/apt.sh install valgrind
	$(with_build) luajit bench/check.lua

bench-values: build ## values beside string.buffer by hand, and beside lua-luv
	@scripts/apt.sh install lua-luv || echo 'bench-values: without lua-luv, msys is measured alone'
	$(say) 'values'
	$(with_build) luajit bench/values.lua

bench-code: build ## what a job's code costs beside the same code in one VM
	$(say) 'code'
	$(with_build) luajit bench/code.lua

bench-sync: build ## locks, channels and shared data, beside lua-luv and cqueues
	@scripts/apt.sh install lua-luv lua-cqueues || echo 'bench-sync: without the two, msys is measured alone'
	$(say) 'locks, channels, shared data'
	$(with_build) UV_THREADPOOL_SIZE=$$(nproc) luajit bench/sync.lua

bench-cancel: build ## how fast jobs are stopped, what that costs the others, isolated executions beside new VMs
	$(say) 'stops'
	$(with_build) luajit bench/cancel.lua

check: check-rust check-lua check-text ## formatting, lints and types of everything

setup-check:
	$(say) 'the tools of check, where missing'
	@scripts/setup-check.sh

check-rust check-lua check-text format: export PATH := $(MSYS_TOOLS)/bin:$(PATH)
check-rust: setup-check ## rustfmt, clippy, cargo-deny
	$(say) 'rustfmt, clippy, cargo-deny'
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --test hostile -- -D warnings
	cargo deny --locked check licenses bans sources

check-lua: setup-check ## StyLua, luacheck, emmylua_check
	$(say) 'StyLua, luacheck, emmylua_check'
	stylua --check .
	luacheck --quiet .
	emmylua_check --config .emmyrc.json --warnings-as-errors lua types

check-text: setup-check ## typos, taplo, shellcheck
	$(say) 'typos, taplo, shellcheck'
	typos
	RUST_LOG=warn taplo fmt --check
	shellcheck scripts/*.sh .ci/run

format: setup-check ## rewrite Rust, Lua and TOML the way check wants them
	$(say) 'rustfmt, StyLua, taplo'
	cargo fmt
	stylua .
	RUST_LOG=warn taplo fmt

clean: ## remove what was built
	$(say) 'target, build, lua_modules'
	rm -rf target build lua_modules
