//go:build linux

package overlay

import (
	"errors"
	"testing"
)

// TestKernelIsProbedUntilNothingIsMissing lets modules of the kernel be loaded one by one.
func TestKernelIsProbedUntilNothingIsMissing(t *testing.T) {
	steps := []struct {
		found *probe
		err   error
	}{
		{err: errors.New("no veth")},
		{found: &probe{missing: []string{"vxlan: no module"}}},
		{found: &probe{vxlan: true}},
	}
	calls := 0
	find := untilComplete(func() (*probe, error) {
		s := steps[calls]
		calls++
		return s.found, s.err
	})
	for i, s := range append(steps, steps[2], steps[2]) {
		if found, err := find(); found != s.found || !errors.Is(err, s.err) {
			t.Errorf("call %d: %v, %v", i, found, err)
		}
	}
	if calls != len(steps) {
		t.Errorf("the kernel was probed %d times, want %d", calls, len(steps))
	}
}
