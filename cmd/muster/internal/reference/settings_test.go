package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/musterhq/muster/internal/daemon"
)

// samples are a value of each type, as a variable has it, as a YAML file has it,
// and as the flag then says.
var samples = map[string]struct{ variable, yaml, want string }{
	"string":         {"x:1", "x:1", "x:1"},
	"bool":           {"true", "true", "true"},
	"duration":       {"90s", "90s", "1m30s"},
	"int":            {"7", "7", "7"},
	"uint64":         {"7", "7", "7"},
	"float64":        {"1.5", "1.5", "1.5"},
	"stringSlice":    {"a,b", "[a, b]", "[a,b]"},
	"stringToString": {"a=b", "{a: b}", "[a=b]"},
}

// daemons are the commands whose settings the page has.
func daemons() []string {
	names := map[string]bool{}
	var in []string
	for _, s := range sections() {
		for _, c := range s.commands {
			if !names[c] {
				names[c] = true
				in = append(in, c)
			}
		}
	}
	return in
}

// each visits all settings of a command, made again for each.
func each(t *testing.T, command string, visit func(t *testing.T, fs *pflag.FlagSet, f *pflag.Flag)) {
	var names []string
	flagsOf(tree(""), command).VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	for _, name := range names {
		if name == "help" {
			continue
		}
		t.Run(command+" "+name, func(t *testing.T) {
			fs := flagsOf(tree(""), command)
			visit(t, fs, fs.Lookup(name))
		})
	}
}

// TestEverySettingFromEverywhere holds what the page says: that each setting of
// each daemon can be a variable, and a key of the file.
func TestEverySettingFromEverywhere(t *testing.T) {
	for _, command := range daemons() {
		each(t, command, func(t *testing.T, fs *pflag.FlagSet, f *pflag.Flag) {
			sample, ok := samples[f.Value.Type()]
			if !ok {
				t.Fatalf("what is a %s? the page does not say", f.Value.Type())
			}
			variable := daemon.EnvPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
			if f.Name != "config" {
				if err := daemon.Load(fs, func(name string) (string, bool) { return sample.variable, name == variable }); err != nil {
					t.Fatal(err)
				}
				if f.Value.String() != sample.want {
					t.Errorf("%s=%s makes it %s", variable, sample.variable, f.Value)
				}
			}
			if f.Name == "config" || fs.Lookup("config") == nil {
				return
			}
			fs = flagsOf(tree(""), command)
			path := filepath.Join(t.TempDir(), "settings.yaml")
			if err := os.WriteFile(path, fmt.Appendf(nil, "%s: %s\n", f.Name, sample.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := daemon.Load(fs, func(name string) (string, bool) { return path, name == "MUSTER_CONFIG" }); err != nil {
				t.Fatal(err)
			}
			if got := fs.Lookup(f.Name).Value; got.String() != sample.want {
				t.Errorf("%q in the file makes it %s", sample.yaml, got)
			}
		})
	}
}

// TestThePageHasAll looks for each setting, with its meaning.
func TestThePageHasAll(t *testing.T) {
	page := settingsPage(tree(""))
	for _, command := range daemons() {
		each(t, command, func(t *testing.T, _ *pflag.FlagSet, f *pflag.Flag) {
			if f.Usage == "" || !strings.Contains(page, fmt.Sprintf("| `%s` | %s |", f.Name, valueOf(f))) || !strings.Contains(page, cell(f.Usage)) {
				t.Error("the page does not say what it is")
			}
		})
	}
}
