//go:build !linux

// Command muster-network-overlay runs on Linux only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "muster-network-overlay runs on Linux only")
	os.Exit(1)
}
