package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/process"
)

// commandTimeout bounds one command of a user's.
const commandTimeout = 3 * time.Minute

// said is what a command said, and its exit code.
type said struct {
	out, errs string
	code      int
}

func (s said) String() string {
	return fmt.Sprintf("exit code %d\n%s%s", s.code, s.out, s.errs)
}

// muster runs muster's command line against the cluster.
func (s *site) muster(t *testing.T, args ...string) said {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.binary(), args...)
	return s.command(t, cmd)
}

// command runs a command with the cluster's addresses in its environment.
func (s *site) command(t *testing.T, cmd *exec.Cmd) said {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), s.environment()...)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	return said{out: out.String(), errs: errs.String(), code: cmd.ProcessState.ExitCode()}
}

func (s *site) environment() []string {
	return []string{"MUSTER_ADDRESS=" + s.API, "MUSTER_REST=http://" + s.REST}
}

// ok runs muster's command line and fails the test unless it exits with 0.
func (s *site) ok(t *testing.T, args ...string) string {
	t.Helper()
	got := s.muster(t, args...)
	if got.code != 0 {
		t.Fatalf("muster %s: %s", strings.Join(args, " "), got)
	}
	return got.out
}

// background is a command that runs on, and what it writes.
type background struct{ *process.Process }

// begin starts muster with some arguments. It is ended when the test ends, if not
// before.
func (s *site) begin(t *testing.T, name string, args ...string) *background {
	t.Helper()
	p, err := process.Start(process.Config{
		Name: "muster " + strings.Join(args, " "), Log: filepath.Join(s.dir, name+".out"), Command: append([]string{s.binary()}, args...), Env: s.environment(),
	})
	if err != nil {
		t.Fatal(err)
	}
	b := &background{p}
	t.Cleanup(func() { b.end(t) })
	return b
}

// end interrupts the command, as a user does with Ctrl-C, and waits for its end. Its exit
// code is of no interest.
func (b *background) end(t *testing.T) {
	t.Helper()
	if err := b.End(syscall.SIGINT); err != nil {
		t.Error(err)
	}
}

// lines returns what the command has written so far, whole lines only.
func (b *background) lines() ([]string, error) {
	raw, err := os.ReadFile(b.Log)
	if err != nil {
		return nil, fmt.Errorf("read output: %w", err)
	}
	lines := strings.Split(string(raw), "\n")
	return lines[:len(lines)-1], nil
}

// rest makes one call of the REST API: body is sent as JSON unless it is nil, or
// as it is if it is a string.
func (s *site) rest(t *testing.T, method, path string, body any) (int, map[string]any) {
	t.Helper()
	var content io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		content = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		content = bytes.NewReader(raw)
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.REST+path, content)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	answer := map[string]any{}
	if err := json.Unmarshal(raw, &answer); err != nil {
		t.Fatalf("%s %s: %d: the answer is no JSON: %v\n%s", method, path, resp.StatusCode, err, raw)
	}
	return resp.StatusCode, answer
}
