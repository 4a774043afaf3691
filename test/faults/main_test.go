// Package faults_test kills, stops and restarts the parts of real clusters, and
// Consul beneath them, and sees that others do their work, and that no task notices.
// How long a user waits for that is not asserted, because these tests share a machine
// with others: bench measures it (take-over times are its scenario takeover).
package faults_test

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// built is the directory with the programs. TestMain sets it before any test runs.
var built string

func TestMain(m *testing.M) { os.Exit(rig.Tests(m, "faults", &built)) }

// waitTimeout bounds what should take moments, on a machine that is busy.
const waitTimeout = 2 * time.Minute

// A worker that the machine gives no time for a while is not to be taken for dead: what
// these tests look for is tasks that move for any other reason.
const (
	misses         = "5"
	reconnectGrace = "10s"
)

// start starts a cluster whose workers are ready, and that ends with the test.
func start(t *testing.T, cfg cluster.Config, workers ...string) *rig.Rig {
	t.Helper()
	return startOf(t, built, cfg, workers...)
}

// startOf is the same with programs of another build.
func startOf(t *testing.T, built string, cfg cluster.Config, workers ...string) *rig.Rig {
	t.Helper()
	need.Program(t, "consul")
	cfg.Args = maps.Clone(cfg.Args)
	if cfg.Args == nil {
		cfg.Args = map[string][]string{}
	}
	cfg.Args["dispatcherd"] = append(slices.Clone(cfg.Args["dispatcherd"]), "--heartbeat-misses", misses, "--reconnect-grace", reconnectGrace)
	// Clusters of other tests are on this machine as well, and a task's process
	// tells by its node's id whose it is.
	nodes, tag := map[string]string{}, strings.ToLower(rand.Text()[:8])
	for _, name := range workers {
		nodes[name] = "node-" + name + "-" + tag
	}
	r := rig.StartFor(t, rig.Config{Config: cfg, Built: built, NodeIDs: nodes})
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		// Where only some of a test's steps were asked for.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), waitTimeout)
		defer cancel()
		if err := errors.Join(r.RemoveAll(ctx), wait.Until(ctx, r.Empty)); err != nil {
			t.Error(err)
		}
	})
	wait.Within(t, waitTimeout, "all nodes are ready", r.Ready)
	return r
}

// removeAll removes all services, and waits until nothing is left of their tasks.
func removeAll(t *testing.T, r *rig.Rig) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	ok(t, r.RemoveAll(ctx))
	wait.Within(t, waitTimeout, "nothing is left of tasks", r.Empty)
}

// undo returns a function that undoes what a step does to the cluster. It is
// called at the end of the step at the latest, also of one that fails, so that the
// steps after it find a whole cluster.
func undo(t *testing.T, undone func() error) (now func() error) {
	t.Helper()
	now = sync.OnceValue(undone)
	t.Cleanup(func() {
		if err := now(); err != nil {
			t.Errorf("undo: %v", err)
		}
	})
	return now
}

// ok fails the test at an error.
func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
