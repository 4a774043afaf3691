// Package e2e_test runs Muster as a user does: the programs that are built, as
// processes, over a real Consul or as muster dev, spoken to through the command
// line, REST and gRPC alone. It looks at the machine (processes, containers) and
// into the store, to see that what is said is so, and that nothing is left
// behind. It reaches into no daemon.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// built is the directory with the programs, as `make build` lays them out:
// muster, and its executors in plugins. TestMain sets it before any test runs.
var built string

// TestMain builds the programs once. The test program itself is started again as
// a plugin that misbehaves (see badplugin_test.go).
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == pluginRole {
		bePlugin(os.Args[2])
		return
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "muster-e2e-")
	if err != nil {
		return 0, fmt.Errorf("make a directory for the programs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := build(dir); err != nil {
		return 0, err
	}
	built = dir
	return m.Run(), nil
}

// build builds muster and its executors, as `make build` does, so that what that
// has compiled is used.
func build(dir string) error {
	executors, err := filepath.Glob("../../cmd/muster-executor-*")
	if err != nil {
		return fmt.Errorf("look for executors: %w", err)
	}
	plugins := filepath.Join(dir, "plugins") + string(filepath.Separator)
	for _, args := range [][]string{
		{"build", "-trimpath", "-o", filepath.Join(dir, "muster"), "../../cmd/muster"},
		append([]string{"build", "-trimpath", "-o", plugins}, executors...),
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}
