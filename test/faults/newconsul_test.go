package faults_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// policies is where the ACL policies of the daemons lie.
const policies = "../../compose/consul/policies"

// TestNewConsul loses all of Consul's servers with all that they hold, and
// restores a snapshot into new ones at the same addresses, as docs/backup.md has
// it, in a cluster with access control whose daemons have Consul
// tokens: these are in the snapshot, so the daemons have no access until it is
// restored. No task notices, whether the daemons wait for that or were stopped.
func TestNewConsul(t *testing.T) {
	t.Parallel()
	cfg := cluster.Config{Replicas: 2, ConsulServers: 3, CertificateLifetime: time.Hour}
	ok(t, rig.NewConsulTokens(policies).Secure(&cfg, t.TempDir()))
	r := start(t, cfg, "one", "two")
	_, err := r.Create(t.Context(), rig.Processes("steady", 4, rig.Sleep))
	ok(t, err)
	steady := running(t, r, "steady", 4)

	t.Run("daemons wait", func(t *testing.T) {
		replaceConsul(t, r)
		restored(t, r)
		ok(t, rig.Same(steady, running(t, r, "steady", 4)))
	})
	t.Run("daemons were stopped", func(t *testing.T) {
		for _, name := range r.Names() {
			ok(t, r.Process(name).Stop())
		}
		replaceConsul(t, r)
		for _, name := range r.Names() {
			ok(t, r.StartManager(name))
		}
		restored(t, r)
		ok(t, rig.Same(steady, running(t, r, "steady", 4)))
	})
	removeAll(t, r)
}

// replaceConsul restores what Consul holds into new servers. They have the names of
// the old ones and other ids, so the old ones are taken out of what was restored,
// or they would not be let in; and they are restarted, for only a new leader enters
// all of them at once.
func replaceConsul(t *testing.T, r *rig.Rig) {
	t.Helper()
	var snapshot bytes.Buffer
	ok(t, r.Consul.Save(t.Context(), &snapshot))
	ok(t, r.Servers.Replace())
	restoreConsul(t, r, snapshot.Bytes())
}

// restoreConsul is the part of it from where there are new servers.
func restoreConsul(t *testing.T, r *rig.Rig, snapshot []byte) {
	t.Helper()
	ok(t, r.Consul.Restore(t.Context(), snapshot))
	for _, s := range r.Servers.Servers() {
		ok(t, r.Consul.Deregister(t.Context(), s.Node))
	}
	ok(t, r.Servers.Kill())
	ok(t, r.Servers.Restart())
}

// restored waits until a cluster whose Consul was replaced does its work again.
func restored(t *testing.T, r *rig.Rig) {
	t.Helper()
	began := time.Now()
	wait.Within(t, 3*waitTimeout, "a change is made", func(ctx context.Context) error {
		_, err := r.Create(ctx, rig.Processes("probe", 1, rig.Sleep))
		return err
	})
	wait.Within(t, 3*waitTimeout, "the change is complete", func(ctx context.Context) error {
		_, err := r.Running(ctx, "probe", 1)
		return err
	})
	t.Logf("a change was complete %v after the restore", time.Since(began).Round(time.Millisecond))
	wait.Within(t, waitTimeout, "the nodes are ready", r.Ready)
	ok(t, r.Remove(t.Context(), "probe"))
	wait.Within(t, waitTimeout, "what runs on the machine is what should", r.Truthful)
}
