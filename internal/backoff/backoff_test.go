package backoff_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/backoff"
)

func TestPausesDoubleUpToTheLongest(t *testing.T) {
	for range 100 {
		b := backoff.New(100*time.Millisecond, time.Second)
		for i, most := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			most *= time.Millisecond
			if d := b.Next(); d < most/2-1 || d > most+1 {
				t.Fatalf("pause %d is %v, want between %v and %v", i, d, most/2, most)
			}
		}
		b.Reset()
		if d := b.Next(); d > 100*time.Millisecond+1 {
			t.Fatalf("pause after Reset is %v, want at most 100ms", d)
		}
	}
}

func TestPausesOfTwoReplicasDiffer(t *testing.T) {
	a, b := backoff.New(time.Hour, time.Hour), backoff.New(time.Hour, time.Hour)
	if x, y := a.Next(), b.Next(); x == y {
		t.Errorf("both pauses are %v, want jitter", x)
	}
}

func TestWaitTakesThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		b := backoff.New(time.Minute, time.Hour)
		if err := b.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d < 30*time.Second-1 || d > time.Minute+1 {
			t.Errorf("waited %v, want between 30s and 1m", d)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("no longer needed")
		ctx, cancel := context.WithCancelCause(t.Context())
		began := time.Now()
		time.AfterFunc(time.Second, func() { cancel(cause) })
		if err := backoff.New(time.Hour, time.Hour).Wait(ctx); !errors.Is(err, cause) {
			t.Errorf("Wait = %v, want %v", err, cause)
		}
		if d := time.Since(began); d != time.Second {
			t.Errorf("waited %v, want 1s", d)
		}
	})
}
