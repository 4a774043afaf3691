//go:build linux

package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/internal/signals"
	"github.com/musterhq/muster/plugins/process/internal/cgroup"
	"github.com/musterhq/muster/plugins/process/internal/taskdir"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/schema"
)

// Payload is the process in a spec: a command, or a line for the shell.
type Payload struct {
	Command         []string      `json:"command,omitempty" jsonschema:"the program and its arguments; the program is looked up in PATH"`
	Args            []string      `json:"args,omitempty" jsonschema:"more arguments"`
	Shell           string        `json:"shell,omitempty" jsonschema:"a line that /bin/sh runs, in place of command; args are its $1, $2, ..."`
	Env             []string      `json:"env,omitempty" jsonschema:"variables, each KEY=value"`
	Dir             string        `json:"dir,omitempty" jsonschema:"the working directory; absent: /"`
	User            string        `json:"user,omitempty" jsonschema:"user or user:group, by name or number; absent: the executor's own"`
	StopSignal      string        `json:"stopSignal,omitempty" jsonschema:"what asks the process to stop; absent: SIGTERM"`
	StopGracePeriod *sdk.Duration `json:"stopGracePeriod,omitempty" jsonschema:"how long it then has; absent: 10s"`
	Healthcheck     *Healthcheck  `json:"healthcheck,omitempty" jsonschema:"what tells whether the process works; exactly one of command, shell and tcp; the task is not RUNNING before it succeeds"`
}

const (
	defaultDir  = "/"
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	shellPath   = "/bin/sh"
	envPattern  = `^[^=]+=`
)

func payloadSchema() string {
	return schema.Of[Payload](func(s *jsonschema.Schema) {
		property := s.Properties
		// For Go, null would be a valid array. For a user it would be a mistake.
		for _, name := range []string{"command", "args", "env"} {
			property[name].Types, property[name].Type = nil, "array"
		}
		property["command"].MinItems = new(1)
		property["shell"].MinLength = new(1)
		property["env"].Items.Pattern = envPattern
		property["dir"].Pattern = "^/"
		s.OneOf = oneOf("command", "shell")
		check := property["healthcheck"]
		check.Types, check.Type = nil, "object"
		check.Properties["command"].Types, check.Properties["command"].Type = nil, "array"
		check.Properties["command"].MinItems = new(1)
		check.Properties["shell"].MinLength = new(1)
		check.Properties["tcp"].Minimum = new(1.0)
		check.OneOf = oneOf("command", "shell", "tcp")
	})
}

// oneOf requires exactly one of several properties.
func oneOf(names ...string) []*jsonschema.Schema {
	var all []*jsonschema.Schema
	for _, name := range names {
		all = append(all, &jsonschema.Schema{Required: []string{name}})
	}
	return all
}

// plan returns what a task's supervisor must run. It finds everything that can be wrong
// with the task before the task starts.
func (e *Executor) plan(task *sdk.Task) (taskdir.Spec, error) {
	if err := refuse(task); err != nil {
		return taskdir.Spec{}, err
	}
	payload, err := sdk.Decode[Payload](task)
	if err != nil {
		return taskdir.Spec{}, err
	}
	spec := taskdir.Spec{
		ID: task.GetId(), NodeID: task.GetNodeId(), LogMax: e.config.LogBytes,
		StopSignal: unix.SIGTERM, Grace: sdk.DefaultGracePeriod, Dir: defaultDir,
	}
	if payload.StopGracePeriod != nil {
		spec.Grace = time.Duration(*payload.StopGracePeriod)
	}
	if name := payload.StopSignal; name != "" {
		if spec.StopSignal = signals.Number(name); spec.StopSignal == 0 {
			return taskdir.Spec{}, sdk.SpecFault("stopSignal", fmt.Errorf("there is no signal %q", name))
		}
	}
	home := os.Getenv("HOME")
	if payload.User != "" {
		if spec.User, home, err = lookUpUser(payload.User); err != nil {
			return taskdir.Spec{}, err
		}
	}
	if payload.Dir != "" {
		if !filepath.IsAbs(payload.Dir) {
			return taskdir.Spec{}, sdk.SpecFault("dir", errors.New("it must be an absolute path"))
		}
		if info, err := os.Stat(payload.Dir); err != nil || !info.IsDir() {
			return taskdir.Spec{}, sdk.NodeFault(fmt.Errorf("dir: there is no directory %s here", payload.Dir))
		}
		spec.Dir = payload.Dir
	}
	if spec.Networked = task.GetNetworked(); spec.Networked {
		spec.Ports = []taskdir.Port{}
	} else if spec.Ports, err = e.choosePorts(task.GetPorts()); err != nil {
		return taskdir.Spec{}, err
	}
	if spec.Env, err = environment(task, payload, spec, home); err != nil {
		return taskdir.Spec{}, err
	}
	if err := e.planFiles(task, &spec); err != nil {
		return taskdir.Spec{}, err
	}
	if spec.Path, spec.Args, err = commandLine("", payload, spec); err != nil {
		return taskdir.Spec{}, err
	}
	if spec.Check, err = planCheck(payload.Healthcheck, spec); err != nil {
		return taskdir.Spec{}, err
	}
	limits := task.GetSpec().GetResources().GetLimits()
	spec.Limits = cgroup.Limits{NanoCPUs: limits.GetNanoCpus(), MemoryBytes: limits.GetMemoryBytes(), PIDs: limits.GetPids()}
	if lacking := e.cgroups().Lacking(spec.Limits); len(lacking) > 0 {
		return taskdir.Spec{}, sdk.NodeFault(fmt.Errorf("resources.limits: this node cannot limit the %s of a process: %s",
			strings.Join(lacking, ", "), noCgroups))
	}
	return spec, nil
}

// hostNetwork is the name of the node's own network in task specs.
const hostNetwork = "host"

// refuse returns an error that names what a task's spec asks for and a process cannot have.
// Nothing is ignored silently.
func refuse(task *sdk.Task) error {
	spec := task.GetSpec()
	if !task.GetNetworked() {
		for _, network := range spec.GetNetworks() {
			// Without a namespace a process has the node's network.
			if network.GetTarget() != hostNetwork {
				return sdk.SpecFault("networks", fmt.Errorf("the process executor has no network %q", network.GetTarget()))
			}
		}
	}
	for field, set := range map[string]bool{
		"log_driver":                  spec.GetLogDriver() != nil,
		"resources.swap_bytes":        spec.GetResources().GetSwapBytes() != 0,
		"resources.memory_swappiness": spec.GetResources().GetMemorySwappiness() != 0,
	} {
		if set {
			return sdk.SpecFault(field, errors.New("the process executor does not have this"))
		}
	}
	if spec.GetGeneric() == nil {
		return sdk.SpecFault("generic", errors.New("the process executor runs generic runtimes"))
	}
	return nil
}

// environment returns the environment of the command: a few variables of the executor,
// those that describe the task, and those of the payload, which win.
func environment(task *sdk.Task, payload Payload, spec taskdir.Spec, home string) ([]string, error) {
	path := os.Getenv("PATH")
	if path == "" {
		path = defaultPath
	}
	env := []string{
		"PATH=" + path,
		"MUSTER_TASK_NAME=" + task.GetName(),
		"MUSTER_TASK_SLOT=" + strconv.FormatUint(task.GetSlot(), 10),
		"MUSTER_SERVICE_ID=" + task.GetServiceId(),
		"MUSTER_SERVICE_NAME=" + task.GetServiceName(),
		"MUSTER_NODE_ID=" + task.GetNodeId(),
	}
	if home != "" {
		env = append(env, "HOME="+home)
	}
	for _, port := range spec.Ports {
		env = append(env, fmt.Sprintf("MUSTER_PORT_%d=%d", port.Target, port.Published))
	}
	if task.GetNetworked() {
		// In a namespace of its own the process has each port for itself.
		for _, port := range task.GetPorts() {
			env = append(env, fmt.Sprintf("MUSTER_PORT_%d=%d", port.GetTargetPort(), port.GetTargetPort()))
		}
	}
	for i, variable := range payload.Env {
		key, _, found := strings.Cut(variable, "=")
		if !found || key == "" || strings.ContainsRune(variable, 0) {
			return nil, sdk.SpecFault(fmt.Sprintf("env[%d]", i), fmt.Errorf("%q is not of the form KEY=value", variable))
		}
		env = slices.DeleteFunc(env, func(one string) bool { return strings.HasPrefix(one, key+"=") })
		env = append(env, variable)
	}
	// The task's processes are found by this variable, so it cannot be overridden.
	env = slices.DeleteFunc(env, func(one string) bool { return strings.HasPrefix(one, "MUSTER_TASK_ID=") })
	return append(env, spec.Marker()), nil
}

// commandLine returns the program's file and its arguments. Errors name fields with the
// prefix.
func commandLine(prefix string, payload Payload, spec taskdir.Spec) (string, []string, error) {
	for _, list := range [][]string{payload.Command, payload.Args, {payload.Shell}} {
		if slices.ContainsFunc(list, func(word string) bool { return strings.ContainsRune(word, 0) }) {
			return "", nil, sdk.SpecFault(prefix+"command", errors.New("an argument cannot hold a zero byte"))
		}
	}
	switch {
	case payload.Shell != "" && len(payload.Command) > 0:
		return "", nil, sdk.SpecFault(prefix+"shell", errors.New("there is a command beside it; it must be one or the other"))
	case payload.Shell != "":
		return shellPath, append([]string{shellPath, "-c", payload.Shell, shellPath}, payload.Args...), nil
	case len(payload.Command) == 0 || payload.Command[0] == "":
		return "", nil, sdk.SpecFault(prefix+"command", errors.New("it is missing"))
	}
	path, err := lookPath(prefix+"command", payload.Command[0], spec)
	if err != nil {
		return "", nil, err
	}
	return path, slices.Concat(payload.Command, payload.Args), nil
}

// lookPath finds a program on the PATH of the command.
func lookPath(field, name string, spec taskdir.Spec) (string, error) {
	missing := sdk.NodeFault(fmt.Errorf("%s: there is no program %q here", field, name))
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(spec.Dir, path)
		}
		if _, err := exec.LookPath(path); err != nil {
			return "", missing
		}
		return path, nil
	}
	for _, variable := range spec.Env {
		list, found := strings.CutPrefix(variable, "PATH=")
		if !found {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			if !filepath.IsAbs(dir) {
				continue
			}
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	return "", missing
}

// lookUpUser finds "user" or "user:group", and the user's home directory.
func lookUpUser(text string) (*taskdir.User, string, error) {
	fault := func(err error) (*taskdir.User, string, error) {
		return nil, "", sdk.NodeFault(fmt.Errorf("user: %w", err))
	}
	name, group, hasGroup := strings.Cut(text, ":")
	found := &taskdir.User{}
	home := "/"
	account, err := user.Lookup(name)
	if err != nil {
		account, err = user.LookupId(name)
	}
	if err == nil {
		home = account.HomeDir
		uid, uidErr := strconv.ParseUint(account.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(account.Gid, 10, 32)
		groups, groupsErr := account.GroupIds()
		if err := errors.Join(uidErr, gidErr, groupsErr); err != nil {
			return fault(err)
		}
		found.UID, found.GID = uint32(uid), uint32(gid)
		for _, id := range groups {
			if id, err := strconv.ParseUint(id, 10, 32); err == nil {
				found.Groups = append(found.Groups, uint32(id))
			}
		}
	} else {
		// A number needs no account.
		uid, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return fault(fmt.Errorf("there is no user %q here", name))
		}
		found.UID, found.GID = uint32(uid), uint32(uid)
	}
	if hasGroup {
		id := group
		if entry, err := user.LookupGroup(group); err == nil {
			id = entry.Gid
		}
		gid, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return fault(fmt.Errorf("there is no group %q here", group))
		}
		found.GID, found.Groups = uint32(gid), []uint32{uint32(gid)}
	}
	self := os.Geteuid()
	if self == 0 {
		return found, home, nil
	}
	if int(found.UID) != self || int(found.GID) != os.Getegid() {
		return fault(fmt.Errorf("the executor is not root and cannot become %q", text))
	}
	return nil, home, nil
}
