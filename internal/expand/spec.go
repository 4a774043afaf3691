package expand

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/taskspec"
)

// FieldError says which field of a task spec cannot be expanded.
type FieldError struct {
	// Field is its path, such as "group[0].container.env[0]".
	Field string
	Err   error
}

// Error implements error.
func (e *FieldError) Error() string { return fmt.Sprintf("%s: %v", e.Field, e.Err) }

// Unwrap returns the cause.
func (e *FieldError) Unwrap() error { return e.Err }

// Spec returns a task spec in which the templates of all containers are expanded. It is the
// same spec if there are none. All of them together have the bounds of one expansion. Its
// errors are [FieldError].
func Spec(spec *musterv1.TaskSpec, c Context) (*musterv1.TaskSpec, error) {
	if !slices.ContainsFunc(taskspec.Containers(spec), templated) {
		return spec, nil
	}
	spec = proto.CloneOf(spec)
	b := newBudget(c)
	if container := spec.GetContainer(); container != nil {
		if err := b.container("container.", container, c); err != nil {
			return nil, err
		}
	}
	for i, g := range spec.GetGroup() {
		if container := g.GetContainer(); container != nil {
			if err := b.container(fmt.Sprintf("group[%d].container.", i), container, c); err != nil {
				return nil, err
			}
		}
	}
	return spec, nil
}

// templated reports whether a container spec has a template.
func templated(spec *musterv1.ContainerSpec) bool {
	found := false
	// It changes nothing, so nothing can fail.
	_ = each(spec, func(_ string, text string) (string, error) {
		found = found || Templated(text)
		return text, nil
	})
	return found
}

// container expands the templates in a container spec, which it changes. At is the path of
// the container.
func (b *budget) container(at string, spec *musterv1.ContainerSpec, c Context) error {
	return each(spec, func(field, text string) (string, error) {
		expanded, err := b.expand(text, c, maxText, nil)
		if err == nil && strings.ContainsRune(expanded, 0) {
			err = fmt.Errorf("value has a zero byte")
		}
		if err != nil {
			return "", &FieldError{at + field, err}
		}
		return expanded, nil
	})
}

// each replaces each text of a container spec that can be a template. Texts that stay the
// same are not written.
func each(spec *musterv1.ContainerSpec, replace func(field, text string) (string, error)) error {
	set := func(field string, text *string) error {
		next, err := replace(field, *text)
		if err == nil && next != *text {
			*text = next
		}
		return err
	}
	options := func(field string, m map[string]string) error {
		for _, key := range slices.Sorted(maps.Keys(m)) {
			value := m[key]
			if err := set(fmt.Sprintf("%s[%q]", field, key), &value); err != nil {
				return err
			}
			if value != m[key] {
				m[key] = value
			}
		}
		return nil
	}
	for i := range spec.Env {
		key, value, _ := strings.Cut(spec.Env[i], "=")
		next, err := replace(fmt.Sprintf("env[%d]", i), value)
		if err != nil {
			return err
		}
		if next != value {
			spec.Env[i] = key + "=" + next
		}
	}
	for field, text := range map[string]*string{"hostname": &spec.Hostname, "dir": &spec.Dir, "user": &spec.User} {
		if err := set(field, text); err != nil {
			return err
		}
	}
	for i, m := range spec.Mounts {
		at := fmt.Sprintf("mounts[%d].", i)
		if err := set(at+"source", &m.Source); err != nil {
			return err
		}
		if err := set(at+"target", &m.Target); err != nil {
			return err
		}
		if err := options(at+"volumeOptions.labels", m.GetVolumeOptions().GetLabels()); err != nil {
			return err
		}
		if err := options(at+"volumeOptions.driverConfig.options", m.GetVolumeOptions().GetDriverConfig().GetOptions()); err != nil {
			return err
		}
	}
	return nil
}
