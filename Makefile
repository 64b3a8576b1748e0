# make demo    count the identifiers of Go's own source into a file, then ask it for one
# make test    all tests of all modules
# make bench   a table of an EMDict beside Go's map; BENCHFLAGS='-n 10000000 -keys low': see BENCHFLAGS=-help
# make peers   the same with other embedded stores; PEERTAGS=lmdb adds LMDB, if its header and a C compiler are there
# make gobench the benchmarks of go test, of lists too
# make check   what a change must pass besides: vet, gofmt, race detector, AddressSanitizer, 32 bits, other systems and processors
# make qemu QEMUFLAGS='-timeout 2h'   the full suite on other processors; PROCESSORS=loong64/loongarch64: on another one
# make wine WINEFLAGS='-timeout 2h'   the full suite for Windows
# make wasm    where no files are mapped, and files exchanged with that; WASMS=wasip1: on another system

GO      ?= go
MEETING  = TestModel|TestRace|TestMutex|Writers|Readers|Concurrent|Busy|BesideClose|RolledBack|OthersWait|WhileChanging|GroupCommit|Callback
PORTABLE = TestSame|TestSample|TestCodec|TestDerived(RoundTrips|Hostile|Keys|InContainers|NaN)|TestEntries|TestHash(Vectors|Stable|Secrets)|TestLayoutFor|TestControlWords|TestExtentTable|TestUnixMapping|TestEMListQueue|TestEMListExtentBorders|TestEMDict(Bytes|FloatKeys|Rollback)|TestUpdate|TestDefectLock|TestViews|TestMutate|TestDropClean|TestSortFunc$$|TestSortFuncStrings|TestSortKey|TestRadixSort
# What differs where the whole file is in memory: all that lies between the file and its bytes, and recovery. WebAssembly does
# not interrupt a goroutine, so tests in which one loops until another stops it would run for ever.
MEMORY   = TestExchange|TestSlots|TestHeapMapping|TestMapping|TestFile$$|TestLock$$|TestNames|TestResolve|TestTable$$|TestOpenNot|TestDirtyLimit|TestLogLost|TestClose$$|TestTruncated|TestWrongLog|TestReadOnlyAfterCrash|TestErr(Locked|Closed|ReadOnly|Version)|TestOthersRecovery|TestSalvageLog|TestRelaxed(Unclean|HasNoRollback|Fails)?$$
# What differs on Windows: mappings, locks, paths, growth and truncation while mapped, the log after a kill, its error codes.
WINDOWS  = TestWindows|TestMapping|TestLock|TestTable|TestFile|TestNames|TestResolve|TestOpenNotRegular|TestDirtyLimit|TestAddressPool|TestKill|TestCheckpointed|TestErr|TestUpdate|TestReadOnly|TestSame|TestSample|TestModel$$|TestModelReaders|TestEMListReadBesideClose|TestSmallDisk|TestExit|TestMillions|TestRelaxed
# Compiling the tests is half of the time. Vet has seen them natively, and an eighth of it is for debuggers.
NODEBUG  = -gcflags=-dwarf=false
LEAN     = -vet=off $(NODEBUG)
ASAN     = -asan -gcflags='-dwarf=false -d=checkptr=2'
# All are built; two that nothing here executes are vetted with their tests, which takes longer. The examples know nothing of systems.
BUILDS   ?= darwin/arm64 freebsd/amd64 openbsd/amd64 windows/amd64 windows/386 plan9/amd64 wasip1/wasm
VETTED   ?= darwin/arm64 freebsd/amd64
EXAMPLES ?= windows/amd64

# GOARCH/QEMU's name: s390x is big-endian. loong64/loongarch64 has pages of 16 KiB. arm/arm has 32 bits, as 386, which QEMU cannot
# stand in for: it upsets the signal handling of Go.
PROCESSORS ?= s390x/s390x arm64/aarch64
QEMUFLAGS  ?= -short -run '$(PORTABLE)' -timeout 5m
WINEFLAGS  ?= -short -run '$(WINDOWS)' -timeout 5m

# each runs a command in the folder of each module that go.work lists.
each = dirs=$$($(GO) list -m -f '{{.Dir}}') && echo "$$dirs" | while read -r dir; do \
	(cd "$$dir" && $(1)) </dev/null || { echo "failed in $$dir" >&2; exit 1; }; done

.PHONY: demo test bench peers peers-test gobench check vet fmt race sanitize 386 cross ahead qemu wasm wine

demo:
	@mkdir -p demo
	$(GO) build -o demo/ ./examples/wordcount
	./demo/wordcount -db demo/go.emd -idents "$$($(GO) env GOROOT)"
	./demo/wordcount -db demo/go.emd -get err

test:
	$(call each,$(GO) test -timeout 40m $(TESTFLAGS) ./...)

bench:
	$(GO) run ./benchmarks $(BENCHFLAGS)

# Its module is not in go.work and not among what a change must pass: to get and compile the stores takes minutes. Without a
# budget the slow ones would take hours.
peers:
	cd benchmarks/peers && GOWORK=off $(GO) run -tags "$(PEERTAGS)" . -budget 2s $(BENCHFLAGS)

peers-test:
	cd benchmarks/peers && GOWORK=off $(GO) vet -tags "$(PEERTAGS)" . && GOWORK=off $(GO) test -tags "$(PEERTAGS)" .

gobench:
	$(call each,$(GO) test -run '^$$' -bench . -benchmem $(BENCHFLAGS) ./...)

check: vet fmt sanitize qemu cross race wine wasm 386

vet:
	$(call each,$(GO) vet ./...)

fmt:
	@files=$$("$$($(GO) env GOROOT)/bin/gofmt" -l .) && \
	if [ -n "$$files" ]; then echo "gofmt would change:" $$files >&2; exit 1; fi

# The race detector slows memory down twentyfold, so it runs the tests in which goroutines meet.
race:
	CGO_ENABLED=1 $(GO) test $(LEAN) -race -short -timeout 20m -run '$(MEETING)' .

# AddressSanitizer, and Go's own checks of unsafe pointers. Neither knows what a mapping holds; both know the memory around it.
sanitize:
	CGO_ENABLED=1 $(GO) test $(ASAN) -vet=off -short -timeout 20m -run '$(MEETING)|$(PORTABLE)' .

# A kernel built without 32-bit x86 cannot run it, and says "exec format error": there the tests are compiled, and those that differ by
# processor run on arm. The whole short suite takes more than five minutes there.
386:
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && export GOARCH=386 CGO_ENABLED=0 && \
	printf 'package main\n\nfunc main() {}\n' >"$$tmp/main.go" && $(GO) build -o "$$tmp/probe" "$$tmp/main.go" && \
	if "$$tmp/probe" 2>/dev/null; then \
		$(GO) test $(LEAN) -short -timeout 20m -run '$(MEETING)|$(PORTABLE)|TestErr|TestKill' .; \
	else \
		echo "386: NOT RUN, compiled only: this kernel cannot execute 32-bit x86 programs" && \
		$(GO) vet . && $(GO) test -c -o "$$tmp/" . && $(MAKE) qemu PROCESSORS=arm/arm; \
	fi

# Tests for other systems are checked here, by vet with all their types, and run elsewhere. Vet gets the names of files, without the external
# tests, because for those it would compile all others first. Of the other modules, only examples, and for one system: the rest takes minutes
# each.
cross:
	@export CGO_ENABLED=0 && for target in $(BUILDS); do GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) build . && echo "built for $$target" || exit 1; done
	@export CGO_ENABLED=0 && for target in $(EXAMPLES); do GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) build ./examples/... && \
		echo "examples built for $$target" || exit 1; done
	@export CGO_ENABLED=0 && for target in $(VETTED); do export GOOS=$${target%/*} GOARCH=$${target#*/} && \
		$(GO) vet $$($(GO) list -f '{{join .GoFiles " "}} {{join .TestGoFiles " "}}' .) && echo "vetted for $$target" || exit 1; done

# What the targets of check will compile, for the cache: .ci/run does this beside the tests, which leave a processor idle now and then. Most
# of it is one package, which the compiler hardly spreads over two processors: so two at a time.
ahead:
	@compile() { $(GO) list -test -export -deps "$$@" . >/dev/null; }; \
	(export CGO_ENABLED=1 && compile $(NODEBUG) -race && compile $(ASAN) && GOARCH=386 CGO_ENABLED=0 compile $(NODEBUG)) & native=$$!; \
	export CGO_ENABLED=0 && for target in $(patsubst %,linux/%,$(foreach cpu,$(PROCESSORS),$(firstword $(subst /, ,$(cpu))))) \
		$(patsubst %,%/wasm,$(WASMS)) windows/amd64; do \
		GOOS=$${target%/*} GOARCH=$${target#*/} compile $(NODEBUG) || exit 1; \
	done && wait $$native

# Under qemu-user, which passes system calls on to the kernel of this machine. Two at a time.
qemu:
	@printf '%s\n' $(PROCESSORS) | GO=$(GO) xargs -P 2 -I '{}' sh -c 'cpu={}; qemu=qemu-$${cpu#*/}-static; \
		GOARCH=$${cpu%/*} CGO_ENABLED=0 EMD_TEST_EMULATOR=$$qemu \
			$$GO test $(LEAN) -exec $$qemu "$$@" . && echo "passed on $${cpu%/*}"' qemu $(QEMUFLAGS)

# js under Node.js. WASMS=wasip1, with fewer tests, runs under wazero, whose sources Go's module proxy has. Files go back and forth between
# them and this machine. The environment is cleared: Go's js has 8 KiB for it and the command line.
WASMS  ?= js
WAZERO ?= github.com/tetratelabs/wazero/cmd/wazero@v1.12.0
wasm:
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && mkdir "$$tmp/files" && export EMD_TEST_EXCHANGE="$$tmp/files" && \
	$(GO) test -vet=off -run TestExchange . && \
	case " $(WASMS) " in *" wasip1 "*) GOBIN="$$tmp/bin" $(GO) install $(WAZERO) || exit 1;; esac && \
	export tmp GO=$(GO) PATH="$$tmp/bin:$$PATH" && printf '%s\n' $(WASMS) | xargs -P 2 -I '{}' sh -c ' \
		tests=$$1; [ {} != js ] || tests="$$1|$$2"; GOOS={} GOARCH=wasm $$GO test $(LEAN) -short -run "$$tests" -timeout 10m \
			-exec "env -i PATH=$$PATH TMPDIR=$$tmp EMD_TEST_EXCHANGE=$$EMD_TEST_EXCHANGE GOWASIRUNTIME=wazero GOWASIRUNTIMEARGS=-workers=2 $$($$GO env GOROOT)/lib/wasm/go_{}_wasm_exec" . && \
		echo "passed on {}/wasm"' wasm '$(MEMORY)' '$(PORTABLE)' && \
	$(GO) test -vet=off -run TestExchange -v . | grep -E '^ *--- ' && \
	[ "$$(ls "$$EMD_TEST_EXCHANGE" | wc -l)" = "$$((3 * (1 + $(words $(WASMS)))))" ]

# Under Wine, in a prefix of its own, which is deleted afterwards. A new prefix says that it is Windows 7, which Go does not run on. Root
# adds a small disk, for the tests to fill.
wine:
	@command -v wine >/dev/null && command -v wineserver >/dev/null || { echo "wine is missing: apt-get install wine wine64" >&2; exit 1; }; \
	tmp=$$(mktemp -d) && trap 'wineserver -kw; umount -l "$$tmp/disk" 2>/dev/null; rm -rf "$$tmp"' EXIT && \
	export WINEPREFIX="$$tmp/prefix" WINEDEBUG=-all WINEDLLOVERRIDES='mscoree=;mshtml=;winemenubuilder.exe=' DISPLAY= && \
	wine --version && wine wineboot --init >"$$tmp/log" 2>&1 && wine reg add 'HKCU\Software\Wine' /v Version /d win10 /f >>"$$tmp/log" 2>&1 || \
		{ cat "$$tmp/log" >&2; exit 1; }; \
	$(GO) run ./internal/mkshim "$$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" && mkdir "$$tmp/disk" && \
	if mount -t tmpfs -o size=64m tmpfs "$$tmp/disk"; then \
		export EMD_TEST_SMALL_DISK="Z:$$tmp/disk"; \
	else \
		[ -z "$$EMD_TEST_ROOT" ] && echo "wine: NOT TESTED on a full disk, as only root may mount one"; \
	fi && \
	GOOS=windows GOARCH=amd64 CGO_ENABLED=0 $(GO) test $(LEAN) -exec wine $(WINEFLAGS) . && echo "passed under Wine"
