//go:build linux

package overlay_test

import (
	"os"
	"testing"

	"go.uber.org/zap"

	"github.com/musterhq/muster/plugins/network/overlay"
)

func TestMain(m *testing.M) {
	// Under the race detector a process would linger for a second after its end.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		panic(err)
	}
	overlay.ServeNames(os.Args, zap.NewExample())
	overlay.ServeTunnel(os.Args)
	os.Exit(m.Run())
}
