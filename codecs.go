package emd

import (
	"bytes"
	"compress/flate"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"sync"
)

// JSON returns the codec "json": values are written as [json.Marshal] writes
// them, for types that emd does not store by itself, or for files that others
// are to read. What JSON cannot express is lost or an error: unexported
// fields, NaN, strings that are not UTF-8.
//
// The name says nothing about T: a file opens with any type, and it is decoding
// that fails, or drops fields, if the bytes are those of another. JSON may be
// a KeyCodec; values that JSON writes alike are then one key.
func JSON[T any]() Codec[T] { return jsonCodec[T]{} }

type jsonCodec[T any] struct{}

func (jsonCodec[T]) Name() string { return "json" }

func (jsonCodec[T]) Append(dst []byte, v T) ([]byte, error) {
	b, err := json.Marshal(&v)
	if err != nil {
		return nil, err
	}
	return append(dst, b...), nil
}

func (jsonCodec[T]) Decode(src []byte) (v T, err error) {
	if err = json.Unmarshal(src, &v); err != nil && !json.Valid(src) {
		err = corrupt("no JSON: %v", err)
	}
	return v, err
}

// Gob returns the codec "gob": values are written by [encoding/gob], each as a
// stream of its own that begins with the description of its type. That takes
// tens of bytes and some microseconds for each value: it is for types with a
// GobEncoder, for interfaces that were registered, and for fields that come and go.
//
// As for JSON, the name says nothing about T. Gob is no KeyCodec: its bytes
// depend on the order of maps and on what else the process has encoded. Opening
// is [ErrUnsupportedType] then.
func Gob[T any]() Codec[T] { return gobCodec[T]{} }

type gobCodec[T any] struct{}

func (gobCodec[T]) Name() string { return "gob" }

func (gobCodec[T]) notForKeys() string { return "gob writes equal values in several ways" }

func (gobCodec[T]) Append(dst []byte, v T) ([]byte, error) {
	// gob would take a nil pointer for one to a zero value, or panic.
	for p := reflect.ValueOf(&v).Elem(); p.Kind() == reflect.Pointer; p = p.Elem() {
		if p.IsNil() {
			return nil, fmt.Errorf("gob cannot encode a nil %v", p.Type())
		}
	}
	out := appendWriter{dst}
	if err := gob.NewEncoder(&out).Encode(&v); err != nil {
		return nil, err
	}
	return out.b, nil
}

func (gobCodec[T]) Decode(src []byte) (v T, err error) {
	if !isGobStream(src) {
		return v, corrupt("%d bytes are no whole gob messages", len(src))
	}
	in := bytes.NewReader(src)
	if err = gob.NewDecoder(in).Decode(&v); err == nil && in.Len() != 0 {
		return v, corrupt("%d bytes behind a gob value", in.Len())
	}
	if err == nil {
		return v, nil
	}
	// Damage, or a value of another type? The latter can be skipped.
	in.Reset(src)
	if skip := gob.NewDecoder(in).DecodeValue(reflect.Value{}); skip != nil {
		err = corrupt("no gob: %v", err)
	}
	return v, err
}

// isGobStream says whether src consists of whole messages, as far as their
// lengths tell: gob makes room for a message before it reads it.
func isGobStream(src []byte) bool {
	for len(src) > 0 {
		// A length is a byte below 128, or the negated number of bytes that
		// follow with it, the high one first.
		size, n := uint64(src[0]), 1
		if size >= 0x80 {
			if n += 256 - int(src[0]); n > 1+8 || n > len(src) {
				return false
			}
			var b [8]byte
			copy(b[8-(n-1):], src[1:n])
			size = binary.BigEndian.Uint64(b[:])
		}
		if size > uint64(len(src)-n) {
			return false
		}
		src = src[n+int(size):]
	}
	return true
}

// Flate returns the codec "flate(<inner>)", which compresses what inner writes:
// its length as a uvarint, then a raw DEFLATE stream, by [compress/flate] at its
// fastest level. Each value is compressed by itself, so it pays for values of
// some hundred bytes or more. Damaged bytes are [ErrCorrupt] as far as
// DEFLATE, which has no checksum, can know, and never take more memory than
// they decompress to.
//
// Flate is no KeyCodec, for another version of Go may compress otherwise; opening
// is [ErrUnsupportedType] then.
func Flate[T any](inner Codec[T]) Codec[T] {
	return &flateCodec[T]{inner: inner, name: "flate(" + inner.Name() + ")"}
}

type flateCodec[T any] struct {
	inner Codec[T]
	name  string
}

func (c *flateCodec[T]) Name() string { return c.name }

func (c *flateCodec[T]) notForKeys() string {
	return "versions of Go may compress equal keys in several ways"
}

func (c *flateCodec[T]) Append(dst []byte, v T) ([]byte, error) {
	s := newScratch()
	defer s.done()
	if err := encodeInner(s, c.inner, v); err != nil {
		return nil, err
	}
	return deflate(dst, s.b)
}

func (c *flateCodec[T]) Decode(src []byte) (v T, err error) {
	s := newScratch()
	defer s.done()
	if s.b, err = inflate(s.b, src); err != nil {
		return v, err
	}
	return c.inner.Decode(s.b)
}

// encodeInner sets s.b to what a wrapped codec writes.
func encodeInner[T any](s *scratch, inner Codec[T], v T) error {
	b, err := inner.Append(s.b, v)
	if err != nil {
		return err
	}
	s.b = b
	return checkSizes(nil, b)
}

// A deflater is a compressor to be used again: a new one takes a megabyte.
type deflater struct {
	out appendWriter
	w   *flate.Writer
}

var deflaters = sync.Pool{New: func() any {
	w, err := flate.NewWriter(nil, flate.BestSpeed)
	if err != nil {
		panic("emd: " + err.Error())
	}
	return &deflater{w: w}
}}

// deflate appends the length of src and src, compressed, to dst. The fastest
// level takes a third to a sixth of the time of the default one and gives 5 to
// 13 per cent more bytes (records of JSON, 1 KB to 1 MB).
func deflate(dst, src []byte) ([]byte, error) {
	z := deflaters.Get().(*deflater)
	defer deflaters.Put(z)
	z.out.b = binary.AppendUvarint(dst, uint64(len(src)))
	defer func() { z.out.b = nil }()
	z.w.Reset(&z.out)
	if _, err := z.w.Write(src); err != nil {
		return nil, err
	}
	if err := z.w.Close(); err != nil {
		return nil, err
	}
	return z.out.b, nil
}

// An inflater is a decompressor to be used again.
type inflater struct {
	src bytes.Reader // a ByteReader: flate reads no byte too many
	r   io.ReadCloser
	end [1]byte // what follows the last byte expected: nothing
}

var inflaters = sync.Pool{New: func() any {
	z := new(inflater)
	z.r = flate.NewReader(&z.src)
	return z
}}

// inflate appends what deflate made src of to dst, which is empty. Memory
// grows with what the stream gives, not with what it promises.
func inflate(dst, src []byte) ([]byte, error) {
	stated, n := binary.Uvarint(src)
	if n <= 0 || stated > maxValueSize {
		return dst, corrupt("compressed value without a possible length")
	}
	size := int(stated)
	z := inflaters.Get().(*inflater)
	defer inflaters.Put(z)
	z.src.Reset(src[n:])
	defer z.src.Reset(nil)
	err := z.r.(flate.Resetter).Reset(&z.src, nil)
	for err == nil {
		if len(dst) == cap(dst) {
			dst = append(dst, 0)[:len(dst)]
		}
		room := dst[len(dst):min(cap(dst), size)]
		if len(dst) == size {
			room = z.end[:]
		}
		n, err = z.r.Read(room)
		if n > 0 && len(dst) == size {
			return dst, corrupt("compressed value of more than the stated %d bytes", size)
		}
		dst = dst[:len(dst)+n]
	}
	switch {
	case err != io.EOF:
		return dst, corrupt("compressed value: %v", err)
	case len(dst) != size:
		return dst, corrupt("compressed value of %d bytes, stated are %d", len(dst), size)
	case z.src.Len() != 0:
		return dst, corrupt("%d bytes behind a compressed value", z.src.Len())
	}
	return dst, nil
}

// Sealed returns the codec "sealed(<inner>)", which encrypts what inner writes
// by AES-256-GCM: a random nonce of 12 bytes, the text, a tag of 16 bytes. The
// key must have 32 bytes, and be random or made by a key derivation function.
// A wrong key or a changed byte is [ErrCorrupt].
//
// Hidden are the contents of values, and nothing else: not their lengths and
// number, not the keys of a dict. The name of the codec is authenticated with
// each value, its place in the file is not: who can write the file can put a value
// in the place of another, or an older one back. Not more than 2^32 values should ever be
// sealed with one key.
//
// Sealed is no KeyCodec, for equal keys are sealed differently; opening
// is [ErrUnsupportedType] then. To compress as well, seal last: Sealed(Flate(inner), key).
func Sealed[T any](inner Codec[T], key []byte) (Codec[T], error) {
	const keySize = 32 // AES-256
	if len(key) != keySize {
		return nil, fmt.Errorf("emd: Sealed needs a key of %d bytes, not %d", keySize, len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("emd: Sealed: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("emd: Sealed: %w", err)
	}
	name := "sealed(" + inner.Name() + ")"
	return &sealedCodec[T]{inner: inner, name: name, aead: aead, bound: []byte(name)}, nil
}

type sealedCodec[T any] struct {
	inner Codec[T]
	name  string
	aead  cipher.AEAD // puts the nonce in front by itself
	bound []byte      // the name, as additional data: a value of another codec does not open
}

func (c *sealedCodec[T]) Name() string { return c.name }

func (c *sealedCodec[T]) notForKeys() string { return "equal keys are sealed differently" }

func (c *sealedCodec[T]) Append(dst []byte, v T) ([]byte, error) {
	s := newScratch()
	defer s.done()
	if err := encodeInner(s, c.inner, v); err != nil {
		return nil, err
	}
	return c.aead.Seal(dst, nil, s.b, c.bound), nil
}

func (c *sealedCodec[T]) Decode(src []byte) (v T, err error) {
	s := newScratch()
	defer s.done()
	b, err := c.aead.Open(s.b, nil, src, c.bound)
	if err != nil {
		return v, corrupt("wrong key or changed bytes")
	}
	s.b = b
	return c.inner.Decode(b)
}

// A keyless codec gives equal values several encodings, so that a key would
// not be found again. One that wraps others is keyless if it is so itself, or
// writes what they write as it is.
type keyless interface {
	notForKeys() string // why
}

// checkKeyCodec refuses codecs that are known to be useless for keys.
func checkKeyCodec[K any](c Codec[K]) error {
	if k, ok := c.(keyless); ok {
		return fmt.Errorf("%w: codec %s is not for keys: %s", ErrUnsupportedType, c.Name(), k.notForKeys())
	}
	return nil
}

// An appendWriter is a slice that grows by what is written to it.
type appendWriter struct{ b []byte }

func (w *appendWriter) Write(b []byte) (int, error) {
	w.b = append(w.b, b...)
	return len(b), nil
}
