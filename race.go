//go:build race

package emd

const raceEnabled = true
