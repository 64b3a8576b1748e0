package main

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/emd-go/emd"
)

func TestZstd(t *testing.T) {
	plain := emd.JSON[page]()
	c, err := Zstd(plain)
	require.NoError(t, err)
	assert.Equal(t, "zstd(json)", c.Name())

	dir := t.TempDir()
	large, err := store(filepath.Join(dir, "plain"), 2000, plain)
	require.NoError(t, err)
	small, err := store(filepath.Join(dir, "compressed"), 2000, c)
	require.NoError(t, err)
	assert.Less(t, small, large/4)

	a, err := emd.Open(filepath.Join(dir, "compressed"), &emd.Options{ReadOnly: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, a.Close()) }()
	pages, err := emd.Dict(a, "pages", &emd.DictOptions[string, page]{ValueCodec: c})
	require.NoError(t, err)
	assert.Equal(t, 2000, pages.Len())
	p, ok, err := pages.Get("/1999")
	require.NoError(t, err)
	assert.True(t, ok)
	assert.Equal(t, []string{"/", "/about"}, p.Links)
	_, err = emd.Dict(a, "pages", &emd.DictOptions[string, page]{ValueCodec: plain})
	require.ErrorIs(t, err, emd.ErrTypeMismatch)
}

func TestZstdDamage(t *testing.T) {
	c, err := Zstd(emd.JSON[page]())
	require.NoError(t, err)
	b, err := c.Append([]byte("before"), page{Text: "text"})
	require.NoError(t, err)
	b, ok := bytes.CutPrefix(b, []byte("before"))
	require.True(t, ok)
	for n := range b {
		_, err := c.Decode(b[:n])
		require.ErrorIs(t, err, emd.ErrCorrupt, "the first %d bytes", n)
	}
	b[len(b)-1]++
	_, err = c.Decode(b)
	require.ErrorIs(t, err, emd.ErrCorrupt)
}
