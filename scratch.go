package emd

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
)

// A scratchFile takes what a bulk load, or the sorting of a list, has no memory for. Its name, the
// arena's with an ending and a number, is removed as soon as it is open, so that
// the file goes with the process, however that ends. Where an open file
// keeps its name (Windows), Open removes what a crash has left.
type scratchFile struct {
	a      *Arena
	f      file
	number int
	named  bool
	size   int64
}

func scratchPath(path string, number int) string { return path + "-load" + strconv.Itoa(number) }

// openScratch makes a scratch file.
func (a *Arena) openScratch() (*scratchFile, error) {
	a.openMu.Lock()
	defer a.openMu.Unlock()
	number := 0
	for slices.Contains(a.scratches, number) {
		number++
	}
	path := scratchPath(a.path, number)
	if err := a.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := a.fs.Open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, a.opts.Mode)
	if err != nil {
		return nil, asFull(err)
	}
	a.scratches = append(a.scratches, number)
	return &scratchFile{a: a, f: f, number: number, named: a.fs.Remove(path) != nil}, nil
}

func (f *scratchFile) close() error {
	err := f.f.Close()
	a := f.a
	a.openMu.Lock()
	defer a.openMu.Unlock()
	if f.named {
		err = errors.Join(err, a.fs.Remove(scratchPath(a.path, f.number)))
	}
	a.scratches = slices.DeleteFunc(a.scratches, func(n int) bool { return n == f.number })
	return err
}

// append writes b at the end, and returns where that is.
func (f *scratchFile) append(b []byte) (off int64, err error) {
	off = f.size
	if _, err := f.f.WriteAt(b, off); err != nil {
		return 0, asFull(err)
	}
	f.size += int64(len(b))
	return off, nil
}

// read returns the size bytes at off, in buf if that has the room.
func (f *scratchFile) read(buf []byte, off int64, size int) ([]byte, error) {
	buf = slices.Grow(buf[:0], size)[:size]
	return buf, readScratch(f.f, buf, off)
}

func readScratch(f file, b []byte, off int64) error {
	err := readWhole(f, b, off)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errScratch
	}
	return err
}

// removeScratches removes what bulk loads had to leave at a crash. The caller has
// the file locked, so that none is at work.
func (a *Arena) removeScratches() {
	const most = 8 // of which some may be missing
	for i := 0; ; i++ {
		err := a.fs.Remove(scratchPath(a.path, i))
		switch {
		case errors.Is(err, fs.ErrNotExist) && i >= most:
			return
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			a.logger().Warn("left-over scratch file", "path", scratchPath(a.path, i), "err", err)
			return
		}
	}
}
