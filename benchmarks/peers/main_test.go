package main

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/emd-go/emd/benchmarks/matrix"
)

func TestImpls(t *testing.T) {
	for _, m := range impls {
		t.Run(m.Name, func(t *testing.T) {
			assert.NoError(t, matrix.Smoke(t.TempDir(), m))
		})
	}
}
