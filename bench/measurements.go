package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// measurements are what was measured in one go, and where.
type measurements struct {
	Began  time.Time `json:"began"`
	Took   string    `json:"took"`
	Commit string    `json:"commit"`
	Go     string    `json:"go"`
	CPU    string    `json:"cpu"`
	Cores  int       `json:"cores"`
	// Load is the machine's load average before and after: what others did
	// meanwhile is in the figures.
	Load    [2]string `json:"load"`
	Results []*result `json:"results"`
}

// begin notes what is about to be measured: a binary of muster.
func begin(ctx context.Context, binary string) (*measurements, error) {
	m := &measurements{Began: time.Now().UTC().Truncate(time.Second), Go: runtime.Version(), Cores: runtime.NumCPU()}
	out, err := exec.CommandContext(ctx, binary, "version", "--json").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", binary, err)
	}
	var version struct{ Version string }
	if err := json.Unmarshal(out, &version); err != nil {
		return nil, fmt.Errorf("version of %s: %w", binary, err)
	}
	m.Commit = version.Version
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, fmt.Errorf("read what CPU there is: %w", err)
	}
	for line := range strings.Lines(string(cpus)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
		}
	}
	m.Load[0], err = loadAverage()
	return m, err
}

func (m *measurements) end() (err error) {
	m.Took = time.Since(m.Began).Round(time.Second).String()
	m.Load[1], err = loadAverage()
	return err
}

// loadAverage is how many threads wanted to run, on average in a minute.
func loadAverage() (string, error) {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", fmt.Errorf("read load: %w", err)
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first, nil
}

func (m *measurements) save(path string) error {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return fmt.Errorf("keep results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("keep results: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep results: %w", err)
	}
	return nil
}

func load(path string) (*measurements, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	m := &measurements{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	return m, nil
}
