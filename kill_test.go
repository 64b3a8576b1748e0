package emd

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The kill tests: a child process writes to a file and tells its parent, one line each, what it begins and what was acknowledged. The parent
// kills it with SIGKILL at a random moment, looks into the file, and starts the next child on it.

var killsFlag = flag.Int("emd.kills", 0, "kills of each kill test; 0 means 100, or 12 with -short")

// children are the programs that this test binary becomes when it is started by child.
var children = map[string]func(args []string){
	"updates": killUpdates,
	"prefix":  killPrefix,
	"writers": killWriters,
	"open":    childOpen,
	"race":    childRace,
	"exit":    childExit,
	"full":    childFull,
	"strings": childStrings,
	"shrunk":  childShrunk,
}

const childEnv = "EMD_TEST_CHILD"

func init() {
	if name := os.Getenv(childEnv); name != "" {
		children[name](os.Args[1:])
		os.Exit(0)
	}
}

// A childProcess is this test binary running one of children.
type childProcess struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // of its standard output; closed at its end
	ended bool        // the end was seen
	errs  *strings.Builder
}

// child starts a child process.
func child(t testing.TB, name string, args ...string) *childProcess {
	line := childLine(t, args...)
	return startChild(t, exec.Command(line[0], line[1:]...), name)
}

// childLine returns the command line of a child; under an emulator, which make
// qemu names, that of the emulator.
func childLine(t testing.TB, args ...string) (line []string) {
	if runtime.GOARCH == "wasm" {
		t.Skip("not tested here: WebAssembly starts no processes")
	}
	if emulator := os.Getenv("EMD_TEST_EMULATOR"); emulator != "" {
		line = append(line, emulator)
	}
	exe, err := os.Executable()
	require.NoError(t, err)
	return append(append(line, exe), args...)
}

func startChild(t testing.TB, cmd *exec.Cmd, name string) *childProcess {
	c := &childProcess{lines: make(chan string, 1000), errs: &strings.Builder{}}
	var out io.Reader
	for tries := 1; ; tries++ {
		c.cmd = exec.Command(cmd.Path, cmd.Args[1:]...)
		c.cmd.Env = append(os.Environ(), childEnv+"="+name)
		c.cmd.Stderr = c.errs
		var err error
		c.in, err = c.cmd.StdinPipe()
		require.NoError(t, err)
		out, err = c.cmd.StdoutPipe()
		require.NoError(t, err)
		if err = c.cmd.Start(); err == nil {
			break
		}
		if tries == 3 || !startAgain(err) {
			require.NoError(t, err)
		}
		t.Log("once more:", err)
	}
	go func() {
		defer close(c.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- s.Text()
		}
	}()
	return c
}

// startAgain says whether a process that could not be started is tried again.
var startAgain = func(error) bool { return false }

// line returns the next line of the child's output; "" at its end.
func (c *childProcess) line() string { return <-c.lines }

// rest reads the output to its end, waits for the child and returns the lines and how it ended.
func (c *childProcess) rest() ([]string, error) {
	lines := []string{}
	for l := range c.lines {
		lines = append(lines, l)
	}
	return lines, c.cmd.Wait()
}

// kill sends SIGKILL and returns what the child had said.
func (c *childProcess) kill() []string {
	c.cmd.Process.Kill()
	lines, _ := c.rest()
	return lines
}

// say writes a line with one system call, so that a kill cannot hold it back.
func say(format string, args ...any) {
	if _, err := fmt.Fprintf(os.Stdout, format+"\n", args...); err != nil {
		os.Exit(1)
	}
}

// must ends a child process that met an error.
func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(3)
	}
}

// killLimits are the internal options of the children: so tiny that checkpoints and own commits come all the time.
func killLimits(seed uint64) internalOptions {
	return internalOptions{
		chunkSize:  256 << 10,
		far:        seed%2 == 0,
		dirtyLimit: []int64{0, 1 << 20, 2 << 20}[seed%3],
		logLimit:   []int64{64 << 10, 256 << 10, 0}[seed/3%3],
	}
}

// killModes are how a child may open the file.
var killModes = map[string]Options{
	"default":   {},
	"fullpages": {FullPages: true},
	"nosync":    {NoSync: true},
}

// A killRun is a series of rounds: start a child on a file, end it at a random moment, judge what it left, start the next one on that.
type killRun struct {
	name   string // of the child
	dir    string // of the file
	images string // where copies of the file go
	rounds int
	start  func(t testing.TB, name string, args ...string) *childProcess
	end    func(t *testing.T, r *rand.Rand, c *childProcess) []string // kills the child, or cuts its power; what it had said
	lossy  bool                                                       // what was not synced may be lost: it is a power cut
	pause  time.Duration                                              // the longest that a child writes

	recovered atomic.Int64 // commits that openings of the parent found in a log
	tally     map[string]int
}

// newKillRun returns a run that kills with SIGKILL.
func newKillRun(t *testing.T, name string) *killRun {
	return &killRun{
		name: name, dir: tempDir(t), images: tempDir(t), rounds: pick(*killsFlag, 100, 12), start: child, pause: 80 * time.Millisecond,
		end: func(_ *testing.T, _ *rand.Rand, c *childProcess) []string { return c.kill() },
	}
}

func (k *killRun) path() string { return filepath.Join(k.dir, k.name+".emd") }

// run runs the rounds. Check judges the file by what the child said: "begin n", "acked n". It opens the file itself
// and returns what it found there, which the next child gets as its argument.
func (k *killRun) run(t *testing.T, check func(t *testing.T, round int, said []string) string) {
	seed := drawCrashSeed()
	k.tally = map[string]int{}
	r := rand.New(rand.NewPCG(seed, 1))
	modes := slices.Sorted(maps.Keys(killModes))
	exists, arg := false, ""
	for round := range k.rounds {
		childSeed, mode := r.Uint64N(1<<20), modes[r.IntN(len(modes))]
		what := fmt.Sprintf("-emd.crash.seed %d, round %d: child with seed %d, %s", seed, round, childSeed, mode)
		c := k.start(t, k.name, k.path(), strconv.FormatUint(childSeed, 10), arg, mode)
		require.Equal(t, "opening", c.line(), "%s: %s", what, c.errs)
		enough := k.peek(t)
		said := k.moment(c, r)
		ended := c.ended
		if ended {
			_, err := c.rest()
			require.NoError(t, err, "%s: %s", what, c.errs)
		}
		said = append(said, k.end(t, r, c)...)
		enough()
		require.NotContains(t, c.errs.String(), "panic: ", "%s", what)
		if ended || !k.lossy { // else the child may well complain of its disk
			require.NotContains(t, c.errs.String(), "child:", "%s", what)
			require.NotContains(t, c.errs.String(), "goroutine", "%s", what)
		}
		heard, closed := said, slices.Contains(said, "closed")
		if closed { // with all that it had begun
			for _, l := range said {
				if rest, ok := strings.CutPrefix(l, "begin "); ok {
					said = append(said, "acked "+rest)
				}
			}
		}
		if k.lossy && mode == "nosync" && !closed { // it had acknowledged without the disk
			said = slices.DeleteFunc(said, func(l string) bool { return strings.HasPrefix(l, "acked ") })
		}
		k.count(said, mode)
		if _, err := os.Stat(k.path()); os.IsNotExist(err) { // the child had not come so far
			require.False(t, exists || slices.Contains(said, "open"), "%s: the file is gone", what)
			continue
		}
		exists = true
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("%s; its last lines: %q", what, heard[max(0, len(heard)-30):])
				}
			}()
			arg = check(t, round, said)
		}()
		if t.Failed() {
			t.FailNow()
		}
	}
	assert.NotZero(t, k.tally["wrote"], "children that came to write")
	t.Logf("%d rounds, seed %d: %v, %d commits recovered from logs", k.rounds, seed, k.tally, k.recovered.Load())
}

// peek opens the file read-only again and again while the child lives, as another process does: it is locked, or else whole, and the
// child waits. The returned function ends that.
func (k *killRun) peek(t *testing.T) (enough func()) {
	if k.lossy {
		return func() {} // a disk without power shows what it likes
	}
	done := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			a, err := openWith(k.path(), &Options{ReadOnly: true}, killLimits(0))
			switch {
			case err == nil:
				k.tally["read"]++
				assert.NoError(t, a.Check(context.Background(), nil), "read-only, beside the child")
				assert.NoError(t, a.Close())
			case errors.Is(err, ErrLocked):
				k.tally["locked out"]++
			default:
				assert.ErrorIs(t, err, fs.ErrNotExist)
			}
		}
	})
	return func() {
		close(done)
		reader.Wait()
	}
}

// moment lets the child come to a random moment of its opening, writing or closing.
func (k *killRun) moment(c *childProcess, r *rand.Rand) (said []string) {
	pause := func(most time.Duration) time.Duration { return time.Duration(r.Int64N(int64(most))) }
	switch how := r.IntN(10); {
	case how < 2: // while it opens the file and recovers
		return c.listen(said, pause(4*time.Millisecond))
	case how < 4: // while it closes
		said = c.until(said, "open")
		said = c.listen(said, pause(k.pause/4))
		io.WriteString(c.in, "close\n")
		said = c.until(said, "closing")
		return c.listen(said, pause(4*time.Millisecond))
	case how < 5: // right after a commit
		said = c.until(said, "acked")
		return c.listen(said, pause(k.pause/4))
	default:
		return c.listen(said, pause(k.pause))
	}
}

// count keeps account of how far children came.
func (k *killRun) count(said []string, mode string) {
	k.tally[mode]++
	for what, word := range map[string]string{"wrote": "open", "closing": "closing", "closed": "closed"} {
		if slices.Contains(said, word) {
			k.tally[what]++
		}
	}
	if !slices.Contains(said, "open") {
		k.tally["opening"]++
	}
	for _, l := range slices.Backward(said) {
		var checkpoints, own, spilled int
		if _, err := fmt.Sscanf(l, "did %d %d %d", &checkpoints, &own, &spilled); err == nil {
			k.tally["checkpoints"] += checkpoints
			k.tally["own commits"] += own
			k.tally["KiB spilled"] += spilled >> 10
			break
		}
	}
}

// sayAcked tells the parent of a commit, and what the arena has done besides.
func sayAcked(a *Arena, what string) {
	say("acked %s", what)
	say("did %d %d %d", a.stats.checkpoints.Load(), a.stats.ownCommits.Load(), a.space.spilled.Load())
}

// listen reads lines for a while, or until the child ends.
func (c *childProcess) listen(said []string, d time.Duration) []string {
	for end := time.After(d); ; {
		select {
		case l, ok := <-c.lines:
			if !ok {
				c.ended = true
				return said
			}
			said = append(said, l)
		case <-end:
			return said
		}
	}
}

// until reads lines until the first word of one is word, or until the child ends.
func (c *childProcess) until(said []string, word string) []string {
	for l := range c.lines {
		said = append(said, l)
		if first, _, _ := strings.Cut(l, " "); first == word {
			return said
		}
	}
	c.ended = true
	return said
}

// look opens the file that a child left: mostly as a writer, which recovers it, sometimes read-only, so that
// the next child recovers it, and sometimes a copy of it.
func (k *killRun) look(t *testing.T, round int, look func(a *Arena, readOnly bool)) {
	opts := Options{NoSync: true, Logger: slog.New(recoveries{slog.DiscardHandler, &k.recovered})}
	at := k.path()
	var before map[string]string
	switch round % 4 {
	case 1:
		opts.ReadOnly = true
		before = folder(t, k.dir)
	case 2:
		at = crashImage(t, k.path(), k.images)
		defer removeImage(at)
	}
	a, err := openWith(at, &opts, killLimits(uint64(round)))
	require.NoError(t, err, "opening what was left")
	defer func() { require.NoError(t, a.Close()) }()
	require.NoError(t, a.verify())
	look(a, opts.ReadOnly)
	if opts.ReadOnly {
		sameFolder(t, before, k.dir)
		return
	}
	// And it goes on working.
	require.NoError(t, a.SetMeta("round", []byte(strconv.Itoa(round))))
	require.NoError(t, a.Sync())
	require.NoError(t, a.verify())
}

// recoveries counts the commits that openings of a crashed file report.
type recoveries struct {
	slog.Handler
	commits *atomic.Int64
}

func (h recoveries) Enabled(context.Context, slog.Level) bool { return true }

func (h recoveries) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "commits" {
			h.commits.Add(a.Value.Int64())
		}
		return true
	})
	return nil
}

// openChild opens the file in a child and prepares for the parent's wish to close it. dirty multiplies what may be private.
func openChild(args []string, dirty int64) (a *Arena, r *rand.Rand, stop *atomic.Bool) {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	must(err)
	say("opening")
	opts := killModes[args[3]]
	opts.HashSeed = 7
	opts.LockTimeout = time.Minute // there may be readers
	limits := killLimits(seed)
	limits.dirtyLimit *= dirty
	a, err = openWith(args[0], &opts, limits)
	must(err)
	say("open")
	stop = new(atomic.Bool)
	go func() {
		bufio.NewReader(os.Stdin).ReadString('\n')
		stop.Store(true)
	}()
	return a, rand.New(rand.NewPCG(seed, 3)), stop
}

func closeChild(a *Arena) {
	say("closing")
	must(a.Close())
	say("closed")
}

// killState is the state of four containers after n commits, which follows from n alone.
type killState struct {
	n     uint64
	pairs map[uint64]uint64
	names map[string]string
	log   []uint64
	blobs [][]byte
}

func newKillState() *killState {
	return &killState{pairs: map[uint64]uint64{}, names: map[string]string{}}
}

// killFiles are the same containers in a file.
type killFiles struct {
	pairs *EMDict[uint64, uint64]
	names *EMDict[string, string]
	log   *EMList[uint64]
	blobs *EMList[[]byte]
}

func openKillFiles(a *Arena) (f killFiles, err error) {
	var errs [4]error
	f.pairs, errs[0] = Dict[uint64, uint64](a, "pairs", nil)
	f.names, errs[1] = Dict[string, string](a, "names", nil)
	f.log, errs[2] = List[uint64](a, "log", nil)
	f.blobs, errs[3] = List[[]byte](a, "blobs", nil)
	return f, cmpOr(errs[:]...)
}

// read returns what the file holds.
func (f killFiles) read(t *testing.T) *killState {
	s := &killState{pairs: maps.Collect(f.pairs.All()), names: maps.Collect(f.names.All())}
	s.log = slices.AppendSeq([]uint64(nil), f.log.Values())
	s.blobs = slices.AppendSeq([][]byte(nil), f.blobs.Values())
	require.NoError(t, cmpOr(f.pairs.Err(), f.names.Err(), f.log.Err(), f.blobs.Err()))
	s.n = s.pairs[counterKey]
	return s
}

// counterKey is the key of the number of commits.
const counterKey = 1 << 50

// A killStep is one operation, as a change of the state and of the file.
type killStep struct {
	state func(s *killState)
	file  func(f killFiles) error
}

// killSteps returns the operations that lead from state n-1, with lists of the given lengths, to state n.
func killSteps(n uint64, logLen, blobLen int) []killStep {
	r := rand.New(rand.NewPCG(n, 99))
	var steps []killStep
	add := func(state func(s *killState), file func(f killFiles) error) {
		steps = append(steps, killStep{state, file})
	}
	for range 1 + r.IntN(12) {
		k, v := r.Uint64N(1500), r.Uint64()
		name, text := fmt.Sprint("name ", k%400), strings.Repeat(string(rune('a'+v%26)), int(v%900))
		if v%200 == 0 {
			text = strings.Repeat("long", int(v%20000))
		}
		switch r.IntN(29) % 10 {
		case 0, 1:
			add(func(s *killState) { s.pairs[k] = v }, func(f killFiles) error { return f.pairs.Set(k, v) })
		case 2:
			add(func(s *killState) { delete(s.pairs, k) }, func(f killFiles) error { _, err := f.pairs.Delete(k); return err })
		case 3:
			add(func(s *killState) { s.names[name] = text }, func(f killFiles) error { return f.names.Set(name, text) })
		case 4:
			add(func(s *killState) { delete(s.names, name) }, func(f killFiles) error { _, err := f.names.Delete(name); return err })
		case 5:
			vs := []uint64{n, v, k}
			add(func(s *killState) { s.log = append(s.log, vs...) }, func(f killFiles) error { return f.log.Append(vs...) })
			logLen += 3
		case 6:
			if logLen > 2000 {
				add(func(s *killState) { s.log = slices.Delete(s.log, 0, 1000) }, func(f killFiles) error { return f.log.Delete(0, 1000) })
				logLen -= 1000
			} else if logLen > 0 {
				i := int(v % uint64(logLen))
				add(func(s *killState) { s.log[i] = v }, func(f killFiles) error { return f.log.Set(i, v) })
			}
		case 7:
			i := int(v % uint64(blobLen+1))
			add(func(s *killState) { s.blobs = slices.Insert(s.blobs, i, []byte(text)) }, func(f killFiles) error { return f.blobs.Insert(i, []byte(text)) })
			blobLen++
		case 8:
			if blobLen > 100 {
				add(func(s *killState) { s.blobs = slices.Delete(s.blobs, 20, 90) }, func(f killFiles) error { return f.blobs.Delete(20, 90) })
				blobLen -= 70
			} else if blobLen > 0 {
				i := int(v % uint64(blobLen))
				add(func(s *killState) { s.blobs[i] = nil }, func(f killFiles) error { return f.blobs.Set(i, nil) })
			}
		case 9: // the file grows, and fresh space spills
			bulk := slices.Repeat([][]byte{[]byte(strings.Repeat(fmt.Sprintf("%8x", v), 1000))}, int(v%30))
			add(func(s *killState) { s.blobs = append(s.blobs, bulk...) }, func(f killFiles) error { return f.blobs.Append(bulk...) })
			blobLen += len(bulk)
		}
	}
	return append(steps, killStep{
		func(s *killState) { s.n = n; s.pairs[counterKey] = n },
		func(f killFiles) error { return f.pairs.Set(counterKey, n) },
	})
}

// advance brings the model to state n.
func (s *killState) advance(n uint64) {
	for s.n < n {
		for _, step := range killSteps(s.n+1, len(s.log), len(s.blobs)) {
			step.state(s)
		}
	}
}

func (s *killState) equal(o *killState) bool {
	return slices.Equal(s.log, o.log) && maps.Equal(s.pairs, o.pairs) && maps.Equal(s.names, o.names) &&
		slices.EqualFunc(s.blobs, o.blobs, func(a, b []byte) bool { return string(a) == string(b) && (a == nil) == (b == nil) })
}

// numbers returns the largest number that the lines give behind word, and whether there is one.
func numbers(said []string, word string) (largest uint64, any bool) {
	for _, l := range said {
		if rest, ok := strings.CutPrefix(l, word+" "); ok {
			if n, err := strconv.ParseUint(rest, 10, 64); err == nil {
				largest, any = max(largest, n), true
			}
		}
	}
	return largest, any
}

// killChecks judge the files of the children of the same names. Each returns a function for killRun.run.
var killChecks = map[string]func(k *killRun) func(t *testing.T, round int, said []string) string{
	"updates": checkUpdates,
	"prefix":  checkPrefix,
	"writers": checkWriters,
}

// TestKillUpdates kills a child whose goroutines change all containers in Updates.
func TestKillUpdates(t *testing.T) {
	t.Parallel()
	k := newKillRun(t, "updates")
	k.run(t, checkUpdates(k))
}

// checkUpdates requires exactly the state of a commit between the last acknowledged and the one in flight.
func checkUpdates(k *killRun) func(t *testing.T, round int, said []string) string {
	model := newKillState()
	return func(t *testing.T, round int, said []string) string {
		acked, begun := model.n, model.n
		if n, ok := numbers(said, "acked"); ok {
			acked = max(acked, n)
		}
		if n, ok := numbers(said, "begin"); ok {
			begun = max(begun, n)
		}
		k.look(t, round, func(a *Arena, readOnly bool) {
			if readOnly && len(slices.Collect(a.Containers())) < 4 && acked == 0 {
				return
			}
			f, err := openKillFiles(a)
			require.NoError(t, err)
			got := f.read(t)
			require.True(t, acked <= got.n && got.n <= begun, "the file holds commit %d; %d was acknowledged, %d begun", got.n, acked, begun)
			if got.n < begun {
				k.tally["lost a begun commit"]++
			}
			model.advance(got.n)
			if !model.equal(got) {
				require.Equal(t, model, got, "state of commit %d", got.n)
			}
		})
		return ""
	}
}

// killUpdates is the child of TestKillUpdates.
func killUpdates(args []string) {
	a, _, stop := openChild(args, 6) // room for an Update
	f, err := openKillFiles(a)
	must(err)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				var n uint64
				must(a.Update(func() error {
					last, _, err := f.pairs.Get(counterKey)
					must(err)
					n = last + 1
					say("begin %d", n)
					for _, step := range killSteps(n, f.log.Len(), f.blobs.Len()) {
						must(step.file(f))
					}
					return nil
				}))
				sayAcked(a, fmt.Sprint(n))
			}
		})
	}
	wg.Go(func() { readBeside(a, f, stop) })
	wg.Wait()
	closeChild(a)
}

// readBeside reads all containers, again and again, while others write.
func readBeside(a *Arena, f killFiles, stop *atomic.Bool) {
	for !stop.Load() {
		must(a.View(func() error {
			for range f.pairs.All() {
			}
			for _, text := range f.names.All() {
				if strings.Trim(text, text[:min(1, len(text))]) != "" && !strings.HasPrefix(text, "long") {
					return fmt.Errorf("a torn value: %.100q", text)
				}
			}
			for range f.log.All() {
			}
			for range f.blobs.All() {
			}
			return nil
		}))
		time.Sleep(time.Millisecond)
	}
}

// TestKillPrefix kills a child that works without Update and calls Sync now and then.
func TestKillPrefix(t *testing.T) {
	t.Parallel()
	k := newKillRun(t, "prefix")
	k.run(t, checkPrefix(k))
}

// checkPrefix requires what the operations up to one of them leave: not before the last acknowledged Sync, and not later than the last one begun.
func checkPrefix(k *killRun) func(t *testing.T, round int, said []string) string {
	model := newKillState()
	return func(t *testing.T, round int, said []string) string {
		first, acked, begun := model.n, model.n, model.n
		if n, ok := numbers(said, "acked"); ok {
			acked = n
		}
		if n, ok := numbers(said, "begin"); ok {
			begun = n
		}
		k.look(t, round, func(a *Arena, readOnly bool) {
			if readOnly && len(slices.Collect(a.Containers())) < 4 && acked == 0 {
				return
			}
			f, err := openKillFiles(a)
			require.NoError(t, err)
			got := f.read(t)
			for model.advanceOne(acked); !model.equal(got) && model.n < begun; {
				model.advanceOne(model.n + 1)
			}
			if !model.equal(got) {
				older := newKillState()
				for !older.equal(got) && older.n < begun {
					older.advanceOne(older.n + 1)
				}
				require.True(t, older.equal(got), "child began after %d, %d was acknowledged, %d begun; no state is this", first, acked, begun)
				require.Fail(t, "an older state", "child began after %d, %d was acknowledged, %d begun; the file holds %d", first, acked, begun, older.n)
			}
			if model.n < begun {
				k.tally["lost a begun operation"]++
			}
		})
		return fmt.Sprint(model.n)
	}
}

// advanceOne brings the model to state n, where the operation with a number is the first of its steps alone.
func (s *killState) advanceOne(n uint64) {
	for s.n < n {
		to := s.n + 1
		killSteps(to, len(s.log), len(s.blobs))[0].state(s)
		s.n = to
	}
}

// killPrefix is the child of TestKillPrefix.
func killPrefix(args []string) {
	a, r, stop := openChild(args, 1)
	f, err := openKillFiles(a)
	must(err)
	n, err := strconv.ParseUint("0"+args[2], 10, 64)
	must(err)
	for !stop.Load() {
		n++
		say("begin %d", n)
		must(killSteps(n, f.log.Len(), f.blobs.Len())[0].file(f))
		if r.IntN(40) == 0 {
			must(a.Sync())
			sayAcked(a, fmt.Sprint(n))
		}
	}
	closeChild(a)
}

// TestKillWriters kills a child in which goroutines write without Update and call Sync, so that commits are shared.
func TestKillWriters(t *testing.T) {
	t.Parallel()
	k := newKillRun(t, "writers")
	k.run(t, checkWriters(k))
}

// checkWriters requires a prefix of each goroutine's operations, not before its last acknowledged Sync, and all of them as of one moment: an operation that had
// ended before another one began is there if the other is.
func checkWriters(k *killRun) func(t *testing.T, round int, said []string) string {
	var last [writers]uint64
	return func(t *testing.T, round int, said []string) string {
		var found [writers]uint64
		k.look(t, round, func(a *Arena, readOnly bool) {
			for w := range writers {
				k, err := openKillWriter(a, w)
				if readOnly && errors.Is(err, ErrNoContainer) {
					continue // killed or committed before this writer began
				}
				require.NoError(t, err)
				found[w] = k.position(t)
			}
		})
		for w := range writers {
			assert.GreaterOrEqual(t, found[w], last[w], "writer %d: operations that were in the file before", w)
		}
		// Where in the output did the last operation found begin, and when had the first one missing ended?
		begun, ended := -1, [writers]int{}
		for at, line := range said {
			var w int
			var n uint64
			if _, err := fmt.Sscanf(line, "acked %d %d", &w, &n); err == nil {
				assert.GreaterOrEqual(t, found[w], n, "writer %d: its Sync of %d was acknowledged", w, n)
			}
			if _, err := fmt.Sscanf(line, "begin %d %d", &w, &n); err == nil {
				if n == found[w] {
					begun = max(begun, at)
				}
				if n == found[w]+2 { // it begins when operation found+1 has ended
					ended[w] = at
				}
				last[w] = n
			}
		}
		for w := range writers {
			assert.LessOrEqual(t, found[w], last[w], "writer %d: operations it has not begun", w)
			if ended[w] > 0 {
				assert.Greater(t, ended[w], begun, "writer %d: operation %d had ended when one that is in the file began", w, found[w]+1)
			}
			if found[w] < last[w] {
				k.tally["lost a begun operation"]++
			}
			last[w] = found[w]
		}
		return ""
	}
}

// A killWriter is one goroutine's part of the file: operation n appends n to a list of its own when n is odd, and
// sets one of its keys in a dict that all share when n is even.
type killWriter struct {
	w    int
	odd  *EMList[uint64]
	even *EMDict[string, uint64]
}

func openKillWriter(a *Arena, w int) (k killWriter, err error) {
	k.w = w
	if k.odd, err = List[uint64](a, fmt.Sprint("odd ", w), nil); err != nil {
		return k, err
	}
	k.even, err = Dict[string, uint64](a, "even", nil)
	return k, err
}

// killKeys is how many keys of the shared dict each writer has.
const killKeys = 200

func (k killWriter) key(n uint64) string {
	return fmt.Sprintf("%d%s%d", k.w, strings.Repeat("-", int(n%killKeys)), n%killKeys)
}

func (k killWriter) do(n uint64) error {
	if n%2 == 0 {
		return k.even.Set(k.key(n), n)
	}
	return k.odd.Append(n)
}

// position returns the number of the last operation done, and checks that all before it are.
func (k killWriter) position(t *testing.T) uint64 {
	for i, v := range k.odd.All() {
		require.EqualValues(t, 2*i+1, v, "writer %d: element %d of its list", k.w, i)
	}
	next, err := k.next()
	require.NoError(t, err)
	n := next - 1
	for back := range min(n/2, killKeys/2) {
		want := n&^1 - 2*back
		got, _, err := k.even.Get(k.key(want))
		require.NoError(t, err)
		require.Equal(t, want, got, "writer %d did %d, but this key is older or newer", k.w, n)
	}
	return n
}

// killWriters is the child of TestKillWriters.
func killWriters(args []string) {
	a, r, stop := openChild(args, 1)
	var wg sync.WaitGroup
	for w := range writers {
		seed := r.Uint64()
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			k, err := openKillWriter(a, w)
			must(err)
			n, err := k.next()
			must(err)
			for ; !stop.Load(); n++ {
				say("begin %d %d", w, n)
				must(k.do(n))
				if r.IntN(50) == 0 {
					must(a.Sync())
					sayAcked(a, fmt.Sprint(w, n))
				}
			}
		})
	}
	wg.Wait()
	closeChild(a)
}

// next returns the number of the first operation not done yet.
func (k killWriter) next() (uint64, error) {
	n := uint64(2*k.odd.Len() - 1)
	if k.odd.Len() == 0 {
		n = 0
	}
	v, _, err := k.even.Get(k.key(n + 1))
	if v == n+1 {
		n++
	}
	return n + 1, err
}
