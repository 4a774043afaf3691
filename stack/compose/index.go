package compose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/paths"
	"go.yaml.in/yaml/v3"
)

// index holds every compose file that a stack is made from, before compose-go sees them.
// It bounds what they expand to, keeps what they read inside the project, and finds the
// lines of keys.
type index struct {
	// dir is the project directory.
	dir     string
	budget  *budget
	sources []*source
	// bases are the services that services extend.
	bases map[serviceAt]serviceAt
	// absolute are the absolute paths that are written in the files.
	absolute map[string]bool
	warnings []Problem
	values   int
	// sizes are the values of services that are extended.
	sizes map[serviceAt]int
}

// serviceAt is a service in a file.
type serviceAt struct {
	path    string
	service string
}

func newIndex(dir string, b *budget) *index {
	return &index{dir: dir, budget: b, bases: map[serviceAt]serviceAt{}, absolute: map[string]bool{}, sizes: map[serviceAt]int{}}
}

// scope is where a file is read from: what its relative paths and variables mean.
type scope struct {
	dir  string
	vars variables
	// including are the files that led here, and extending the services.
	including []string
	extending []serviceAt
}

// add reads a compose file and what it includes and extends.
func (x *index) add(ctx context.Context, name, path string, content []byte, in scope) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if slices.Contains(in.including, path) {
		return fmt.Errorf("files include one another in a cycle: %s", strings.Join(append(in.including, path), " -> "))
	}
	s, err := x.read(name, path, content, in.vars)
	if err != nil {
		return err
	}
	in.including = append(slices.Clip(in.including), path)
	for _, root := range s.roots {
		if err := x.includes(ctx, s, root, in); err != nil {
			return err
		}
		_, services := entry(root, "services")
		for _, service := range keys(services) {
			if err := x.extends(ctx, s, service, in); err != nil {
				return err
			}
		}
	}
	return nil
}

// read parses a file and checks what it expands to.
func (x *index) read(name, path string, content []byte, vars variables) (*source, error) {
	if len(x.sources) == maxFiles {
		return nil, fmt.Errorf("%s: more than %d compose files are included or extended", name, maxFiles)
	}
	if content == nil {
		var err error
		if content, err = readFile(path, maxFile); err != nil {
			return nil, err
		}
	}
	s, err := newSource(name, path, content)
	if err != nil {
		return nil, err
	}
	size, err := s.size()
	if err != nil {
		return nil, err
	}
	if err := x.charge(name, size); err != nil {
		return nil, err
	}
	s.vars = vars
	x.sources = append(x.sources, s)
	seen := map[*yaml.Node]bool{}
	for _, root := range s.roots {
		if err := x.scan(s, root, vars, seen); err != nil {
			return nil, err
		}
	}
	return s, x.checkRanges(s, vars)
}

func (x *index) charge(name string, values int) error {
	if x.values += values; x.values > maxValues {
		return fmt.Errorf("%s: the compose files expand to more than %d values", name, maxValues)
	}
	return nil
}

// scan looks at every text of a file: for absolute paths, and for variables that are not
// set.
func (x *index) scan(s *source, n *yaml.Node, vars variables, seen map[*yaml.Node]bool) error {
	if n = deref(n); seen[n] {
		return nil
	}
	seen[n] = true
	if n.Kind == yaml.MappingNode {
		for i := 1; i < len(n.Content); i += 2 {
			if err := x.scan(s, n.Content[i], vars, seen); err != nil {
				return err
			}
		}
		return nil
	}
	for _, c := range n.Content {
		if err := x.scan(s, c, vars, seen); err != nil {
			return err
		}
	}
	if n.Kind != yaml.ScalarNode {
		return nil
	}
	text, err := x.fill(s, n, vars)
	if err != nil {
		return err
	}
	// An option such as "seccomp=/path" has the path behind its name.
	_, value, _ := strings.Cut(text, "=")
	for _, path := range []string{text, value} {
		if path = paths.ExpandUser(path); filepath.IsAbs(path) {
			x.absolute[filepath.Clean(path)] = true
		}
	}
	return nil
}

// fill returns a text with its variables filled in. Errors of its syntax are left to
// compose-go.
func (x *index) fill(s *source, n *yaml.Node, vars variables) (string, error) {
	if !strings.Contains(n.Value, "$") {
		return n.Value, nil
	}
	for _, name := range unset(n.Value, vars) {
		p := Problem{File: s.name, Line: n.Line, Key: name, Reason: "the variable is not set; an empty text takes its place"}
		add(&x.warnings, p)
	}
	text, err := x.budget.substitute(n.Value, vars.lookup)
	if err != nil && (x.budget.text < 0 || x.budget.work < 0) {
		return "", fmt.Errorf("%s:%d: %w", s.name, n.Line, err)
	}
	if err != nil {
		return n.Value, nil
	}
	return text, nil
}

// includes reads what a document includes.
func (x *index) includes(ctx context.Context, s *source, root *yaml.Node, in scope) error {
	_, list := entry(root, "include")
	if list == nil || list.Kind != yaml.SequenceNode {
		return nil
	}
	for _, item := range list.Content {
		if err := x.include(ctx, s, deref(item), in); err != nil {
			return err
		}
	}
	return nil
}

func (x *index) include(ctx context.Context, s *source, item *yaml.Node, in scope) error {
	files := []*yaml.Node{item}
	var dir string
	var envs []string
	if item.Kind == yaml.MappingNode {
		_, path := entry(item, "path")
		files = elements(path)
		_, project := entry(item, "project_directory")
		var err error
		if project != nil {
			if dir, err = x.fill(s, project, in.vars); err != nil {
				return err
			}
		}
		_, env := entry(item, "env_file")
		for _, n := range elements(env) {
			name, err := x.fill(s, n, in.vars)
			if err != nil {
				return err
			}
			if name != os.DevNull {
				envs = append(envs, join(in.dir, name))
			}
		}
	}
	var list []string
	for _, n := range files {
		name, err := x.fill(s, n, in.vars)
		if err != nil {
			return err
		}
		if remote(name) {
			return fmt.Errorf("%s:%d: include: %s is not a local file: download it and include the copy", s.name, n.Line, name)
		}
		list = append(list, join(in.dir, name))
	}
	if len(list) == 0 {
		return nil
	}
	if dir == "" {
		dir = filepath.Dir(list[0])
	}
	dir = join(in.dir, dir)
	if len(envs) == 0 {
		if dotenv := filepath.Join(dir, ".env"); isFile(dotenv) {
			envs = append(envs, dotenv)
		}
	}
	vars := maps.Clone(in.vars)
	for _, path := range envs {
		content, err := x.open(path, maxFile)
		if err != nil {
			return fmt.Errorf("%s:%d: include: env_file: %w", s.name, item.Line, err)
		}
		if err := vars.fill(content, x.budget); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, path := range list {
		next := scope{dir: dir, vars: vars, including: in.including}
		if err := x.add(ctx, x.relative(path), path, nil, next); err != nil {
			return fmt.Errorf("%s:%d: include: %w", s.name, item.Line, err)
		}
	}
	return nil
}

// extends reads what a service extends, and what that extends. A file that is included
// twice can have other variables, and so other services in it.
func (x *index) extends(ctx context.Context, s *source, service string, in scope) error {
	at := serviceAt{s.path, service}
	for _, root := range s.roots {
		_, services := entry(root, "services")
		_, body := entry(services, service)
		key, extends := entry(body, "extends")
		if key == nil {
			continue
		}
		switch {
		case slices.Contains(in.extending, at):
			return fmt.Errorf("%s:%d: services.%s.extends: services extend one another in a cycle", s.name, key.Line, service)
		case len(in.extending) == maxChain:
			return fmt.Errorf("%s:%d: services.%s.extends: more than %d services extend one another", s.name, key.Line, service, maxChain)
		}
		if err := x.extend(ctx, s, at, key, extends, in); err != nil {
			return err
		}
	}
	return nil
}

func (x *index) extend(ctx context.Context, s *source, at serviceAt, key, extends *yaml.Node, in scope) error {
	name, file := extends, (*yaml.Node)(nil)
	if extends.Kind == yaml.MappingNode {
		_, name = entry(extends, "service")
		_, file = entry(extends, "file")
	}
	if name == nil || name.Kind != yaml.ScalarNode {
		return nil
	}
	base := s
	service, err := x.fill(s, name, in.vars)
	if err != nil {
		return err
	}
	if file != nil {
		path, err := x.fill(s, file, in.vars)
		if err != nil {
			return err
		}
		if remote(path) {
			return fmt.Errorf("%s:%d: extends: %s is not a local file: download it and extend the copy", s.name, file.Line, path)
		}
		path = join(in.dir, path)
		if base, err = x.once(path, in.vars); err != nil {
			return fmt.Errorf("%s:%d: extends: %w", s.name, key.Line, err)
		}
		in.dir = filepath.Dir(path)
	}
	x.bases[at] = serviceAt{base.path, service}
	// Each service gets the values of all those that it extends.
	if err := x.charge(s.name, x.serviceSize(x.bases[at])); err != nil {
		return err
	}
	in.extending = append(slices.Clip(in.extending), at)
	return x.extends(ctx, base, service, in)
}

// once returns a file that services extend. It is read once for the same variables.
func (x *index) once(path string, vars variables) (*source, error) {
	for _, s := range x.sources {
		if s.path == path && maps.Equal(s.vars, vars) {
			return s, nil
		}
	}
	return x.read(x.relative(path), path, nil, vars)
}

// serviceSize counts the values of a service.
func (x *index) serviceSize(at serviceAt) int {
	if total, known := x.sizes[at]; known {
		return total
	}
	total := 0
	for _, s := range x.sources {
		if s.path != at.path {
			continue
		}
		for _, root := range s.roots {
			_, services := entry(root, "services")
			if _, body := entry(services, at.service); body != nil {
				// It was counted with its file, so there is no error.
				n, _ := s.count(body, 0, map[*yaml.Node]int{})
				total += n
			}
		}
		break
	}
	x.sizes[at] = total
	return total
}

// find returns where a key is written: in the last file that has it, or in a service that
// is extended. Otherwise it is where the value is that holds the key.
func (x *index) find(path []string, hint string) (string, int) {
	for n := len(path); n > 0; n-- {
		for _, p := range x.places(path[:n]) {
			if line, ok := p.source.find(p.path, hint); ok {
				return p.source.name, line
			}
		}
		hint = ""
	}
	if len(x.sources) == 0 {
		return "", 0
	}
	return x.sources[0].name, 0
}

// place is a path in a file.
type place struct {
	source *source
	path   []string
}

// places returns where a path may be written, the strongest first.
func (x *index) places(path []string) []place {
	var list []place
	for _, s := range slices.Backward(x.sources) {
		list = append(list, place{s, path})
	}
	if len(path) < 3 || path[0] != "services" {
		return list
	}
	for _, s := range x.sources {
		at := serviceAt{s.path, path[1]}
		for range maxChain {
			base, ok := x.bases[at]
			i := slices.IndexFunc(x.sources, func(s *source) bool { return s.path == base.path })
			if !ok || i < 0 {
				break
			}
			at = base
			list = append(list, place{x.sources[i], append([]string{"services", at.service}, path[2:]...)})
		}
	}
	return list
}

// written reports whether a key is written in a file.
func (x *index) written(path []string) bool {
	return slices.ContainsFunc(x.places(path), func(p place) bool {
		_, ok := p.source.find(p.path, "")
		return ok
	})
}

// createsPath reports whether the long form of a mount says that the path is created.
func (x *index) createsPath(service, target string) bool {
	for _, p := range x.places([]string{"services", service, "volumes"}) {
		for _, root := range p.source.roots {
			_, services := entry(root, "services")
			_, body := entry(services, p.path[1])
			_, volumes := entry(body, "volumes")
			for _, item := range elements(volumes) {
				_, to := entry(item, "target")
				_, bind := entry(item, "bind")
				if key, _ := entry(bind, "create_host_path"); key != nil && to != nil && filepath.Clean(to.Value) == target {
					return true
				}
			}
		}
	}
	return false
}

// open reads a file that a compose file names. Relative paths must not lead out of the
// project directory, by ".." or by a symbolic link.
func (x *index) open(path string, most int) ([]byte, error) {
	if !x.absolute[filepath.Clean(path)] && !within(x.dir, path) {
		return nil, fmt.Errorf("%s is outside the project directory %s: write its absolute path if it is meant", x.relative(path), x.dir)
	}
	content, err := readFile(path, most)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no file %s: %w", x.relative(path), fs.ErrNotExist)
	}
	return content, err
}

// relative returns the name of a file for people.
func (x *index) relative(path string) string {
	if rel, err := filepath.Rel(x.dir, path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return path
}

func join(dir, path string) string {
	if path = paths.ExpandUser(path); filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir()
}

// remote reports whether a path is a URL, or what Docker Compose takes from a registry or
// a Git repository.
func remote(path string) bool {
	return strings.Contains(path, "://") || strings.HasPrefix(path, "oci:") || strings.HasPrefix(path, "git@") || strings.HasPrefix(path, "github.com/")
}

// keys returns the keys of a mapping, also those of mappings that are merged into it.
func keys(n *yaml.Node) []string {
	var list []string
	if n = deref(n); n == nil {
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			more := []string{n.Content[i].Value}
			if more[0] == "<<" {
				more = keys(n.Content[i+1])
			}
			list = append(list, more...)
		}
	case yaml.SequenceNode:
		for _, merged := range n.Content {
			list = append(list, keys(merged)...)
		}
	}
	return list
}

// elements returns the texts of a list, or one text.
func elements(n *yaml.Node) []*yaml.Node {
	if n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		return []*yaml.Node{n}
	}
	list := make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		list[i] = deref(c)
	}
	return list
}
