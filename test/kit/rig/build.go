package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/musterhq/muster/test/kit/need"
)

// buildTimeout covers a build with an empty cache.
const buildTimeout = 10 * time.Minute

// Build builds muster and the executors of processes and null tasks from the module at
// source, with the flags of `make build`, so that compiled packages are reused.
func Build(ctx context.Context, source, dir string) error {
	return BuildWith(ctx, source, dir, "executor-process", "executor-null")
}

// BuildWith builds muster and some plugins: "executor-docker", "network-overlay".
func BuildWith(ctx context.Context, source, dir string, plugins ...string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	folder := filepath.Join(dir, "plugins") + string(filepath.Separator)
	programs := []string{"-o", folder}
	for _, p := range plugins {
		programs = append(programs, "./cmd/muster-"+p)
	}
	for _, args := range [][]string{{"-o", filepath.Join(dir, "muster"), "./cmd/muster"}, programs} {
		cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath"}, args...)...)
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return onlyOurs(folder)
}

// onlyOurs makes plugins writable for their owner only, whatever the umask is. A worker
// refuses others.
func onlyOurs(plugins string) error {
	entries, err := os.ReadDir(plugins)
	if err != nil {
		return fmt.Errorf("find the plugins: %w", err)
	}
	faults := []error{os.Chmod(plugins, 0o755)}
	for _, e := range entries {
		faults = append(faults, os.Chmod(filepath.Join(plugins, e.Name()), 0o755))
	}
	return errors.Join(faults...)
}

// Tests builds the programs for the tests of a package, sets *built, runs the tests, which
// all need Consul, and returns the exit code.
func Tests(m interface{ Run() int }, name string, built *string) int {
	if need.Missing("consul") != nil {
		return need.Main(m, "test/"+name, "consul")
	}
	return TestsWith(m, name, built, "executor-process", "executor-null")
}

// TestsWith is Tests for tests that do not all need Consul. It builds the named plugins.
func TestsWith(m interface{ Run() int }, name string, built *string, plugins ...string) int {
	code, err := tests(m, name, built, plugins)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		code = max(code, 1)
	}
	return code
}

func tests(m interface{ Run() int }, name string, built *string, plugins []string) (code int, err error) {
	if *built, err = os.MkdirTemp("", "muster-"+name+"-"); err != nil {
		return 0, fmt.Errorf("make a directory for the programs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(*built)) }()
	if err := BuildWith(context.Background(), "../..", *built, plugins...); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// Install copies the programs of a build to a directory of a cluster's own.
func Install(from, to string) error {
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		if d.IsDir() {
			return os.Mkdir(target, 0o755)
		}
		return os.Link(path, target)
	})
	if err != nil {
		return fmt.Errorf("install programs: %w", err)
	}
	return nil
}
