//go:build linux

package process_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/executortest"
	"github.com/musterhq/muster/plugins/internal/thread"
	"github.com/musterhq/muster/plugins/process/internal/proc"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// forever runs until it is asked to stop.
const forever = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

// checkedSpec returns a task with a health check that runs often.
func checkedSpec(t testing.TB, payload, check map[string]any) *musterv1.TaskSpec {
	t.Helper()
	all := map[string]any{"interval": "50ms", "timeout": "1m", "retries": 2}
	for key, value := range check {
		all[key] = value
	}
	payload["healthcheck"] = all
	return spec(t, payload)
}

// startAside calls Start, and returns what receives its error.
func (b *bench) startAside() <-chan error {
	started := make(chan error, 1)
	go func() {
		_, err := b.Start(b.Context(), b.task, nil)
		started <- err
	}()
	return started
}

// observed returns the first observation that is wanted.
func (b *bench) observed(wanted func(sdk.Observation) bool) sdk.Observation {
	b.Helper()
	var last sdk.Observation
	found := errors.New("found")
	if err := b.Observe(b.Context(), b.ref, func(o sdk.Observation) error {
		if last = o; wanted(o) {
			return found
		}
		return nil
	}); !errors.Is(err, found) {
		b.Fatalf("Observe ends with %v after %+v", err, last)
	}
	return last
}

func hasFailed(o sdk.Observation) bool { return o.Status.GetHealth().GetFailedChecks() > 0 }

func TestStartWaitsForHealthCheck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := newBench(t, checkedSpec(t, map[string]any{"shell": forever, "dir": dir},
		map[string]any{"command": []any{"ls", "ready"}, "retries": 100_000}))
	if _, err := b.Prepare(t.Context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	started := b.startAside()
	last := b.observed(hasFailed)
	health := last.Status.GetHealth()
	if health.GetState() != sdk.HealthStarting || health.GetRetries() != 100_000 || health.GetExitCode() != 2 || !strings.Contains(health.GetOutput(), "ready") {
		t.Errorf("health during Start = %v, want it starting with exit code 2 and the output of ls", health)
	}
	want := fmt.Sprintf("%d of 100000 health checks failed: exit code 2: %s", health.GetFailedChecks(), health.GetOutput())
	if last.Message != "waiting for the health check" || last.Error != want {
		t.Errorf("Observe = %q, %q; want it waiting, and %q", last.Message, last.Error, want)
	}
	select {
	case err := <-started:
		t.Fatalf("Start returned %v before a check has succeeded", err)
	default:
	}
	if err := os.WriteFile(filepath.Join(dir, "ready"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	again, err := b.Start(t.Context(), b.task, nil)
	if err != nil || again.Status.GetHealth().GetState() != sdk.HealthHealthy || again.Status.GetHealth().GetOutput() != "" {
		t.Errorf("Start of a healthy task = %v, %v", again, err)
	}
	if listed, err := b.List(t.Context(), "n1"); err != nil || len(listed) != 1 || listed[0].Status.GetHealth().GetState() != sdk.HealthHealthy {
		t.Errorf("List = %v, %v; want a healthy task", listed, err)
	}
}

func TestStartOfUnhealthyTaskFails(t *testing.T) {
	t.Parallel()
	b := newBench(t, checkedSpec(t, map[string]any{"shell": forever}, map[string]any{"shell": "echo no good; exit 3"}))
	if _, err := b.Prepare(t.Context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := b.Start(t.Context(), b.task, nil)
		var fault *wire.Error
		const want = "the process is unhealthy: its health check ended with exit code 3: no good"
		if !errors.As(err, &fault) || fault.Temporary || fault.Error() != want {
			t.Errorf("Start = %v, want %q", err, want)
		}
	}
	if n := running(t, b.ref.TaskID); n > 0 {
		t.Errorf("%d processes of the unhealthy task still run", n)
	}
}

func TestTaskThatBecomesUnhealthyIsStopped(t *testing.T) {
	t.Parallel()
	const stops = "trap 'exit 7' USR2; while :; do sleep 0.05; done"
	fails := map[string]any{"shell": "! test -e sick || { printf 'sick \\033[31m\\n dog'; exit 4; }"}
	hangs := map[string]any{
		"shell": "! test -e sick || { echo sick; sleep 1000 & sleep 1000; }", "timeout": "2s", "startPeriod": "1h", "startInterval": "50ms",
	}
	for name, test := range map[string]struct {
		shell    string
		check    map[string]any
		code     int32
		wantCode int32
		want     string
	}{
		"by its stop signal":            {stops, fails, 7, 4, "sick [31m dog"},
		"after its grace period":        {"trap '' USR2; while :; do sleep 0.05; done", fails, 128 + 9, 4, "sick [31m dog"},
		"because its checks do not end": {stops, hangs, 7, -1, "the health check took longer than 2s: sick"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			b := newBench(t, checkedSpec(t, map[string]any{
				"shell": test.shell, "dir": dir, "stopSignal": "USR2", "stopGracePeriod": "1s",
			}, test.check))
			b.run()
			if err := os.WriteFile(filepath.Join(dir, "sick"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("unhealthy: its health check ended with exit code %d: %s", test.wantCode, test.want)
			for range 2 {
				ended := b.wait()
				health := ended.Status.GetHealth()
				if ended.Error != want || ended.Status.GetExitCode() != test.code {
					t.Errorf("Wait = %q, exit code %d; want %q, %d", ended.Error, ended.Status.GetExitCode(), want, test.code)
				}
				if health.GetState() != sdk.HealthUnhealthy || health.GetFailedChecks() != 2 || health.GetOutput() != test.want {
					t.Errorf("health after the end = %v", health)
				}
			}
			if again, err := b.Start(t.Context(), b.task, nil); err != nil || again.Status.GetExitCode() != test.code {
				t.Errorf("Start of a task that has run = %v, %v", again, err)
			}
		})
	}
}

func TestTaskThatIsStoppingIsNotUnhealthy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := newBench(t, checkedSpec(t, map[string]any{"shell": "trap 'touch sick; sleep 1; exit 0' TERM; while :; do sleep 0.05; done", "dir": dir},
		map[string]any{"shell": "! test -e sick"}))
	b.run()
	if _, err := b.Shutdown(t.Context(), b.ref, new(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if ended := b.wait(); ended.Error != "" || ended.Status.GetExitCode() != 0 || ended.Status.GetHealth() != nil {
		t.Errorf("Wait = %+v, want success without health", ended)
	}
}

func TestTaskThatEndsBeforeItIsHealthyHasStarted(t *testing.T) {
	t.Parallel()
	b := newBench(t, checkedSpec(t, map[string]any{"shell": "sleep 0.2; exit 9"}, map[string]any{"shell": "exit 1", "retries": 100_000}))
	b.run()
	if ended := b.wait(); ended.Status.GetExitCode() != 9 || ended.Error != "" {
		t.Errorf("Wait = %+v, want exit code 9", ended)
	}
}

func TestFailuresInStartPeriodDoNotCount(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := newBench(t, checkedSpec(t, map[string]any{"shell": forever, "dir": dir}, map[string]any{
		"shell": "echo x >>checks; test $(wc -l <checks) -ge 5", "interval": "1h", "startPeriod": "1h", "startInterval": "20ms", "retries": 1,
	}))
	if _, err := b.Prepare(t.Context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	started := b.startAside()
	last := b.observed(func(o sdk.Observation) bool {
		return o.Error != "" || o.Status.GetHealth().GetState() != sdk.HealthStarting
	})
	if err := <-started; err != nil {
		t.Errorf("Start = %v, want success after the fifth check", err)
	}
	if hasFailed(last) {
		t.Errorf("observation in the start period = %+v, want no failed checks", last)
	}
}

func TestHealthCheckRunsAsItsTask(t *testing.T) {
	t.Parallel()
	surroundings := "pwd; id -u; id -g; echo $A $MUSTER_TASK_ID; readlink /proc/self/ns/net; cat /etc/resolv.conf /proc/self/cgroup"
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	b, path := networked(t, checkedSpec(t, map[string]any{
		"shell": "{ " + surroundings + "; } >task; touch written; " + forever, "dir": dir, "user": "65534", "env": []any{"A=b"},
	}, map[string]any{
		"shell":   "{ " + surroundings + "; } >check.new; ls -l /proc/self/fd | wc -l >files.new; mv check.new check; mv files.new files; test -e written",
		"retries": 100_000,
	}))
	if _, err := b.Prepare(t.Context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.SetNetwork(t.Context(), b.task, nil, &sdk.Network{Namespace: path, Nameservers: []string{"169.254.1.1"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Start(t.Context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	if task, check := read("task"), read("check"); task != check || !strings.Contains(check, "169.254.1.1") || !strings.Contains(check, "b "+b.ref.TaskID) {
		t.Errorf("the task sees %q, and its check %q", task, check)
	}
	// The three standard files, ls's own, and its line of a total.
	if files := strings.TrimSpace(read("files")); files != "5" {
		t.Errorf("ls -l lists %s lines of open files, want 5", files)
	}
}

// listenIn listens on a port of 127.0.0.1 in a network namespace.
func listenIn(t *testing.T, path, address string) net.Listener {
	t.Helper()
	var listener net.Listener
	if err := thread.Run(func() error {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		listener, err = net.Listen("tcp4", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return listener
}

func TestTCPCheckConnectsInNetworkOfTask(t *testing.T) {
	t.Parallel()
	b, path := networked(t, checkedSpec(t, map[string]any{"shell": forever}, map[string]any{
		"tcp": 80, "retries": 2, "startPeriod": "1h", "startInterval": "50ms",
	}))
	if _, err := b.Prepare(t.Context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.SetNetwork(t.Context(), b.task, nil, &sdk.Network{Namespace: path}); err != nil {
		t.Fatal(err)
	}
	started := b.startAside()
	b.observed(func(o sdk.Observation) bool { return o.Error != "" })
	listener := listenIn(t, path, "127.0.0.1:80")
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	const want = "unhealthy: its health check ended with exit code 1: dial tcp4 127.0.0.1:80: connect: connection refused"
	if ended := b.wait(); ended.Error != want {
		t.Errorf("Wait = %+v, want %q", ended, want)
	}
}

func TestTCPCheckOfTargetPortConnectsToChosenPort(t *testing.T) {
	t.Parallel()
	b := newBench(t, checkedSpec(t, map[string]any{"shell": forever}, map[string]any{"tcp": 80, "retries": 100_000}))
	b.task.Ports = []*sdk.Port{{TargetPort: 80, PublishMode: musterv1.PortConfig_HOST}}
	if _, err := b.Prepare(t.Context(), b.task, nil); err != nil {
		t.Fatal(err)
	}
	var planned struct{ Ports []struct{ Published int } }
	raw, err := os.ReadFile(filepath.Join(b.dir, "tasks", b.ref.TaskID, "spec.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &planned); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", planned.Ports[0].Published))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if _, err := b.Start(t.Context(), b.task, nil); err != nil {
		t.Errorf("Start = %v", err)
	}
}

func TestHealthChecksEndWithTheirTask(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*bench) error{
		"terminated": func(b *bench) error {
			_, err := b.Terminate(b.Context(), b.ref)
			return err
		},
		"without a supervisor": func(b *bench) error { return proc.Kill(b.supervisor()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			b := newBench(t, checkedSpec(t, map[string]any{"shell": forever, "dir": dir},
				map[string]any{"shell": "setsid sleep 1000 & test ! -e second || exec sleep 1000; touch second"}))
			b.run()
			if err := end(b); err != nil {
				t.Fatal(err)
			}
			b.wait()
			if found := members(t, b.ref.TaskID); len(found) > 0 {
				t.Errorf("there still run %v", found)
			}
		})
	}
}

func TestKilledExecutorKeepsHealthChecks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plugin := &realPlugin{T: t, Plugin: executortest.StartPlugin(t, wire.StateDirKey+"="+t.TempDir())}
	task := &sdk.Task{
		Id: fmt.Sprintf("t%d", time.Now().UnixNano()), NodeId: "n1",
		Spec: checkedSpec(t, map[string]any{"shell": "echo x >>starts; " + forever, "dir": dir}, map[string]any{"shell": "! test -e sick", "retries": 20}),
	}
	plugin.run(task)
	plugin.Restart()
	stream, err := plugin.Service().Observe(t.Context(), &executorv1.ObserveRequest{TaskId: task.Id})
	if err != nil {
		t.Fatal(err)
	}
	var states []musterv1.Health_State
	for {
		said, err := stream.Recv()
		if err != nil {
			break
		}
		if state := said.GetRuntime().GetHealth().GetState(); !slices.Contains(states, state) {
			states = append(states, state)
			if err := os.WriteFile(filepath.Join(dir, "sick"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(states) == 0 || states[0] != sdk.HealthHealthy {
		t.Errorf("the new executor observes %v, want HEALTHY first", states)
	}
	ended, err := plugin.Service().Wait(t.Context(), &executorv1.WaitRequest{TaskId: task.Id})
	if err != nil || !strings.HasPrefix(ended.GetError(), "unhealthy: ") {
		t.Errorf("Wait of the new executor = %v, %v; want the task unhealthy", ended, err)
	}
	if starts, err := os.ReadFile(filepath.Join(dir, "starts")); err != nil || string(starts) != "x\n" {
		t.Errorf("the task was started %q times, %v", starts, err)
	}
}

func TestHealthCheckFieldErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		check map[string]any
		want  string
	}{
		"none":             {map[string]any{}, "healthcheck: it must have exactly one of command, shell and tcp"},
		"two":              {map[string]any{"shell": "true", "tcp": 80}, "healthcheck: it must have exactly one of command, shell and tcp"},
		"no program":       {map[string]any{"command": []any{"no-such-program"}}, `healthcheck.command: there is no program "no-such-program" here`},
		"zero byte":        {map[string]any{"shell": "a\x00"}, "healthcheck.command: "},
		"no port":          {map[string]any{"tcp": 65536}, "healthcheck.tcp: "},
		"interval":         {map[string]any{"tcp": 80, "interval": "1us"}, "healthcheck.interval: it must be 0s or at least 1ms"},
		"timeout":          {map[string]any{"tcp": 80, "timeout": "-1s"}, "healthcheck.timeout: "},
		"start period":     {map[string]any{"tcp": 80, "startPeriod": 3}, "healthcheck.startPeriod: "},
		"start interval":   {map[string]any{"tcp": 80, "startInterval": "1ns"}, "healthcheck.startInterval: "},
		"retries":          {map[string]any{"tcp": 80, "retries": 1.5}, "healthcheck.retries: "},
		"an unknown field": {map[string]any{"udp": 80}, "healthcheck.udp: "},
	} {
		b := newBench(t, spec(t, map[string]any{"shell": "true", "healthcheck": test.check}))
		if _, err := b.Prepare(t.Context(), b.task, nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Prepare = %v, want %q", name, err, test.want)
		}
	}
}

func TestObserveEndsWithoutHealthCheck(t *testing.T) {
	t.Parallel()
	b := newBench(t, spec(t, map[string]any{"shell": forever}))
	b.run()
	if err := b.Observe(t.Context(), b.ref, func(o sdk.Observation) error {
		t.Errorf("Observe reports %+v", o)
		return nil
	}); err != nil {
		t.Error(err)
	}
}
