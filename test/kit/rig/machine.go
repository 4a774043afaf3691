package rig

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Process is one of the machine's processes that belong to a rig.
type Process struct {
	PID, Parent int
	// Program is its file, and Command its arguments.
	Program string
	Command []string
	// Env is its environment.
	Env []string
	// Task, Service, Slot and Node are the variables in the environment of a task's
	// process. They are empty for other processes.
	Task, Service, Slot, Node string
}

func (p Process) String() string {
	return fmt.Sprintf("process %d (child of %d) of task %q: %s", p.PID, p.Parent, p.Task, strings.Join(p.Command, " "))
}

// Machine returns the processes that run a program in a directory, or that belong to a task
// of one of the nodes. It leaves out processes that end meanwhile.
func Machine(programs string, nodes map[string]bool) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, ok := ReadProcess(pid)
		if ok && (strings.HasPrefix(p.Program, programs+"/") || nodes[p.Node]) {
			found = append(found, p)
		}
	}
	return found, nil
}

// ReadProcess returns a process, unless it is a kernel thread or a zombie, or has ended.
func ReadProcess(pid int) (Process, bool) {
	at := func(name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }
	program, err := os.Readlink(at("exe"))
	if err != nil {
		return Process{}, false
	}
	command, err1 := os.ReadFile(at("cmdline"))
	env, err2 := os.ReadFile(at("environ"))
	stat, err3 := os.ReadFile(at("stat"))
	if errors.Join(err1, err2, err3) != nil {
		return Process{}, false
	}
	// The parent is the second field after the name in parentheses (proc(5)).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return Process{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return Process{}, false
	}
	list := func(b []byte) []string { return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00") }
	p := Process{PID: pid, Parent: parent, Program: program, Command: list(command), Env: list(env)}
	for _, v := range p.Env {
		name, value, _ := strings.Cut(v, "=")
		switch name {
		case "MUSTER_TASK_ID":
			p.Task = value
		case "MUSTER_SERVICE_ID":
			p.Service = value
		case "MUSTER_TASK_SLOT":
			p.Slot = value
		case "MUSTER_NODE_ID":
			p.Node = value
		}
	}
	return p, true
}

// Alive reports whether a process exists.
func Alive(pid int) bool { return pid > 0 && syscall.Kill(pid, 0) == nil }
