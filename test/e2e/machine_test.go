package e2e_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is one of the machine's processes that belong to a site.
type process struct {
	pid, parent int
	// program is its file; command its arguments; env its environment.
	program string
	command []string
	env     []string
}

func (p process) String() string {
	return fmt.Sprintf("process %d (child of %d): %s", p.pid, p.parent, strings.Join(p.command, " "))
}

// has tells whether its environment holds a variable with a value.
func (p process) has(variable string) bool { return slices.Contains(p.env, variable) }

// processes returns the processes that run a program of the site, or that are of
// a task of its nodes. What ends meanwhile is left out.
func (s *site) processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, ok := readProcess(pid)
		if !ok {
			continue
		}
		ours := strings.HasPrefix(p.program, s.bin+"/")
		for _, node := range s.nodes {
			ours = ours || p.has("MUSTER_NODE_ID="+node)
		}
		if ours {
			found = append(found, p)
		}
	}
	return found, nil
}

func readProcess(pid int) (process, bool) {
	at := func(name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }
	program, err := os.Readlink(at("exe"))
	if err != nil {
		// A kernel thread, a zombie, or gone.
		return process{}, false
	}
	command, err1 := os.ReadFile(at("cmdline"))
	env, err2 := os.ReadFile(at("environ"))
	stat, err3 := os.ReadFile(at("stat"))
	if errors.Join(err1, err2, err3) != nil {
		return process{}, false
	}
	list := func(b []byte) []string { return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00") }
	// The parent is the second field behind the name in parentheses (proc(5)).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return process{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return process{}, false
	}
	return process{pid: pid, parent: parent, program: program, command: list(command), env: list(env)}, true
}

// alive reports whether a process is there.
func alive(pid int) bool { return pid > 0 && syscall.Kill(pid, 0) == nil }

// plugin finds the process of an executor plugin of a worker: a child of the
// process that the worker is in, with a state directory that is the worker's.
func (s *site) plugin(worker, executor string) (process, error) {
	all, err := s.processes()
	if err != nil {
		return process{}, err
	}
	program := filepath.Join(s.bin, "plugins", "muster-executor-"+executor)
	parent := s.host(worker)
	for _, p := range all {
		if p.program == program && p.parent == parent && slices.ContainsFunc(p.env, func(v string) bool { return strings.Contains(v, "/"+worker+"/") }) {
			return p, nil
		}
	}
	return process{}, fmt.Errorf("no process of plugin %s of %s", executor, worker)
}

// host is the process that a worker is in.
func (s *site) host(worker string) int {
	if p := s.Process(worker); p != nil {
		return p.PID()
	}
	return s.Process("dev").PID()
}

// dockerTimeout bounds one command of the Docker Engine.
const dockerTimeout = time.Minute

// docker runs Docker's command line.
func docker(ctx context.Context, stdin []byte, args ...string) (string, error) {
	// Also at the end of a test, when its own context is over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dockerTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// page is what the image's web server answers with.
const page = "hello from a container\n"

// makeImage makes an image of nothing but a static busybox and a page.
func (s *site) makeImage(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, f := range []struct {
		name    string
		mode    int64
		content []byte
	}{{"bin/busybox", 0o755, busybox}, {"www/index.html", 0o644, []byte(page)}} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content))}))
		_, werr := w.Write(f.content)
		err = errors.Join(err, werr)
	}
	for _, name := range []string{"sh", "sleep", "httpd"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	image := "muster-e2e:" + strings.ToLower(rand.Text())
	if _, err := docker(t.Context(), layer.Bytes(), "import", "-", image); err != nil {
		t.Fatal(err)
	}
	s.image = image
}

// removeImage removes the image, and the containers that should not be there any
// more.
func (s *site) removeImage(t *testing.T) {
	if s.image == "" {
		return
	}
	left, err := s.containers(t.Context(), "")
	if err != nil {
		t.Error(err)
	}
	for id, c := range left {
		t.Errorf("left behind and removed: container %s (%s)", c.name, c.state)
		if _, err := docker(t.Context(), nil, "rm", "-f", id); err != nil {
			t.Error(err)
		}
	}
	if _, err := docker(t.Context(), nil, "rmi", "-f", s.image); err != nil {
		t.Error(err)
	}
}

// container is one of the Engine's containers.
type container struct{ name, state, task, node string }

// containers returns those of the site's image and those that carry one of its
// nodes' labels, by id; in one state, or in all.
func (s *site) containers(ctx context.Context, state string) (map[string]container, error) {
	filters := []string{"ancestor=" + s.image}
	for _, node := range s.nodes {
		filters = append(filters, "label=com.musterhq.node.id="+node)
	}
	found := map[string]container{}
	for _, f := range filters {
		out, err := docker(ctx, nil, "ps", "--all", "--no-trunc", "--filter", f, "--format",
			`{{.ID}}|{{.Names}}|{{.State}}|{{.Label "com.musterhq.task.id"}}|{{.Label "com.musterhq.node.id"}}`)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			f := strings.Split(strings.TrimSpace(line), "|")
			if len(f) == 5 && (state == "" || f[2] == state) {
				found[f[0]] = container{name: f[1], state: f[2], task: f[3], node: f[4]}
			}
		}
	}
	return found, nil
}
