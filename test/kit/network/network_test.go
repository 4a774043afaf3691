package network_test

import (
	"context"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
)

// TestCut cuts one host of three off, and looks who reaches whom.
func TestCut(t *testing.T) {
	need.Met(t, network.Missing())
	n, err := network.New(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	a, b, c := n.Hosts()[0], n.Hosts()[1], n.Hosts()[2]
	for _, h := range n.Hosts() {
		l, err := h.Listen(t.Context(), "tcp", h.Address+":7000")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
	}
	reaches := func(from, to *network.Host, want bool) bool {
		// Nothing answers where a network is cut, so this is how long a cut takes; where
		// it is whole the machine may be busy.
		patience := 500 * time.Millisecond
		if want {
			patience = time.Minute
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		conn, err := from.DialContext(ctx, "tcp", to.Address+":7000")
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	expect := func(what string, ab, ac, bc bool) {
		t.Helper()
		for _, e := range []struct {
			from, to *network.Host
			want     bool
		}{{a, b, ab}, {b, a, ab}, {a, c, ac}, {c, a, ac}, {b, c, bc}, {c, b, bc}} {
			if got := reaches(e.from, e.to, e.want); got != e.want {
				t.Errorf("%s: %s reaches %s: %v, want %v", what, e.from.Address, e.to.Address, got, e.want)
			}
		}
		for _, h := range n.Hosts() {
			conn, err := n.DialContext(t.Context(), "tcp", h.Address+":7000")
			if err != nil {
				t.Errorf("%s: the hub does not reach %s: %v", what, h.Address, err)
				continue
			}
			_ = conn.Close()
		}
	}
	expect("whole", true, true, true)
	if err := n.Cut(t.Context(), []*network.Host{a}, []*network.Host{b, c}); err != nil {
		t.Fatal(err)
	}
	expect("cut", false, false, true)
	if err := n.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect("healed", true, true, true)
	if err := n.Lose(t.Context(), c, 100); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*network.Host{a, b} {
		if reaches(h, c, false) {
			t.Errorf("%s reaches a host that loses everything", h.Address)
		}
	}
	if err := n.Lose(t.Context(), c, 0); err != nil {
		t.Fatal(err)
	}
	expect("nothing lost", true, true, true)
}
