package emd_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emd-go/emd"
)

// The program of the README and of the package documentation: it prints how
// often it has been run.
func Example() {
	defer inTempFolder()()

	runs, err := emd.OpenDict[string, int]("runs.emd", nil) // a file, created if absent
	if err != nil {
		log.Fatal(err)
	}
	next := func(n int, ok bool) (int, emd.Op) { return n + 1, emd.OpStore }
	n, _, err := runs.Compute("total", next)
	if err := errors.Join(err, runs.Close()); err != nil { // Close commits
		log.Fatal(err)
	}
	fmt.Println("run", n)

	// Output:
	// run 1
}

// A list is used as a slice is.
func ExampleEMList() {
	defer inTempFolder()()

	primes, err := emd.OpenList[uint32]("primes.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer primes.Close()

	if err := primes.Append(2, 3, 5, 9); err != nil {
		log.Fatal(err)
	}
	if err := primes.Set(3, 7); err != nil {
		log.Fatal(err)
	}
	for i, p := range primes.All() {
		fmt.Println(i, p)
	}
	if err := primes.Err(); err != nil { // damage ends a loop early
		log.Fatal(err)
	}
	if err := primes.Sync(); err != nil { // from here on the changes are safe
		log.Fatal(err)
	}

	// Output:
	// 0 2
	// 1 3
	// 2 5
	// 3 7
}

// A dict is used as a map is.
func ExampleEMDict() {
	defer inTempFolder()()

	ages, err := emd.OpenDict[string, int]("ages.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer ages.Close()

	if err := ages.Set("Ada", 36); err != nil {
		log.Fatal(err)
	}
	age, ok, err := ages.Get("Ada")
	fmt.Println(age, ok, err)

	ok, err = ages.Delete("Ada")
	fmt.Println(ok, err, ages.Len())

	age, ok, err = ages.Get("Ada")
	fmt.Println(age, ok, err)

	// Output:
	// 36 true <nil>
	// true <nil> 0
	// 0 false <nil>
}

// Compute reads and writes the value of a key in one step: here, to count.
func ExampleEMDict_Compute() {
	defer inTempFolder()()

	counts, err := emd.OpenDict[string, uint64]("counts.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer counts.Close()

	increment := func(n uint64, ok bool) (uint64, emd.Op) { return n + 1, emd.OpStore }
	for _, word := range strings.Fields("to be or not to be") {
		if _, _, err := counts.Compute(word, increment); err != nil {
			log.Fatal(err)
		}
	}
	n, _, err := counts.Get("be")
	fmt.Println(n, err)

	// A key goes when its count does.
	decrement := func(n uint64, ok bool) (uint64, emd.Op) {
		if n <= 1 {
			return 0, emd.OpRemove
		}
		return n - 1, emd.OpStore
	}
	_, ok, err := counts.Compute("not", decrement)
	fmt.Println(ok, err, counts.Len())

	// Output:
	// 2 <nil>
	// false <nil> 3
}

// AppendTo makes the slice of a key longer: here, the calls of functions.
func ExampleAppendTo() {
	defer inTempFolder()()

	calls, err := emd.OpenDict[string, []string]("calls.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer calls.Close()

	for _, call := range []struct{ from, to string }{{"main", "open"}, {"open", "read"}, {"main", "print"}} {
		if err := emd.AppendTo(calls, call.from, call.to); err != nil {
			log.Fatal(err)
		}
	}
	for i, name := range emd.Elems(calls, "main") {
		fmt.Println(i, name)
	}
	all, ok, err := calls.Get("main")
	fmt.Println(all, ok, err)

	// Output:
	// 0 open
	// 1 print
	// [open print] true <nil>
}

// Update is a transaction: all of its changes, or none.
func ExampleArena_Update() {
	defer inTempFolder()()

	accounts, err := emd.OpenDict[string, int]("bank.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer accounts.Close()
	if err := accounts.Set("ann", 100); err != nil {
		log.Fatal(err)
	}

	transfer := func(from, to string, amount int) error {
		return accounts.Arena().Update(func() error {
			add := func(who string, amount int) error {
				balance, _, err := accounts.Get(who)
				if err != nil {
					return err
				}
				if balance+amount < 0 {
					return errors.New(who + " cannot pay that")
				}
				return accounts.Set(who, balance+amount)
			}
			if err := add(to, amount); err != nil {
				return err
			}
			return add(from, -amount) // on an error the line above is undone
		})
	}
	fmt.Println(transfer("ann", "bob", 70))
	fmt.Println(transfer("ann", "bob", 70))

	for _, who := range []string{"ann", "bob"} {
		balance, _, err := accounts.Get(who)
		fmt.Println(who, balance, err)
	}

	// Output:
	// <nil>
	// ann cannot pay that
	// ann 30 <nil>
	// bob 70 <nil>
}

// Rollback goes back to the last commit.
func ExampleArena_Rollback() {
	defer inTempFolder()()

	list, err := emd.OpenList[string]("notes.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer list.Close()

	if err := list.Append("keep"); err != nil {
		log.Fatal(err)
	}
	if err := list.Sync(); err != nil {
		log.Fatal(err)
	}
	if err := list.Append("regret"); err != nil {
		log.Fatal(err)
	}
	if err := list.Arena().Rollback(); err != nil {
		log.Fatal(err)
	}
	for _, note := range list.All() {
		fmt.Println(note)
	}

	// Output:
	// keep
}

// An arena holds any number of containers, which commit together.
func ExampleOpen() {
	defer inTempFolder()()

	arena, err := emd.Open("graph.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer arena.Close()

	type edge struct{ From, To uint32 }
	names, err := emd.Dict[uint32, string](arena, "names", nil)
	if err != nil {
		log.Fatal(err)
	}
	edges, err := emd.List[edge](arena, "edges", nil)
	if err != nil {
		log.Fatal(err)
	}

	err = arena.Update(func() error {
		return errors.Join(
			names.Set(1, "main"),
			names.Set(2, "init"),
			edges.Append(edge{From: 1, To: 2}),
			arena.SetMeta("schema", []byte("1")),
		)
	})
	if err != nil {
		log.Fatal(err)
	}
	for c := range arena.Containers() {
		fmt.Println(c.Kind, c.Name, c.Len)
	}
	schema, ok := arena.Meta("schema")
	fmt.Printf("%s %v\n", schema, ok)

	// Output:
	// list edges 1
	// dict names 2
	// 1 true
}

// A loop follows the hash, so the order of keys means nothing. View makes sure
// that it saw them all.
func ExampleEMDict_All() {
	defer inTempFolder()()

	sizes, err := emd.OpenDict[string, int64]("sizes.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer sizes.Close()
	if err := errors.Join(sizes.Set("a.go", 120), sizes.Set("b.go", 80), sizes.Set("c.txt", 500)); err != nil {
		log.Fatal(err)
	}

	var total int64
	err = sizes.Arena().View(func() error { // fails if damage ended the loop
		for name, size := range sizes.All() {
			if strings.HasSuffix(name, ".go") {
				total += size
			}
		}
		return nil
	})
	fmt.Println(total, err)

	names := slices.Sorted(sizes.Keys())
	fmt.Println(names, sizes.Err())

	// Output:
	// 200 <nil>
	// [a.go b.go c.txt] <nil>
}

// Range loops over a part of a list, as over the slice list[2:4].
func ExampleEMList_Range() {
	defer inTempFolder()()

	letters, err := emd.OpenList[string]("letters.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer letters.Close()
	if err := letters.Append("a", "b", "c", "d", "e"); err != nil {
		log.Fatal(err)
	}

	for i, letter := range letters.Range(2, 4) {
		fmt.Println(i, letter)
	}
	if err := letters.Err(); err != nil {
		log.Fatal(err)
	}

	// Output:
	// 2 c
	// 3 d
}

// A Person is made of data, so it needs no codec.
type Person struct {
	Name   string
	Born   time.Time
	Emails []string
	Boss   *Person
	notes  map[string]string // stored too
}

func ExampleDict_types() {
	defer inTempFolder()()

	people, err := emd.OpenDict[uint64, Person]("people.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer people.Close()

	ada := Person{
		Name:   "Ada",
		Born:   time.Date(1815, 12, 10, 0, 0, 0, 0, time.UTC),
		Emails: []string{"ada@example.com"},
		Boss:   &Person{Name: "Charles"},
		notes:  map[string]string{"first": "program"},
	}
	if err := people.Set(1, ada); err != nil {
		log.Fatal(err)
	}
	p, _, err := people.Get(1)
	fmt.Println(p.Name, p.Born.Year(), p.Emails, p.Boss.Name, p.notes, err)

	// Output:
	// Ada 1815 [ada@example.com] Charles map[first:program] <nil>
}

// A Shape is an interface: what may be in one, only a codec can know.
type Shape interface{ Area() float64 }

type Square struct{ Side float64 }

func (s Square) Area() float64 { return s.Side * s.Side }

type Circle struct{ Radius float64 }

func (c Circle) Area() float64 { return math.Pi * c.Radius * c.Radius }

// ShapeCodec keeps a Shape as a letter and a number.
type ShapeCodec struct{}

func (ShapeCodec) Name() string { return "example.com/Shape v1" }

func (ShapeCodec) Append(dst []byte, s Shape) ([]byte, error) {
	switch s := s.(type) {
	case Square:
		return binary.Append(append(dst, 's'), binary.LittleEndian, s.Side)
	case Circle:
		return binary.Append(append(dst, 'c'), binary.LittleEndian, s.Radius)
	}
	return nil, fmt.Errorf("a shape of type %T", s)
}

func (ShapeCodec) Decode(src []byte) (Shape, error) { // must not keep src
	if len(src) == 9 {
		n := math.Float64frombits(binary.LittleEndian.Uint64(src[1:]))
		switch src[0] {
		case 's':
			return Square{n}, nil
		case 'c':
			return Circle{n}, nil
		}
	}
	return nil, errors.New("not a shape")
}

// A codec of one's own makes any type fit for a container.
func ExampleCodec() {
	defer inTempFolder()()

	arena, err := emd.Open("drawing.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer arena.Close()

	shapes, err := emd.List(arena, "shapes", &emd.ListOptions[Shape]{Codec: ShapeCodec{}})
	if err != nil {
		log.Fatal(err)
	}
	if err := shapes.Append(Square{2}, Circle{1}); err != nil {
		log.Fatal(err)
	}
	for _, s := range shapes.All() {
		fmt.Printf("%T %.2f\n", s, s.Area())
	}

	// Output:
	// emd_test.Square 4.00
	// emd_test.Circle 3.14
}

// Far more pairs than memory holds may come in any order: they are sorted, and the dict is written in one go.
func ExampleEMDict_BulkLoad() {
	defer inTempFolder()()

	squares, err := emd.OpenDict[uint64, uint64]("squares.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer squares.Close()
	pairs := func(yield func(uint64, uint64) bool) {
		for n := range uint64(100_000) {
			if !yield(n, n*n) {
				return
			}
		}
	}
	n, err := squares.BulkLoad(context.Background(), pairs)
	fmt.Println(n, err)
	fmt.Println(squares.Get(300))

	// Output:
	// 100000 <nil>
	// 90000 true <nil>
}

// Lookups that are made together wait for memory, or the disk, together.
func ExampleEMDict_GetMany() {
	defer inTempFolder()()

	ages, err := emd.OpenDict[string, int]("ages.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer ages.Close()
	if _, err := ages.SetAll(maps.All(map[string]int{"Ada": 36, "Alan": 41, "Grace": 85})); err != nil {
		log.Fatal(err)
	}
	names := []string{"Grace", "Kurt", "Ada"}
	years, ok := make([]int, len(names)), make([]bool, len(names))
	found, err := ages.GetMany(names, years, ok)
	fmt.Println(found, years, ok, err)

	// Output:
	// 2 [85 0 36] [true false true] <nil>
}

// A scan shared by four goroutines.
func ExampleEMDict_Partition() {
	defer inTempFolder()()

	sizes, err := emd.OpenDict[string, int64]("sizes.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer sizes.Close()
	for i := range 1000 {
		if err := sizes.Set(fmt.Sprint("file ", i), int64(i)); err != nil {
			log.Fatal(err)
		}
	}
	const parts = 4
	var total atomic.Int64
	err = sizes.Arena().View(func() error { // fails if a loop ends early
		var wg sync.WaitGroup
		for i := range parts {
			wg.Go(func() {
				sum := int64(0)
				for _, size := range sizes.Partition(i, parts) {
					sum += size
				}
				total.Add(sum)
			})
		}
		wg.Wait()
		return nil
	})
	fmt.Println(total.Load(), err)

	// Output:
	// 499500 <nil>
}

// Users were numbers once. The program takes files from those days as well.
func ExampleMigrateDict() {
	defer inTempFolder()()

	arena, err := emd.Open("users.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer arena.Close()
	old, err := emd.Dict[uint32, uint64](arena, "last seen", nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := old.Set(7, 1700000000); err != nil {
		log.Fatal(err)
	}

	named := func(id uint32, seen uint64) (string, uint64, error) { return fmt.Sprint("user ", id), seen, nil }
	for range 2 { // at each start: the second time there is nothing to do
		if err := emd.MigrateDict(context.Background(), arena, "last seen", nil, nil, named, nil); err != nil {
			log.Fatal(err)
		}
	}
	users, err := emd.Dict[string, uint64](arena, "last seen", nil)
	if err != nil {
		log.Fatal(err)
	}
	seen, ok, err := users.Get("user 7")
	fmt.Println(seen, ok, err)

	// Output:
	// 1700000000 true <nil>
}

// Values compressed, then encrypted. The key comes from elsewhere.
func ExampleSealed() {
	defer inTempFolder()()

	key := make([]byte, 32)
	secret, err := emd.Sealed(emd.Flate(emd.JSON[[]string]()), key)
	if err != nil {
		log.Fatal(err)
	}
	arena, err := emd.Open("notes.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer arena.Close()
	notes, err := emd.List(arena, "notes", &emd.ListOptions[[]string]{Codec: secret})
	if err != nil {
		log.Fatal(err)
	}
	if err := notes.Append([]string{"the cake", "is in the oven"}); err != nil {
		log.Fatal(err)
	}
	fmt.Println(secret.Name())
	fmt.Println(notes.Get(0))

	// Output:
	// sealed(flate(json))
	// [the cake is in the oven] <nil>
}

// inTempFolder makes a new folder the current one, so that the examples can
// name their files as a program would, until the function it returns is called.
func inTempFolder() (leave func()) {
	old, err := os.Getwd()
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "emd-example-")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.Chdir(dir); err != nil {
		log.Fatal(err)
	}
	return func() {
		if err := os.Chdir(old); err != nil {
			log.Fatal(err)
		}
		os.RemoveAll(dir) // a leftover in the folder for temporary files does no harm
	}
}

// SortKey sorts words by their lengths; words of one length stay in their order.
func ExampleEMList_SortKey() {
	defer inTempFolder()()

	words, err := emd.OpenList[string]("words.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer words.Close()
	if err := words.Append("lists", "may", "be", "sorted", "by", "key"); err != nil {
		log.Fatal(err)
	}

	length := func(word string) uint64 { return uint64(len(word)) }
	if err := words.SortKey(context.Background(), length, nil); err != nil {
		log.Fatal(err)
	}
	for word := range words.Values() {
		fmt.Print(word, " ")
	}
	if err := words.Err(); err != nil {
		log.Fatal(err)
	}

	// Output:
	// be by may key lists sorted
}
