package serve

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/internal/daemon"
)

// TestHealthCommand asks daemons that are well, that are not, and that are not there.
func TestHealthCommand(t *testing.T) {
	ops := func(problem error) string {
		s := httptest.NewServer(daemon.OpsHandler(prometheus.NewRegistry(), func() error { return problem }, nil))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	well, ill := ops(nil), ops(errors.New("the tables are not loaded yet"))
	for name, test := range map[string]struct {
		args []string
		env  string
		want string // in what is printed
		err  string // in the error
	}{
		"healthy":             {args: []string{"apid", "--ops-listen", well}, want: "ok"},
		"by the environment":  {args: []string{"workerd"}, env: well, want: "ok"},
		"the flag wins":       {args: []string{"apid", "--ops-listen", well}, env: ill, want: "ok"},
		"not healthy":         {args: []string{"apid", "--ops-listen", ill}, err: "the tables are not loaded yet"},
		"only alive":          {args: []string{"apid", "--live", "--ops-listen", ill}, want: "ok"},
		"does not answer":     {args: []string{"schedulerd", "--ops-listen", "127.0.0.1:1"}, err: "schedulerd at 127.0.0.1:1"},
		"no such daemon":      {args: []string{"webd"}, err: "webd"},
		"no daemon":           {err: "arg"},
		"not an address":      {args: []string{"apid", "--ops-listen", "8700"}, err: "--ops-listen"},
		"unspecified address": {args: []string{"apid", "--ops-listen", "0.0.0.0:1"}, err: "localhost:1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("MUSTER_OPS_LISTEN", test.env)
			var out strings.Builder
			cmd := healthCommand()
			cmd.SetArgs(test.args)
			cmd.SetOut(&out)
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			err := cmd.ExecuteContext(t.Context())
			switch {
			case test.err == "" && err != nil:
				t.Fatal(err)
			case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
				t.Fatalf("the error is %v; it should say %q", err, test.err)
			case !strings.Contains(out.String(), test.want):
				t.Fatalf("it says %q and not %q", out.String(), test.want)
			}
		})
	}
}
