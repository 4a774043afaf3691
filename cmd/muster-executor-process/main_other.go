//go:build !linux

// Command muster-executor-process runs on Linux only: it rests on what only
// Linux has.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "muster-executor-process runs on Linux only")
	os.Exit(1)
}
