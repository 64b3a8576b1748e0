// Zstd shows a codec around another one: it compresses the values of a dict
// with Zstandard, whose dictionaries and levels emd's own Flate does not have.
//
//	go run ./zstd
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/emd-go/emd"
)

// maxValue bounds what a value may decompress to, whatever a damaged file says.
const maxValue = 1 << 30

// A zstdCodec compresses what inner writes. Encoder and decoder may be used by
// any number of goroutines at once.
type zstdCodec[T any] struct {
	inner emd.Codec[T]
	enc   *zstd.Encoder
	dec   *zstd.Decoder
}

// Zstd returns the codec "zstd(<inner>)".
func Zstd[T any](inner emd.Codec[T]) (emd.Codec[T], error) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxValue))
	if err != nil {
		return nil, err
	}
	return &zstdCodec[T]{inner, enc, dec}, nil
}

func (c *zstdCodec[T]) Name() string { return "zstd(" + c.inner.Name() + ")" }

func (c *zstdCodec[T]) Append(dst []byte, v T) ([]byte, error) {
	b, err := c.inner.Append(nil, v)
	if err != nil {
		return nil, err
	}
	return c.enc.EncodeAll(b, dst), nil
}

func (c *zstdCodec[T]) Decode(src []byte) (v T, err error) {
	b, err := c.dec.DecodeAll(src, nil)
	if err != nil {
		return v, fmt.Errorf("%w: %w", emd.ErrCorrupt, err)
	}
	return c.inner.Decode(b)
}

// A page is a text with its links: a type that needs a codec.
type page struct {
	Text  string
	Links []string
}

// store keeps n pages in the file at path and returns the bytes that they take.
func store(path string, n int, codec emd.Codec[page]) (size int64, err error) {
	a, err := emd.Open(path, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	pages, err := emd.Dict(a, "pages", &emd.DictOptions[string, page]{ValueCodec: codec})
	if err != nil {
		return 0, err
	}
	for i := range n {
		p := page{Text: strings.Repeat(fmt.Sprintf("the text of page %d, ", i), 100), Links: []string{"/", "/about"}}
		if err := pages.Set(fmt.Sprintf("/%d", i), p); err != nil {
			return 0, err
		}
	}
	if err := pages.Sync(); err != nil {
		return 0, err
	}
	return a.Stats().File, nil
}

func main() {
	dir, err := os.MkdirTemp("", "zstd")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	compressed, err := Zstd(emd.JSON[page]())
	if err != nil {
		log.Fatal(err)
	}
	for _, codec := range []emd.Codec[page]{emd.JSON[page](), emd.Flate(emd.JSON[page]()), compressed} {
		size, err := store(filepath.Join(dir, codec.Name()), 5000, codec)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%-12s %6d KiB\n", codec.Name(), size>>10)
	}
}
