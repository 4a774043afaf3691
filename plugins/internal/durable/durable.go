//go:build linux

// Package durable starts processes that outlive the plugin that started them, and hands
// sockets from one such process to its successor.
package durable

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Process describes a process that runs this program.
type Process struct {
	// Args are its arguments. The first is the name that lists of processes show.
	Args []string
	// Env is added to its environment, which is empty otherwise.
	Env []string
	// Log is the file that its output is appended to. Without one it is lost.
	Log string
	// Files are its open files from descriptor 3 on.
	Files []*os.File
}

// Start starts a process that belongs to no session of the caller. The caller should
// wait for it while it lives; the process does not end with the caller.
func Start(p Process) (*os.Process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("open input: %w", err)
	}
	if p.Log == "" {
		p.Log = os.DevNull
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open log: %w", err), null.Close())
	}
	// The program's own file may have been replaced by a newer one, or be gone.
	process, err := os.StartProcess("/proc/self/exe", p.Args, &os.ProcAttr{
		Dir:   "/",
		Env:   append([]string{"GORACE=" + os.Getenv("GORACE"), "GOCOVERDIR=" + os.Getenv("GOCOVERDIR")}, p.Env...),
		Files: append([]*os.File{null, log, log}, p.Files...),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	return process, errors.Join(err, null.Close(), log.Close())
}
