package security_test

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/renewals"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// lifetime is that of certificates that are renewed under load: the fifth of it that is
// left to renew at the latest is enough for a machine that is slow, too.
const lifetime = 30 * time.Second

// TestRenewal has certificates renewed that last for a short time, under load: no call
// fails, no stream ends and no task notices. `make chaos-certificates` does so for
// longer.
func TestRenewal(t *testing.T) {
	t.Parallel()
	need.Program(t, "consul")
	tag := strings.ToLower(rand.Text()[:8])
	r := rig.StartFor(t, rig.Config{
		Config: cluster.Config{CertificateLifetime: lifetime, Args: patience()}, Built: built,
		NodeIDs: map[string]string{renewals.Talks: "node-talks-" + tag},
	})
	load, err := renewals.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), lifetime)
	defer cancel()
	load.Run(ctx)
	result, err := load.Result(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range result.Failures {
		t.Error(f)
	}
	for _, s := range result.Stalled {
		t.Logf("while the machine had no time: %s", s)
	}
	for _, what := range []string{"line of a log", "message of a watch", "change that is complete"} {
		if result.Calls[what] == 0 {
			t.Errorf("there was no %s", what)
		}
	}
	t.Logf("calls: %v, renewals: %v", result.Calls, result.Renewals)
	ctx, cancel = context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := r.RemoveAll(ctx); err != nil {
		t.Fatal(err)
	}
	if err := wait.Until(ctx, r.Empty); err != nil {
		t.Fatal(err)
	}
}

// patience has the dispatcher give a worker time that is given none by the machine.
func patience() map[string][]string {
	return map[string][]string{"dispatcherd": {"--heartbeat-misses", "30", "--reconnect-grace", "1m"}}
}
