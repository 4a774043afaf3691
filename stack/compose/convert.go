package compose

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Labels that Docker gives to the objects of a stack.
const (
	namespaceLabel = "com.docker.stack.namespace"
	imageLabel     = "com.docker.stack.image"
)

// Names that the API takes.
var (
	objectName = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)
	dataName   = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9])?$`)
	aliasName  = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?$`)
)

const (
	maxName     = 63
	maxDataName = 64
)

// converter makes the spec of a stack of a compose project.
type converter struct {
	*report
	project *types.Project
	vars    variables
	budget  *budget
	builds  bool
	result  *Result
}

// keys compares the parts of the model that are used with the table of keys.
func (c *converter) keys(dict map[string]any) {
	used := map[string]func(string) bool{
		"services": has(c.project.Services), "networks": has(c.project.Networks), "volumes": has(c.project.Volumes),
		"secrets": has(c.project.Secrets), "configs": has(c.project.Configs),
	}
	kept := map[string]any{}
	for section, value := range dict {
		objects, isMap := value.(map[string]any)
		inUse, known := used[section]
		if !known || !isMap {
			kept[section] = value
			continue
		}
		part := map[string]any{}
		for name, object := range objects {
			path := []string{section, name}
			switch {
			case inUse(name):
				part[name] = object
			case section != "services" && c.index.written(path):
				c.note(path, "no active service uses it")
			}
		}
		kept[section] = part
	}
	newChecker(c.report).check(kept, nil, "")
}

func has[M ~map[string]V, V any](m M) func(string) bool {
	return func(name string) bool { _, ok := m[name]; return ok }
}

// convert returns the stack, or all that is wrong with it.
func (c *converter) convert() (*Result, error) {
	p := c.project
	spec := &musterv1.StackSpec{Name: p.Name, Labels: map[string]string{namespaceLabel: p.Name}}
	if len(p.Name) > maxName {
		c.invalid([]string{"name"}, "", "the stack's name has %d characters; at most %d are allowed", len(p.Name), maxName)
	}
	for _, key := range sorted(p.Networks) {
		if network := c.network(key, p.Networks[key]); network != nil {
			spec.Networks = append(spec.Networks, network)
		}
	}
	for _, key := range sorted(p.Secrets) {
		if secret := c.secret(key, types.FileObjectConfig(p.Secrets[key])); secret != nil {
			spec.Secrets = append(spec.Secrets, secret)
		}
	}
	for _, key := range sorted(p.Configs) {
		if config := c.config(key, types.FileObjectConfig(p.Configs[key])); config != nil {
			spec.Configs = append(spec.Configs, config)
		}
	}
	for _, key := range sorted(p.Services) {
		service := p.Services[key]
		if service.Provider != nil {
			continue
		}
		spec.Services = append(spec.Services, c.service(service))
	}
	if len(p.Services) == 0 {
		c.invalid([]string{"services"}, "", "there is no active service; activate a profile with --profile, or add a service without profiles")
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	source, err := p.MarshalYAML()
	if err != nil {
		return nil, err
	}
	spec.Source = string(source)
	c.result.Spec = spec
	c.result.Ignored = c.ignored
	c.result.Warnings = c.index.warnings
	c.sort(c.result.Ignored)
	return c.result, nil
}

// external notes an object that must exist.
func (c *converter) external(kind Kind, name string) {
	if e := (External{kind, name}); !slices.Contains(c.result.External, e) {
		c.result.External = append(c.result.External, e)
	}
}

// full returns the name that a service has in the cluster.
func (c *converter) full(service string) string { return c.project.Name + "_" + service }

// checkName checks the name of an object.
func (c *converter) checkName(path []string, name string, pattern *regexp.Regexp, most int) {
	switch {
	case len(name) > most:
		c.invalid(path, "", "the name %q has %d characters; at most %d are allowed: choose shorter names for it or the stack", name, len(name), most)
	case !pattern.MatchString(name):
		c.invalid(path, "", "the name %q must consist of letters, digits, \"-\" and \"_\", and begin and end with a letter or digit", name)
	}
}

// labels returns labels with that of the stack.
func (c *converter) labels(of ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, labels := range of {
		maps.Copy(all, labels)
	}
	all[namespaceLabel] = c.project.Name
	return all
}

func sorted[M ~map[string]V, V any](m M) []string { return slices.Sorted(maps.Keys(m)) }

func number(i int) string { return strconv.Itoa(i) }

// span returns a time, or nil for none.
func span(d *types.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(time.Duration(*d))
}

// positive returns a time that is not 0, or nil.
func positive(d types.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(d))
}
