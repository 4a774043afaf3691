package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/daemon"
)

// load loads settings as a daemon's command does, from flags, environment and
// the text of a file ("" for none).
func load(t *testing.T, args []string, env map[string]string, file string) (daemon.Settings, error) {
	t.Helper()
	var s daemon.Settings
	fs := pflag.NewFlagSet("testd", pflag.ContinueOnError)
	s.AddFlags(fs, 7700)
	fs.StringSlice("words", []string{"default"}, "")
	if file != "" {
		path := filepath.Join(t.TempDir(), "testd.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config", path}, args...)
	}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	err := daemon.Load(fs, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	return s, err
}

func TestDefaultsAreValid(t *testing.T) {
	s, err := load(t, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	want := daemon.Settings{
		Listen: "127.0.0.1:7700", OpsListen: "127.0.0.1:8700", LogLevel: "info", LogFormat: "console",
		StopTimeout: 10 * time.Second, Prefix: "muster", Consul: daemon.ConsulSettings{Address: "127.0.0.1:8500"},
		Join: daemon.JoinSettings{Dir: "/var/lib/muster/identity"}, Connections: daemon.DefaultConnectionSettings(),
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

func TestPrecedence(t *testing.T) {
	const file = "log-level: warn\nprefix: of-file\nstop-timeout: 3s\nconsul-tls: true\nlisten: 127.0.0.1:1\nconsul-datacenter:\n"
	env := map[string]string{"MUSTER_LOG_LEVEL": "error", "MUSTER_PREFIX": "of-env", "MUSTER_UNKNOWN": "x", "MUSTER_HELP": "true"}
	s, err := load(t, []string{"--log-level=debug"}, env, file)
	if err != nil {
		t.Fatal(err)
	}
	got := []any{s.LogLevel, s.Prefix, s.StopTimeout, s.Consul.TLS, s.Listen, s.Consul.Datacenter, s.LogFormat}
	want := []any{"debug", "of-env", 3 * time.Second, true, "127.0.0.1:1", "", "console"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings by flag, environment, file (four), default (-want +got):\n%s", diff)
	}
}

// TestFileNamedByEnvironment finds the file by its variable, and lists in it.
func TestFileNamedByEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "testd.yaml")
	if err := os.WriteFile(path, []byte("words: [a, b]\nprefix: p\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fs := pflag.NewFlagSet("testd", pflag.ContinueOnError)
	var s daemon.Settings
	s.AddFlags(fs, 7700)
	words := fs.StringSlice("words", []string{"default"}, "")
	err := daemon.Load(fs, func(name string) (string, bool) { return path, name == "MUSTER_CONFIG" })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, *words); diff != "" || s.Prefix != "p" {
		t.Errorf("prefix %q, words (-want +got):\n%s", s.Prefix, diff)
	}
}

// TestPairs takes pairs from a map in the file, and from the environment.
func TestPairs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "testd.yaml")
	if err := os.WriteFile(path, []byte("label: {disk: ssd, host.rack: 7}\nother: a=b\nthird: [c=d, e=f]\nfrom-env: {no: no}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fs := pflag.NewFlagSet("testd", pflag.ContinueOnError)
	var s daemon.Settings
	s.AddFlags(fs, 7700)
	got := map[string]*map[string]string{}
	for _, name := range []string{"label", "other", "third", "from-env"} {
		got[name] = fs.StringToString(name, nil, "")
	}
	env := map[string]string{"MUSTER_CONFIG": path, "MUSTER_FROM_ENV": "g=h,i=j"}
	if err := daemon.Load(fs, func(name string) (string, bool) { v, ok := env[name]; return v, ok }); err != nil {
		t.Fatal(err)
	}
	want := map[string]*map[string]string{
		"label": {"disk": "ssd", "host.rack": "7"}, "other": {"a": "b"}, "third": {"c": "d", "e": "f"}, "from-env": {"g": "h", "i": "j"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pairs (-want +got):\n%s", diff)
	}
}

func TestLoadNamesEveryFault(t *testing.T) {
	tests := map[string]struct {
		env  map[string]string
		file string
		want []string
	}{
		"unknown keys":    {nil, "log-levl: info\nConsul: {address: x}\n", []string{`no setting "log-levl"`, `no setting "Consul.address"`, "testd.yaml"}},
		"not in the file": {nil, "config: x\nhelp: true\n", []string{`no setting "config"`, `no setting "help"`}},
		"wrong values":    {map[string]string{"MUSTER_STOP_TIMEOUT": "soon"}, "consul-tls: perhaps\n", []string{"MUSTER_STOP_TIMEOUT", "consul-tls"}},
		"no YAML":         {map[string]string{"MUSTER_STOP_TIMEOUT": "soon"}, "a: b: c", []string{"testd.yaml", "MUSTER_STOP_TIMEOUT"}},
		"twice":           {nil, "prefix: a\nprefix: b\n", []string{"prefix"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, nil, test.env, test.file)
			expectFaults(t, err, test.want...)
		})
	}
	_, err := load(t, []string{"--config", "/does/not/exist"}, nil, "")
	expectFaults(t, err, "/does/not/exist")
}

func expectFaults(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error does not name %q:\n%v", w, err)
		}
	}
}

func TestValidateNamesEveryFault(t *testing.T) {
	s, err := load(t, []string{
		"--listen=7700", "--advertise=here", "--ops-listen=:a:b", "--consul-address=127.0.0.1:8500,nowhere",
		"--log-level=loud", "--log-format=xml", "--stop-timeout=0s", "--prefix=/a/",
		"--consul-token=x", "--consul-token-file=y", "--tls-cert-file=c", "--consul-key-file=k",
	}, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	err = s.Validate()
	expectFaults(t, err, "--listen: ", "--advertise: ", "--ops-listen: ", "--consul-address: \"nowhere\"", "--log-level: ", "--log-format: ",
		"--stop-timeout: ", "--prefix: ", "--consul-token-file: ", "--tls-cert-file: ", "--consul-cert-file: ")
	if n := strings.Count(err.Error(), "\n") + 1; n != 11 {
		t.Errorf("%d faults, want 11:\n%v", n, err)
	}
	good, err := load(t, []string{"--consul-address=a:1,b:2", "--ops-listen=", "--prefix=a/b", "--log-level=debug", "--log-format=json"}, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

func TestOpenConsulReadsToken(t *testing.T) {
	s := daemon.Settings{Consul: daemon.ConsulSettings{Address: "127.0.0.1:8500", TokenFile: filepath.Join(t.TempDir(), "token")}}
	_, err := s.OpenConsul(zap.NewNop())
	expectFaults(t, err, "--consul-token-file")
	if err := os.WriteFile(s.Consul.TokenFile, []byte(" secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := s.OpenConsul(zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	_ = store.Close()
}

func TestLogTakesItsSettings(t *testing.T) {
	s := daemon.Settings{LogLevel: "warn", LogFormat: "json"}
	log, err := s.Log()
	if err != nil {
		t.Fatal(err)
	}
	if log.Core().Enabled(0) || !log.Core().Enabled(1) {
		t.Error("the level is not warn")
	}
	s.LogLevel = "loud"
	_, err = s.Log()
	expectFaults(t, err, "--log-level")
}
