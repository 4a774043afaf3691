//go:build linux

// Package cgroup holds tasks in control groups: to limit what they use, to say
// what they use, and to find every process of theirs. It knows the unified
// hierarchy (version 2) and the separate ones (version 1), and says what of it
// this machine lets us do; a process that may not write to the hierarchies gets
// none of it.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultRoot is where the hierarchies are mounted.
const DefaultRoot = "/sys/fs/cgroup"

// parentName is the group beneath which tasks have theirs. It lies at the root
// of a hierarchy and not within the executor's own group, for a service manager
// that restarts the worker kills what is in the worker's group.
const parentName = "muster"

// Limits are what a task may not exceed; 0 means no limit.
type Limits struct {
	NanoCPUs    int64 `json:"nanoCpus,omitempty"`
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	PIDs        int64 `json:"pids,omitempty"`
}

// The controllers that limits need.
const (
	CPU    = "cpu"
	Memory = "memory"
	PIDs   = "pids"
)

// Needs returns the controllers that the limits need.
func (l Limits) Needs() []string {
	var needs []string
	for controller, limit := range map[string]int64{CPU: l.NanoCPUs, Memory: l.MemoryBytes, PIDs: l.PIDs} {
		if limit > 0 {
			needs = append(needs, controller)
		}
	}
	slices.Sort(needs)
	return needs
}

// System is what there is of control groups on this machine.
type System struct {
	// unified is the directory of the parent group in the unified hierarchy;
	// empty if there is none that can be written to.
	unified string
	// parents are the parent groups' directories by controller. Those of the
	// unified hierarchy are one and the same.
	parents map[string]string
}

// Detect finds out what can be done beneath a mount point, and makes the parent
// groups. What cannot be done is not there; it is no error.
func Detect(root string) *System {
	s := &System{parents: map[string]string{}}
	if isType(root, unix.CGROUP2_SUPER_MAGIC) {
		s.detectUnified(root)
		return s
	}
	// The mixed form: controllers one by one, and a unified hierarchy beside
	// them that has none, and serves to find and kill processes.
	if beside := filepath.Join(root, "unified"); isType(beside, unix.CGROUP2_SUPER_MAGIC) {
		s.detectUnified(beside)
	}
	for _, controller := range []string{CPU, Memory, PIDs} {
		if _, ok := s.parents[controller]; ok {
			continue
		}
		mount := filepath.Join(root, controller)
		if !isType(mount, unix.CGROUP_SUPER_MAGIC) {
			continue
		}
		if parent := filepath.Join(mount, parentName); makeGroup(parent) == nil {
			s.parents[controller] = parent
		}
	}
	return s
}

func (s *System) detectUnified(mount string) {
	parent := filepath.Join(mount, parentName)
	if makeGroup(parent) != nil {
		return
	}
	s.unified = parent
	for _, controller := range []string{CPU, Memory, PIDs} {
		// A controller reaches a group if each group above it passes it on.
		enable := []byte("+" + controller)
		if os.WriteFile(filepath.Join(mount, "cgroup.subtree_control"), enable, 0) != nil ||
			os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), enable, 0) != nil {
			continue
		}
		s.parents[controller] = parent
	}
}

// Controllers returns the controllers whose limits can be set.
func (s *System) Controllers() []string {
	var controllers []string
	for controller := range s.parents {
		controllers = append(controllers, controller)
	}
	slices.Sort(controllers)
	return controllers
}

// Lacking returns the controllers that the limits need and that are not there.
func (s *System) Lacking(limits Limits) []string {
	return slices.DeleteFunc(limits.Needs(), func(controller string) bool { return s.parents[controller] != "" })
}

// Group is one task's control groups: at most one in the unified hierarchy, and
// one in each separate hierarchy that its limits need.
type Group struct {
	unified string
	// separate are the version 1 groups by controller.
	separate map[string]string
}

// Create makes a task's groups and sets its limits.
func (s *System) Create(name string, limits Limits) (*Group, error) {
	if lacking := s.Lacking(limits); len(lacking) > 0 {
		return nil, fmt.Errorf("limit %s: this machine has no such control group for us", strings.Join(lacking, ", "))
	}
	g := &Group{separate: map[string]string{}}
	if s.unified != "" {
		g.unified = filepath.Join(s.unified, name)
	}
	for _, controller := range limits.Needs() {
		if parent := s.parents[controller]; parent != s.unified {
			g.separate[controller] = filepath.Join(parent, name)
		}
	}
	for _, dir := range g.Dirs() {
		if err := makeGroup(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("make a control group: %w", err), g.Remove())
		}
	}
	atFirst := limits
	if g.separate[PIDs] != "" {
		// The thread that starts the command is in the group for a moment and
		// counts as one (see Start).
		atFirst.PIDs++
	}
	if err := g.limit(atFirst, CPU, Memory, PIDs); err != nil {
		return nil, errors.Join(err, g.Remove())
	}
	return g, nil
}

// cpuPeriod is the time over which CPU use is counted, in microseconds.
const cpuPeriod = 100_000

// limit sets limits of some controllers.
func (g *Group) limit(limits Limits, controllers ...string) error {
	for _, controller := range controllers {
		var amount int64
		var unifiedFile, separateFile string
		switch controller {
		case CPU:
			amount = limits.NanoCPUs / (1_000_000_000 / cpuPeriod)
			unifiedFile, separateFile = "cpu.max", "cpu.cfs_quota_us"
			if limits.NanoCPUs > 0 {
				// The kernel takes no quota below a millisecond.
				amount = max(amount, 1000)
			}
		case Memory:
			amount, unifiedFile, separateFile = limits.MemoryBytes, "memory.max", "memory.limit_in_bytes"
		case PIDs:
			amount, unifiedFile, separateFile = limits.PIDs, "pids.max", "pids.max"
		}
		if amount <= 0 {
			continue
		}
		path := filepath.Join(g.unified, unifiedFile)
		if dir := g.separate[controller]; dir != "" {
			path = filepath.Join(dir, separateFile)
		}
		if err := os.WriteFile(path, strconv.AppendInt(nil, amount, 10), 0); err != nil {
			return fmt.Errorf("limit %s: %w", controller, err)
		}
	}
	return nil
}

// Unified opens the group in the unified hierarchy, for a process to be born
// into it; nil if there is none.
func (g *Group) Unified() (*os.File, error) {
	if g.unified == "" {
		return nil, nil
	}
	file, err := os.Open(g.unified)
	if err != nil {
		return nil, fmt.Errorf("open a control group: %w", err)
	}
	return file, nil
}

// Start calls start with the calling thread in the groups of the separate
// hierarchies, so that a process that start makes is born into them, and takes
// the thread out again. The goroutine must be locked to its thread.
func (g *Group) Start(limits Limits, start func() error) error {
	if len(g.separate) == 0 {
		return start()
	}
	home, err := ownGroups()
	if err != nil {
		return err
	}
	err = func() error {
		for controller, dir := range g.separate {
			// 0 means the thread that writes.
			if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte("0"), 0); err != nil {
				return fmt.Errorf("enter the control group of %s: %w", controller, err)
			}
		}
		return start()
	}()
	for controller, dir := range g.separate {
		mount := strings.TrimSuffix(dir, filepath.Join("/", parentName, filepath.Base(dir)))
		// Where the home group cannot be seen, the root of the mount is as good.
		if os.WriteFile(filepath.Join(mount, home[controller], "tasks"), []byte("0"), 0) == nil {
			continue
		}
		if left := os.WriteFile(filepath.Join(mount, "tasks"), []byte("0"), 0); left != nil {
			err = errors.Join(err, fmt.Errorf("leave the control group of %s: %w", controller, left))
		}
	}
	if err != nil {
		return err
	}
	if g.separate[PIDs] != "" {
		return g.limit(limits, PIDs)
	}
	return nil
}

// ownGroups returns this process's groups of version 1, by controller.
func ownGroups() (map[string]string, error) {
	raw, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read the own control groups: %w", err)
	}
	groups := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			groups[controller] = parts[2]
		}
	}
	return groups, nil
}

// Dirs are the groups' directories; Reopen makes a Group of them.
func (g *Group) Dirs() []string {
	var dirs []string
	if g.unified != "" {
		dirs = append(dirs, g.unified)
	}
	for _, controller := range []string{CPU, Memory, PIDs} {
		if dir := g.separate[controller]; dir != "" {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// Reopen returns the group that has the directories.
func Reopen(dirs []string) *Group {
	g := &Group{separate: map[string]string{}}
	for _, dir := range dirs {
		if isType(dir, unix.CGROUP2_SUPER_MAGIC) {
			g.unified = dir
			continue
		}
		g.separate[filepath.Base(filepath.Dir(filepath.Dir(dir)))] = dir
	}
	return g
}

// Find returns the groups of a name that are there, whatever its limits were.
func (s *System) Find(name string) *Group {
	g := &Group{separate: map[string]string{}}
	there := func(dir string) bool {
		_, err := os.Lstat(dir)
		return err == nil
	}
	if dir := filepath.Join(s.unified, name); s.unified != "" && there(dir) {
		g.unified = dir
	}
	for controller, parent := range s.parents {
		if dir := filepath.Join(parent, name); parent != s.unified && there(dir) {
			g.separate[controller] = dir
		}
	}
	return g
}

// makeGroup makes a group, and checks that it may be changed.
func makeGroup(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK)
}

func isType(path string, magic int64) bool {
	var stat unix.Statfs_t
	return unix.Statfs(path, &stat) == nil && int64(stat.Type) == magic
}
