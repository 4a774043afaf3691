package conformance

import (
	"errors"
	"fmt"
	"os"
	"time"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

// NewNamespace makes a network namespace, as a worker gives it to a task, and returns its
// path in dir, and what removes it. It needs CAP_SYS_ADMIN.
func NewNamespace(dir string) (path string, remove func() error, err error) {
	return newNamespace(dir, "netns")
}

// networkedTask makes a task that is attached to networks.
func (s *suite) networkedTask(behavior Behavior) *executorv1.Task {
	s.Helper()
	task := s.task(behavior)
	task.Networked = true
	return task
}

// networkProvided checks that the namespace that Prepare makes is the task's until Remove,
// whatever happens to the executor's process.
func (s *suite) networkProvided() {
	if !s.has(sdk.ProvidesNetwork) {
		return
	}
	c := s.on(s.networkedTask(Behavior{Forever: true, Says: []string{ready}}))
	c.prepare()
	path := c.network.GetNamespace()
	if path == "" {
		s.Fatal("Prepare of a networked task returns no path of a network namespace")
	}
	first := identify(path)
	if first == "" {
		s.Fatalf("after Prepare there is no network namespace at %s", path)
	}
	kept := func(when string) {
		s.Helper()
		if got := c.listed().GetNetworkNamespace(); got != path {
			s.Errorf("%s the task is listed with the namespace %q, want %q", when, got, path)
		}
		if got := identify(path); got != first {
			s.Errorf("%s %s is %q, want %q", when, path, got, first)
		}
	}
	s.Plugin.Restart()
	kept("after a restart")
	c.prepare()
	if got := c.network.GetNamespace(); got != path {
		s.Errorf("a repeated Prepare returns the namespace %q, want %q", got, path)
	}
	started := c.startReady()
	c.inside(started, path)
	s.Plugin.Restart()
	kept("while the task runs, after a restart")
	c.shutdown()
	c.wait()
	kept("after the task has ended")
	c.removed()
	if got := identify(path); got == first {
		s.Errorf("after Remove %s is still %q", path, got)
	}

	never := s.on(s.networkedTask(Behavior{Forever: true}))
	never.prepare()
	path = never.network.GetNamespace()
	first = identify(path)
	never.removed()
	if got := identify(path); got == first {
		s.Errorf("after Remove of a task that was never started %s is still %q", path, got)
	}

	moments := []time.Duration{0, 2 * time.Millisecond, 20 * time.Millisecond}
	if s.Slow {
		moments = append(moments, 200*time.Millisecond)
	}
	s.killedAt(moments, s.networkedTask)
}

// networkAccepted checks that a task runs in the namespace that Start names.
func (s *suite) networkAccepted() {
	if !s.has(sdk.AcceptsNetwork) || CanMakeNamespaces() != nil {
		return
	}
	dir, err := os.MkdirTemp("", "netns")
	if err != nil {
		s.Fatalf("make a directory for a network namespace: %v", err)
	}
	path, remove, err := NewNamespace(dir)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := errors.Join(remove(), os.RemoveAll(dir)); err != nil {
			s.Errorf("remove the network namespace: %v", err)
		}
	})
	c := s.on(s.networkedTask(Behavior{Forever: true, Says: []string{ready}}))
	c.prepare()
	if c.network == nil {
		c.network = &executorv1.TaskNetwork{Namespace: path, Hosts: []string{"192.0.2.1 other"}}
	}
	s.Plugin.Restart()
	c.inside(c.startReady(), c.network.GetNamespace())
	s.Plugin.Restart()
	c.running()
	c.shutdown()
	c.wait()
	c.removed()
}

// inside checks that a task's process is in a network namespace, where it can be seen.
func (c *calls) inside(started *executorv1.StartResponse, path string) {
	c.Helper()
	pid := started.GetRuntime().GetPid()
	if pid == 0 || namespaceInode(path) == 0 {
		return
	}
	if got := namespaceInode(fmt.Sprintf("/proc/%d/ns/net", pid)); got != 0 && got != namespaceInode(path) {
		c.Errorf("the task runs in the network namespace %d, want %d, which is %s", got, namespaceInode(path), path)
	}
}

// identify says what is at a path: which network namespace, or that another file is there.
// It returns "" if nothing is.
func identify(path string) string {
	if inode := namespaceInode(path); inode != 0 {
		return fmt.Sprintf("network namespace %d", inode)
	}
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return "a file"
}
