package nodeid_test

import (
	"strings"
	"testing"

	"github.com/musterhq/muster/api/nodeid"
)

func TestCheckRefusesOddIDs(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"n1", "node-001", "0k2fgm4tq8xwyz", "A_b.c", strings.Repeat("n", 64)} {
		if err := nodeid.Check(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "bad!!", "a b", "a/b", ".", "..", ".a", "ä", "a\n", "a\x00", strings.Repeat("n", 65)} {
		if nodeid.Check(bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestHardwareAddressStays pins the address: nodes of different versions must agree.
func TestHardwareAddressStays(t *testing.T) {
	t.Parallel()
	if got, want := nodeid.HardwareAddress("n1").String(), "02:c0:97:5b:8b:fb"; got != want {
		t.Errorf("hardware address %s, want %s", got, want)
	}
}
