//go:build linux

package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

const (
	// runTime is how long a CNI plugin may run.
	runTime = 2 * time.Minute
	// orphanTime is how long a call waits for CNI plugins that an earlier process of this
	// plugin started.
	orphanTime = 15 * time.Second
)

// runner lets CNI plugins run to their end, even if the worker gives the call up or this
// process is killed: the reference plugins cannot undo what they did by half. Until then
// they hold the lock of their task.
type runner struct{ *invoke.DefaultExec }

func newRunner() invoke.Exec {
	return &runner{&invoke.DefaultExec{RawExec: &invoke.RawExec{}, PluginDecoder: version.PluginDecoder{}}}
}

// ExecPlugin runs a CNI plugin to its end.
func (*runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), runTime)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	if lock, ok := ctx.Value(lockKey{}).(*os.File); ok {
		cmd.ExtraFiles = []*os.File{lock}
	}
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	said := &types.Error{}
	if json.Unmarshal(stdout.Bytes(), said) == nil && said.Msg != "" {
		return nil, said
	}
	if text := strings.TrimSpace(stderr.String()); text != "" {
		err = fmt.Errorf("%w: %.1024s", err, text)
	}
	return nil, fmt.Errorf("run the CNI plugin %s: %w", path, err)
}

// lockKey is the key of a context's lock.
type lockKey struct{}

// lock waits until no CNI plugin works for a task, also none that an earlier process
// started. CNI plugins that run in the context inherit the lock.
func (r records) lock(ctx context.Context, task string) (context.Context, func(), error) {
	file, err := os.OpenFile(filepath.Join(r.dir, "locks", task), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("lock task: %w", err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("lock task: %w", err), file.Close())
	}
	done := make(chan error, 1)
	go func() {
		var locked error
		err := raw.Control(func(fd uintptr) { locked = unix.Flock(int(fd), unix.LOCK_EX) })
		done <- errors.Join(err, locked)
	}()
	timer := time.NewTimer(orphanTime)
	defer timer.Stop()
	select {
	case err = <-done:
	case <-timer.C:
		// What holds the lock still is a program that a CNI plugin left running.
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("lock task: %w", err), file.Close())
	}
	return context.WithValue(ctx, lockKey{}, file), func() { _ = file.Close() }, nil
}
