package calls_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/dispatcherd/internal/calls"
)

func TestCloseWaitsForCallsAndTheirGoroutines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := calls.NewGroup()
		if !g.Join() {
			t.Fatal("an open group refuses a call")
		}
		helper := make(chan struct{})
		g.Go(func() { <-helper })
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			g.Close()
		}()
		wait := func(want bool, when string) {
			t.Helper()
			time.Sleep(time.Second)
			select {
			case <-closed:
				if !want {
					t.Errorf("Close returned %s", when)
				}
			default:
				if want {
					t.Errorf("Close did not return %s", when)
				}
			}
		}
		wait(false, "while there is a call")
		select {
		case <-g.Stopping():
		default:
			t.Error("a closed group does not tell its calls to stop")
		}
		if g.Join() {
			t.Error("a closed group accepts a call")
		}
		g.Leave()
		wait(false, "while a goroutine of a call runs")
		close(helper)
		wait(true, "after the last goroutine has ended")
	})
}
