//go:build !linux

// Command muster-network-cni runs on Linux only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "muster-network-cni runs on Linux only")
	os.Exit(1)
}
