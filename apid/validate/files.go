package validate

import (
	"errors"
	"path"
	"slices"
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/expand"
	"github.com/musterhq/muster/internal/taskspec"
)

// maxFileMode has all permission bits.
const maxFileMode = 0o777

// files checks how the containers of a task refer to secrets and configs.
func (v *Validator) files(r *Report, field string, t *musterv1.TaskSpec) {
	for i, ref := range t.GetResourceReferences() {
		at := Indexed(field+".resourceReferences", i)
		if ref.Type == musterv1.ResourceReference_TYPE_UNSPECIFIED {
			r.Invalid(at+".type", "is required: SECRET or CONFIG")
		}
		if ref.Id == "" {
			r.Invalid(at+".id", "is required: the id or name of a secret or config")
		}
		v.fileTarget(r, at, ref.File, ref.OnChange)
	}
	v.containerFiles(r, field+".container", t.GetContainer())
	checkTargets(r, field, field+".container", taskspec.Files(t), t.GetContainer().GetMounts())
	for i, g := range t.GetGroup() {
		at := Indexed(field+".group", i) + ".container"
		v.containerFiles(r, at, g.GetContainer())
		checkTargets(r, at, at, taskspec.ContainerFiles(g.GetContainer()), g.GetContainer().GetMounts())
	}
}

func (v *Validator) containerFiles(r *Report, field string, c *musterv1.ContainerSpec) {
	for _, list := range []struct {
		name string
		n    int
	}{{"secrets", len(c.GetSecrets())}, {"configs", len(c.GetConfigs())}} {
		if list.n > maxList {
			r.Invalid(field+"."+list.name, "has %d entries; at most %d are allowed", list.n, maxList)
			return
		}
	}
	for i, ref := range c.GetSecrets() {
		at := Indexed(field+".secrets", i)
		if ref.SecretId == "" && ref.SecretName == "" {
			r.Invalid(at+".secretName", "is required, or secretId")
		}
		v.fileTarget(r, at, ref.File, ref.OnChange)
	}
	for i, ref := range c.GetConfigs() {
		at := Indexed(field+".configs", i)
		if ref.ConfigId == "" && ref.ConfigName == "" {
			r.Invalid(at+".configName", "is required, or configId")
		}
		v.fileTarget(r, at, ref.GetFile(), ref.OnChange)
	}
}

func (v *Validator) fileTarget(r *Report, at string, f *musterv1.FileTarget, change *musterv1.OnChange) {
	name := f.GetName()
	checkText(r, at+".file.name", name)
	switch {
	case slices.Contains(strings.Split(name, "/"), ".."):
		r.Invalid(at+".file.name", `must not contain ".."`)
	case name != "" && (strings.HasSuffix(name, "/") || path.Clean("/"+name) == "/"):
		r.Invalid(at+".file.name", "is the path of a directory; want that of a file")
	}
	for _, id := range []struct{ field, text string }{{".file.uid", f.GetUid()}, {".file.gid", f.GetGid()}} {
		if id.text == "" {
			continue
		}
		if _, err := strconv.ParseUint(id.text, 10, 32); err != nil {
			r.Invalid(at+id.field, "%q is not valid: want a number from 0 to 4294967295", short(id.text))
		}
	}
	if f.GetMode() > maxFileMode {
		r.Invalid(at+".file.mode", "is %d; must be permission bits, at most %d (0777)", f.GetMode(), maxFileMode)
	}
	switch signal := change.GetSignal(); {
	case signal == "":
	case change.GetAction() != musterv1.OnChange_SIGNAL:
		r.Invalid(at+".onChange.signal", "is for action SIGNAL only")
	case !v.pattern.signal.MatchString(signal):
		r.Invalid(at+".onChange.signal", `is not a signal: use a name like "SIGHUP" or a number`)
	}
}

// checkTargets refuses files of a container that are in the way of each other, or of mounts.
// Task is the path of the task, or of the container of a group.
func checkTargets(r *Report, task, container string, files []taskspec.File, mounts []*musterv1.Mount) {
	seen := map[string]string{}
	for _, m := range mounts {
		seen[path.Clean(m.GetTarget())] = "a mount"
	}
	field := func(f taskspec.File) string {
		if strings.HasPrefix(f.Field, "resourceReferences") {
			return task + "." + f.Field
		}
		return container + "." + f.Field
	}
	for _, f := range files {
		if other, taken := seen[f.Target]; taken {
			r.Invalid(field(f)+".file.name", "%q is already the target of %s", short(f.Target), other)
			continue
		}
		seen[f.Target] = field(f)
	}
	for _, f := range files {
		for dir := path.Dir(f.Target); dir != "/" && dir != "."; dir = path.Dir(dir) {
			if other, taken := seen[dir]; taken && other != "a mount" {
				r.Invalid(field(f)+".file.name", "%q is below a file, the target of %s", short(f.Target), other)
			}
		}
	}
}

// templates checks the templates of a task by expanding them for an imagined one.
func (v *Validator) templates(r *Report, spec *musterv1.ServiceSpec) {
	imagined := expand.Context{
		Service: expand.Service{ID: "id", Name: spec.GetName(), Labels: spec.GetLabels()},
		Node:    expand.Node{ID: "id", Hostname: "host", Platform: expand.Platform{OS: "linux", Architecture: "amd64"}},
		Task:    expand.Task{ID: "id", Name: spec.GetName() + ".1.id", Slot: "1"},
	}
	var wrong *expand.FieldError
	if _, err := expand.Spec(spec.GetTask(), imagined); errors.As(err, &wrong) {
		r.Invalid("spec.task."+wrong.Field, "is not a template that can be expanded: %v", clip(wrong.Err.Error()))
	}
}

// Templating checks the templating driver of a config or secret, and its data with it. Data
// may be empty if it does not change.
func Templating(r *Report, field string, driver *musterv1.Driver, data []byte) {
	switch {
	case driver == nil:
	case driver.Name != expand.Driver:
		r.Invalid(field+".name", "there is no templating driver %q; want %q", short(driver.Name), expand.Driver)
	case len(driver.Options) > 0:
		r.Invalid(field+".options", "templating driver %q has no options", expand.Driver)
	default:
		if err := expand.CheckFile(data); err != nil {
			// The text of the error may hold a part of the data.
			r.Invalid(field, "the data is not a template: check its actions, and the functions that it uses")
		}
	}
}
