package kvtest

import "testing"

// testDescribe: a store that works has a kind and a leader.
func testDescribe(t *testing.T, f *fixture) {
	d, err := f.Describe(f.ctx)
	if err != nil || d.Kind == "" || d.Leader == "" {
		t.Errorf("Describe = %+v, %v, want a kind and a leader", d, err)
	}
	if processes, err := f.Processes(f.ctx, "kvtest-none"); err != nil || len(processes) != 0 {
		t.Errorf("Processes of a service that is not there = %+v, %v", processes, err)
	}
}
