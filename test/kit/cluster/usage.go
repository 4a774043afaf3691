package cluster

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of CPU times in /proc on Linux (USER_HZ, proc(5)).
const clockTick = 10 * time.Millisecond

// Usage is what a process has used since its start.
type Usage struct {
	CPU time.Duration
	// PeakMemory is the largest resident set, in bytes.
	PeakMemory int64
	// Transferred is the number of bytes read and written: files and connections.
	Transferred int64
}

// UsageOf reads the usage of a process from /proc.
func UsageOf(pid int) (Usage, error) {
	var u Usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, fmt.Errorf("usage of process %d: %w", pid, err)
	}
	// The command's name in parentheses may contain anything. In the fields after it, utime
	// and stime are the 12th and 13th.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return u, fmt.Errorf("usage of process %d: /proc/%d/stat is cut short", pid, pid)
	}
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, fmt.Errorf("usage of process %d: %w", pid, err)
		}
		u.CPU += time.Duration(n) * clockTick
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, fmt.Errorf("usage of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return u, fmt.Errorf("usage of process %d: %w", pid, err)
			}
			u.PeakMemory = kib << 10
		}
	}
	io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return u, fmt.Errorf("usage of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(io)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if name != "rchar" && name != "wchar" {
			continue
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return u, fmt.Errorf("usage of process %d: %w", pid, err)
		}
		u.Transferred += n
	}
	return u, nil
}

// Usage returns what each of the cluster's processes has used. Consul's servers count as
// one.
func (c *Cluster) Usage() (map[string]Usage, error) {
	all := map[string]Usage{}
	for name, p := range c.Processes() {
		if p.Ended() {
			continue
		}
		u, err := UsageOf(p.PID())
		if err != nil {
			return nil, err
		}
		all[name] = u
	}
	if c.Servers != nil {
		var consul Usage
		for _, server := range c.Servers.Servers() {
			u, err := UsageOf(server.PID())
			if err != nil {
				return nil, err
			}
			consul.CPU += u.CPU
			consul.PeakMemory += u.PeakMemory
			consul.Transferred += u.Transferred
		}
		all["consul"] = consul
	}
	return all, nil
}
