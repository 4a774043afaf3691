package conformance

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// newMark makes digits that no other task's process has in its arguments.
func newMark() string { return fmt.Sprintf("%015d", rand.Int64N(1e15)) }

// marks finds the processes of tasks, without asking the executor, by the mark in their
// specs.
type marks struct {
	mu     sync.Mutex
	bySpec map[*musterv1.TaskSpec]string
	byTask map[string]string
}

// add records the mark of a spec.
func (m *marks) add(mark string, spec *musterv1.TaskSpec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bySpec == nil {
		m.bySpec, m.byTask = map[*musterv1.TaskSpec]string{}, map[string]string{}
	}
	m.bySpec[spec] = mark
}

// of records which task a spec was made for.
func (m *marks) of(taskID string, spec *musterv1.TaskSpec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byTask[taskID] = m.bySpec[spec]
}

// running counts a task's sleeps: there is one for each time that it runs.
func (m *marks) running(taskID string) int {
	m.mu.Lock()
	mark := m.byTask[taskID]
	m.mu.Unlock()
	if mark == "" {
		return 0
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0
	}
	count := 0
	for _, path := range lines {
		// A process that has ended meanwhile does not count.
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		args := strings.Split(string(bytes.TrimRight(raw, "\x00")), "\x00")
		if len(args) == 2 && filepath.Base(args[0]) == "sleep" && strings.HasSuffix(args[1], mark) {
			count++
		}
	}
	return count
}

// canSeeProcesses reports whether processes of the system are visible.
func canSeeProcesses() bool { return runtime.GOOS == "linux" }
