//go:build !race

package simulation_test

// raced says that the race detector is at work: a run then takes five times as long.
const raced = false
