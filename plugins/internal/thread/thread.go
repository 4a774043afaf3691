//go:build linux

// Package thread runs functions that change their thread for good.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run calls f on a thread that ends with it. It is not the first thread of the process:
// that one does not end, and /proc/self shows its namespaces as those of the process.
func Run(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			// The runtime ends a thread whose goroutine ends while it is locked.
			result <- f()
			return
		}
		// While this goroutine holds the first thread, another one cannot get it.
		result <- Run(f)
		runtime.UnlockOSThread()
	}()
	return <-result
}
