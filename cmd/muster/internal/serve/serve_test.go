package serve_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/cmd/muster/internal/serve"
	testnet "github.com/musterhq/muster/test/kit/network"
)

// run runs one command line until it ends by itself or ctx does.
func run(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	root := &cobra.Command{Use: "muster", SilenceErrors: true, SilenceUsage: true}
	serve.AddCommands(root, "v1-test")
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(ctx)
	return out.String(), err
}

func TestRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	config := filepath.Join(t.TempDir(), "muster.yaml")
	if err := os.WriteFile(config, []byte("log-levle: debug\nlog-format: text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := t.TempDir()
	tests := map[string]struct {
		args  []string
		wants []string
	}{
		"open to everyone":    {[]string{"dev", "--listen", "0.0.0.0:7700", "--workers=0"}, []string{"--listen", "loopback"}},
		"too many workers":    {[]string{"dev", "--workers", "-1"}, []string{"--workers"}},
		"no plugins":          {[]string{"dev", "--plugin-dir", empty}, []string{"--plugin-dir", empty, "make build"}},
		"label without =":     {[]string{"dev", "--label", "ssd", "--plugin-dir", empty}, []string{"--plugin-dir", empty}},
		"port taken":          {[]string{"dev", "--workers=0", "--listen", "127.0.0.1:0", "--dispatcher-listen", "127.0.0.1:0", "--rest-listen", taken.Addr().String()}, []string{"--rest-listen", "in use"}},
		"API's port taken":    {[]string{"dev", "--workers=0", "--listen", taken.Addr().String(), "--dispatcher-listen", "127.0.0.1:0", "--rest-listen", "127.0.0.1:0"}, []string{"--listen", "in use"}},
		"ops port taken":      {[]string{"dev", "--workers=0", "--ops-listen", taken.Addr().String(), "--listen", "127.0.0.1:0", "--dispatcher-listen", "127.0.0.1:0", "--rest-listen", "127.0.0.1:0"}, []string{"--ops-listen", "in use"}},
		"ops open to all":     {[]string{"dev", "--workers=0", "--ops-listen", ":8700"}, []string{"--ops-listen", "loopback"}},
		"TLS where is none":   {[]string{"dev", "--workers=0", "--tls-cert-file", "c"}, []string{"--tls-cert-file"}},
		"every fault at once": {[]string{"schedulerd", "--listen", "nowhere", "--log-format", "text", "--tls-key-file", "k"}, []string{"--listen", "--log-format", "--tls-cert-file"}},
		"faults of a file":    {[]string{"schedulerd", "--config", config}, []string{"log-levle", config}},
		"missing TLS file":    {[]string{"schedulerd", "--tls-cert-file", "none", "--tls-key-file", "none", "--tls-ca-file", "none"}, []string{"--tls-cert-file", "none"}},
		"missing token file":  {[]string{"schedulerd", "--consul-token-file", "none"}, []string{"--consul-token-file", "none"}},
		"open manager": {[]string{"schedulerd", "--listen", "0.0.0.0:7703", "--ops-listen", ":8703"},
			[]string{`--listen: "0.0.0.0:7703"`, `--ops-listen: ":8703"`, "--join", "--tls-cert-file", "--insecure-listen"}},
		"open at any address":     {[]string{"schedulerd", "--listen", "", "--ops-listen", ""}, []string{"--listen", "--tls-cert-file", "--insecure-listen"}},
		"open REST":               {[]string{"apid", "--rest-listen", "192.0.2.1:7780"}, []string{"--rest-listen", "--cluster-key-file", "--insecure-listen"}},
		"open worker":             {[]string{"workerd", "--ops-listen", "[::]:8705"}, []string{"--ops-listen", "--insecure-listen"}},
		"REST at no address":      {[]string{"apid", "--rest-listen", "7780"}, []string{"--rest-listen", "host:port"}},
		"open by its flag":        {[]string{"schedulerd", "--listen", "192.0.2.1:0", "--insecure-listen"}, []string{"--listen", "bind"}},
		"open with TLS":           {[]string{"schedulerd", "--listen", "0.0.0.0:0", "--tls-cert-file", "none", "--tls-key-file", "none", "--tls-ca-file", "none"}, []string{"--tls-cert-file", "none"}},
		"open dev with the flag":  {[]string{"dev", "--workers=0", "--insecure-listen", "--listen", "0.0.0.0:7700"}, []string{"--insecure-listen"}},
		"machine without a way":   {[]string{"workerd", "--machine-pid", "99999999", "--data-path-addr", "192.0.2.1", "--ops-listen="}, []string{"--machine-pid", "pid: host", "SYS_PTRACE"}},
		"machine without address": {[]string{"workerd", "--machine-pid", strconv.Itoa(os.Getpid()), "--ops-listen="}, []string{"data path address"}},
		"bad memory":              {[]string{"workerd", "--memory", "lots"}, []string{"--memory"}},
		"reset of a bad id":       {[]string{"workerd", "reset", "--force", "--node-id", "a b", "--data-dir", empty}, []string{"--node-id", "want 1 to 64 letters"}},
		"worker of an odd id":     {[]string{"workerd", "--node-id", "bad!!", "--ops-listen="}, []string{"node id \"bad!!\"", "want 1 to 64 letters"}},
		"reset of nothing":        {[]string{"workerd", "reset", "--force", "--node-id", "a", "--timeout", "1s", "--data-dir", filepath.Join(empty, "none")}, []string{"--data-dir", "no such file"}},
		"bad dispatcher":          {[]string{"workerd", "--dispatcher", "nowhere", "--ops-listen="}, []string{"nowhere"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out, err := run(ctx, tt.args...)
			if err == nil {
				t.Fatalf("muster %s started:\n%s", strings.Join(tt.args, " "), out)
			}
			for _, want := range tt.wants {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

// TestBackupAndRestore copies the store of a cluster that runs, and starts one from
// the copy; a store that is there is not overwritten, and what is none is refused.
func TestBackupAndRestore(t *testing.T) {
	dir, ops := t.TempDir(), testnet.FreeAddress(t)
	copied, fresh := filepath.Join(dir, "copy.db"), filepath.Join(dir, "fresh")
	cluster := func(data string, during func(ctx context.Context)) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer cancel()
			for ctx.Err() == nil {
				if _, err := run(ctx, "health", "apid", "--ops-listen", ops); err == nil {
					during(ctx)
					return
				}
			}
			t.Error("the cluster is not healthy")
		}()
		out, err := run(ctx, "dev", "--workers=0", "--listen", "127.0.0.1:0", "--rest-listen", "127.0.0.1:0",
			"--dispatcher-listen", "127.0.0.1:0", "--ops-listen", ops, "--log-level", "error", "--data-dir", data)
		<-done
		if err != nil {
			t.Fatalf("dev: %v\n%s", err, out)
		}
	}
	cluster(filepath.Join(dir, "first"), func(ctx context.Context) {
		if _, err := run(ctx, "dev", "backup", copied, "--ops-listen", ops); err != nil {
			t.Error(err)
		}
	})
	if _, err := run(t.Context(), "dev", "restore", copied, "--data-dir", fresh); err != nil {
		t.Fatal(err)
	}
	cluster(fresh, func(context.Context) {})
	torn := filepath.Join(dir, "torn.db")
	if err := os.WriteFile(torn, []byte("no store"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"overwrites":      {"restore", copied, "--data-dir", fresh},
		"no store":        {"restore", torn, "--data-dir", filepath.Join(dir, "other")},
		"no directory":    {"restore", copied},
		"no cluster runs": {"backup", filepath.Join(dir, "none.db"), "--ops-listen", ops},
	} {
		if _, err := run(t.Context(), append([]string{"dev"}, args...)...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", "*part*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDevStartsAndStops runs a cluster without workers, twice on the same
// directory.
func TestDevStartsAndStops(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		up := make(chan struct{})
		go func() {
			defer cancel()
			<-up
		}()
		// The store's file appears when the cluster is about to start.
		go func() {
			defer close(up)
			for ctx.Err() == nil {
				if _, err := os.Stat(filepath.Join(dir, "store.db")); err == nil {
					return
				}
			}
		}()
		out, err := run(ctx, "dev", "--workers=0", "--listen", "127.0.0.1:0", "--rest-listen", "127.0.0.1:0",
			"--dispatcher-listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--log-level", "error", "--data-dir", dir)
		if err != nil {
			t.Fatalf("dev: %v\n%s", err, out)
		}
		if !strings.Contains(out, "Muster is up") || !strings.Contains(out, dir) {
			t.Errorf("dev does not say how to reach it:\n%s", out)
		}
	}
}
