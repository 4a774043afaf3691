package compose_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/stack/compose"
)

// hostileDir is the variable that makes a test process load one folder in little memory.
const hostileDir = "MUSTER_TEST_HOSTILE_COMPOSE"

// Limits of a refusal. The race detector needs several times as much.
const (
	mostMemory = 256 << 20
	mostTime   = 2 * time.Second
	raceFactor = 8
)

func TestMain(m *testing.M) {
	dir := os.Getenv(hostileDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	if !raced() {
		limit := &unix.Rlimit{Cur: mostMemory, Max: mostMemory}
		if err := unix.Setrlimit(unix.RLIMIT_DATA, limit); err != nil {
			fmt.Println(err)
			os.Exit(4)
		}
	}
	_, err := compose.Load(context.Background(), compose.Options{WorkingDir: dir, Name: "shop", Environment: []string{"HOME=" + dir}})
	if err == nil {
		os.Exit(3)
	}
	fmt.Print(err)
	os.Exit(0)
}

// raced reports whether the test runs under the race detector.
func raced() bool {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" && s.Value == "true" {
			return true
		}
	}
	return false
}

// sparse makes a large file that takes no disk space.
func sparse(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// lines renders one line for each number.
func lines(n int, line func(int) string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(line(i) + "\n")
	}
	return b.String()
}

func TestHostileFilesAreRefusedInLittleTimeAndMemory(t *testing.T) {
	const app = "services: {a: {image: a"
	for name, test := range map[string]struct {
		files map[string]string
		make  func(t *testing.T, dir string)
		want  string
	}{
		"billion laughs": {files: map[string]string{"compose.yaml": "x-0: &a0 [lol, lol]\n" +
			lines(40, func(i int) string { return fmt.Sprintf("x-%d: &a%d [*a%d, *a%d]", i+1, i+1, i, i) }) + app + ", command: *a40}}"}, want: "expands to more than"},
		"quadratic aliases": {files: map[string]string{"compose.yaml": "x-a: &a [" + strings.Repeat("x, ", 1000) + "]\nx-b: [" + strings.Repeat("*a, ", 1000) + "]\n" + app + "}}"}, want: "expands to more than"},
		"merged laughs": {files: map[string]string{"compose.yaml": "x-0: &a0 {k: v}\n" +
			lines(40, func(i int) string { return fmt.Sprintf("x-%d: &a%d {<<: [*a%d, *a%d], k%d: v}", i+1, i+1, i, i, i) }) + app + ", environment: *a40}}"}, want: "expands to more than"},
		"a value that contains itself": {files: map[string]string{"compose.yaml": "x-a: &a {b: *a}\n" + app + "}}"}, want: "contains itself"},
		"deep lists":                   {files: map[string]string{"compose.yaml": app + ", command: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}}"}, want: "deep"},
		"deeper lists":                 {files: map[string]string{"compose.yaml": app + ", command: " + strings.Repeat("[", 400_000)}, want: ""},
		"deep maps":                    {files: map[string]string{"compose.yaml": app + "}}\nx-a: " + strings.Repeat("{a: ", 9000) + strings.Repeat("}", 9000)}, want: "deep"},
		"many values":                  {files: map[string]string{"compose.yaml": app + ", command: [" + strings.Repeat("a,", 500_000) + "]}}"}, want: "expands to more than"},
		"a huge file":                  {make: func(t *testing.T, dir string) { sparse(t, filepath.Join(dir, "compose.yaml"), 8<<30) }, want: "has more than"},
		"a huge env file": {files: map[string]string{"compose.yaml": app + ", env_file: big.env}}"},
			make: func(t *testing.T, dir string) { sparse(t, filepath.Join(dir, "big.env"), 8<<30) }, want: "has more than"},
		"a huge .env": {files: map[string]string{"compose.yaml": app + "}}"},
			make: func(t *testing.T, dir string) { sparse(t, filepath.Join(dir, ".env"), 8<<30) }, want: "has more than"},
		"a huge config": {files: map[string]string{"compose.yaml": app + ", configs: [c]}}\nconfigs: {c: {file: big}}"},
			make: func(t *testing.T, dir string) { sparse(t, filepath.Join(dir, "big"), 8<<30) }, want: "has more than"},
		"a huge include": {files: map[string]string{"compose.yaml": "include: [big.yaml]\n" + app + "}}"},
			make: func(t *testing.T, dir string) { sparse(t, filepath.Join(dir, "big.yaml"), 8<<30) }, want: "has more than"},
		"a named pipe": {files: map[string]string{"compose.yaml": app + ", env_file: pipe}}"},
			make: func(t *testing.T, dir string) {
				if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
					t.Fatal(err)
				}
			}, want: "not a regular file"},
		"an include of itself": {files: map[string]string{"compose.yaml": "include: [b.yaml]\n" + app + "}}", "b.yaml": "include: [compose.yaml]\nservices: {b: {image: b}}"}, want: "in a cycle"},
		"includes that fan out": {files: func() map[string]string {
			files := map[string]string{"compose.yaml": "include: [f0.yaml, f0.yaml]\n" + app + "}}", "f30.yaml": "services: {b: {image: b}}"}
			for i := range 30 {
				files[fmt.Sprintf("f%d.yaml", i)] = fmt.Sprintf("include: [f%d.yaml, {path: ./f%d.yaml}]\nservices: {b%d: {image: b}}", i+1, i+1, i)
			}
			return files
		}(), want: "compose files are included"},
		"services that extend one another": {files: map[string]string{"compose.yaml": "services: {a: {extends: b}, b: {extends: c}, c: {extends: a}}"}, want: "in a cycle"},
		"a service that extends itself in another file": {files: map[string]string{
			"compose.yaml": "services: {a: {extends: {file: b.yaml, service: a}}}", "b.yaml": "services: {a: {extends: {file: compose.yaml, service: a}}}"}, want: "in a cycle"},
		"a long chain of services": {files: map[string]string{"compose.yaml": "services:\n  s0: {image: a}\n" +
			lines(3000, func(i int) string { return fmt.Sprintf("  s%d: {extends: s%d, labels: {l%d: x}}", i+1, i, i) })}, want: "extend one another"},
		"many copies of a service": {files: map[string]string{"compose.yaml": "services:\n  s0: {image: a, command: [" + strings.Repeat("a,", 2000) + "]}\n" +
			lines(2000, func(i int) string { return fmt.Sprintf("  s%d: {extends: s0}", i+1) })}, want: "expand to more than"},
		"many ports":               {files: map[string]string{"compose.yaml": app + ", ports: [\"1-65535:1-65535\"]}}"}, want: "more than 256 ports"},
		"many ports by a variable": {files: map[string]string{"compose.yaml": app + ", ports: [\"${RANGE}:${RANGE}\"]}}", ".env": "RANGE=1-65535"}, want: "more than 256 ports"},
		"many ranges of ports":     {files: map[string]string{"compose.yaml": app + ", ports: [" + strings.Repeat("\"1000-1255:1000-1255\", ", 2000) + "]}}"}, want: "expand to more than"},
		"variables that double": {files: map[string]string{"compose.yaml": app + "}}",
			".env": "A0=0123456789\n" + lines(60, func(i int) string { return fmt.Sprintf("A%d=$A%d$A%d", i+1, i, i) })}, want: "KiB"},
		"variables that double in an env file": {files: map[string]string{"compose.yaml": app + ", env_file: e}}",
			"e": "A0=0123456789\n" + lines(60, func(i int) string { return fmt.Sprintf("A%d=\"$A%d\n$A%d\"", i+1, i, i) })}, want: "KiB"},
		"a large variable used often": {files: map[string]string{"compose.yaml": app + ", command: [" + strings.Repeat("$BIG, ", 5000) + "]}}", ".env": "BIG=" + strings.Repeat("x", 100_000)}, want: "variables"},
		"a long line of variables":    {files: map[string]string{"compose.yaml": app + ", command: [\"" + strings.Repeat("${A:-}", 100_000) + "\"]}}"}, want: "too many variables"},
		"nested defaults":             {files: map[string]string{"compose.yaml": app + ", command: [\"" + strings.Repeat("${A:-", 100_000) + strings.Repeat("}", 100_000) + "\"]}}"}, want: "too many variables"},
		"many variables in an include's env file": {files: map[string]string{"compose.yaml": "include: [{path: b.yaml, env_file: e}]\n" + app + "}}", "b.yaml": "services: {b: {image: b}}",
			"e": "A0=0123456789\n" + lines(60, func(i int) string { return fmt.Sprintf("A%d=$A%d$A%d", i+1, i, i) })}, want: "KiB"},
		"a huge file by the variables of a second include": {files: map[string]string{
			"compose.yaml": "include: [{path: b.yaml, env_file: small.env}, {path: b.yaml, env_file: huge.env}]\n" + app + "}}",
			"b.yaml":       "services: {b: {extends: {file: \"${FILE}\", service: x}}}", "small.env": "FILE=small.yaml", "huge.env": "FILE=huge.yaml", "small.yaml": "services: {x: {image: x}}"},
			make: func(t *testing.T, dir string) { sparse(t, filepath.Join(dir, "huge.yaml"), 8<<30) }, want: "has more than"},
		"many ports by the variables of a second include": {files: map[string]string{
			"compose.yaml": "include: [{path: b.yaml, env_file: few.env}, {path: b.yaml, env_file: many.env}]\n" + app + "}}",
			"b.yaml":       "services: {b: {extends: {file: c.yaml, service: x}}}", "few.env": "RANGE=1-2", "many.env": "RANGE=1-65535", "c.yaml": "services: {x: {image: x, ports: [\"${RANGE}\"]}}"},
			want: "more than 256 ports"},
		"a huge file by a merged service": {files: map[string]string{"compose.yaml": "x-a: &a {b: {extends: {file: huge.yaml, service: x}}}\nservices: {a: {image: a}, <<: *a}"},
			make: func(t *testing.T, dir string) { sparse(t, filepath.Join(dir, "huge.yaml"), 8<<30) }, want: "has more than"},
		"many ports of a merged service": {files: map[string]string{"compose.yaml": "x-a: &a {b: {image: b, ports: [\"1-65535:1-65535\"]}}\nservices: {a: {image: a}, <<: [*a]}"}, want: "more than 256 ports"},
		"no text":                        {files: map[string]string{"compose.yaml": "\xff\xfe\x00\x01"}, want: ""},
		"a scalar":                       {files: map[string]string{"compose.yaml": "42"}, want: ""},
		"nothing":                        {files: map[string]string{"compose.yaml": ""}, want: ""},
		"wrong types":                    {files: map[string]string{"compose.yaml": "services: {a: {image: a, depends_on: 1, build: [], ports: {}, networks: 3}}"}, want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, text := range test.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if test.make != nil {
				test.make(t, dir)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), hostileDir+"="+dir)
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v: want a refusal\n%.2000s", err, errs.String())
			}
			memory, limit := int64(mostMemory), mostTime
			if raced() {
				memory, limit = memory*raceFactor, limit*raceFactor
			}
			// The time of the processor, so that a busy machine does not count.
			state := cmd.ProcessState
			if used := state.UserTime() + state.SystemTime(); used > limit {
				t.Errorf("refused after %v; want at most %v", used, limit)
			}
			if used := state.SysUsage().(*syscall.Rusage).Maxrss << 10; used > memory {
				t.Errorf("refused with %d MiB; want at most %d MiB", used>>20, memory>>20)
			}
			if !strings.Contains(out.String(), test.want) || out.Len() > 4096 {
				t.Errorf("got %.500s; want a short error with %q", out.String(), test.want)
			}
		})
	}
}

// FuzzLoad checks that no input makes Load panic, and that what it returns is whole.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/corpus/*/*.y*ml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text), "A=1\nB=$A")
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text, env string) {
		// An input that never ends is a finding too, and the fuzzer does not see it.
		hang := time.AfterFunc(20*time.Second, func() { panic("Load does not return") })
		defer hang.Stop()
		result, err := compose.Load(t.Context(), compose.Options{
			Files: []string{"-"}, Stdin: strings.NewReader(text), Name: "shop", WorkingDir: dir,
			Environment: strings.Split(env, "\n"), IgnoreUnsupported: true,
		})
		if err == nil && (result.Spec.GetName() != "shop" || len(result.Spec.Services) == 0 && len(result.Ignored) == 0) {
			t.Errorf("got %v; want a whole stack", result)
		}
	})
}
