package link

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumps is how often the kernel is asked for a list that changes while it is read. A
// machine that starts and stops many tasks at once interrupts a list now and then, not
// each time.
const dumps = 20

// dump returns a list of what the kernel has, as it was at one moment: the kernel says
// when it has changed a list that it was sending.
func dump[T any](list func() (T, error)) (T, error) {
	var all T
	var err error
	for range dumps {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
