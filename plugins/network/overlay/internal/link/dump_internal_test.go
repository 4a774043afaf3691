package link

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestListsThatChangeWhileTheyAreReadAreReadAgain(t *testing.T) {
	interrupted, calls := 2, 0
	read := func() ([]int, error) {
		if calls++; calls <= interrupted {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	}
	if all, err := dump(read); err != nil || len(all) != 2 || calls != 3 {
		t.Errorf("dump = %v, %v after %d calls, want two elements after three", all, err, calls)
	}
	interrupted, calls = dumps, 0
	if _, err := dump(read); !errors.Is(err, netlink.ErrDumpInterrupted) || calls != dumps {
		t.Errorf("dump = %v after %d calls, want %v after %d", err, calls, netlink.ErrDumpInterrupted, dumps)
	}
}
