package faults_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// exitUnhealthy is the exit code of `muster cluster status` if something is wrong.
const exitUnhealthy = 7

// TestReplicas lets replicas of all daemons leave, die and join, and sees in the
// cluster's status that the others share their work out evenly.
func TestReplicas(t *testing.T) {
	t.Parallel()
	r := start(t, cluster.Config{Replicas: 3})
	wait.Within(t, waitTimeout, "three replicas of each share the shards out", func(ctx context.Context) error { return shared(ctx, r, 3, 0) })
	before := holders(lookAt(t, r))

	stopping := time.Now()
	for _, name := range cluster.Managers() {
		ok(t, r.Process(cluster.Replica(name, 3)).Stop())
	}
	wait.Within(t, waitTimeout, "the two that stay have all", func(ctx context.Context) error { return shared(ctx, r, 2, 0) })
	for shard, now := range holders(lookAt(t, r)) {
		since := now.since
		if was := before[shard]; was.instance == now.instance && !since.Equal(was.since) {
			t.Errorf("%s stayed with %s, and is reported there since %v and not %v", shard, now.instance, since, was.since)
		} else if was.instance != now.instance && since.Before(stopping) {
			t.Errorf("%s changed hands, and is reported with %s since %v", shard, now.instance, since)
		}
	}
	says(t, r, "all is well", func(_ string, code int) bool { return code == 0 })

	for _, name := range cluster.Managers() {
		ok(t, r.Process(cluster.Replica(name, 2)).Kill())
	}
	took := wait.Within(t, waitTimeout, "the one that lives has all", func(ctx context.Context) error { return shared(ctx, r, 1, 1) })
	t.Logf("one of each had all shards %v after the others were killed", took)
	says(t, r, "one of each is dead", func(out string, code int) bool {
		return code == exitUnhealthy && strings.Count(out, "Dead") == len(cluster.Managers())
	})

	// One that is started in a dead one's place takes its place in the catalog.
	for _, name := range cluster.Managers() {
		ok(t, r.StartManager(cluster.Replica(name, 2)))
	}
	says(t, r, "all is well again", func(_ string, code int) bool { return code == 0 })
	wait.Within(t, waitTimeout, "two share the shards out", func(ctx context.Context) error { return shared(ctx, r, 2, 0) })
}

// says waits until `muster cluster status` says something: what lives is heard of every
// few seconds, and may be so late that it is not taken to live for a moment.
func says(t *testing.T, r *rig.Rig, what string, so func(out string, code int) bool) {
	t.Helper()
	wait.Within(t, waitTimeout, "`muster cluster status` says that "+what, func(context.Context) error {
		if out, code := muster(t, r, "cluster", "status"); !so(out, code) {
			return fmt.Errorf("it exits with %d:\n%s", code, out)
		}
		return nil
	})
}

func lookAt(t *testing.T, r *rig.Rig) *musterv1.GetClusterStatusResponse {
	t.Helper()
	m, err := r.Client("apid").GetClusterStatus(t.Context(), &musterv1.GetClusterStatusRequest{})
	ok(t, err)
	return m
}

// shared returns an error unless the status shows so many replicas of each daemon
// that live, with even shares of all shards and views that lack nothing, so many
// that are dead, and nothing else that is wrong.
func shared(ctx context.Context, r *rig.Rig, replicas, dead int) error {
	m, err := r.Client("apid").GetClusterStatus(ctx, &musterv1.GetClusterStatusRequest{})
	if err != nil {
		return err
	}
	living, gone, least, most := map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
	for _, d := range m.Daemons {
		switch {
		case d.Health == musterv1.DaemonInstance_DEAD && len(d.Shards) == 0:
			gone[d.Daemon]++
			continue
		case d.Health != musterv1.DaemonInstance_HEALTHY:
			return fmt.Errorf("%s %s is %s: %s", d.Daemon, d.Instance, d.Health, d.Reason)
		case d.View.GetCommits() != 0 || d.View.GetTime().AsDuration() != 0 || !d.View.GetLoaded():
			return fmt.Errorf("the view of %s %s lacks something: %v", d.Daemon, d.Instance, d.View)
		}
		n := len(d.Shards)
		if living[d.Daemon]++; living[d.Daemon] == 1 {
			least[d.Daemon] = n
		}
		least[d.Daemon], most[d.Daemon] = min(n, least[d.Daemon]), max(n, most[d.Daemon])
	}
	for _, s := range m.Subsystems {
		d := s.Daemon
		if living[d] != replicas || gone[d] != dead || most[d]-least[d] > 1 || len(s.Unowned) != 0 {
			return fmt.Errorf("%d of %s live and %d are dead, with %d to %d shards, %d have no owner", living[d], d, gone[d], least[d], most[d], len(s.Unowned))
		}
	}
	if m.Healthy != (dead == 0) {
		return fmt.Errorf("healthy = %v, with problems %q", m.Healthy, m.Problems)
	}
	return nil
}

type holder struct {
	instance string
	since    time.Time
}

// holders returns who holds each shard, by subsystem and number.
func holders(m *musterv1.GetClusterStatusResponse) map[string]holder {
	all := map[string]holder{}
	for _, d := range m.Daemons {
		for _, s := range d.Shards {
			all[fmt.Sprintf("%s/%d", s.Subsystem, s.Shard)] = holder{d.Instance, s.Since.AsTime()}
		}
	}
	return all
}

// muster runs a command line, and returns what it prints and its exit code.
func muster(t *testing.T, r *rig.Rig, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*waitTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, r.Binary(), append(args, "--address", r.API)...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}
