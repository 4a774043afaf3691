//go:build linux

package thread_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/internal/thread"
)

func TestRunUsesAnotherThreadThanTheFirst(t *testing.T) {
	t.Parallel()
	want := errors.New("result")
	for range 100 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			if err := thread.Run(func() error {
				if unix.Gettid() == unix.Getpid() {
					t.Error("the function was called on the first thread of the process")
				}
				return want
			}); !errors.Is(err, want) {
				t.Errorf("Run = %v, want what the function returns", err)
			}
		})
	}
}
