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
	"strings"
	"testing"

	"github.com/musterhq/muster/test/kit/process"
	"github.com/musterhq/muster/test/kit/rig"
)

// processes returns the processes that run a program of the site, or that are of
// a task of its nodes.
func (s *site) processes() ([]rig.Process, error) {
	nodes := map[string]bool{}
	for _, id := range s.nodes {
		nodes[id] = true
	}
	return rig.Machine(s.bin, nodes)
}

// plugin finds the process of an executor plugin of a worker: a child of the
// process that the worker is in, with a state directory that is the worker's.
func (s *site) plugin(worker, executor string) (rig.Process, error) {
	all, err := s.processes()
	if err != nil {
		return rig.Process{}, err
	}
	program := filepath.Join(s.bin, "plugins", "muster-executor-"+executor)
	parent := s.host(worker)
	for _, p := range all {
		if p.Program == program && p.Parent == parent && slices.ContainsFunc(p.Env, func(v string) bool { return strings.Contains(v, "/"+worker+"/") }) {
			return p, nil
		}
	}
	return rig.Process{}, fmt.Errorf("no process of plugin %s of %s", executor, worker)
}

// host is the process that a worker is in.
func (s *site) host(worker string) int {
	if p := s.Process(worker); p != nil {
		return p.PID()
	}
	return s.Process("dev").PID()
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
	if _, err := process.Docker(t.Context(), &layer, "import", "-", image); err != nil {
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
		if _, err := process.Docker(t.Context(), nil, "rm", "-f", id); err != nil {
			t.Error(err)
		}
	}
	if _, err := process.Docker(t.Context(), nil, "rmi", "-f", s.image); err != nil {
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
		out, err := process.Docker(ctx, nil, "ps", "--all", "--no-trunc", "--filter", f, "--format",
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
