package quota

import "testing"

func TestOpenBoundsEachClient(t *testing.T) {
	o := NewOpen(2)
	enter := func(client string, want bool) {
		t.Helper()
		if got := o.Enter(client); got != want {
			t.Errorf("Enter(%q) = %v, want %v", client, got, want)
		}
	}
	enter("a", true)
	enter("a", true)
	enter("a", false)
	enter("b", true)
	o.Leave("a")
	enter("a", true)
	enter("a", false)
	for _, client := range []string{"a", "a", "b"} {
		o.Leave(client)
	}
	if len(o.open) != 0 {
		t.Errorf("clients that have nothing open are remembered: %v", o.open)
	}
	if o = NewOpen(0); o != nil {
		t.Errorf("NewOpen(0) = %v, want no bound", o)
	}
	enter("a", true)
	o.Leave("a")
}
