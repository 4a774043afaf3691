package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// look: the nodes are there, with all executors that ship.
func (l *life) look(t *testing.T) {
	if got := l.ok(t, "cluster", "inspect", "--format", "{{.status.readyNodes}}"); strings.TrimSpace(got) != "3" {
		t.Errorf("cluster inspect says that %q nodes are ready, want 3", got)
	}
	wait.Within(t, runTimeout, "all executors are healthy", func(ctx context.Context) error {
		list := l.ok(t, "plugin", "ls", "--format", "{{.hostname}} {{.executor.name}} {{.executor.health}}")
		for name := range l.nodes {
			for _, executor := range []string{"docker", "process", "null"} {
				if want := name + " " + executor + " HEALTHY\n"; !strings.Contains(list, want) {
					return fmt.Errorf("no %q in\n%s", want, list)
				}
			}
		}
		return nil
	})
}

// tick is what the process service runs: it counts.
const tick = `n=0; while :; do n=$((n+1)); echo "tick $n in $COLOR"; sleep 0.2; done`

func (l *life) deployProcesses(t *testing.T) {
	out := l.muster(t, "service", "create", "--name", "ticker", "--replicas", "3", "--label", "test=e2e",
		"--kind", "process", "--env", "COLOR=blue", "--update-parallelism", "0", "--update-monitor", "1s", "--timeout", "2m", "--", "/bin/sh", "-c", tick)
	if out.code != 0 || !strings.Contains(out.errs, "3/3 running: converged") {
		t.Fatalf("service create: %s", out)
	}
	run := l.awaitRunning(t, "ticker", 3)
	nodes := map[string]bool{}
	for _, task := range run {
		nodes[task.NodeId] = true
		l.checkProcess(t, task, "blue")
	}
	if len(nodes) != 3 {
		t.Errorf("3 tasks run on %d nodes, want them spread over 3", len(nodes))
	}
}

// checkProcess looks at the process of a task.
func (l *life) checkProcess(t *testing.T, task *musterv1.Task, color string) {
	t.Helper()
	p, ok := rig.ReadProcess(int(task.Status.Runtime.GetPid()))
	for _, variable := range []string{"MUSTER_TASK_ID=" + task.Id, "MUSTER_NODE_ID=" + task.NodeId, "COLOR=" + color} {
		if !ok || !slices.Contains(p.Env, variable) {
			t.Errorf("task %s says that it is process %d, which has no %s", task.Name, task.Status.Runtime.GetPid(), variable)
		}
	}
}

// web is the spec of a service of containers, as REST has it. All nodes are one
// machine here, so each task's port outside is one that is free.
func (l *life) web(color string) map[string]any {
	return map[string]any{
		"name":       "web",
		"replicated": map[string]any{"replicas": 3},
		"update":     map[string]any{"parallelism": 0, "monitor": "1s"},
		"task": map[string]any{
			"container": map[string]any{
				"image":           l.image,
				"args":            []string{"/bin/sh", "-c", `trap "exit 0" TERM; httpd -p 8080 -h /www; while :; do echo "web in $COLOR"; sleep 0.2; done`},
				"env":             []string{"COLOR=" + color},
				"pullOptions":     map[string]any{"policy": "NEVER"},
				"stopGracePeriod": "5s",
			},
			"restart": map[string]any{"delay": "0.5s"},
		},
		"endpoint": map[string]any{"ports": []any{map[string]any{"targetPort": 8080, "publishMode": "HOST"}}},
	}
}

func (l *life) deployContainers(t *testing.T) {
	code, answer := l.rest(t, http.MethodPost, "/v1/services", l.web("blue"))
	if code != http.StatusOK || answer["id"] == "" {
		t.Fatalf("create web: %d %v", code, answer)
	}
	l.checkContainers(t, l.awaitRunning(t, "web", 3))
}

// checkContainers looks at the containers of tasks, and asks each for its page.
func (l *life) checkContainers(t *testing.T, run tasks) {
	t.Helper()
	running, err := l.containers(t.Context(), "running")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range run {
		if c := running[task.Status.Runtime.GetId()]; c.task != task.Id || c.name != task.Name || c.node != task.NodeId {
			t.Errorf("task %s says that it is container %s, which is %+v", task.Name, task.Status.Runtime.GetId(), c)
		}
		if len(task.Status.Ports) != 1 {
			t.Errorf("task %s holds ports %v, want one", task.Name, task.Status.Ports)
			continue
		}
		port := task.Status.Ports[0].PublishedPort
		wait.Within(t, runTimeout, fmt.Sprintf("port %d of %s answers", port, task.Name), func(ctx context.Context) error { return fetchPage(ctx, port) })
	}
	if len(running) != len(run) {
		t.Errorf("%d containers run, want %d: %v", len(running), len(run), running)
	}
}

func fetchPage(ctx context.Context, port uint32) (err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		"http://"+net.JoinHostPort("127.0.0.1", strconv.FormatUint(uint64(port), 10))+"/index.html", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != page {
		return fmt.Errorf("%s: %q, %w", resp.Status, got, err)
	}
	return nil
}

func (l *life) deployGlobal(t *testing.T) {
	payload, err := structpb.NewStruct(map[string]any{"command": []any{"sleep", "1000000"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.client.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: &musterv1.ServiceSpec{
		Name: "agent",
		Task: &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "process", Payload: payload}}},
		Mode: &musterv1.ServiceSpec_Global{Global: &musterv1.GlobalService{}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string]bool{}
	for _, task := range l.awaitRunning(t, "agent", 3) {
		nodes[task.NodeId] = true
	}
	if len(nodes) != 3 {
		t.Errorf("the global service runs on %d nodes, want 3", len(nodes))
	}
}

// session: the example that shows REST does what it says, and checks it itself.
func (l *life) session(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	got := l.command(t, exec.CommandContext(ctx, "../../examples/rest/session.sh", "session"))
	if got.code != 0 || !strings.Contains(got.out, "all as it should be") {
		t.Fatalf("session.sh: %s", got)
	}
}

// scale uses each of the three ways once.
func (l *life) scale(t *testing.T) {
	before := l.awaitRunning(t, "ticker", 3)
	l.ok(t, "service", "scale", "ticker=10", "--timeout", "2m")
	ten := l.awaitRunning(t, "ticker", 10)
	for id, task := range before {
		if ten[id] == nil {
			t.Errorf("task %s did not survive scaling up", task.Name)
		}
	}
	if code, answer := l.rest(t, http.MethodPost, "/v1/services/ticker:scale", map[string]any{"replicas": "2"}); code != http.StatusOK {
		t.Fatalf("scale ticker: %d %v", code, answer)
	}
	for id, task := range l.awaitRunning(t, "ticker", 2) {
		if ten[id] == nil {
			t.Errorf("task %s is new after scaling down", task.Name)
		}
	}
	l.awaitProcesses(t, "ticker", 2)
	if _, err := l.client.ScaleService(t.Context(), &musterv1.ScaleServiceRequest{Service: "ticker", Replicas: 6}); err != nil {
		t.Fatal(err)
	}
	l.awaitRunning(t, "ticker", 6)
}

// awaitProcesses waits until as many commands of a service run on the machine as
// should.
func (l *life) awaitProcesses(t *testing.T, service string, n int) {
	t.Helper()
	wait.Within(t, runTimeout, fmt.Sprintf("%d processes of %s", n, service), func(ctx context.Context) error {
		all, err := l.processes()
		if err != nil {
			return err
		}
		leaders := map[string]bool{}
		for _, p := range all {
			if p.Task != "" && slices.Contains(p.Env, "MUSTER_SERVICE_NAME="+service) {
				leaders[p.Task] = true
			}
		}
		if len(leaders) != n {
			return fmt.Errorf("there are processes of %d tasks", len(leaders))
		}
		return nil
	})
}
