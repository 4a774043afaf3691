//go:build linux

package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Processes returns the ids of the processes in the group.
func (g *Group) Processes() ([]int, error) {
	for _, dir := range g.Dirs() {
		raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list a control group: %w", err)
		}
		var pids []int
		for line := range bytes.Lines(raw) {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return pids, nil
	}
	return nil, nil
}

// Kill kills every process in the group, by one stroke where the kernel has one
// (cgroup.kill, since 5.14), and reports whether it has. Otherwise nothing is
// done.
func (g *Group) Kill() bool {
	if g.unified == "" {
		return false
	}
	return os.WriteFile(filepath.Join(g.unified, "cgroup.kill"), []byte("1"), 0) == nil
}

// Remove removes the groups. They must be empty.
func (g *Group) Remove() error {
	var all error
	for _, dir := range g.Dirs() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, fmt.Errorf("remove a control group: %w", err))
		}
	}
	return all
}

// OOMKilled tells whether a process of the group was killed for want of memory.
func (g *Group) OOMKilled() bool {
	path := filepath.Join(g.unified, "memory.events")
	if dir := g.separate[Memory]; dir != "" {
		path = filepath.Join(dir, "memory.oom_control")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	return value(raw, "oom_kill") > 0
}

// Memory returns the bytes that the group uses, if its memory is counted.
func (g *Group) Memory() (int64, bool) {
	if dir := g.separate[Memory]; dir != "" {
		return number(filepath.Join(dir, "memory.usage_in_bytes"))
	}
	if g.unified == "" {
		return 0, false
	}
	return number(filepath.Join(g.unified, "memory.current"))
}

// CPU returns the time that the group has used, if it is counted.
func (g *Group) CPU() (time.Duration, bool) {
	if g.unified == "" {
		return 0, false
	}
	raw, err := os.ReadFile(filepath.Join(g.unified, "cpu.stat"))
	if err != nil {
		return 0, false
	}
	return time.Duration(value(raw, "usage_usec")) * time.Microsecond, true
}

func number(path string) (int64, bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return n, err == nil
}

// value returns the number beside a key in a file of "key number" lines.
func value(raw []byte, key string) int64 {
	for line := range bytes.Lines(raw) {
		name, text, found := strings.Cut(strings.TrimSpace(string(line)), " ")
		if !found || name != key {
			continue
		}
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n
		}
	}
	return 0
}
