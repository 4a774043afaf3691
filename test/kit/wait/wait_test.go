package wait_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/test/kit/wait"
)

var errNot = errors.New("not there")

func TestWithinIsExactToATwentieth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, want := range []time.Duration{0, time.Millisecond, 40 * time.Millisecond, 3 * time.Second} {
			began := time.Now()
			took := wait.Within(t, time.Minute, "it is there", func(context.Context) error {
				if time.Since(began) < want {
					return errNot
				}
				return nil
			})
			if late := took - want; late < 0 || late > want/20+200*time.Microsecond {
				t.Errorf("what took %v was seen after %v", want, took)
			}
		}
	})
}

func TestUntilSaysWhatWasWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := wait.Until(ctx, func(ctx context.Context) error {
			if time.Until(deadline(ctx)) > 10*time.Millisecond {
				return errNot
			}
			// A call that ends with the time says nothing of what is wrong.
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, errNot) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Until: %v, want both why it ended and what was wrong", err)
		}
	})
}

func deadline(ctx context.Context) time.Time {
	at, _ := ctx.Deadline()
	return at
}
