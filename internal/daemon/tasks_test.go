package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/daemon"
)

func TestRunTasks(t *testing.T) {
	broken, second := errors.New("broken"), errors.New("broken later")
	endless := func(ctx context.Context) error {
		<-ctx.Done()
		return fmt.Errorf("wait: %w", ctx.Err())
	}
	tests := map[string]struct {
		tasks map[string]func(context.Context) error
		after time.Duration // the parent's end, if any
		want  []error
		text  []string
		took  time.Duration
	}{
		"none": {},
		"one fails": {
			tasks: map[string]func(context.Context) error{"endless": endless, "a": func(context.Context) error { return broken }},
			want:  []error{broken}, text: []string{"a: broken"},
		},
		"one ends": {
			tasks: map[string]func(context.Context) error{"endless": endless, "a": func(context.Context) error { return nil }},
		},
		"the context ends": {
			tasks: map[string]func(context.Context) error{"endless": endless, "more": endless}, after: time.Hour, took: time.Hour,
		},
		"a failure on the way out": {
			tasks: map[string]func(context.Context) error{
				"a": func(context.Context) error { return broken },
				"b": func(ctx context.Context) error {
					<-ctx.Done()
					<-time.After(time.Minute)
					return second
				},
			},
			want: []error{broken, second}, text: []string{"a: broken", "b: broken later"}, took: time.Minute,
		},
		"cancelled for a reason of its own": {
			tasks: map[string]func(context.Context) error{"endless": endless, "a": func(context.Context) error { return context.Canceled }},
			want:  []error{context.Canceled}, text: []string{"a: context canceled"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if test.after > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.after)
					defer cancel()
				}
				var tasks []daemon.Task
				for name, run := range test.tasks {
					tasks = append(tasks, daemon.Task{Name: name, Run: run})
				}
				began := time.Now()
				err := daemon.RunTasks(ctx, tasks...)
				if took := time.Since(began); took != test.took {
					t.Errorf("RunTasks returned after %v, want %v", took, test.took)
				}
				if (err == nil) != (len(test.want) == 0) {
					t.Errorf("RunTasks error = %v, want %v", err, test.want)
				}
				for i, want := range test.want {
					if !errors.Is(err, want) || !strings.Contains(err.Error(), test.text[i]) {
						t.Errorf("RunTasks error = %v, want %q in it", err, test.text[i])
					}
				}
			})
		})
	}
}
