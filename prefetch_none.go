//go:build !amd64 && !arm64

package emd

import "unsafe"

func prefetch(unsafe.Pointer) {}

func prefetchEach(*unsafe.Pointer, int) {}
