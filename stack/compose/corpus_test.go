package compose_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/stack/compose"
)

var update = flag.Bool("update", false, "write the golden files of the corpus")

// corpusEnv is what the files of the corpus find in the environment.
func corpusEnv() []string {
	return []string{"TAG=1.27", "DB_PASSWORD=from-the-environment", "MESSAGE=hello", "PATH=/usr/bin"}
}

// loadCase loads a folder of the corpus. A file "options" names what the command line has:
// "file NAME", "name NAME", "profile NAME", "env-file NAME", "ignore" and "builds".
func loadCase(t *testing.T, dir string) (*compose.Result, error) {
	t.Helper()
	opts := compose.Options{WorkingDir: dir, Name: "shop", Environment: corpusEnv()}
	lines, err := os.ReadFile(filepath.Join(dir, "options"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(lines)) {
		word, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "file":
			opts.Files = append(opts.Files, filepath.Join(dir, value))
		case "name":
			opts.Name = value
		case "unnamed":
			opts.Name = ""
		case "profile":
			opts.Profiles = append(opts.Profiles, value)
		case "env-file":
			opts.EnvFiles = append(opts.EnvFiles, filepath.Join(dir, value))
		case "ignore":
			opts.IgnoreUnsupported = true
		case "builds":
			opts.Builds = true
		default:
			t.Fatalf("unknown option %q", line)
		}
	}
	return compose.Load(t.Context(), opts)
}

// describe renders what Load returned for the golden files. Paths of the machine are left
// out.
func describe(t *testing.T, dir string, result *compose.Result, err error) []byte {
	t.Helper()
	var b bytes.Buffer
	abs, absErr := filepath.Abs(dir)
	if absErr != nil {
		t.Fatal(absErr)
	}
	clean := func(s string) string {
		return strings.ReplaceAll(strings.ReplaceAll(s, abs, "/project"), dir, ".")
	}
	if err != nil {
		return []byte("error:\n" + clean(err.Error()) + "\n")
	}
	for _, p := range result.Ignored {
		b.WriteString("# ignored: " + clean(p.String()) + "\n")
	}
	for _, p := range result.Warnings {
		b.WriteString("# warning: " + clean(p.String()) + "\n")
	}
	for _, e := range result.External {
		b.WriteString("# external: " + string(e.Kind) + " " + e.Name + "\n")
	}
	for _, image := range result.Builds {
		b.WriteString("# build: " + image.Service + " " + image.Image + " " + clean(image.Config.Context) + "\n")
	}
	spec := proto.CloneOf(result.Spec)
	// The source is checked by a test of its own.
	spec.Source = ""
	text, err := protojson.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if text, err = yaml.JSONToYAML(text); err != nil {
		t.Fatal(err)
	}
	b.WriteString(clean(string(text)))
	return b.Bytes()
}

func corpus(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("testdata/corpus/*")
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// TestCorpusGivesGoldenSpecs holds the corpus to its golden files. "go test -run Corpus
// ./stack/compose -update" writes them.
func TestCorpusGivesGoldenSpecs(t *testing.T) {
	dirs := corpus(t)
	if len(dirs) < 40 {
		t.Errorf("the corpus has %d stacks; want at least 40", len(dirs))
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			result, err := loadCase(t, dir)
			got := describe(t, dir, result, err)
			golden := filepath.Join(dir, "golden")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("want the golden file (-), got (+):\n%s", diff)
			}
		})
	}
}

// stacks returns the specs of the corpus.
func stacks(t *testing.T) map[string]*musterv1.StackSpec {
	t.Helper()
	specs := map[string]*musterv1.StackSpec{}
	for _, dir := range corpus(t) {
		if result, err := loadCase(t, dir); err == nil {
			specs[filepath.Base(dir)] = result.Spec
		}
	}
	return specs
}
