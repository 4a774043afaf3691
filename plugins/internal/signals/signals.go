// Package signals reads the names of signals.
package signals

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// last is the highest number of a signal.
const last = 64

// Number returns the number of the signal that is called "SIGTERM", "TERM" or "15",
// and 0 if there is none.
func Number(name string) unix.Signal {
	if number, err := strconv.Atoi(name); err == nil && number > 0 && number <= last {
		return unix.Signal(number)
	}
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	return unix.SignalNum(name)
}
