package quota

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// TestClientsAreForgotten makes more clients than are remembered, lets them rest, and
// looks how many are left.
func TestClientsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRate(1, 10, 100)
		for i := range 1000 {
			b.Take(fmt.Sprint(i))
			if b.known.Len() > 100 {
				t.Fatalf("%d clients are remembered; at most 100 may be", b.known.Len())
			}
		}
		time.Sleep(time.Minute)
		for range 60 {
			b.Take("one")
		}
		if b.known.Len() != 1 {
			t.Errorf("%d clients are remembered, of which one calls", b.known.Len())
		}
	})
}

// TestCallingClientsAreNotForgotten: there is no way out of a limit by having strangers
// come meanwhile, while the client keeps calling.
func TestCallingClientsAreNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRate(1, 10, 100)
		passed := 0
		for i := range 1000 {
			b.Take(fmt.Sprint("stranger", i))
			if b.Take("one") == 0 {
				passed++
			}
		}
		if passed != 10 {
			t.Errorf("%d calls passed, want 10", passed)
		}
	})
}

// step is one call, and what comes after it.
type step struct {
	client string
	waits  bool
	pause  time.Duration
}

// TestNeverMoreThanTheRate takes tokens at any times, as several clients.
func TestNeverMoreThanTheRate(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		perSecond, burst := rapid.IntRange(1, 50).Draw(rt, "rate"), rapid.IntRange(1, 20).Draw(rt, "burst")
		var steps []step
		for range rapid.IntRange(1, 200).Draw(rt, "calls") {
			steps = append(steps, step{
				client: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "client"), waits: rapid.Bool().Draw(rt, "waits"),
				pause: time.Duration(rapid.IntRange(0, 200).Draw(rt, "pause")) * time.Millisecond,
			})
		}
		var fault error
		synctest.Test(t, func(*testing.T) { fault = walk(newRate(float64(perSecond), burst, 1000), steps) })
		if fault != nil {
			rt.Fatal(fault)
		}
	})
}

// walk goes through steps, and tells what must not be.
func walk(b *Rate, steps []step) error {
	began, passed := time.Now(), map[string]int{}
	for _, s := range steps {
		wait := b.Take(s.client)
		if wait > 0 && s.waits {
			// A client that waits for the time that it is given passes.
			time.Sleep(wait)
			if wait = b.Take(s.client); wait > time.Microsecond {
				return fmt.Errorf("told to wait %v more", wait)
			}
		}
		if wait == 0 {
			passed[s.client]++
		}
		if most := float64(b.burst) + time.Since(began).Seconds()*float64(b.limit) + 1e-3; float64(passed[s.client]) > most {
			return fmt.Errorf("%d calls passed, at most %v may", passed[s.client], most)
		}
		time.Sleep(s.pause)
	}
	return nil
}
