package daemon_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/daemon"
)

// recorder makes tasks that record when they end.
type recorder struct {
	mu    sync.Mutex
	ended []string
}

// task returns a task that runs until its context ends. Ending takes it a second.
func (r *recorder) task(name string) daemon.Task {
	return daemon.Task{Name: name, Run: func(ctx context.Context) error {
		<-ctx.Done()
		r.end(name)
		return ctx.Err()
	}}
}

// after returns a task that ends with err after d, or earlier with its context.
func (r *recorder) after(name string, d time.Duration, err error) daemon.Task {
	return daemon.Task{Name: name, Run: func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(d):
		}
		r.end(name)
		return err
	}}
}

func (r *recorder) end(name string) {
	time.Sleep(time.Second)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = append(r.ended, name)
}

func TestRunnerEndsTheLastLayerFirst(t *testing.T) {
	failure := errors.New("disk is full")
	for _, tt := range []struct {
		name string
		// broken is the layer with a task that fails after a minute. The context
		// ends after an hour.
		broken int
		want   string
	}{
		{"context ends", -1, "work loop store"},
		{"work fails", 2, "work loop store"},
		// A part that fails has ended already. The layers after it end next.
		{"loop fails", 1, "loop work store"},
		{"store fails", 0, "store work loop"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				var r recorder
				names := []string{"store", "loop", "work"}
				var layers daemon.Runner
				for i, name := range names {
					task := r.task(name)
					if i == tt.broken {
						task = r.after(name, time.Minute, failure)
					}
					layers = append(layers, []daemon.Task{task})
				}
				began := time.Now()
				err := layers.Run(ctx)
				if got := strings.Join(r.ended, " "); got != tt.want {
					t.Errorf("ended in the order %q, want %q", got, tt.want)
				}
				if tt.broken < 0 {
					if err != nil {
						t.Errorf("Run = %v, want no error", err)
					}
					return
				}
				if want := names[tt.broken] + ": disk is full"; !errors.Is(err, failure) || err.Error() != want {
					t.Errorf("Run = %v, want %s", err, want)
				}
				if d := time.Since(began); d > 2*time.Minute {
					t.Errorf("Run took %v, want it to end soon after the failure", d)
				}
			})
		})
	}
}

func TestRunnerEndsWhenATaskReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		err := daemon.Runner{{r.task("store"), r.task("view")}, {r.after("serve", time.Minute, nil), r.task("sweep")}}.Run(t.Context())
		if err != nil {
			t.Errorf("Run = %v, want no error", err)
		}
		if len(r.ended) != 4 || !slices.Contains(r.ended[2:], "store") || !slices.Contains(r.ended[2:], "view") {
			t.Errorf("ended in the order %q, want store and view last", r.ended)
		}
	})
}
