package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/consts"
	"github.com/compose-spec/compose-go/v2/graph"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/sirupsen/logrus"
)

// stdin is the name of the file that is read from Options.Stdin.
const stdin = "-"

// quiet turns off what compose-go writes to the log of the process. What it says there is
// in Result.Warnings, or in the documentation of the key.
var quiet = sync.OnceFunc(func() { logrus.SetLevel(logrus.ErrorLevel) })

// Load reads compose files and returns the stack that they describe. An error of type
// *Error lists every key that is at fault. Load makes no network connections.
//
// The source of the spec holds the environment of services, passwords included.
func Load(ctx context.Context, opts Options) (*Result, error) {
	quiet()
	files, dir, err := opts.files()
	if err != nil {
		return nil, err
	}
	work := newBudget()
	index := newIndex(dir, work)
	vars, err := opts.variables(index)
	if err != nil {
		return nil, err
	}
	if name := cmp.Or(opts.Name, vars[consts.ComposeProjectName]); name != "" && loader.NormalizeProjectName(name) != name {
		return nil, fmt.Errorf("invalid stack name %q: want lower-case letters, digits, \"-\" and \"_\", with a letter or digit first", name)
	}
	details := types.ConfigDetails{WorkingDir: dir, Environment: types.Mapping(vars)}
	for _, name := range files {
		file, err := opts.file(name, dir)
		if err != nil {
			return nil, err
		}
		if err := index.add(ctx, name, file.Filename, file.Content, scope{dir: dir, vars: vars}); err != nil {
			return nil, err
		}
		details.ConfigFiles = append(details.ConfigFiles, file)
	}
	report := &report{index: index, ignore: opts.IgnoreUnsupported}
	for _, s := range index.sources {
		for _, root := range s.roots {
			newChecker(report).unknown(s, root, nil, "")
		}
	}
	if err := report.err(); err != nil {
		return nil, err
	}
	dict, project, err := opts.parse(ctx, details, work)
	if err != nil {
		return nil, fmt.Errorf("invalid compose file: %w", err)
	}
	c := &converter{
		report: report, project: project, vars: vars, budget: work, builds: opts.Builds, result: &Result{},
	}
	c.keys(dict)
	// What is not consistent cannot be converted. All else is reported together.
	before := len(report.errors)
	if c.consistent(); len(report.errors) > before {
		return nil, report.err()
	}
	if err := graph.CheckCycle(project); err != nil {
		return nil, fmt.Errorf("invalid compose file: %w", err)
	}
	return c.convert()
}

// files returns the compose files and the project directory.
func (o Options) files() ([]string, string, error) {
	dir, err := filepath.Abs(o.WorkingDir)
	if err != nil {
		return nil, "", err
	}
	files := o.Files
	if env := environ(o.Environment); len(files) == 0 && env[consts.ComposeFilePath] != "" {
		files = strings.Split(env[consts.ComposeFilePath], cmp.Or(env[consts.ComposePathSeparator], string(os.PathListSeparator)))
	}
	if len(files) == 0 {
		if files, err = search(dir, o.WorkingDir != ""); err != nil {
			return nil, "", err
		}
	}
	if o.WorkingDir == "" && files[0] != stdin {
		first, err := filepath.Abs(files[0])
		if err != nil {
			return nil, "", err
		}
		dir = filepath.Dir(first)
	}
	return files, dir, nil
}

// search looks for a compose file, and for one that overrides it.
func search(dir string, only bool) ([]string, error) {
	for at := dir; ; at = filepath.Dir(at) {
		for _, name := range cli.DefaultFileNames {
			if !isFile(filepath.Join(at, name)) {
				continue
			}
			files := []string{shown(filepath.Join(at, name))}
			for _, override := range cli.DefaultOverrideFileNames {
				if path := filepath.Join(at, override); isFile(path) {
					return append(files, shown(path)), nil
				}
			}
			return files, nil
		}
		if only || at == filepath.Dir(at) {
			return nil, fmt.Errorf("there is no compose file in %s: name one with --compose-file, or add compose.yaml", dir)
		}
	}
}

// shown returns the shortest name of a file for the working directory of the process.
func shown(path string) string {
	dir, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(dir, path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return path
}

// file reads a compose file that the user named.
func (o Options) file(name, dir string) (types.ConfigFile, error) {
	if name == stdin {
		if o.Stdin == nil {
			return types.ConfigFile{}, errors.New("there is no standard input to read a compose file from")
		}
		content, err := readAll(o.Stdin, "standard input", maxFile)
		return types.ConfigFile{Filename: filepath.Join(dir, "standard-input.yaml"), Content: content}, err
	}
	path, err := filepath.Abs(name)
	if err != nil {
		return types.ConfigFile{}, err
	}
	content, err := readFile(path, maxFile)
	if err != nil {
		return types.ConfigFile{}, fmt.Errorf("compose file %s: %w", name, err)
	}
	return types.ConfigFile{Filename: path, Content: content}, nil
}

// variables returns the variables for interpolation. The environment wins over files, and
// later files over earlier ones.
func (o Options) variables(x *index) (variables, error) {
	env := environ(o.Environment)
	files := slices.Clone(o.EnvFiles)
	open := readFile
	if path := filepath.Join(x.dir, ".env"); len(files) == 0 && isFile(path) {
		files, open = []string{path}, x.open
	}
	vars := variables{}
	for _, name := range files {
		content, err := open(name, maxFile)
		if err != nil {
			return nil, fmt.Errorf("env file: %w", err)
		}
		more, err := x.budget.parseEnv(content, func(key string) (string, bool) {
			if value, ok := env[key]; ok {
				return value, true
			}
			return vars.lookup(key)
		})
		if err != nil {
			return nil, fmt.Errorf("env file %s: %w", x.relative(name), err)
		}
		for key, value := range more {
			vars[key] = value
		}
	}
	for key, value := range env {
		vars[key] = value
	}
	return vars, nil
}

// parse hands the files to compose-go, and returns the model as it is written and as types.
func (o Options) parse(ctx context.Context, details types.ConfigDetails, work *budget) (dict map[string]any, project *types.Project, err error) {
	// The parser is not ours, and what it reads may be hostile.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it cannot be read: %v", r)
		}
	}()
	name, explicit := cmp.Or(o.Name, details.Environment[consts.ComposeProjectName]), true
	if name == "" {
		name, explicit = loader.NormalizeProjectName(filepath.Base(details.WorkingDir)), false
	}
	profiles := o.Profiles
	if len(profiles) == 0 {
		profiles = strings.FieldsFunc(details.Environment[consts.ComposeProfiles], func(r rune) bool { return r == ',' })
	}
	options := func(l *loader.Options) {
		l.SetProjectName(name, explicit)
		l.Profiles = profiles
		l.Interpolate.Substitute = work.substitute
		l.PruneUnnecessaryResources = true
		l.SkipResolveEnvironment = true
		l.SkipResolveLabels = true
		l.SkipConsistencyCheck = true
	}
	if dict, err = loader.LoadModelWithContext(ctx, details, options); err != nil {
		return nil, nil, err
	}
	name, _ = dict["name"].(string)
	explicit = true
	model, _ := clone(dict).(map[string]any)
	project, err = loader.ModelToProject(model, loader.ToOptions(&details, []func(*loader.Options){options}), details)
	return dict, project, err
}

func clone(value any) any {
	switch v := value.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for key, item := range v {
			m[key] = clone(item)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, item := range v {
			list[i] = clone(item)
		}
		return list
	}
	return value
}

// missing reports whether a file does not exist.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
