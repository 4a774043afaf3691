package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// remove: everything goes, and nothing is left of it.
func (l *life) remove(t *testing.T) {
	l.ok(t, "service", "rm", "ticker", "web")
	if code, answer := l.rest(t, http.MethodDelete, "/v1/services/agent", nil); code != http.StatusOK {
		t.Fatalf("remove agent: %d %v", code, answer)
	}
	l.awaitNoTasks(t)
	if l.Consul != nil {
		a := l.openArchive(t)
		wait.Within(t, runTimeout, "no record is left", func(ctx context.Context) error {
			found, err := a.records(ctx)
			if err != nil {
				return err
			}
			return only(found, slices.Concat(tablesOfNodes, presence)...)
		})
	}
}

// awaitNoTasks waits until there are no tasks, and nothing of them on the
// machine.
func (s *site) awaitNoTasks(t *testing.T) {
	t.Helper()
	wait.Within(t, runTimeout, "no task is left", func(ctx context.Context) error {
		all, err := s.listTasks(ctx, "")
		if err == nil && len(all) > 0 {
			err = fmt.Errorf("%d are there, one is %s %s", len(all), all[0].Name, all[0].Status.GetState())
		}
		return err
	})
	wait.Within(t, runTimeout, "nothing of tasks is left on the machine", func(ctx context.Context) error { return s.clean(ctx) })
}

// clean returns an error if there is anything of a task: a container in any
// state, a process, a supervisor, a directory.
func (s *site) clean(ctx context.Context) error {
	left, err := s.containers(ctx, "")
	if err != nil {
		return err
	}
	for _, c := range left {
		return fmt.Errorf("there is container %s (%s)", c.name, c.state)
	}
	all, err := s.processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.Program != s.binary() && !s.isPlugin(p) {
			return fmt.Errorf("there is %s", p)
		}
	}
	for _, pattern := range []string{"*/executors/process/tasks/*", "dev/*/executors/process/tasks/*"} {
		dirs, err := filepath.Glob(filepath.Join(s.dir, pattern))
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			return fmt.Errorf("there is directory %s", dir)
		}
	}
	return nil
}

// isPlugin tells a plugin from a task's supervisor, which runs the same program:
// a plugin is a child of its worker, as nothing else is.
func (s *site) isPlugin(p rig.Process) bool {
	for name := range s.nodes {
		if p.Parent == s.host(name) {
			return true
		}
	}
	return false
}

// stop: the cluster ends in order, each process by itself, and only what is
// said of nodes stays. A cluster in memory takes its tasks with it.
func (l *life) stop(t *testing.T) {
	if l.devWorkers > 0 {
		l.ok(t, "service", "create", "--name", "last", "--replicas", "3", "--kind", "process", "--timeout", "2m", "--", "sleep", "1000000")
		l.ok(t, "service", "create", "--name", "last-web", "--replicas", "2", "--stop-grace-period", "1s", "--timeout", "2m", l.image, "/bin/sh", "-c", "sleep 1000000")
	}
	ended := slices.Clone(l.workers)
	if l.embedded {
		ended = append(ended, "dev")
	} else {
		ended = append(ended, "apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd")
	}
	for _, name := range ended {
		p := l.Process(name)
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		if code := p.ExitCode(); code != 0 {
			t.Errorf("%s ended with code %d\n%s", name, code, p.Tail())
		}
	}
	left, err := l.processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range left {
		t.Errorf("left behind: %s", p)
	}
	if err := l.clean(t.Context()); err != nil {
		t.Errorf("left behind: %v", err)
	}
	if l.Consul == nil {
		return
	}
	l.forgotten(t)
	found, err := l.openArchive(t).records(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := only(found, tablesOfNodes...); err != nil {
		t.Errorf("left behind: %v", err)
	}
}

// forgotten checks that Consul knows of no session and of no service of ours.
func (l *life) forgotten(t *testing.T) {
	var sessions []any
	l.askConsul(t, "/v1/session/list", &sessions)
	if len(sessions) > 0 {
		t.Errorf("left behind: sessions %v", sessions)
	}
	// The agent tells the servers in its own time; what is left behind it keeps for a
	// minute.
	wait.Within(t, 30*time.Second, "no service is left behind", func(context.Context) error {
		services := map[string]any{}
		l.askConsul(t, "/v1/catalog/services", &services)
		delete(services, "consul")
		if len(services) > 0 {
			return fmt.Errorf("there are %v", services)
		}
		return nil
	})
}

func (l *life) askConsul(t *testing.T, path string, answer any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Consul.Address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}
