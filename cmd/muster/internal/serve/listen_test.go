package serve

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/musterhq/muster/internal/daemon"
)

// occupied returns a listener of this machine, which is open until the test ends.
func occupied(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// operations serves the operations of a replica until the test ends.
func operations(t *testing.T, replica string) string {
	t.Helper()
	l := occupied(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	task := serveOps(replica, l, &daemon.Settings{StopTimeout: time.Second}, prometheus.NewRegistry(), func() error { return nil }, nil,
		func(next http.Handler) http.Handler { return next })
	go func() { ended <- task.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// TestFreePortsAreTakenBesideAReplicaOnly opens a listener at a port that is in use, by
// another replica of the daemon or by something else.
func TestFreePortsAreTakenBesideAReplicaOnly(t *testing.T) {
	silent := occupied(t)
	if err := silent.Close(); err != nil {
		t.Fatal(err)
	}
	page := occupied(t)
	served := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
	go func() { _ = served.Serve(page) }()
	t.Cleanup(func() { _ = served.Close() })
	replica := operations(t, "schedulerd "+clusterID(daemon.Plain(), "127.0.0.1:8500", "", "muster"))
	moved := occupied(t)
	moving := &http.Server{Handler: http.RedirectHandler("http://"+replica+"/livez", http.StatusFound), ReadHeaderTimeout: time.Second}
	go func() { _ = moving.Serve(moved) }()
	t.Cleanup(func() { _ = moving.Close() })
	for name, test := range map[string]struct {
		ops   string
		given bool
		want  string // in the error; empty: a free port is taken
	}{
		"a replica":                     {ops: replica},
		"a replica of the last version": {ops: operations(t, "schedulerd")},
		"a replica that names its peers in another order": {ops: operations(t, "schedulerd "+clusterID(daemon.Plain(), "muster", "", "127.0.0.1:8500"))},
		"a replica, and the flag is given":                {ops: replica, given: true, want: "--rest-listen: listen tcp "},
		"a replica of another cluster":                    {ops: operations(t, "schedulerd "+clusterID(daemon.Plain(), "127.0.0.1:8500", "", "staging")), want: "something other than a replica of schedulerd of this cluster"},
		"a redirect to a replica":                         {ops: moved.Addr().String(), want: "something other than a replica of schedulerd"},
		"another daemon":                                  {ops: operations(t, "apid "+clusterID(daemon.Plain(), "127.0.0.1:8500", "", "muster")), want: "something other than a replica of schedulerd"},
		"a cluster in one process":                        {ops: operations(t, "dev"), want: "something other than a replica of schedulerd"},
		"another program":                                 {ops: page.Addr().String(), want: "give --rest-listen another port"},
		"nothing answers":                                 {ops: silent.Addr().String(), want: "none answers at " + silent.Addr().String()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			core, logs := observer.New(zap.WarnLevel)
			taken := occupied(t).Addr().String()
			o := newListening("schedulerd", clusterID(daemon.Plain(), "127.0.0.1:8500", "", "muster"), 0,
				&daemon.Settings{Given: func(string) bool { return test.given }}, zap.New(core))
			o.ops = test.ops
			l, err := o.open(t.Context(), "rest-listen", taken)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("the error is %v, want %q in it", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			lines := logs.FilterField(zap.String("address", l.Addr().String())).FilterField(zap.String("flag", "--rest-listen")).All()
			if len(lines) != 1 || lines[0].Level != zap.WarnLevel {
				t.Errorf("the log has %v, want one warning with the address", logs.All())
			}
		})
	}
}

// TestErrorsNameTheirTaskOnce starts a worker that cannot use its data directory.
func TestErrorsNameTheirTaskOnce(t *testing.T) {
	cmd := workerCommand("v1-test")
	cmd.SetArgs([]string{"--dispatcher", "127.0.0.1:1", "--data-dir", "/dev/null/x", "--ops-listen", ""})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(t.Context())
	if err == nil {
		t.Fatal("the worker runs")
	}
	if strings.Contains(err.Error(), "work: ") {
		t.Errorf("the error is %q, want what is wrong without the names of tasks", err)
	}
}
