//go:build !linux

package matrix

import "os"

func syncData(f *os.File) error { return f.Sync() }
