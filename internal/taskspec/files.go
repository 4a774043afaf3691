package taskspec

import (
	"cmp"
	"io/fs"
	"path"
	"slices"
	"strconv"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Directories below which files are whose paths are not absolute.
const (
	secretsDir = "/run/secrets"
	// configsDir is for configs of generic runtimes. Those of containers are below /.
	configsDir = "/run/configs"
)

// defaultMode is the mode of files whose reference names none.
const defaultMode = 0o444

// defaultSignal is what SIGNAL sends.
const defaultSignal = "SIGHUP"

// File is a secret or config that a container sees as a file.
type File struct {
	// Field is the path of the reference in its spec, such as "secrets[0]".
	Field string
	// Secret is true for secrets, and false for configs.
	Secret   bool
	ID, Name string
	// Given is the path as the spec has it, and Target the absolute path.
	Given, Target string
	UID, GID      uint32
	Mode          fs.FileMode
	// Signal is sent to the container when the file is replaced. It is empty if none is.
	Signal string
	// Restart is true if the tasks are replaced when there is other data.
	Restart bool
}

// Files returns the files of the main container of a task.
func Files(t *musterv1.TaskSpec) []File {
	all := ContainerFiles(t.GetContainer())
	for i, r := range t.GetResourceReferences() {
		dir := configsDir
		switch r.GetType() {
		case musterv1.ResourceReference_SECRET:
			dir = secretsDir
		case musterv1.ResourceReference_CONFIG:
		default:
			continue
		}
		f := fileOf(r.GetId(), "", dir, r.GetFile(), r.GetOnChange())
		f.Secret, f.Field = r.GetType() == musterv1.ResourceReference_SECRET, "resourceReferences["+strconv.Itoa(i)+"]"
		all = append(all, f)
	}
	return all
}

// ContainerFiles returns the files of a container. Configs that are for the runtime are
// none.
func ContainerFiles(c *musterv1.ContainerSpec) []File {
	var all []File
	for i, r := range c.GetSecrets() {
		f := fileOf(r.GetSecretId(), r.GetSecretName(), secretsDir, r.GetFile(), r.GetOnChange())
		f.Secret, f.Field = true, "secrets["+strconv.Itoa(i)+"]"
		all = append(all, f)
	}
	for i, r := range c.GetConfigs() {
		if r.GetRuntime() != nil {
			continue
		}
		f := fileOf(r.GetConfigId(), r.GetConfigName(), "/", r.GetFile(), r.GetOnChange())
		f.Field = "configs[" + strconv.Itoa(i) + "]"
		all = append(all, f)
	}
	return all
}

// AllFiles returns the files of all containers of a task.
func AllFiles(t *musterv1.TaskSpec) []File {
	all := Files(t)
	for _, g := range t.GetGroup() {
		all = append(all, ContainerFiles(g.GetContainer())...)
	}
	return all
}

// HasFiles reports whether a container of a task refers to a secret or config.
func HasFiles(t *musterv1.TaskSpec) bool { return len(AllFiles(t)) > 0 }

func fileOf(id, name, dir string, target *musterv1.FileTarget, change *musterv1.OnChange) File {
	f := File{ID: id, Name: name, Given: cmp.Or(target.GetName(), name, id), Mode: fs.FileMode(target.GetMode()).Perm()}
	if f.Target = path.Clean(f.Given); !path.IsAbs(f.Target) {
		f.Target = path.Join(dir, path.Join("/", f.Given))
	}
	f.UID, f.GID = number(target.GetUid()), number(target.GetGid())
	if f.Mode == 0 {
		f.Mode = defaultMode
	}
	switch change.GetAction() {
	case musterv1.OnChange_SIGNAL:
		f.Signal = cmp.Or(change.GetSignal(), defaultSignal)
	case musterv1.OnChange_RESTART:
		f.Restart = true
	}
	return f
}

// number reads the number of a user or group, which was checked when the spec was submitted.
func number(text string) uint32 {
	n, _ := strconv.ParseUint(text, 10, 32)
	return uint32(n)
}

// NeedsSignals reports whether a container of a task gets signals when a file is replaced.
func NeedsSignals(t *musterv1.TaskSpec) bool {
	return slices.ContainsFunc(AllFiles(t), func(f File) bool { return f.Signal != "" })
}
