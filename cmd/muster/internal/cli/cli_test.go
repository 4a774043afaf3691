package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/musterhq/muster/allocatord"
	"github.com/musterhq/muster/apid"
	"github.com/musterhq/muster/cmd/muster/internal/cli"
	"github.com/musterhq/muster/dispatcherd"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/orchestratord"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/schedulerd"
	testwait "github.com/musterhq/muster/test/kit/wait"
	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
)

// startCluster runs a whole cluster in this process, with one worker whose
// tasks do nothing, and returns the address of its API. Some of the daemons can be
// left out.
func startCluster(t *testing.T, without ...string) string {
	t.Helper()
	return startClusterOf(t, []string{"worker1"}, without...)
}

// startClusterOf does it with workers of these host names, each followed by @ and its
// machine if there is one.
func startClusterOf(t *testing.T, workers []string, without ...string) string {
	t.Helper()
	store, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	host := &daemon.Host{
		KV: store, Prefix: daemon.Prefix, Credentials: daemon.Plain(), Logger: zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)),
		Metrics: prometheus.NewRegistry(), Version: "v1-test", StopTimeout: 2 * time.Second,
	}
	key, err := seal.MakeKey(filepath.Join(t.TempDir(), "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	api, dispatcher := apid.DefaultConfig(), dispatcherd.DefaultConfig()
	api.Keys, dispatcher.Keys = seal.NewKeyring(key), seal.NewKeyring(key)
	addresses := map[string]string{}
	for name, build := range map[string]func(daemon.Env) (daemon.Service, error){
		"apid":          func(env daemon.Env) (daemon.Service, error) { return apid.New(env, api) },
		"orchestratord": func(env daemon.Env) (daemon.Service, error) { return orchestratord.New(env) },
		"allocatord":    func(env daemon.Env) (daemon.Service, error) { return allocatord.New(env) },
		"schedulerd":    func(env daemon.Env) (daemon.Service, error) { return schedulerd.New(env) },
		"dispatcherd":   func(env daemon.Env) (daemon.Service, error) { return dispatcherd.New(env, dispatcher) },
	} {
		if slices.Contains(without, name) {
			continue
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses[name] = listener.Addr().String()
		wg.Go(func() {
			if err := host.Run(ctx, daemon.Spec{Name: name, Listener: listener, Build: build}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	for i, hostname := range workers {
		e, err := null.New(null.Config{})
		if err != nil {
			t.Fatal(err)
		}
		set, err := executor.NewFixed(ctx, contractv1.FromServer(sdk.NewServer(e)))
		if err != nil {
			t.Fatal(err)
		}
		cfg := workerd.DefaultConfig()
		cfg.NodeID, cfg.Dispatchers = fmt.Sprintf("node%d", i+1), []string{addresses["dispatcherd"]}
		cfg.Hostname, cfg.Machine, _ = strings.Cut(hostname, "@")
		w, err := workerd.New(workerd.Env{Logger: zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)), Dial: daemon.Dialer(daemon.Plain().Client), Executors: set}, cfg)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := w.Run(ctx); err != nil {
				t.Errorf("worker: %v", err)
			}
		})
	}
	return addresses["apid"]
}

// shell runs command lines as main does.
type shell struct {
	t       *testing.T
	address string
}

// run returns what a command line prints and its exit code.
func (s *shell) run(input string, args ...string) (out, errs string, code int) {
	s.t.Helper()
	var o, e bytes.Buffer
	c := &cli.CLI{In: strings.NewReader(input), Out: &o, Err: &e, Version: "v1-test"}
	root := &cobra.Command{Use: "muster", SilenceErrors: true, SilenceUsage: true}
	c.AddCommands(root)
	cli.RefuseBadUsage(root)
	if args[0] != "version" {
		args = append([]string{args[0], "--address", s.address}, args[1:]...)
	}
	root.SetArgs(args)
	root.SetOut(&o)
	root.SetErr(&e)
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
	defer cancel()
	err := root.ExecuteContext(ctx)
	if cerr := c.Close(); cerr != nil {
		s.t.Error(cerr)
	}
	if err != nil {
		text, code := c.Explain(err)
		return o.String(), e.String() + text, code
	}
	return o.String(), e.String(), 0
}

// must runs a command line that has to succeed and returns what it prints.
func (s *shell) must(args ...string) string {
	s.t.Helper()
	out, errs, code := s.run("", args...)
	if code != 0 {
		s.t.Fatalf("muster %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func (s *shell) contains(out string, wants ...string) {
	s.t.Helper()
	for _, w := range wants {
		if !strings.Contains(out, w) {
			s.t.Errorf("output lacks %q:\n%s", w, out)
		}
	}
}

// waitForNode waits until the worker has joined.
func (s *shell) waitForNode() {
	s.t.Helper()
	testwait.True(s.t, "the worker has joined", func() bool {
		out, _, _ := s.run("", "node", "ls", "--format", "{{.status.state}}")
		return strings.TrimSpace(out) == "READY"
	})
}

func TestCommands(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()

	out, errs, code := s.run("", "service", "create", "--name", "web", "--replicas", "3", "--kind", "null", "--label", "team=a")
	if code != 0 {
		t.Fatalf("create: exit code %d: %s", code, errs)
	}
	id := strings.TrimSpace(out)
	s.contains(errs, "web: 3/3 running: converged")

	s.contains(s.must("service", "ls"), "web", "replicated", "3/3", "null")
	s.contains(s.must("service", "ls", "--filter", "label=team=a", "-q"), id)
	if out := s.must("service", "ls", "--filter", "label=team=b", "-q"); out != "" {
		t.Errorf("a filter that matches nothing lists %q", out)
	}
	s.contains(s.must("service", "ls", "--format", "{{range .spec.task.generic.payload}}{{.whatever}}{{end}}{{.meta.createdAt}}"), "20")
	s.contains(s.must("service", "ls", "--format", "{{.spec.name}}:{{.status.runningTasks}}"), "web:3\n")
	s.contains(s.must("service", "ls", "--format", "{{.spec.name}}:{{.spec.task.container.image}}"), "web:<no value>\n")
	var services []map[string]any
	if err := json.Unmarshal([]byte(s.must("service", "ls", "--format", "json")), &services); err != nil || len(services) != 1 {
		t.Errorf("--format json: %d services, %v", len(services), err)
	}
	s.contains(s.must("service", "inspect", "web"), id, `"converged": true`)
	s.contains(s.must("service", "ps", "web"), "web.1", "web.3", "worker1", "Running")
	s.contains(s.must("task", "ls", "--filter", "service=web", "--filter", "state=running"), "web.2")
	task := strings.Fields(s.must("task", "ls", "-q"))[0]
	s.contains(s.must("task", "inspect", task), "requested", "created", "orchestratord", "assigned", "schedulerd", "sent", "dispatcherd", "running", "workerd", "recorded")
	s.contains(s.must("task", "inspect", task, "--format", "json"), `"timeline"`, `"ASSIGNED"`, `"stages"`, `"took"`)

	s.contains(s.must("service", "scale", "web=5"), "web scaled to 5")
	s.contains(s.must("service", "ls"), "5/5")
	s.must("service", "update", "--force", "--label-add", "x=y", "--label-rm", "team", "web")
	s.contains(s.must("service", "inspect", "web", "--format", "{{json .spec.labels}} {{.spec.task.forceUpdate}}"), `{"x":"y"} 1`)
	if got := strings.Count(s.must("task", "ls", "--filter", "desired-state=running", "-q"), "\n"); got != 5 {
		t.Errorf("%d tasks are to run after the update, want 5", got)
	}

	s.contains(s.must("node", "ls"), "worker1", "Ready", "Active", "null")
	s.must("node", "update", "--availability", "drain", "--label-add", "disk=ssd", "worker1")
	s.contains(s.must("node", "inspect", "worker1"), `"DRAIN"`, `"disk": "ssd"`)
	s.must("node", "update", "--availability", "active", "worker1")
	s.contains(s.must("plugin", "ls"), "worker1", "null", "Healthy")
	s.contains(s.must("cluster", "inspect"), "schedulerd", `"services": "1"`)
	s.contains(s.must("version"), "v1-test")

	s.contains(s.must("service", "rm", "web"), "web")
	if out := s.must("service", "ls", "-q"); out != "" {
		t.Errorf("services after rm: %q", out)
	}
}

// TestWaitsUntilTasksStay sees that tasks that end at once are no success.
func TestWaitsUntilTasksStay(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	_, errs, code := s.run("", "service", "create", "--name", "brief", "--kind", "null", "--timeout", "8s", "--payload", `{"runFor": "500ms", "exitCode": 3}`)
	if code != cli.ExitNotConverged || strings.Contains(errs, ": converged") {
		t.Errorf("a service whose tasks end at once: exit code %d, want %d:\n%s", code, cli.ExitNotConverged, errs)
	}
	s.contains(errs, "1/1 running", "failed", "muster service ps brief")
}

// TestGlobalUpdateEndsBesideNodesThatAreNotActive sees that what an update leaves
// alone is not waited for.
func TestGlobalUpdateEndsBesideNodesThatAreNotActive(t *testing.T) {
	s := &shell{t, startClusterOf(t, []string{"worker1", "worker2", "worker3"})}
	s.waitForNodes(3)
	s.must("service", "create", "--name", "agent", "--mode", "global", "--kind", "null")
	s.must("node", "update", "--availability", "pause", "worker2")
	s.must("node", "update", "--availability", "drain", "worker3")
	s.must("service", "update", "--force", "--timeout", "2m", "agent")
	s.contains(s.must("service", "inspect", "agent", "--format", "{{.updateStatus.state}} {{.status.converged}} {{.status.runningTasks}}/{{.status.desiredTasks}}"), "COMPLETED true 2/2")
	s.must("service", "update", "--force", "--update-order", "start-first", "--timeout", "2m", "agent")
}

func TestSpecFiles(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	path := filepath.Join(t.TempDir(), "service.yaml")
	spec := "name: filed\nreplicated: {replicas: 2}\ntask: {generic: {kind: 'null', payload: {}}}\n"
	if err := os.WriteFile(path, []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	s.must("service", "create", "--file", path, "--label", "from=file")
	s.contains(s.must("service", "inspect", "filed"), `"replicas": "2"`, `"from": "file"`)
	out, errs, code := s.run(strings.Replace(spec, "2}", "4}", 1), "service", "update", "--file", "-", "filed")
	if code != 0 {
		t.Fatalf("update from standard input: %d %s %s", code, out, errs)
	}
	s.contains(s.must("service", "ls"), "4/4")
	_, errs, code = s.run("name: x\nreplicass: 3\n", "service", "create", "--file", "-")
	if code != cli.ExitUsage || !strings.Contains(errs, "replicass") {
		t.Errorf("a field that does not exist: exit code %d, %q; want %d and its name", code, errs, cli.ExitUsage)
	}
}

func TestErrors(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	s.must("service", "create", "--name", "taken", "--kind", "null", "--detach")
	tests := map[string]struct {
		args []string
		code int
		want string
	}{
		"nothing to run":      {[]string{"service", "create", "--name", "x"}, cli.ExitUsage, "IMAGE"},
		"unknown flag":        {[]string{"service", "create", "--nmae", "x"}, cli.ExitUsage, "--nmae"},
		"bad number":          {[]string{"service", "create", "--replicas", "-1", "--kind", "null"}, cli.ExitUsage, "not a whole number"},
		"unknown command":     {[]string{"service", "rmm"}, cli.ExitUsage, "Did you mean rm?"},
		"nothing to inspect":  {[]string{"service", "inspect"}, cli.ExitUsage, "inspect SERVICE..."},
		"bad mode":            {[]string{"service", "create", "--name", "x", "--mode", "some", "--kind", "null"}, cli.ExitUsage, "replicated, global"},
		"replicas of global":  {[]string{"service", "create", "--name", "x", "--mode", "global", "--replicas", "2", "--kind", "null"}, cli.ExitUsage, "--replicas"},
		"bad port":            {[]string{"service", "create", "--name", "x", "--publish", "99999:80", "img"}, cli.ExitUsage, "99999"},
		"bad mount":           {[]string{"service", "create", "--name", "x", "--mount", "typ=bind", "img"}, cli.ExitUsage, "typ"},
		"bad payload":         {[]string{"service", "create", "--name", "x", "--kind", "null", "--payload", "{"}, cli.ExitUsage, "JSON"},
		"env of no container": {[]string{"service", "create", "--name", "x", "--kind", "null", "--mount", "target=/x"}, cli.ExitUsage, "--mount"},
		"refused by the API":  {[]string{"service", "create", "--name", "not valid!", "--kind", "null"}, cli.ExitUsage, "--name: "},
		"unknown executor":    {[]string{"service", "create", "--name", "x", "--kind", "wasm"}, cli.ExitUsage, "wasm"},
		"name taken":          {[]string{"service", "create", "--name", "Taken", "--kind", "null"}, cli.ExitConflict, "aken"},
		"not found":           {[]string{"service", "inspect", "unknown"}, cli.ExitNotFound, "unknown"},
		"node not found":      {[]string{"node", "update", "--availability", "drain", "unknown"}, cli.ExitNotFound, "unknown"},
		"ready node":          {[]string{"node", "rm", "worker1"}, cli.ExitUsage, "worker1"},
		"bad scale":           {[]string{"service", "scale", "taken=many"}, cli.ExitUsage, "SERVICE=REPLICAS"},
		"bad filter":          {[]string{"service", "ls", "--filter", "colour=red"}, cli.ExitUsage, "label"},
		"no such field":       {[]string{"service", "ls", "--format", "{{if .id}}{{.Name}}{{end}}"}, cli.ExitUsage, "spec"},
		"no such format":      {[]string{"service", "ls", "--format", "yaml"}, cli.ExitUsage, "json"},
		"no such command":     {[]string{"service", "crate"}, cli.ExitUsage, "create"},
		"no argument":         {[]string{"task", "inspect"}, cli.ExitUsage, "inspect TASK"},
		"an argument more":    {[]string{"node", "ls", "worker1"}, cli.ExitUsage, "node ls"},
		"flags of containers": {[]string{"service", "update", "--cap-add", "NET_ADMIN", "taken"}, cli.ExitUsage, "null"},
		"no words":            {[]string{"service", "create", "--name", "x", "--kind", "process"}, cli.ExitUsage, "command"},
		"both not found":      {[]string{"service", "rm", "unknown", "noone"}, cli.ExitNotFound, "there is no service \"noone\""},
		"the port forgotten":  {[]string{"service", "ls", "-A", "somewhere"}, cli.ExitUsage, "host:port"},
		"half of TLS":         {[]string{"service", "ls", "--tls-cert-file", "c.pem"}, cli.ExitUsage, "--tls-key-file"},
		"the image as value":  {[]string{"service", "create", "--name", "x", "--init=perhaps", "img"}, cli.ExitUsage, "neither true nor false"},
		"bad template":        {[]string{"service", "ls", "--format", "{{"}, cli.ExitUsage, "--format"},
		"not converged":       {[]string{"service", "create", "--name", "big", "--kind", "null", "--reserve-cpu", "100000", "--timeout", "5s"}, cli.ExitNotConverged, "insufficient CPU on 1 node: want 100000, at most "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, errs, code := (&shell{t, s.address}).run("", tt.args...)
			if code != tt.code || !strings.Contains(errs, tt.want) {
				t.Errorf("muster %s: exit code %d, want %d, and %q in:\n%s%s", strings.Join(tt.args, " "), code, tt.code, tt.want, out, errs)
			}
		})
	}
}

func TestClusterAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, errs, code := (&shell{t, address}).run("", "service", "ls")
	if code != cli.ExitUnavailable || !strings.Contains(errs, address) || !strings.Contains(errs, "muster dev") {
		t.Errorf("exit code %d, want %d, the address and what to do: %s", code, cli.ExitUnavailable, errs)
	}
}

func TestControlCharactersAreNotPrinted(t *testing.T) {
	s := &shell{t, startCluster(t)}
	s.waitForNode()
	s.must("service", "create", "--name", "sly", "--kind", "null", "--detach", "--payload", `{"failPrepare": "red \u001b[31m alert"}`)
	var out string
	testwait.True(t, "the task's error shows", func() bool {
		out = s.must("service", "ps", "--no-trunc", "sly")
		return strings.Contains(out, "alert")
	})
	if strings.Contains(out, "\x1b") {
		t.Errorf("an escape sequence of a task's error reaches the terminal: %q", out)
	}
}
