package emd_test

import (
	"fmt"
	"log"

	"github.com/emd-go/emd"
)

// A tool prints what a file holds without the types of the program that wrote
// it.
func ExampleArena_Entries() {
	defer inTempFolder()()
	writeParts()

	a, err := emd.Open("parts.emd", &emd.Options{ReadOnly: true})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()

	for info := range a.Containers() {
		fmt.Printf("%s: %s of %s to %s\n", info.Name, info.Kind, info.Key, info.Value)
		err := a.View(func() error { // fails if damage ends the loop early
			for k, v := range a.Entries(info.Name) {
				line, err := emd.AppendJSON(nil, emd.Pair{Key: k, Value: v})
				if err != nil {
					return err
				}
				fmt.Println(string(line))
			}
			return nil
		})
		if err != nil {
			log.Fatal(err)
		}
	}

	// Output:
	// parts: dict of string to struct{Weight float32; Bolts [2]uint16}
	// ["wheel",{"Weight":7.5,"Bolts":[8,12]}]
}

// writeParts is the other program.
func writeParts() {
	type part struct {
		Weight float32
		Bolts  [2]uint16
	}
	a, err := emd.Open("parts.emd", nil)
	if err != nil {
		log.Fatal(err)
	}
	parts, err := emd.Dict[string, part](a, "parts", nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := parts.Set("wheel", part{Weight: 7.5, Bolts: [2]uint16{8, 12}}); err != nil {
		log.Fatal(err)
	}
	if err := a.Close(); err != nil {
		log.Fatal(err)
	}
}
